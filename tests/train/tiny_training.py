"""A tiny model to train: settings, variables and batches made without a file, and a checkpoint folder with documents.

Embed 64 and MLP 192, as NF4 wants multiples of 64; 8 heads and 2 kv heads, so that an axis of 4 splits one and not the
other; vocabulary 400.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_checkpoint import write_checkpoint
from tiny_decoders import CONFIGS, random_tensors, write_folder

from medjax.config import load
from medjax.data.text.documents import Document
from medjax.data.text.packing import Batch, fill_rows
from medjax.models.decoder_config import DecoderConfig, from_hugging_face
from medjax.nn.quant import quantise
from medjax.parallel.sharding import is_box
from medjax.train.language_program import LanguageProgram, step_program
from medjax.train.settings import TrainSettings
from medjax.train.state import Tree, init_state, path_name, split
from medjax.train.step import StepMetrics

LLAMA = CONFIGS["llama"] | {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
NEOX = CONFIGS["neox-parallel"] | {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
}
CONFIG = from_hugging_face(LLAMA)
ROWS, WINDOW, STEPS = 8, 256, 5


def settings_of(**options: Any) -> TrainSettings:
    """Settings of a tiny run; options by path with "__" for ".", such as train__accumulation=2."""
    given = {
        "train.batch_size": ROWS,
        "data.window": WINDOW,
        "lora.rank": 4,
        "train.remat": "none",
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup": 0.0,
    }
    given |= {name.replace("__", "."): value for name, value in options.items()}
    return load(TrainSettings, overrides=given)


def program_of(devices: int = 1, config: DecoderConfig = CONFIG, **options: Any) -> LanguageProgram:
    return step_program(settings_of(**options), config, STEPS, jax.devices()[:devices])


def variables_of(program: LanguageProgram, seed: int = 0) -> Tree:
    """Random variables of a program, in place; the same numbers on every mesh, adapters' B far from zero."""
    boxes = jax.tree_util.tree_leaves_with_path(program.variables, is_leaf=is_box)
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for path, box in boxes:
        name, shape = path_name(path), box.value.shape
        if "/kernel/" in name:
            kernel = name.rpartition("/")[0]
            if name.endswith("/codes"):
                layers, out, into = shape[0], shape[1], shape[2] * (1 if box.value.dtype == np.int8 else 2)
                drawn = (rng.normal(size=(layers, out, into)) * into**-0.5).astype(np.float32)
                made = [quantise(program.settings.model.quantisation or "", matrix) for matrix in drawn]
                values |= {f"{kernel}/{part}": np.stack([each[part] for each in made]) for part in made[0]}
        elif name.endswith("/scale"):
            values[name] = 1 + 0.3 * rng.normal(size=shape)
        else:
            values[name] = rng.normal(size=shape) * (0.1 if name.endswith(("/b", "/bias")) else 0.125)
    places = {
        path_name(path): leaf
        for tree in (program.state.trainable, program.frozen)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

    def put(path, box):
        leaf = places[path_name(path)]
        return jax.device_put(values[path_name(path)].astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, program.variables, is_leaf=is_box)


def batch_of(seed: int, rows: int = ROWS, window: int = WINDOW, vocab: int = 400) -> Batch:
    """Host arrays of packed documents with prompts that do not count, and padding; later rows count more tokens."""
    rng = np.random.default_rng(seed)
    packed = []
    for row in range(rows):
        documents, room = [], window - int(rng.integers(0, 40))
        while room >= 8:
            size = int(min(room, rng.integers(8, 90)))
            # a pattern that can be learned: a token is mostly one more than the last
            tokens = (np.cumsum(np.where(rng.random(size) < 0.9, 1, 7)) + rng.integers(vocab)) % vocab
            counted = np.arange(size) >= rng.integers(1, size if row < rows // 2 else 3)
            documents.append(Document(tokens.astype(np.int32), counted, f"{row}"))
            room -= size
        packed.append(documents)
    return fill_rows(packed, window)


def placed(program: LanguageProgram, batch: Batch) -> Batch:
    return jax.device_put(batch, program.batch.tokens.sharding)


class Run:
    """A compiled step with its state."""

    def __init__(self, program: LanguageProgram):
        self.program = program
        # half the time to compile, and the same program
        self.compiled = program.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
        self.anew()

    def anew(self) -> "Run":
        """Begin at step 0 with the same random variables."""
        trainable, self.frozen = split(variables_of(self.program), self.program.chosen)
        self.trainable = jax.tree.map(np.array, trainable)  # init_state takes the arrays over
        self.state = init_state(trainable, self.program.tx, self.program.state)
        return self

    def steps(self, count: int = STEPS, first: int = 0) -> list[StepMetrics]:
        """Take steps on batches `first`, first + 1, …; their metrics on the host."""
        found = []
        for number in range(first, first + count):
            batch = placed(self.program, batch_of(number, self.program.settings.train.batch_size))
            self.state, metrics = self.compiled(self.state, self.frozen, batch)
            found.append(jax.device_get(metrics))
        return found

    def losses(self, count: int = STEPS, first: int = 0) -> list[float]:
        return [float(metrics.means["loss"]) for metrics in self.steps(count, first)]


def write_model(folder: Path, seed: int = 5, config: dict = LLAMA) -> Path:
    """A checkpoint folder with a byte-level tokenizer and a chat template."""
    write_checkpoint(folder, seed)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = config | {"vocab_size": vocab}
    return write_folder(folder, config, random_tensors(config, seed))


def write_notes(path: Path, count: int = 60) -> Path:
    """JSONL of short clinical notes, ids note0, note1, …"""
    lines = [
        {
            "id": f"note{i}",
            "text": f"Case {i}: fever for {i % 9} days, then cough. Assessment: pneumonia, grade {i % 4}.",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def arguments(shelf: Path, out: Path, *more: str) -> list[str]:
    """Of `python -m medjax.train`: 12 steps with dropout, saved every 3 and evaluated every 4 of them."""
    return [
        *("--model", str(shelf / "model"), "--data", str(shelf / "notes.jsonl"), "--data.exams", "none"),
        *("--data.held_out_count", "8", "--window", "128", "--batch-size", "8", "--steps", "12"),
        *("--lora.rank", "4", "--lora.dropout", "0.1", "--train.remat", "none", "--learning-rate", "1e-3"),
        *("--log.every", "1", "--log.held_out_every", "4", "--log.sinks", "[]", "--checkpoint.every", "3"),
        *("--out", str(out), *more),
    ]


def environment(shelf: Path, devices: int = 8) -> dict[str, str]:
    """Of a process that trains: the tests' cache and fake devices."""
    return os.environ | {
        "MEDJAX_CACHE": str(shelf / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def disturbed(shelf: Path, what: str, moment: str, *given: str, devices: int = 8) -> subprocess.CompletedProcess[str]:
    """Train in a process to which something happens (disturbed_training.py)."""
    command = [sys.executable, str(Path(__file__).with_name("disturbed_training.py")), what, moment, *given]
    return subprocess.run(command, env=environment(shelf, devices), capture_output=True, text=True, timeout=300)
