"""Samples without a header worth the name: MATLAB .mat, NumPy .npy and .npz, and CSV.

What the file does not say comes from Stated (stated.py); the rate always has to come from somewhere. Two things may be
left unsaid, and a note says what was taken for them:

  leads   rows in the order I II III aVR aVL aVF V1-V6 where there are twelve, I II V1-V6 where there are eight
  unit    the voltage at which the median lead measures as an ECG does; mV and uV are a factor of 1000 apart, so at most
          one of them can be meant

CSV has a header line of lead names ("I", "V1 (uV)"), one row a sample, and may have a column of times ("time_s",
"time_ms") or lines as `# sampling_rate_hz: 500` and `# unit: mV` above the header.
"""

import csv
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.leads import LEADS, standard_name
from medjax.data.ecg.quality import amplitude
from medjax.data.ecg.readers.assembly import Draft, assemble, check_size
from medjax.data.ecg.readers.matlab import read_variables
from medjax.data.ecg.readers.stated import TABLE, Stated, millivolts
from medjax.data.ecg.record import LONGEST_SAMPLES, EcgFileError, EcgRecord

_SIGNALS = ("feats", "val", "signal", "ecg", "data", "x")  # names of the array; ECG-FM and WFDB write the first two
_RATES = ("sampling_rate_hz", "curr_sample_rate", "sampling_rate", "sample_rate", "fs", "freq", "sfreq")
_UNITS = ("unit", "units")
_LEADS = ("leads", "lead_names", "lead_order", "sig_name")
_EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
_MOST_BESIDE = (1000, 100_000)  # elements and bytes of an array that says something of the signal
_USUAL_MV = (0.1, 20.0)  # amplitude of the median lead of an ECG, for telling units apart
_TIMES = {"time": 1.0, "t": 1.0, "time_s": 1.0, "seconds": 1.0, "time_ms": 1e-3, "ms": 1e-3, "milliseconds": 1e-3}


