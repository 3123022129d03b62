"""The job of pre-training a masked autoencoder on unlabelled ECGs: settings -> data, model, loss.

When training is over, figures show what the model makes of the masked patches of a few held-out records.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medjax.data.batches import local_rows, to_global
from medjax.data.ecg.batches import EcgHeldOut
from medjax.models import ecg_mae
from medjax.models.ecg_mae import EcgMae, MaeConfig
from medjax.nn.patches import patchify, unpatchify
from medjax.parallel.distributed import barrier, is_main
from medjax.parallel.sharding import Constraint
from medjax.report.reconstruction import reconstruction_figure
from medjax.store.encoders import save_encoder
from medjax.store.provenance import versions
from medjax.train.ecg_data import EcgData, ecg_data, threads
from medjax.train.ecg_program import fresh_variables, mae_config, mae_program, model_input
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.flops import vit_flops
from medjax.train.job import Job, Progress, Work
from medjax.train.program import StepProgram
from medjax.train.state import Tree

_SHOWN = 3  # records
_UNITS = {"none": "mV", "record": "SD", "lead": "SD", "fixed": "SD", "minmax": "range"}  # of what the model sees


def mae_job(settings: EcgTrainSettings, say: Callable[[str], None]) -> Job:
    """Prepare everything that a run needs.

    say  called with one line for the user at a time

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    config = mae_config(settings)
    mae_program(settings, 10**9)  # whatever does not fit is refused before the data is read
    data = ecg_data(settings, say)
    train = data.batches(settings)
    steps = settings.train.steps or train.steps(settings.train.epochs)
    say(f"{train.rows_per_epoch:,} records an epoch, {steps:,} steps of {settings.train.batch_size}")
    program = mae_program(settings, steps)
    tokens = len(settings.signal.leads) * settings.signal.samples // settings.encoder.patch
    shown = tokens - round(tokens * config.masked)
    flops = 3 * (vit_flops(config.vit, shown) + vit_flops(config.decoder_vit, tokens))
    identity = {"objective": "mae", "model": config.to_dict(), "preprocessing": settings.signal.to_json()}
    return Job(
        name=f"ecg-mae-{settings.encoder.size}-{Path(settings.data.folders[0]).name}",
        unit="records",
        counted="patches",
        program=program,
        load=partial(_initialised, settings, program, config),
        train=train,
        held_out=data.held_out(settings, settings.data.held_out_most),
        work=lambda batch: Work(len(batch.seeds), len(batch.seeds), flops * len(batch.seeds)),
        identity=identity,
        export=partial(_export, settings, config, data, program, identity),
        threads=threads(settings),
        records={
            "steps": steps,
            "data": {**data.facts(), "rows_per_epoch": train.rows_per_epoch, "fill": 1.0},
            "model": {"name": f"ECG MAE {settings.encoder.size}", "trained": "all", **config.vit.to_dict()},
        },
    )


def _initialised(settings: EcgTrainSettings, program: StepProgram, config: MaeConfig, progress: Progress) -> Tree:
    variables = fresh_variables(settings, ecg_mae.init_variables, config, program)
    progress(1, 1)
    return variables


def reconstruct(
    program: StepProgram, settings: EcgTrainSettings, config: MaeConfig, variables: Tree, held_out: EcgHeldOut
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the model makes of held-out windows under the masks of the held-out loss, on the scale that it sees.

    returns  original [windows, leads, samples] float32, NaN where not valid; reconstruction, the same shape, whole;
             masked [windows, leads, patches] bool; on every process
    """
    model = EcgMae(
        config, jnp.dtype(settings.encoder.dtype), settings.train.remat, Constraint(program.mesh, program.rules)
    )
    whole = NamedSharding(program.mesh, PartitionSpec())
    like = program.held_out_batch

    @partial(jax.jit, out_shardings=whole)
    def run(variables, batch):
        signal, valid = model_input(settings, batch, training=False)
        made: Any = model.apply(variables, signal, valid, batch.seeds)
        predicted = made.predicted.astype(jnp.float32)
        if config.normalised_targets:
            patches = patchify(signal, config.vit.patch)
            # the inverse of nn.objectives.normalised_patches
            predicted = predicted * jnp.sqrt(patches.var(-1, keepdims=True) + 1e-6) + patches.mean(-1, keepdims=True)
        full = unpatchify(predicted, config.vit.patch, signal.shape[1:])
        return jnp.where(valid, signal, jnp.nan), full, made.mask.masked.reshape(*signal.shape[:2], -1)

    rows = local_rows(like)
    found = []
    with jax.default_matmul_precision(program.precision):
        for number in range(len(held_out)):
            batch = to_global(held_out.batch_at(number, rows), like, first_row=rows.start)
            found.append([np.asarray(part) for part in run(variables, batch)])
    original, made, masked = (np.concatenate(parts)[: held_out.filled] for parts in zip(*found, strict=True))
    return original, made, masked


def _figures(
    settings: EcgTrainSettings, config: MaeConfig, data: EcgData, program: StepProgram, variables: Tree
) -> list[str]:
    """SVG of the first window of a few held-out records."""
    held_out = data.held_out(settings, _SHOWN)
    if not held_out:
        return []
    original, made, masked = reconstruct(program, settings, config, variables, held_out)
    places, first = np.unique(held_out.places, return_index=True)
    return [
        reconstruction_figure(
            original[window],
            made[window],
            masked[window],
            settings.signal.leads,
            settings.signal.sampling_rate_hz,
            unit=_UNITS[settings.signal.normalisation],
            title=f"Held-out record {data.dataset.index['id'][place]}",
        )
        for place, window in zip(places, first, strict=True)
    ]


def _export(
    settings: EcgTrainSettings,
    config: MaeConfig,
    data: EcgData,
    program: StepProgram,
    identity: Mapping[str, Any],
    folder: Path,
    variables: Tree,
) -> str:
    """Write RUN/seen.json, RUN/model and RUN/reconstruction-1.svg …; returns the command to go on with."""
    place = folder / "model"
    figures = _figures(settings, config, data, program, variables)
    if is_main():
        shutil.rmtree(place, ignore_errors=True)
        data.seen().write(folder)  # before the model: one whose leaks nobody could find must not be left behind
        for number, figure in enumerate(figures, 1):
            (folder / f"reconstruction-{number}.svg").write_text(figure, "utf-8")
    barrier("model folder")
    facts = {
        "preprocessing": identity["preprocessing"],
        "split": data.rule.to_json(),
        "leads": list(data.leads(settings)),
        "training": {"digest": data.dataset.digest},
        "versions": versions("optax"),
    }
    save_encoder(place, "ecg_mae", identity["model"], variables["params"], facts)
    folders = ",".join(settings.data.folders)
    return f"python -m medjax.train --objective classify --start {folder} --data {folders} --targets LABEL"
