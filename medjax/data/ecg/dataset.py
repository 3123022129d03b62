"""A data set of ECGs as `python -m medjax.ingest ecg` wrote it: an index in memory, signals on disk.

  dataset = EcgDataset("data/hospital")
  dataset.index["age_years"]      NumPy columns, one entry a record
  dataset.labels["low_ef"]        float64, NaN where not known
  dataset[17]                     the EcgRecord, read from disk

Several data sets are one under `open_datasets`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.index import Index, index_digest, read_index, texts
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.storage import Row, to_record

NAME, VERSION, SPLIT = "ecg_records", "1.0.0", "train"


class EcgDataset:
    """ECG records in the order of their sources.

    folders  where it lies
    index    columns as `index.make_index` describes them, and `folder`, the number of the folder
    digest   sha256 of what is known of the records and of their waveforms

    Raises FileNotFoundError or ValueError for a folder that holds no data set, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self._open([Path(folder)])

    @classmethod
    def _of(cls, folders: list[Path]) -> "EcgDataset":
        dataset = cls.__new__(cls)
        dataset._open(folders)
        return dataset

    def _open(self, folders: list[Path]) -> None:
        self.folders = folders
        indices = [read_index(folder) for folder in folders]
        self._examples = [_Examples(folder) for folder in folders]
        for folder, index, examples in zip(folders, indices, self._examples, strict=True):
            if len(index["row"]) and index["row"].max() >= len(examples):
                raise ValueError(
                    f"{folder}: the index names record {index['row'].max()}, expected less than the {len(examples)} "
                    "records there; the data set is damaged, ingest it again."
                )
        self.index = _joined(folders, indices)
        self.digest = index_digest(self.index)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Label columns by name, float64 [records], NaN where not known."""
        return self.index["labels"]

    def __len__(self) -> int:
        return len(self.index["id"])

    def __getitem__(self, place: int) -> EcgRecord:
        return self.read([place])[0]

    def read(self, places: Sequence[int] | np.ndarray) -> list[EcgRecord]:
        """The records at these places, faster than one by one."""
        places = [range(len(self))[int(place)] for place in places]
        rows: dict[int, Row] = {}
        for number, examples in enumerate(self._examples):
            here = [place for place in places if self.index["folder"][place] == number]
            rows |= zip(here, examples.__getitems__([int(self.index["row"][place]) for place in here]), strict=True)
        return [self._record(place, rows[place]) for place in places]

    def _record(self, place: int, row: Row) -> EcgRecord:
        labels = {name: float(column[place]) for name, column in self.labels.items() if not np.isnan(column[place])}
        return replace(
            to_record(row), id=str(self.index["id"][place]), patient=self.index["patient"][place] or None, labels=labels
        )


def open_datasets(folders: Iterable[str | Path]) -> EcgDataset:
    """One data set over several folders, one after the other.

    An id that several folders use gets the folder's name in front. A label that a folder lacks is not known there.
    Raises what EcgDataset raises, and ValueError for no folder and for one that is named twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("data: got no folder, expected at least one that medjax.ingest wrote; name it.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"data: got a folder twice in {', '.join(map(str, paths))}, expected each once; drop one.")
    return EcgDataset._of(paths)


def open_examples(folder: str | Path) -> "_Examples":
    """The rows of OUT/ecg_records, in the order of the files."""
    return _Examples(Path(folder))


class _Examples:
    """Rows as `storage.to_row` makes them, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        place = folder / NAME / VERSION
        if not (place / "dataset_info.json").is_file():
            raise FileNotFoundError(
                f"{place}: no records there, expected those of an ECG data set; name the folder that "
                "`python -m medjax.ingest ecg --out` wrote, or ingest it again."
            )
        import tensorflow_datasets as tfds

        self._source = tfds.builder_from_directory(str(place)).as_data_source(SPLIT)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Examples, (self._folder,)  # a process that gets it opens the files itself

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Row:
        return _texts(self._source[row])

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        return [_texts(example) for example in self._source.__getitems__(list(rows))] if rows else []


def _texts(example: Row) -> Row:
    return {name: value.decode("utf-8") if isinstance(value, bytes) else value for name, value in example.items()}


def _joined(folders: list[Path], indices: list[Index]) -> Index:
    index: Index = {
        name: np.concatenate([part[name] for part in indices]) for name in indices[0] if name not in ("labels",)
    }
    names = sorted({name for part in indices for name in part["labels"]})
    index["labels"] = {
        name: np.concatenate([part["labels"].get(name, np.full(len(part["id"]), np.nan)) for part in indices])
        for name in names
    }
    index["folder"] = np.repeat(np.arange(len(indices)), [len(part["id"]) for part in indices])
    if len(indices) > 1:
        count: Counter[str] = Counter(index["id"])
        index["id"] = texts(
            [
                f"{folders[number].name}:{name}" if count[name] > 1 else name
                for name, number in zip(index["id"], index["folder"], strict=True)
            ],
            "id",
        )
    return index
