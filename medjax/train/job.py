"""What a training loop needs to know of what it trains: the same loop runs language models and ECG encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medjax.data.batches import Batches, HeldOut
from medjax.train.program import StepProgram
from medjax.train.settings import RunSettings
from medjax.train.state import Tree

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

    name      of the run, where the user gives none
    unit      of what a batch holds: "tokens" or "records"
    counted   what the loss is a mean over: "tokens", "patches" or "labels"
    program   the step, and the shapes, dtypes and shardings of what goes in
    load      gives the variables in place, sharded; trained leaves float32; its argument is called with
              (parameters done, parameters in all)
    work      what a batch (host arrays) costs
    identity  what makes a checkpoint of this run usable by it: base, tokenizer, adapter settings
    export    (run folder, variables) -> command to go on with: write what other commands use
    settings  as resolved by the job, such as with the preprocessing of the run that is started from; None: as given
    threads   that make batches
    records   "steps", and "data" (with its "digest") and "model" facts for the report, plain JSON values
    """

    name: str
    unit: str
    counted: str
    program: StepProgram
    load: Callable[[Progress], Tree]
    train: Batches
    held_out: HeldOut | None
    work: Callable[[Any], Work]
    identity: Mapping[str, Any]
    export: Callable[[Path, Tree], str]
    records: Mapping[str, Any]
    settings: RunSettings | None = None
    threads: int = 4