def read_mat(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read a MATLAB file of version 4 or 5 without a WFDB header. Raises EcgFileError naming file, record and field."""
    with path.open("rb") as file:
        start = file.read(128)
    if start.startswith((b"\x89HDF", b"MATLAB 7.3")):
        raise EcgFileError(str(path), "got a MATLAB 7.3 file, expected version 5; save it again with the option -v7.")
    try:
        found = read_variables(path)
    except ValueError as error:
        raise EcgFileError(str(path), f"cannot be read as MATLAB: {error}", path.stem) from error
    name = _pick(path, {name: array.shape for name, array in found.items()})
    _check_shape(path, found[name].shape, found[name].dtype)
    for other in (other for other in (*_RATES, *_UNITS, *_LEADS) if other in found):
        _check_beside(path, other, found[other].shape, found[other].dtype)
    return [_from_array(path, "MATLAB", found[name], found, stated)]


def read_npy(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read a .npy or .npz file without objects. Raises EcgFileError naming file, record and field."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                heads = {info.filename.removesuffix(".npy"): _head_in(archive, info) for info in archive.infolist()}
            name = _pick(path, {other: shape for other, (shape, _) in heads.items()})
            _check_shape(path, *heads[name])
            beside = {other: head for other, head in heads.items() if other in (*_RATES, *_UNITS, *_LEADS)}
            for other, head in beside.items():
                _check_beside(path, other, *head)
            with np.load(path, allow_pickle=False) as archive_arrays:
                found = {other: archive_arrays[other] for other in (name, *beside)}
            return [_from_array(path, "NumPy", found[name], found, stated)]
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        _check_shape(path, array.shape, array.dtype)
        return [_from_array(path, "NumPy", np.array(array), {}, stated)]
    except EcgFileError:
        raise
    except Exception as error:
        reason = f"cannot be read as NumPy without objects: {error}; save numbers only, with allow_pickle=False."
        raise EcgFileError(str(path), reason, path.stem) from error


def read_csv(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read a CSV file with a header of lead names. Raises EcgFileError naming file, line and column."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        said, header, rows = _csv_parts(file)
        names = [standard_name(_unit_of(cell)[0]) for cell in header]
        times = [column for column, cell in enumerate(header) if cell.strip().lower() in _TIMES]
        columns = [column for column, lead in enumerate(names) if lead]
        if not columns:
            reason = f"got the header {','.join(header)[:120]!r}, expected lead names as I,II,V1."
            raise EcgFileError(str(path), reason, path.stem, "header")
        keep = [*columns, *times[:1]]
        values: list[list[float]] = []
        for line, row in rows:
            if len(row) < len(header):
                raise EcgFileError(str(path), f"line {line} has {len(row)} cells, expected {len(header)}.", path.stem)
            values.append([_cell(path, row[column], line, header[column]) for column in keep])
            if len(values) > LONGEST_SAMPLES:
                check_size(str(path), path.stem, len(values))
    table = np.array(values, np.float64).reshape(len(values), len(keep))
    draft = Draft(str(path), "CSV", path.stem, 0.0, [])
    check_size(str(path), path.stem, len(table))
    rate = _rate_of_times(draft, table[:, -1] * _TIMES[header[times[0]].strip().lower()]) if times else None
    draft.sampling_rate_hz = _rate(draft, rate or _number(said.get("sampling_rate_hz")), stated)
    units = {unit for column in columns if (unit := _unit_of(header[column])[1])}
    if len(units) > 1:
        raise draft.error(f"got the units {', '.join(sorted(units))}, expected one for all leads.", "unit")
    signal = _in_millivolts(draft, table[:, : len(columns)].T, units.pop() if units else said.get("unit"), stated)
    draft.channels = [(names[column] or "", row) for column, row in zip(columns, signal, strict=True)]
    return [assemble(draft)]


def looks_like_leads(path: Path) -> bool:
    """Whether a CSV file has a header of lead names, as labels and other tables do not."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            _, header, _ = _csv_parts(file)
        except csv.Error:
            return False
    leads = sum(standard_name(_unit_of(cell)[0]) is not None for cell in header)
    return leads > 0 and leads >= len(header) - 2


def _from_array(path: Path, kind: str, array: Any, said: Mapping[str, Any], stated: Stated) -> EcgRecord:
    draft = Draft(str(path), kind, path.stem, 0.0, [])
    rows = np.array(array if array.shape[0] <= array.shape[1] else array.T, np.float64)
    draft.sampling_rate_hz = _rate(draft, next((_number(said[name]) for name in _RATES if name in said), None), stated)
    unit = next((str(np.ravel(said[name])[0]).strip() for name in _UNITS if name in said), None)
    leads = next((tuple(str(lead).strip() for lead in np.ravel(said[name])) for name in _LEADS if name in said), None)
    leads = leads or stated.leads
    if leads is None:
        leads = {len(LEADS): LEADS, len(_EIGHT): _EIGHT}.get(len(rows), ())
        if leads:
            draft.notes.append(f"order of leads not stated: taken as {' '.join(leads)}")
    if len(leads) != len(rows):
        raise draft.error(
            f"got {len(rows)} rows and {len(leads)} names of leads, expected as many; name them in {TABLE} beside the "
            "file, column leads.",
            "leads",
        )
    signal = _in_millivolts(draft, rows, unit, stated)
    draft.channels = list(zip(leads, signal, strict=True))
    return assemble(draft)


def _rate(draft: Draft, said: float | None, stated: Stated) -> float:
    rate = said or stated.sampling_rate_hz
    if not rate:
        raise draft.error(
            f"the file states none, expected samples a second; write it into {TABLE} beside the file, as\n"
            f"  file,sampling_rate_hz,unit\n  {Path(draft.file).name},500,mV",
            "sampling rate",
        )
    return rate


def _in_millivolts(draft: Draft, signal: np.ndarray, said: str | None, stated: Stated) -> np.ndarray:
    unit = said or stated.unit
    if unit is None:
        size = amplitude(signal)
        fits = [name for name in ("mV", "uV") if _USUAL_MV[0] <= size * (millivolts(name) or 0) <= _USUAL_MV[1]]
        if np.isnan(size):
            return signal
        if not fits:
            raise draft.error(
                f"the file states none, and {size:.3g} peak to peak in the median lead is no ECG's in mV nor in uV; "
                f"write it into {TABLE} beside the file, column unit.",
                "unit",
            )
        unit = fits[0]
        draft.notes.append(f"unit not stated: taken as {unit}, for {size:.3g} peak to peak in the median lead")
    factor = millivolts(unit)
    if factor is None:
        raise draft.error(f"got {unit!r}, expected a voltage: mV, uV, V or nV.", "unit")
    return signal * factor


def _pick(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name of the array that holds the signal."""
    planes = [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1]
    named = [name for name in _SIGNALS if name in planes]
    if named or len(planes) == 1:
        return (named or planes)[0]
    raise EcgFileError(
        str(path),
        f"got the arrays {', '.join(shapes) or '(none)'}, expected one [leads, samples] called {', '.join(_SIGNALS)}.",
        path.stem,
        "signal",
    )


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise EcgFileError, before anything is read, for what cannot be a signal."""
    if len(shape) != 2:
        raise EcgFileError(str(path), f"got the shape {shape}, expected [leads, samples].", path.stem, "signal")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise EcgFileError(str(path), f"got {dtype} {shape}, expected numbers [leads, samples].", path.stem, "signal")
    check_size(str(path), path.stem, max(shape), min(shape))


def _check_beside(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise EcgFileError for an array called rate, unit or leads that is too large to be that."""
    elements = math.prod(shape)
    if elements > _MOST_BESIDE[0] or elements * dtype.itemsize > _MOST_BESIDE[1]:
        reason = f"got {dtype} {shape}, expected at most {_MOST_BESIDE[0]:,} short values; rename it if it is a signal."
        raise EcgFileError(str(path), reason, path.stem, name)


def _head_in(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and kind of an array in an .npz file, from its header alone."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        return tuple(shape), dtype


def _number(value: Any) -> float | None:
    try:
        number = float(np.ravel(value)[0]) if value is not None else math.nan
    except (ValueError, TypeError, IndexError):
        return None
    return number if number > 0 and math.isfinite(number) else None


def _unit_of(cell: str) -> tuple[str, str | None]:
    """ "V1 (uV)" -> ("V1", "uV"); no unit: None."""
    name, bracket, rest = cell.strip().replace("[", "(").replace("]", ")").partition("(")
    unit = rest.partition(")")[0].strip()
    return (name.strip(), unit) if bracket and millivolts(unit) is not None else (cell.strip(), None)


def _csv_parts(file: Any) -> tuple[dict[str, str], list[str], Iterator[tuple[int, list[str]]]]:
    """What comment lines say, the header, and the numbered rows below."""
    said: dict[str, str] = {}
    for number, line in enumerate(file, 1):
        if line.startswith("#"):
            key, _, value = line.strip("# \r\n").partition(":")
            said[key.strip().lower()] = value.strip()
        elif line.strip():
            delimiter = max(",;\t", key=line.count)
            header = next(csv.reader([line], delimiter=delimiter))
            rows = enumerate(csv.reader(file, delimiter=delimiter), number + 1)
            return said, header, ((at, row) for at, row in rows if row)
    return said, [], iter(())


def _cell(path: Path, text: str, line: int, column: str) -> float:
    if text.strip().lower() in ("", "nan", "na", "null"):
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        where = f"line {line}, column {column.strip()!r}"
        raise EcgFileError(str(path), f"got {text.strip()[:40]!r}, expected a number.", path.stem, where) from error


def _rate_of_times(draft: Draft, seconds: np.ndarray) -> float:
    steps = np.diff(seconds)
    step = float(np.median(steps)) if len(steps) else 0.0
    if not step > 0 or not np.allclose(steps, step, rtol=0.02, atol=2e-3 * step + 1e-9):
        raise draft.error("times do not rise evenly, expected a sample every so many ms; resample them.", "time")
    return 1 / ((seconds[-1] - seconds[0]) / len(steps))
