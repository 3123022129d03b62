"""A progress bar on stderr with rate and time left; silent where nobody looks."""

from tqdm import tqdm


class ProgressBar:
    """Counts items of one job; a context manager.

    shown  False: nothing is printed
    label  in front of the bar
    """

    def __init__(self, shown: bool, label: str, unit: str = "item"):
        self._tqdm = tqdm(desc=label, disable=not shown, unit=unit, dynamic_ncols=True, smoothing=0.1)
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
