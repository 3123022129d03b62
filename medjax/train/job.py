"""What a training loop needs to know of what it trains: the same loop runs language models and, later, ECG encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh, NamedSharding

from medjax.parallel.sharding import Rules
from medjax.train.state import Tree
from medjax.train.step import Loss

Progress = Callable[[int, int], None]


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
    load          gives the variables in place, sharded; trained leaves float32; its argument is called with
                  (parameters done, parameters in all)
    chosen        paths of the trained leaves
    loss          see train.step.Loss; its means are logged under their names
    train         medjax.data.batches.Batches; held_out: HeldOut, or None
    batch         sharding of every array of a batch
    work          what a whole batch (host arrays) costs
    identity      what makes a checkpoint of this run usable by it: base, tokenizer, adapter settings
    export        (run folder, variables) -> command to go on with: write what other commands use
    records       "data" and "model" facts for the report, plain JSON values
    """

    abstract: Tree
    load: Callable[[Progress], Tree]
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
    export: Callable[[Path, Tree], str]
    records: Mapping[str, Any]
    dropout: bool
