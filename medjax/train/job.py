"""What a training loop needs to know of what it trains: the same loop runs language models and, later, ECG encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optax
from jax.sharding import Mesh, NamedSharding

from medjax.parallel.sharding import Rules
from medjax.train.state import Tree
from medjax.train.step import Loss


class Source(Protocol):
    """Batches by number, as medjax.data.batches makes them; `rows` is the part of a batch that a process needs."""

    rows: int
    window: int

    def batch_at(self, step: int, rows: slice | None = None) -> Any: ...

    def document_ids(self, step: int, rows: slice | None = None) -> list[str]: ...


@dataclass(frozen=True)
class Work:
    """What one batch costs: its real and computed tokens (or records), and its model operations."""

    real: int
    computed: int
    flops: float


@dataclass(frozen=True)
class Job:
    """One training job, ready to run.

    abstract      boxed tree of all variables
    load          gives the variables in place, sharded; trained leaves float32
    chosen        paths of the trained leaves
    loss          see train.step.Loss; its means are logged under their names
    train         batches; held_out: batches of the held-out loss, or None with the number 0
    batch         sharding of every array of a batch
    work          what a whole batch (host arrays) costs
    identity      what makes a checkpoint of this run usable by it: base, tokenizer, adapter settings
    export        (folder, variables' trained part, step) -> sentence: write what can be used elsewhere
    records       "data" and "model" facts for the report, plain JSON values
    """

    abstract: Tree
    load: Callable[[], Tree]
    chosen: frozenset[str]
    loss: Loss
    tx: optax.GradientTransformation
    mesh: Mesh
    rules: Rules
    batch: NamedSharding
    train: Any
    held_out: Any
    work: Callable[[Any], Work]
    identity: Mapping[str, Any]
    export: Callable[[Path, Tree, int], str]
    records: Mapping[str, Any]
    dropout: bool
