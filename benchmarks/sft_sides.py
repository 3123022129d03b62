"""The two sides of sft_vs_peft.py: medjax in this process, the peer in its own; both stay loaded and run blocks.

A block is a dict: seconds and cpu_seconds (of all threads) for `steps` steps, real_tokens, computed_tokens (padding
included), counted_tokens, losses, documents (their numbers, in the order of training).
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import matmul_gflops
from peers import peers_folder
from safetensors.numpy import save_file
from sft_corpus import DocumentBatches, Steps, spread

from medjax.data.text.documents import Document
from medjax.nn.lora import LoraConfig
from medjax.store.sources import open_source
from medjax.train.settings import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    TrainingSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from medjax.data.text.packing import Batch
    from medjax.train.step import StepMetrics

_TARGETS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PROBE = {"cpu": (1024, 576, 1536), "gpu": (4096, 4096, 14336), "tpu": (4096, 4096, 14336)}  # as the peer's
LORA = LoraConfig(16, 32.0, tuple(_TARGETS))
LEARNING_RATE = 2e-4
_TRIAL_GROUPS = 2
_ENDLESS = 1_000_000  # steps of the schedule, which is constant


class PeftSide:
    """peft_peer.py as a process that answers; a context manager, which ends it.

    Raises RuntimeError when the process ends early; its own messages have been shown by then.
    """

    def __init__(
        self,
        python: Path,
        job: dict[str, Any],
        adapters: dict[str, np.ndarray],
        documents: list[Document],
        folder: Path,
    ):
        tensors, file = folder / "adapters.safetensors", folder / "job.json"
        save_file(adapters, tensors)
        listed = [{"tokens": one.tokens.tolist(), "counted": one.counted.tolist()} for one in documents]
        file.write_text(json.dumps(job | {"adapters": str(tensors), "documents": listed}), "utf-8")
        command = [str(python), str(Path(__file__).with_name("peft_peer.py")), "--job", str(file)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        print("peft: loading", flush=True)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.description = self._answer()

    def __enter__(self) -> "PeftSide":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            return json.loads(line)
        raise RuntimeError(
            f"peft_peer.py: ended with status {self._process.wait()}, expected an answer; its messages are above. Out "
            f"of memory (-9): use fewer --layers or a smaller --batch-size. Broken environment: delete "
            f"{peers_folder() / 'peft'}."
        )

    def _ask(self, **command: Any) -> dict[str, Any]:
        if self._process.stdin and self._process.poll() is None:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def first_losses(self, documents: list[int], steps: int) -> list[float]:
        """Mean losses over the counted tokens of one batch, before each of some steps on it."""
        return self.block([[documents]] * steps, "first steps")["losses"]

    def probe(self) -> float:
        """Matmul rate in GFLOP/s."""
        return self._ask(do="probe")["matmul_gflops"]

    def block(self, steps: Steps, name: str) -> dict[str, Any]:
        """Train some steps. Raises RuntimeError when the device's memory does not suffice."""
        found = self._ask(do="block", steps=steps)
        if found.get("out_of_memory"):
            raise RuntimeError(f"peft, {name}: out of memory; use fewer --layers, or a smaller --batch-size.")
        report(f"peft, {name}", found)
        return found | {"documents": [i for step in steps for batch in step for i in batch]}

    def trials(self, batches: DocumentBatches, sizes: list[int]) -> dict[int, float | None]:
        """Computed tokens/s of a few batches of similar lengths, by documents of a micro-batch; None: out of memory."""
        chosen = spread(batches, _TRIAL_GROUPS, lambda batch: float(batches.index(batch)))
        rates: dict[int, float | None] = {}
        for size in sizes:
            steps = [[batch[start : start + size] for start in range(0, len(batch), size)] for batch in chosen]
            found = self._ask(do="block", steps=steps)
            rates[size] = None if found.get("out_of_memory") else found["computed_tokens"] / found["seconds"]
        if not any(rates.values()):
            raise RuntimeError(f"peft: out of memory with micro-batches of {sizes}; use fewer --layers.")
        return rates


