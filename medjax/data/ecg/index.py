"""The index of a data set: one line a record, in order, with all that is asked of many records at once.

    row, id, patient, institution, age_years, sex, sampling_rate_hz, samples, device, time, mains_hz, source, number,
    format, usable, waveform, recording, fingerprint, codes, label.<name> …

It is the authority on what a record is called and labelled: the examples say what the files said, the index what was
made of it. Records are ordered by source and number, whoever wrote the examples. Texts are "" and numbers NaN (mains 0)
where nothing is known. `institution` is the namespace of the patients: equal identifiers of two hospitals name two
people. `waveform` is the digest of the stored samples; `recording` is equal for records that are one recording, altered
or not. Texts of any length are object columns in which equal ones are one object: a million records take 0.5 GB.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np

FILE = "index.parquet"
_FORMAT = "1"
_TEXTS = ("id", "patient", "institution", "sex", "device", "time", "source", "format", "waveform", "recording")
_SHORT = ("sex", "format")  # as fixed-width NumPy texts
_NUMBERS: dict[str, type] = {"row": np.int64, "number": np.int64, "samples": np.int64, "mains_hz": np.int64}
_NUMBERS |= {"age_years": np.float64, "sampling_rate_hz": np.float64}
_LABEL = "label."

Index = dict[str, Any]


@dataclass(slots=True)
class Facts:
    """What an example says of its record, besides the signal.

    row  of the example in the ArrayRecord files
    """

    row: int
    id: str
    source: str
    number: int
    format: str
    samples: int
    sampling_rate_hz: float
    status: tuple[str, ...]
    age_years: float
    sex: str
    patient: str
    device: str
    time: str
    mains_hz: int
    labels: dict[str, float]
    codes: tuple[str, ...]
    notes: tuple[str, ...]
    waveform: str
    fingerprint: np.ndarray
    einthoven_mv: float

    @classmethod
    def of(cls, row: int, example: Mapping[str, Any]) -> "Facts":
        same = {name: example[name] for name in ("id", "source", "patient")}
        same |= {name: intern(example[name]) for name in ("format", "sex", "device", "time")}
        return cls(
            row=row,
            **same,
            number=int(example["number"]),
            samples=example["signal"].shape[1],
            status=_status(example["status"]),
            mains_hz=int(example["mains_hz"]),
            labels={intern(name): value for name, value in json.loads(example["labels"]).items()},
            codes=_words(example["codes"]),
            notes=_words(example["notes"]),
            waveform=example["waveform"],
            fingerprint=example["fingerprint"],
            sampling_rate_hz=float(example["sampling_rate_hz"]),
            age_years=float(example["age_years"]),
            einthoven_mv=float(example["einthoven_mv"]),
        )


@lru_cache(maxsize=1000)
def _status(text: str) -> tuple[str, ...]:
    return tuple(intern(word) for word in text.split(" "))


@lru_cache(maxsize=10_000)
def _words(text: str) -> tuple[str, ...]:
    """A list of texts in JSON; most records have one of few."""
    return tuple(intern(word) for word in json.loads(text))


def make_index(facts: Sequence[Facts], recording: Sequence[str], *, institution: str = "") -> Index:
    """The columns of records in order: NumPy arrays [records], `usable` [records, 12], `fingerprint` [records, 56],
    `codes` (tuples) and `labels`, a dict of float64 columns, NaN where not known.

    recording    of each record, as `duplicates.Twins` says
    institution  that the patients' identifiers are of; "": none is named
    """
    told = {"institution": [institution] * len(facts), "recording": recording}
    known: dict[str, str] = {}
    index: Index = {
        name: texts(told.get(name) or [getattr(fact, name) for fact in facts], name, known) for name in _TEXTS
    }
    for name, dtype in _NUMBERS.items():
        index[name] = np.array([getattr(fact, name) for fact in facts], dtype)
    index["usable"] = np.array([[status in ("measured", "derived") for status in fact.status] for fact in facts])
    index["fingerprint"] = np.stack([fact.fingerprint for fact in facts]).astype(np.float32)
    index["codes"] = _tuples([fact.codes for fact in facts])
    names = sorted({name for fact in facts for name in fact.labels})
    index["labels"] = {name: np.array([fact.labels.get(name, np.nan) for fact in facts], np.float64) for name in names}
    return index


def texts(values: Iterable[str], name: str, known: dict[str, str] | None = None) -> np.ndarray:
    """A column of texts [records]; `known` holds those of other columns, so that equal ones are stored once."""
    if name in _SHORT:
        return np.array(list(values), np.str_)
    known = {} if known is None else known
    return np.array([known.setdefault(value, value) for value in values], object)


def _tuples(values: Sequence[tuple[str, ...]]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def write_index(folder: Path, index: Index) -> None:
    """Write index.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(index[name].tolist(), pa.string()) for name in _TEXTS}
    columns |= {name: pa.array(index[name]) for name in _NUMBERS}
    columns["usable"] = pa.array(index["usable"].tolist(), pa.list_(pa.bool_()))
    columns["fingerprint"] = pa.array(list(index["fingerprint"]), pa.list_(pa.float32()))
    columns["codes"] = pa.array([list(codes) for codes in index["codes"]], pa.list_(pa.string()))
    columns |= {f"{_LABEL}{name}": pa.array(values) for name, values in index["labels"].items()}
    table = pa.table(columns).replace_schema_metadata({"medjax.ecg_index": _FORMAT})
    pq.write_table(table, folder / FILE)


def read_index(folder: Path) -> Index:
    """Read index.parquet.

    Raises FileNotFoundError where there is none, ValueError where it is of another form.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected the index of an ECG data set; name the folder that "
            "`python -m medjax.ingest ecg --out` wrote."
        )
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not Parquet ({error}); the data set is damaged, ingest it again.") from None
    form = (table.schema.metadata or {}).get(b"medjax.ecg_index", b"none").decode()
    if form != _FORMAT:
        raise ValueError(f"{path}: got an index of form {form}, expected {_FORMAT}; ingest the data again.")
    known: dict[str, str] = {}
    missing = pa.array([""] * len(table), pa.string())  # of sets written before there were institutions
    index: Index = {
        name: texts((table[name] if name in table.column_names else missing).to_pylist(), name, known)
        for name in _TEXTS
    }
    index |= {name: table[name].to_numpy() for name in _NUMBERS}
    index["usable"] = np.array(table["usable"].to_pylist(), bool)
    index["fingerprint"] = table["fingerprint"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    index["codes"] = _tuples([tuple(codes) for codes in table["codes"].to_pylist()])
    index["labels"] = {
        name.removeprefix(_LABEL): table[name].to_numpy() for name in table.column_names if name.startswith(_LABEL)
    }
    return index


def index_digest(index: Index) -> str:
    """sha256, in hex, of names, waveforms and everything known of the records; not of where they lie on disk."""
    told = hashlib.sha256()
    columns = [name for name in (*_TEXTS, *_NUMBERS) if name not in ("row", "recording")]
    if not any(index["institution"]):  # a name that nobody gave says nothing
        columns.remove("institution")
    for name, values in [*((name, index[name]) for name in columns), *sorted(index["labels"].items())]:
        told.update(f"{name}\n".encode())
        told.update(json.dumps([None if value != value else value for value in values.tolist()]).encode())
    return told.hexdigest()
