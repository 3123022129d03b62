"""The live line of a training run on stderr; in a log file, one line for each logged step.

train:  12%|█▏        | 120/1000 [02:01<14:51, loss 1.713, 812 tokens/s, MFU 31 %]
"""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class TrainProgress:
    """Counts the steps of a run; a context manager.

    steps  of the whole run
    start  steps that an earlier process has done
    shown  False: nothing is printed, as for all processes but the first
    """

    def __init__(self, steps: int, start: int = 0, *, shown: bool = True, label: str = "train"):
        self._live = sys.stderr.isatty()
        self._shown, self._label = shown, label
        self._steps, self._done = steps, start
        self._first: tuple[int, float] | None = None  # a step and when it was done: before it, time went elsewhere
        self._tqdm = tqdm(
            desc=label,
            total=steps,
            initial=start,
            disable=not (shown and self._live),
            dynamic_ncols=True,
            smoothing=0.05,  # evaluations and checkpoints in between should not upset the time left
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            file=sys.stderr,
        )

    def __enter__(self) -> "TrainProgress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._tqdm.close()

    def reach(self, step: int) -> None:
        """Say that a step is done."""
        self._tqdm.update(step - self._done)
        self._done = step
        self._first = self._first or (step, time.monotonic())

    def show(self, step: int, values: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl: its loss, rate, mfu and held_out_loss, as far as they are there."""
        self.reach(step)
        parts = _parts(values)
        if self._live:
            self._tqdm.set_postfix_str(", ".join(parts))
        elif self._shown:
            line = [f"{self._label}: step {step}/{self._steps}", *parts, f"{self._time_left()} left"]
            print("  ".join(line), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own, without disturbing the live one."""
        if self._live and self._shown:
            self._tqdm.write(text, file=sys.stderr)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)

    def _time_left(self) -> str:
        step, since = self._first or (self._done, 0.0)
        if step == self._done:
            return "?"
        return str(tqdm.format_interval((time.monotonic() - since) / (self._done - step) * (self._steps - self._done)))


def _parts(values: Mapping[str, Any]) -> list[str]:
    rates = {unit: rate for unit in ("tokens", "records") if (rate := values.get(f"{unit}_per_s")) is not None}
    share = values.get("mfu")
    parts = [f"loss {_loss(values['loss'])}"] if "loss" in values else []
    parts += [f"held-out {_loss(values['held_out_loss'])}"] if "held_out_loss" in values else []
    parts += [f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s" for unit, rate in rates.items()]
    return parts + ([f"MFU {100 * share:.3g} %"] if share is not None else [])


def _loss(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"
