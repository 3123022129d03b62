"""The two sides of ecg_mae_vs_torch.py: medjax in this process, PyTorch in its own; both stay loaded and run blocks.

A block is a dict: seconds and cpu_seconds (of all threads) for `steps` steps, records, losses.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import matmul_gflops
from peers import peers_folder
from safetensors.numpy import save_file

from medjax.data.ecg.batches import EcgBatch
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.signal import Preprocessing
from medjax.models.ecg_mae import MaeConfig
from medjax.train.ecg_settings import EcgTrainSettings, EncoderSettings, MaeSettings
from medjax.train.flops import vit_flops
from medjax.train.settings import OptimizerSettings, StepsSettings

OPTIMIZER = OptimizerSettings(
    learning_rate=1e-4, schedule="constant", warmup=0.0, weight_decay=0.05, beta2=0.95, clip=1.0
)
_ENDLESS = 1_000_000  # steps of the schedule, which is constant

Variant = dict[str, Any]  # how the peer runs: `parts`, the micro-batches of a step, and `compiled`


def settings_of(options: argparse.Namespace) -> EcgTrainSettings:
    """The job as `python -m medjax.train` would be told of it, but for the data, which is normalised already."""
    return EcgTrainSettings(
        signal=Preprocessing(samples=options.samples, normalisation="none"),
        encoder=EncoderSettings(size=options.size, patch=options.patch, dtype=options.dtype),
        mae=MaeSettings(decoder_embed=options.decoder_embed),
        train=StepsSettings(batch_size=options.batch_size, accumulation=options.accumulation, remat=options.remat),
        optimizer=OPTIMIZER,
    )


def made_batch(options: argparse.Namespace) -> EcgBatch:
    """A batch of noise: the work of a step does not depend on what the signal is."""
    random, rows = np.random.default_rng(0), options.batch_size
    signal = random.standard_normal((rows, len(LEADS), options.samples), np.float32)
    return EcgBatch(
        signal=signal,
        valid=np.ones(signal.shape, bool),
        targets=np.zeros((rows, 1), np.float32),
        weights=np.ones((rows, 1), np.float32),
        seeds=random.integers(1 << 32, size=rows, dtype=np.uint32),
    )


def step_flops(config: MaeConfig, tokens: int, visible: int) -> float:
    """Operations of forward and backward for one record, 3 times the forward pass; what remat repeats does not count.

    Blocks by train.flops.vit_flops; patch embedding, the decoder's embedding and its head besides.
    """
    d, e, values = config.vit.embed, config.decoder_embed, config.vit.values
    ends = 2 * (visible * (values * d + d * e) + tokens * e * values)
    return 3 * (vit_flops(config.vit, visible) + vit_flops(config.decoder_vit, tokens) + ends)


class MedjaxSide:
    """The step of `python -m medjax.train` with objective mae, its state, and one batch on the device."""

    def __init__(self, options: argparse.Namespace):
        import jax

        from medjax.data.batches import to_global
        from medjax.models import ecg_mae
        from medjax.train.ecg_program import mae_config, mae_program
        from medjax.train.state import init_state, split

        settings = settings_of(options)
        self.config = mae_config(settings)
        program = mae_program(settings, _ENDLESS)
        host = made_batch(options)
        self._batch = to_global(host, program.batch)
        self.device = program.mesh.devices.flat[0].device_kind
        self.devices = program.mesh.size
        variables = jax.jit(ecg_mae.init_variables, static_argnums=0)(self.config, jax.random.key(0))
        self.weights = {
            ".".join(key.key for key in path): np.array(leaf)  # a copy: the state takes the arrays over
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        }
        self.first_batch = {"signal": host.signal} | self._mask(host)
        trainable, self._frozen = split(variables, program.chosen)
        self._state = init_state(trainable, program.tx, program.state)
        start = time.perf_counter()
        self._step = program.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = self._step.memory_analysis().temp_size_in_bytes
        self._probe_sizes, self._dtype = probe_sizes(options, self.config), options.dtype

    def _mask(self, batch: EcgBatch) -> dict[str, np.ndarray]:
        """keep [rows, visible] and slot [rows, tokens] as the step draws them from the rows' seeds."""
        from medjax.models.ecg_mae import random_mask

        tokens = batch.signal.shape[1] * batch.signal.shape[2] // self.config.vit.patch[0]
        known = np.ones((len(batch.seeds), tokens), bool)
        mask = random_mask(batch.seeds, known, self.config, leads=batch.signal.shape[1])
        return {"keep": np.asarray(mask.keep), "slot": np.asarray(mask.slot)}

    def positions(self) -> dict[str, np.ndarray]:
        """The fixed places of all tokens, of the encoder and of the decoder: [tokens, width]."""
        from medjax.nn.patches import token_positions
        from medjax.nn.positions import sin_cos

        places = token_positions(self._batch.signal.shape[1:], self.config.vit.patch)
        widths = {"encoder": self.config.vit.embed, "decoder": self.config.decoder_embed}
        return {f"positions.{name}": np.asarray(sin_cos(places, width)) for name, width in widths.items()}

    def first(self) -> dict[str, float]:
        """Train the first step: loss and gradient norm before it."""
        self._state, told = self._step(self._state, self._frozen, self._batch)
        return {"loss": float(told.means["loss"]), "grad_norm": float(told.grad_norm)}

    def block(self, steps: int) -> dict[str, Any]:
        """Train; the clock covers drawing masks, forward, backward and the optimiser, up to the last step's end."""
        import jax

        losses = []
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._state, told = self._step(self._state, self._frozen, self._batch)
            losses.append(told.means["loss"])
        jax.block_until_ready((self._state, losses))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "steps": steps,
            "records": steps * len(self._batch.seeds),
            "losses": [float(loss) for loss in losses],
        }

    def probe(self) -> float:
        """Matmul rate in GFLOP/s."""
        return matmul_gflops(10, sizes=self._probe_sizes, dtype=self._dtype)


