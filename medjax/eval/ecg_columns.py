"""What is known of each evaluated record besides the signal: subgroups, and what a trivial classifier would look at."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.division import target_values
from medjax.statistics.subgroups import UNKNOWN, age_bands, named_groups

_MOST = 12  # groups of a column; the rarer ones are put together
_REST = "others"


class Columns:
    """The columns of chosen records of a data set.

    places  [records] in the data set
    """

    def __init__(self, dataset: EcgDataset, places: NDArray[np.int64]):
        self._index, self._places = dataset.index, places
        self._source = _sources(dataset)[places]

    def groups(self, target: str, labels: Sequence[str] = ()) -> dict[str, NDArray[np.object_]]:
        """Name -> [records] group: age band, sex, device, source, and these labels; the target itself is left out.

        Raises ValueError for a label that the data lacks, or one that is no class.
        """
        found = {
            "age band": age_bands(self._of("age_years")),
            "sex": named_groups(self._of("sex")),
            "device": _few(named_groups(self._of("device"))),
            "source": _few(named_groups(self._source)),
        }
        for label in labels:
            values = target_values(self._index, label)[self._places]
            classes = np.unique(values[~np.isnan(values)])
            if len(classes) > _MOST:
                raise ValueError(
                    f"report.subgroups: {label}: got {len(classes)} values, expected {_MOST} classes at most."
                )
            found[label] = np.array([UNKNOWN if np.isnan(v) else f"{v:g}" for v in values], dtype=object)
        own = {"age": "age band"}.get(target, target)
        return {by: column for by, column in found.items() if by != own and (by in labels or set(column) != {UNKNOWN})}

    def trivial(self, target: str) -> dict[str, dict[str, NDArray]]:
        """Name of a trivial classifier -> its columns, which never hold the target itself."""
        person = {"age": self._of("age_years"), "sex": named_groups(self._of("sex"))}
        person.pop(target, None)
        recording = {
            "source": self._source,
            "device": self._of("device"),
            "format": self._of("format"),
            "sampling rate": self._of("sampling_rate_hz").astype(str).astype(object),
            "mains": self._of("mains_hz").astype(str).astype(object),
        }
        return {"source and device": recording, " and ".join(person): person}

    def _of(self, name: str) -> NDArray:
        return np.asarray(self._index[name])[self._places]


def _sources(dataset: EcgDataset) -> NDArray[np.object_]:
    """Where each record comes from: the data set's folder, and below what all its paths share the first folder."""
    found = np.empty(len(dataset), dtype=object)
    for number, folder in enumerate(dataset.folders):
        here = np.flatnonzero(dataset.index["folder"] == number)
        paths = [str(path).replace("\\", "/").split("/")[:-1] for path in dataset.index["source"][here]]
        levels = [len(set(level)) == 1 for level in zip(*paths, strict=False)]
        shared = levels.index(False) if False in levels else len(levels)
        name = folder.name if len(dataset.folders) > 1 else ""
        for place, parts in zip(here, paths, strict=True):
            found[place] = "/".join(filter(None, [name, *parts[shared : shared + 1]]))
    return found


def _few(names: NDArray[np.object_]) -> NDArray[np.object_]:
    """The groups, the rarest put together where there are many."""
    counts: Mapping[str, int] = Counter(name for name in names if name != UNKNOWN)
    if len(counts) <= _MOST:
        return names
    kept = {name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: _MOST - 1]} | {UNKNOWN}
    return np.array([name if name in kept else _REST for name in names], dtype=object)
