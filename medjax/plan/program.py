"""The step that a run would take, from its settings alone: no weights, no data, the same code path as medjax.train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medjax.models.decoder_config import DecoderConfig
from medjax.models.predictor import PredictorConfig, Target
from medjax.models.published import NAMES, published
from medjax.models.vit import VitConfig
from medjax.nn.loss import CHUNK
from medjax.parallel.sharding import ways
from medjax.train.ecg_program import encoder_config, mae_config, mae_program, predictor_program
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.flops import TrainingFlops, attended_pairs, vit_flops
from medjax.train.language_program import LanguageProgram, step_program
from medjax.train.program import StepProgram
from medjax.train.settings import RunSettings, TrainSettings

_STEPS = 1000  # of the schedule, where the settings give passes over data that are not here; no figure depends on it


@dataclass(frozen=True)
class Stack:
    """Blocks of an encoder, and the tokens of a record that go through them."""

    vit: VitConfig
    tokens: int


@dataclass(frozen=True)
class PlannedStep:
    """A step to compile, and what it does in the units of its user.

    unit         "tokens" or "records"
    per_step     of these in a step, rows full
    model_flops  of a step, by the conventions of train.flops: what MFU counts
    kernel_flops of a step in attention kernels, which the compiler's counts do not hold, forward, backward and what is
                 computed again; 0 where attention is spelt out
    turns        of loops whose end is data, by a part of their name: all rows full
    beyond       what is longer than the model was made for, in words; empty where nothing is
    config       of the decoder, where there is one
    stacks       of blocks, of an encoder
    """

    settings: RunSettings
    program: StepProgram
    unit: str
    per_step: int
    model_flops: float
    kernel_flops: float
    turns: dict[str, int]
    beyond: str = ""
    config: DecoderConfig | None = None
    stacks: tuple[Stack, ...] = ()


def planned_step(settings: RunSettings, devices: list[Any] | None) -> PlannedStep:
    """The step of a training run on these devices; None: all of this machine.

    Raises ValueError where model, mesh, batch, window or back end do not fit together.
    """
    if isinstance(settings, TrainSettings):
        return _language(settings, devices)
    assert isinstance(settings, EcgTrainSettings)
    return _ecg(settings, devices)


def decoder_of(name: str) -> DecoderConfig:
    """The decoder of a local folder or file, or of a hub id; only its sizes are read.

    Raises ValueError for a hub id whose shape is not known and which is not in the cache.
    """
    if Path(name).expanduser().exists() or "/" not in name:
        from medjax.assets import resolve_model
        from medjax.store.sources import open_source

        return open_source(resolve_model(name)).config
    if found := published(name):
        return found
    raise ValueError(
        f"model.name: got {name}, expected a folder with its config.json, a registered name, or a hub id whose "
        f"shape is known: {', '.join(NAMES)}; download config.json into a folder and name that."
    )


def _language(settings: TrainSettings, devices: list[Any] | None) -> PlannedStep:
    config = decoder_of(settings.model.name)
    program = step_program(settings, config, settings.train.steps or _STEPS, devices)
    window, rows = settings.data.window, settings.train.batch_size
    pairs = rows * attended_pairs(config, np.arange(window))
    trained = "lora" if program.lora else "head" if settings.train.trainable == ("head",) else "full"
    flops = TrainingFlops(config, trained, program.lora)
    tokens = rows * window
    shard = tokens // settings.train.accumulation // ways(program.mesh, program.rules.batch)
    shard //= ways(program.mesh, program.rules.seq)
    return PlannedStep(
        settings,
        program,
        "tokens",
        tokens,
        flops.of_step(tokens, pairs, tokens),
        _kernel_flops(program, config, pairs),
        {"loss": -(-shard // CHUNK)},
        beyond(config, "data.window", window),
        config,
    )


def beyond(config: DecoderConfig, what: str, tokens: int) -> str:
    """Rows that are longer than the context of a model, in words; empty where they are not."""
    if tokens <= config.max_length:
        return ""
    return (
        f"{what}: rows of {tokens:,} tokens are longer than the {config.max_length:,} that the model was made for; "
        "documents must be shorter, or the model learns to read longer ones"
    )


def _kernel_flops(program: LanguageProgram, config: DecoderConfig, pairs: float) -> float:
    """Forward 4 a pair and component; backward 14 of splash (both its kernels compute scores again), 10 of cuDNN."""
    if program.backend not in ("splash", "cudnn"):
        return 0.0
    again = 4 if program.steps.remat == "full" else 0
    backward = 14 if program.backend == "splash" else 10
    return config.heads * config.head_dim * pairs * (4 + again + backward)


def _ecg(settings: EcgTrainSettings, devices: list[Any] | None) -> PlannedStep:
    tokens = len(settings.signal.leads) * settings.signal.samples // settings.encoder.patch
    rows = settings.train.batch_size
    if settings.objective == "mae":
        config = mae_config(settings)
        program = mae_program(settings, settings.train.steps or _STEPS, devices)
        shown = tokens - round(tokens * config.masked)
        flops = 3 * (vit_flops(config.vit, shown) + vit_flops(config.decoder_vit, tokens))
        stacks = [Stack(config.vit, shown + config.vit.extra), Stack(config.decoder_vit, tokens)]
    else:
        kind = "regression" if settings.objective == "regress" else "binary"
        mean, sd = (0.0, 1.0) if kind == "regression" else (None, None)  # no figure depends on them
        targets = tuple(Target(name, kind, mean=mean, sd=sd) for name in settings.data.targets or ("target",))
        vit = encoder_config(settings)
        program = predictor_program(
            settings, PredictorConfig(vit, targets, settings.finetune.pooling), settings.train.steps or _STEPS, devices
        )
        flops = vit_flops(vit, tokens) * (3 if settings.finetune.trained == "full" else 1)
        stacks = [Stack(vit, tokens + vit.extra)]
    return PlannedStep(settings, program, "records", rows, flops * rows, 0.0, {}, stacks=tuple(stacks))