class MedjaxSide:
    """The model in place, its training state, and batches packed from the whole corpus."""

    def __init__(
        self, options: argparse.Namespace, model: Path, adapters: dict[str, np.ndarray], documents: list[Document]
    ):
        from medjax.data.text import batches
        from medjax.data.text.documents import DocumentList
        from medjax.store.loading import load_decoder
        from medjax.train.language_program import step_program
        from medjax.train.state import init_state, split

        print("medjax: loading", flush=True)
        start = time.perf_counter()
        self._program = program = step_program(settings_of(options), open_source(model).config, _ENDLESS)
        loaded = load_decoder(model, dtype=options.dtype, mesh=program.mesh, rules=program.rules)
        variables = {"params": loaded.params, "lora": stacked_adapters(adapters, program.variables["lora"])}
        trainable, self._frozen = split(variables, program.chosen)
        self._state = init_state(trainable, program.tx, program.state)
        self.load_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._step = program.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        self._documents = documents
        self._number = {document.id: number for number, document in enumerate(documents)}
        self._batches = batches.DocumentBatches(DocumentList(documents), window=options.row, rows=options.rows, seed=0)
        self._options = options
        self.fill = self._batches.fill
        self.device = program.mesh.devices.flat[0].device_kind

    def description(self) -> dict[str, Any]:
        """What ran here."""
        return {"load_seconds": self.load_seconds, "compile_seconds": self.compile_seconds, "device": self.device}

    def first_losses(self, documents: list[int], steps: int) -> list[float]:
        """Mean losses over the counted tokens of one batch, before each of some steps on it.

        Raises ValueError when the documents need more rows than a step has.
        """
        from medjax.data.text.packing import Packing, fill_rows

        chosen = [self._documents[i] for i in documents]
        row, rows = self._options.row, self._options.rows
        packing = Packing(np.array([len(document.tokens) for document in chosen]), row)
        if packing.rows > rows:
            raise ValueError(
                f"--rows: got {rows} of {row} tokens, expected {packing.rows} for {len(chosen)} documents."
            )
        epoch = packing.in_order()
        packed = [[chosen[i] for i in epoch.row(r)] for r in range(packing.rows)] + [[]] * (rows - packing.rows)
        batch = fill_rows(packed, row)
        return [float(self._train(batch).means["loss"]) for _ in range(steps)]

    def _train(self, batch: "Batch") -> "StepMetrics":
        from medjax.data.batches import to_global

        placed = to_global(batch, self._program.batch)
        self._state, told = self._step(self._state, self._frozen, placed)
        return told

    def probe(self) -> float:
        """Matmul rate in GFLOP/s."""
        return matmul_gflops(sizes=_PROBE[self._options.device], dtype=self._options.dtype)

    def block(self, steps: int) -> dict[str, Any]:
        """Train steps 0 to `steps` of the corpus; the clock covers filling rows, transfer and the steps."""
        import jax

        metrics = []
        start, cpu_start = time.perf_counter(), time.process_time()
        for step in range(steps):
            metrics.append(self._train(self._batches.batch_at(step)))
        jax.block_until_ready((self._state, metrics))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        numbers = [self._number[name] for step in range(steps) for name in self._batches.record_ids(step)]
        found = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "steps": steps,
            "real_tokens": sum(len(self._documents[i].tokens) for i in numbers),
            "computed_tokens": steps * self._options.rows * self._options.row,
            "counted_tokens": int(sum(float(told.counted) for told in metrics)),
            "losses": [float(told.means["loss"]) for told in metrics],
            "documents": numbers,
        }
        report("medjax, packed", found)
        return found


def settings_of(options: argparse.Namespace) -> TrainSettings:
    """The job as `python -m medjax.train` would be told of it, but for the data."""
    return TrainSettings(
        model=ModelSettings(dtype=options.dtype),
        lora=LoraSettings(rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets),
        data=DataSettings(window=options.row),
        train=TrainingSettings(batch_size=options.rows, remat=options.remat),
        optimizer=OptimizerSettings(
            learning_rate=LEARNING_RATE, schedule="constant", warmup=0.0, weight_decay=0.0, clip=1.0
        ),
    )


def stacked_adapters(adapters: dict[str, np.ndarray], abstract: Any) -> Any:
    """The collection `lora`: A of every layer, [rank, in], in medjax's order and stacked; B zero.

    adapters  by names as "layers.0.self_attn.q_proj"
    abstract  boxed shapes of the collection
    """
    import jax

    def leaf(path, box):
        *_, target, factor = (key.key for key in path)
        if factor == "b":
            return np.zeros(box.value.shape, np.float32)
        layers = range(box.value.shape[0])
        return np.stack([adapters[f"layers.{i}.{_TARGETS[target]}"].T for i in layers]).reshape(box.value.shape)

    return jax.tree_util.tree_map_with_path(leaf, abstract, is_leaf=lambda box: hasattr(box, "names"))


def report(side: str, block: dict[str, Any]) -> None:
    """One line for a finished block."""
    real, computed = (block[f"{kind}_tokens"] / block["seconds"] for kind in ("real", "computed"))
    print(
        f"{side}: {block['steps']} steps, {real:.1f} real and {computed:.1f} computed tokens/s "
        f"(CPU {block['cpu_seconds'] / block['seconds']:.2f} cores)",
        flush=True,
    )
