"""The log of a training run: metrics.jsonl and held_out.jsonl, where the wall time went, rates, and memory.

  RUN/metrics.jsonl    {"step": 20, "loss": 1.71, "tokens_per_s": 812.4, "mfu": 0.31, "time": 1763755980.2, ...}
  RUN/held_out.jsonl   {"step": 0, "loss": 2.04, ...}     at the start, during and at the end

One object a line, steps in rising order, each step once: after a resume the lines beyond the restored step are cut off,
as those steps are done again. A line torn by a kill is cut off too. Numbers that JSON cannot hold (NaN, infinity) are
null.

Wall time is split by what the host was doing:

  step     computing steps; with JAX's asynchronous dispatch, waiting for them
  data     waiting for the next batch; a batch that is prepared while a step computes costs nothing here
  compile  the first call of each compiled program     evaluate, save, restore     other: everything else, also starting

Goodput is the share of `step`. Rates are over `step` and `data`: what training would do without the rest.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medjax.train.flops import mfu

SPANS = ("step", "data", "compile", "evaluate", "save", "restore", "other")


class StepLog:
    """A file of one JSON object a step, which only grows.

    path         of the file; made, with its folder, at the first line
    resume_step  the step that was restored: later lines are cut off; None starts anew
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self.path = Path(path)
        kept = [] if resume_step is None else _lines(self.path, resume_step)
        self.last_step = json.loads(kept[-1])["step"] if kept else -1
        text = b"".join(line + b"\n" for line in kept)
        if self.path.is_file() and self.path.read_bytes() != text:
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_bytes(text)
            os.replace(partial, self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append the line of a step and hand it to the operating system; return it as written, with `step` and `time`.

        values  numbers (Python, NumPy or JAX scalars) and texts by name
        Raises ValueError for a step that is not after the last one.
        """
        if step <= self.last_step:
            raise ValueError(
                f"{self.path}: got step {step} after step {self.last_step}, expected a later one; each step is logged "
                "once, and a resumed run opens its log with the step that it restored."
            )
        line = {"step": step, **{name: _plain(value) for name, value in values.items()}, "time": round(time.time(), 3)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self.last_step = step
        return line


class MetricsLog:
    """Both logs of a run folder; see StepLog. Only process 0 may hold one."""

    def __init__(self, folder: str | Path, resume_step: int | None = None):
        self.steps = StepLog(Path(folder) / "metrics.jsonl", resume_step)
        self.evaluations = StepLog(Path(folder) / "held_out.jsonl", resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Log a training step."""
        return self.steps.write(step, values)

    def held_out(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Log an evaluation on held-out data after a step; a resumed run may repeat the one of its restored step."""
        if step == self.evaluations.last_step:
            return read_log(self.evaluations.path)[-1]
        return self.evaluations.write(step, values)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a log; [] if there is no file. Raises ValueError naming the line that is damaged."""
    return [json.loads(line) for line in _lines(Path(path))]


class WallTime:
    """Where the wall time of this process goes. Spans nest: the inner one's time is not the outer one's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.seconds = dict.fromkeys(SPANS, 0.0)
        self._clock = clock
        self._now = "other"
        self._since = clock()

    @contextmanager
    def spent(self, span: str) -> Iterator[None]:
        """Count the time of the block as one of SPANS."""
        outer = self._now
        self._switch(span)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self) -> dict[str, float]:
        """Seconds by span up to now."""
        self._switch(self._now)
        return dict(self.seconds)

    @property
    def goodput(self) -> float:
        """Share of the wall time spent in steps, 0 to 1."""
        seconds = self.read()
        return seconds["step"] / (sum(seconds.values()) or 1.0)

    def _switch(self, span: str) -> None:
        if span not in self.seconds:
            raise ValueError(f"wall time: got span {span!r}, expected one of {', '.join(SPANS)}; name one of those.")
        now = self._clock()
        self.seconds[self._now] += now - self._since
        self._now, self._since = span, now


class Rates:
    """Speed since the last log line: real and computed tokens a second, MFU.

    wall     of this run; its spans `step` and `data` are the seconds that count
    devices  of the whole run
    peak     operations a second of one device (`flops.peak_flops`), or None
    """

    def __init__(self, wall: WallTime, devices: int, peak: float | None, unit: str = "tokens"):
        self.wall, self.devices, self.peak, self.unit = wall, devices, peak, unit
        self.real = 0.0  # tokens or records of the whole run
        self._totals = [0.0, 0.0, 0.0]
        self._mark = self._training_seconds()

    def add(self, real: float, computed: float, flops: float) -> None:
        """Count a finished step of all processes: its units without and with padding, its model operations."""
        self.real += real
        self._totals = [a + b for a, b in zip(self._totals, (real, computed, flops), strict=True)]

    def skip(self) -> None:
        """Forget what was counted since the last log line, as for the step that compiled."""
        self._totals, self._mark = [0.0, 0.0, 0.0], self._training_seconds()

    def read(self) -> dict[str, float | None]:
        """Return <unit>_per_s, computed_<unit>_per_s, mfu since the last call, and start anew; None without steps."""
        real, computed, flops = self._totals
        seconds = self._training_seconds() - self._mark
        self.skip()
        if seconds <= 0 or not computed:
            return {f"{self.unit}_per_s": None, f"computed_{self.unit}_per_s": None, "mfu": None}
        return {
            f"{self.unit}_per_s": real / seconds,
            f"computed_{self.unit}_per_s": computed / seconds,
            "mfu": mfu(flops, seconds, self.devices, self.peak),
        }

    def _training_seconds(self) -> float:
        seconds = self.wall.read()
        return seconds["step"] + seconds["data"]


def memory() -> dict[str, float]:
    """Most memory used so far, GiB: of the fullest local device, with its limit, or else of the process.

    {"device_memory_gib": ..., "device_memory_limit_gib": ...} or, on CPUs, {"process_memory_gib": ...}
    """
    import jax

    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not found:
        return {"process_memory_gib": _peak_resident_bytes() / 2**30}
    fullest = max(found, key=lambda stats: stats.get("peak_bytes_in_use", 0))
    names = {"device_memory_gib": "peak_bytes_in_use", "device_memory_limit_gib": "bytes_limit"}
    return {name: fullest[key] / 2**30 for name, key in names.items() if key in fullest}


def _peak_resident_bytes() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts KiB


def _lines(path: Path, last_step: int | None = None) -> list[bytes]:
    """The whole lines of a log, those up to a step if one is given; a torn last line is left out."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    kept = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: got {line[:60].decode('utf-8', 'replace')!r}, expected a JSON object with "
                "step; delete the line if the run may go on without it."
            ) from None
        if last_step is None or step <= last_step:
            kept.append(line)
    return kept


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