class TorchSide:
    """ecg_mae_torch.py as a process that answers; a context manager, which ends it.

    Raises RuntimeError when the process ends early; its own messages have been shown by then.
    """

    def __init__(self, python: Path, options: argparse.Namespace, ours: MedjaxSide, folder: Path):
        weights, batch, file = (folder / name for name in ("weights.safetensors", "batch.safetensors", "job.json"))
        save_file(ours.weights | ours.positions(), weights)
        save_file(ours.first_batch, batch)
        config = ours.config
        job = {
            "weights": str(weights),
            "batch": str(batch),
            "shape": {
                "patch": config.vit.patch[0],
                "heads": config.vit.heads,
                "decoder_heads": config.decoder_heads,
                "norm_eps": config.vit.norm_eps,
            },
            "device": {"gpu": "cuda"}.get(options.device, "cpu"),
            "dtype": options.dtype,
            "threads": options.threads,
            "optimizer": {
                name: getattr(OPTIMIZER, name)
                for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "clip")
            },
        }
        file.write_text(json.dumps(job), "utf-8")
        command = [str(python), str(Path(__file__).with_name("ecg_mae_torch.py")), "--job", str(file)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._probe_sizes = probe_sizes(options, config)
        self.description = self._answer()

    def __enter__(self) -> "TorchSide":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            return json.loads(line)
        raise RuntimeError(
            f"ecg_mae_torch.py: ended with status {self._process.wait()}, expected an answer; its messages are above. "
            "Killed for memory (-9): use a smaller --batch-size. Broken environment: delete "
            f"{peers_folder() / 'torch'}."
        )

    def _ask(self, **command: Any) -> dict[str, Any]:
        if self._process.stdin and self._process.poll() is None:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def first(self) -> dict[str, float]:
        """Loss and gradient norm of the first step."""
        return self._ask(do="first")

    def block(self, steps: int, variant: Variant) -> dict[str, Any]:
        """Train; {"failed": why} when this variant does not compile or does not fit."""
        return self._ask(do="block", steps=steps, **variant)

    def probe(self) -> float:
        """Matmul rate in GFLOP/s."""
        rows, width, wide = self._probe_sizes
        return self._ask(do="probe", rows=rows, width=width, wide=wide)["matmul_gflops"]


def probe_sizes(options: argparse.Namespace, config: MaeConfig) -> tuple[int, int, int]:
    """Rows, width and inner width of the encoder's MLP for a whole batch."""
    visible = int(len(LEADS) * options.samples // options.patch * (1 - config.masked))
    return options.batch_size * visible, config.vit.embed, config.vit.mlp
