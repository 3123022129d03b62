"""A progress bar on stderr with rate and time left: live on a terminal, a line every half minute in a log file.

Neither counts what was done before, nor the time in which programs are compiled: both would mislead, most of all at the
beginning. The time that is shown as gone leaves compilation out, too; it stands behind it.
"""

import io
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from medjax.report.drawing import cut_to
from medjax.report.table import display_width

_LOG_SECONDS = 30
_METER = 70  # columns


class _Meter(tqdm):
    """A bar whose making was broken off, as by Ctrl-C, is not closed: that would end in a traceback."""

    _made = False

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._made = True

    def close(self) -> None:
        if self._made:
            super().close()


class ProgressBar:
    """Counts items of one job; a context manager.

    shown  False: nothing is printed
    label  in front of the bar
    """

    def __init__(self, shown: bool, label: str, unit: str = "item"):
        self._live = sys.stderr.isatty()
        self._tqdm = _Meter(
            # whatever the label, there is room for counts, rate and time left
            desc=cut_to(label, max(20, shutil.get_terminal_size().columns - _METER)) if self._live else label,
            disable=not shown,
            unit=unit,
            dynamic_ncols=self._live,
            ncols=None if self._live else max(80, display_width(label) + _METER),
            smoothing=0.1,
            file=sys.stderr if self._live else io.StringIO(),
        )
        self._done = 0
        self._compiled = 0.0  # seconds
        self._logged = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._live and not self._tqdm.disable and self._done:
            print(str(self._tqdm), file=sys.stderr, flush=True)
        self._tqdm.close()

    def reach(self, done: int, total: int) -> None:
        """Say that `done` of `total` are finished."""
        self._tqdm.total = total
        self._tqdm.update(done - self._done)
        self._done = done
        self._log()

    def begin(self, done: int, total: int) -> None:
        """Say that `done` of `total` were finished before the work began."""
        self._tqdm.initial = self._tqdm.n = self._tqdm.last_print_n = self._done = done
        self.reach(done, total)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around a compilation, which is told while it lasts."""
        if self._tqdm.disable:
            yield
            return
        start = time.monotonic()
        self._tqdm.set_postfix_str("compiling", refresh=self._live)
        self._log()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self._compiled += spent
            # as if the work had begun, and had last been looked at, so much later
            self._tqdm.start_t += spent
            self._tqdm.last_print_t += spent
            self._tqdm.set_postfix_str(f"+{self._compiled:.0f}s compiling", refresh=self._live)

    def _log(self) -> None:
        if not self._live and not self._tqdm.disable and time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            print(str(self._tqdm), file=sys.stderr, flush=True)

    def advance(self, more: int, total: int) -> None:
        """Say that `more` items than before are finished."""
        self.reach(self._done + more, total)
