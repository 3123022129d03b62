"""A progress bar on stderr with rate and time left: live on a terminal, a line every half minute in a log file."""

import io
import sys
import time

from tqdm import tqdm

_LOG_SECONDS = 30


class ProgressBar:
    """Counts items of one job; a context manager.

    shown  False: nothing is printed
    label  in front of the bar
    """

    def __init__(self, shown: bool, label: str, unit: str = "item"):
        self._live = sys.stderr.isatty()
        self._tqdm = tqdm(
            desc=label,
            disable=not shown,
            unit=unit,
            dynamic_ncols=self._live,
            ncols=None if self._live else 80,
            smoothing=0.1,
            file=sys.stderr if self._live else io.StringIO(),
        )
        self._done = 0
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
        if not self._live and not self._tqdm.disable and time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            print(str(self._tqdm), file=sys.stderr, flush=True)

    def advance(self, more: int, total: int) -> None:
        """Say that `more` items than before are finished."""
        self.reach(self._done + more, total)
