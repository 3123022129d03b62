"""Why a run ends early: steps that cannot be applied, and a scheduler or a user who wants the machine back."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from medjax.data.batches import Batches
from medjax.parallel import distributed
from medjax.train.metrics import StepLog, read_log
from medjax.train.settings import StepsSettings
from medjax.train.step import StepMetrics


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


class Stopped(Exception):  # noqa: N818  it is no error
    """Training was told to stop, has saved, and can go on."""


class Preemption:
    """Hears SIGTERM and Ctrl-C while it is entered, so that the step under way is finished and saved.

    A second signal ends the process at once. With several processes JAX hears SIGTERM, which Ctrl-C is turned into, and
    all stop after the same step.
    """

    def __init__(self) -> None:
        self._heard = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        import jax

        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            wanted = (
                {signal.SIGTERM: self._hear, signal.SIGINT: self._hear} if alone else {signal.SIGINT: self._pass_on}
            )
            self._before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Whether the run is to stop after this step; the same answer in every process."""
        return self._heard or distributed.preempted(step)


class BadSteps:
    """Counts steps whose update was left out and writes them to bad_steps.jsonl with the documents of their batch.

    start  the step that was restored, 0 for a fresh run: bad steps after it come again
    main   whether this process writes
    """

    def __init__(self, folder: Path, settings: StepsSettings, batches: Batches, start: int, main: bool):
        self._path = folder / "bad_steps.jsonl"
        self._settings = settings
        self._batches = batches
        self._log = StepLog(self._path, start or None) if main else None
        self.count = len(read_log(self._path)) if main else 0

    def check(self, number: int, metrics: StepMetrics, say: Callable[[str], None]) -> None:
        """Look at a finished step (host values). Raises TrainingError where the settings want the run to stop."""
        if bool(metrics.taken):
            return
        self.count += 1
        loss, norm = float(metrics.means["loss"]), float(metrics.grad_norm)
        documents = self._batches.record_ids(number - 1)
        if self._log:  # as text, since JSON has no NaN
            self._log.write(number, {"loss": repr(loss), "grad_norm": repr(norm), "documents": documents})
        what = f"step {number}: loss {loss:.4g}, gradient norm {norm:.4g}; its update is left out"
        if not float(metrics.counted):
            what = f"step {number}: no token of the batch counts for the loss; its update is left out"
        say(f"{what} (documents: {self._path})")
        if self._settings.on_bad_step == "stop":
            raise TrainingError(
                f"{what}, and train.on_bad_step is stop. Its documents are in {self._path}: look at them, lower the "
                "learning rate, or set on_bad_step to skip."
            )
        if int(metrics.bad_steps) >= self._settings.most_bad_steps:
            raise TrainingError(
                f"{what}, like the {self._settings.most_bad_steps - 1} steps before it; the run has diverged. Go back "
                "to an earlier checkpoint with a lower learning rate, a longer warm-up or a smaller clip."
            )
