"""What is to be read: a folder, one file, or a CSV file that lists files and knows more about them than they do.

  path,patient,age,sex,device,time,sampling_rate_hz,unit,leads
  ward3/0001.xml,P17,64,F,,2024-05-01T09:30:00,,,

Only `path` is needed, relative to the list's own folder or absolute. Of a filled cell, patient, age, sex, device, time
and sampling rate replace what the file says; unit and leads serve files that do not name theirs.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medjax.data.ecg.quality import mains_hz
from medjax.data.ecg.readers import survey
from medjax.data.ecg.readers.assembly import bounded, check_rate
from medjax.data.ecg.readers.demographics import age_in_years, sex_of
from medjax.data.ecg.readers.stated import Stated
from medjax.data.ecg.record import EcgRecord

_COLUMNS = ("path", "id", "patient", "age", "sex", "device", "time", "sampling_rate_hz", "unit", "leads")
_ENDINGS = 6  # named in a line
_SPELLINGS = {"file": "path", "age_years": "age", "sampling_rate": "sampling_rate_hz", "patient_id": "patient"}


@dataclass(frozen=True)
class Source:
    """One file to read.

    name       how the data set calls it: relative to the folder, with "/"
    overrides  column of the list -> text; only filled cells
    """

    path: Path
    name: str
    overrides: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        return {"path": str(self.path), "name": self.name, "overrides": dict(self.overrides)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Source":
        """The inverse of to_json."""
        return cls(Path(values["path"]), values["name"], values["overrides"])

    def stated(self) -> Stated:
        """What the list says, for a reader; raises ValueError naming the column."""
        rate, leads = self.overrides.get("sampling_rate_hz"), self.overrides.get("leads")
        return Stated(
            sampling_rate_hz=float(rate) if rate else None,
            unit=self.overrides.get("unit"),
            leads=tuple(leads.split()) if leads else None,
        )

    def override(self, record: EcgRecord) -> EcgRecord:
        """The record with what the list says of it, and a note for each text that could not be used.

        Raises ValueError for a sampling rate that no ECG has.
        """
        told = self.overrides
        notes = list(record.notes)
        texts = (name for name in ("id", "patient", "device", "time") if name in told)
        changes: dict[str, object] = {name: bounded(told[name], name, notes) for name in texts}
        for name, key, read in (("age", "age_years", age_in_years), ("sex", "sex", sex_of)):
            if name in told:
                changes[key], note = read(told[name])
                notes += [note] if note else []
        if rate := self.stated().sampling_rate_hz:
            try:
                check_rate(rate)
            except ValueError as error:
                raise ValueError(f"sampling_rate_hz: {error}") from None
            changes["sampling_rate_hz"] = rate
            if rate != record.sampling_rate_hz:
                changes["mains_hz"] = mains_hz(record.signal, rate)  # it was looked for at another frequency
                notes.append(f"sampling rate: got {record.sampling_rate_hz:g} Hz, taken as {rate:g} Hz as listed")
        return replace(record, **changes, notes=tuple(notes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sources:
    """All files of an ingest, in order.

    root         the folder that names are relative to
    passed_over  ending of a name -> files of the folder that are no ECG by name or content
    digest       sha256 of names, sizes, times of change and overrides: equal when there is nothing new to read
    """

    root: Path
    files: tuple[Source, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        told = hashlib.sha256()
        for source in self.files:
            try:
                state = os.stat(source.path)
                size, changed = state.st_size, state.st_mtime_ns
            except OSError:
                size = changed = -1
            told.update(f"{source.name}\0{size}\0{changed}\0{sorted(source.overrides.items())}\n".encode())
        return told.hexdigest()


def find_sources(source: str | Path) -> Sources:
    """The files that --source stands for.

    Raises FileNotFoundError where there is nothing, ValueError for a folder without any ECG and for a wrong list.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = survey(path)
        files = tuple(Source(file, file.relative_to(path).as_posix()) for file in found.files)
        if not files:
            others = f" ({passed_over_words(found.passed_over)})" if found.passed_over else ""
            raise ValueError(
                f"{path}: got a folder without any ECG file{others}, expected WFDB, DICOM, XML, MFER, SCP-ECG, EDF, "
                "CSV, .mat or .npy; name another, or list the files in a CSV file with a column `path`."
            )
        return Sources(path, files, found.passed_over)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or file, expected ECG files; correct --source.")
    listed = _listed(path) if path.suffix.lower() in (".csv", ".tsv") else None
    return Sources(path.parent, (Source(path, path.name),)) if listed is None else _named(path.parent, listed)


def passed_over_words(counts: Mapping[str, int]) -> str:
    """ "7 files passed over: 5 .csv, 2 .h5": the most frequent endings first."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{count:,} {ending}" for ending, count in ranked[:_ENDINGS])
    rest = f" and {len(ranked) - _ENDINGS} other endings" if len(ranked) > _ENDINGS else ""
    total = sum(counts.values())
    return f"{total:,} {'file' if total == 1 else 'files'} passed over: {shown}{rest}"


def _named(folder: Path, listed: tuple[Source, ...]) -> Sources:
    """Listed files by their names below the list's folder, or, where some lie outside, below what holds them all."""
    paths = [Path(os.path.abspath(source.path)) for source in listed]
    root = Path(os.path.abspath(folder))
    if not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([path.parent for path in paths]))
    names = (path.relative_to(root).as_posix() for path in paths)
    return Sources(root, tuple(replace(source, name=name) for source, name in zip(listed, names, strict=True)))


def _listed(path: Path) -> tuple[Source, ...] | None:
    """The files of a list, None for a CSV file that is an ECG itself: it has no column `path`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            header = [_SPELLINGS.get(name, name) for name in (cell.strip().lower() for cell in next(rows, []))]
            if "path" not in header:
                return None
            if unknown := [name for name in header if name not in _COLUMNS]:
                raise ValueError(
                    f"{path}, line 1: got the column {unknown[0]!r}, expected only {', '.join(_COLUMNS)}; labels "
                    "belong into --labels."
                )
            files: dict[str, Source] = {}
            for row in rows:
                cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
                if cells:
                    source = _source(path, rows.line_num, cells)
                    if (place := os.path.abspath(source.path)) in files:
                        raise ValueError(
                            f"{path}, line {rows.line_num}: got {source.name} a second time, expected each file once; "
                            "remove a line."
                        )
                    files[place] = source
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not CSV in UTF-8 ({error}); save it as CSV UTF-8.") from None
    if not files:
        raise ValueError(f"{path}: got a list without a file, expected at least one line; list the ECG files.")
    return tuple(files.values())


def _source(path: Path, line: int, cells: dict[str, str]) -> Source:
    where = f"{path}, line {line}"
    if "path" not in cells:
        raise ValueError(f"{where}, path: got nothing, expected a file; fill it in.")
    file = Path(cells.pop("path")).expanduser()
    try:
        source = Source(path.parent / file, file.as_posix(), cells)
        source.stated()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return source
