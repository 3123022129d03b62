"""A progress bar on stderr with rate and time left: live on a terminal, a line every half minute in a log file."""

import sys

from tqdm import tqdm


class ProgressBar:
    """Counts items of one job; a context manager.

    shown  False: nothing is printed
    label  in front of the bar
    """

    def __init__(self, shown: bool, label: str, unit: str = "item"):
        live = sys.stderr.isatty()
        self._tqdm = tqdm(
            desc=label,
            disable=not shown,
            unit=unit,
            dynamic_ncols=live,
            smoothing=0.1,
            mininterval=0.2 if live else 30,
            leave=live,
        )
        self._done = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._tqdm.close()

    def reach(self, done: int, total: int) -> None:
        """Say that `done` of `total` are finished."""
        self._tqdm.total = total
        self._tqdm.update(done - self._done)
        self._done = done

    def advance(self, more: int, total: int) -> None:
        """Say that `more` items than before are finished."""
        self.reach(self._done + more, total)
