"""WFDB records: a header .hea beside one or more signal files (.dat, .mat).

Read raw, not as wfdb's physical values, so that wrong gains can be seen (gains.py). Plain records, as nearly all
12-lead sets are (format 16, one signal file), are read directly, several times as fast as by wfdb; all others by wfdb.
Age, sex and diagnoses stand in comments:

  #Age: 85      # Age: 85      #<age>: 51      #Sex: Male      #Dx: 164889003,59118001      #<diagnoses>: (lines follow)
"""

import re
import tempfile
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path

import numpy as np

from medjax.data.ecg.readers.assembly import Draft, assemble, check_size
from medjax.data.ecg.readers.gains import calibrate
from medjax.data.ecg.readers.stated import Stated, millivolts
from medjax.data.ecg.record import EcgFileError, EcgRecord

_COMMENT = re.compile(r"<?\s*([A-Za-z ]+?)\s*>?\s*:\s*(.*)")
_RECORD_LINE = re.compile(
    r"\S+\s+(\d+)\s+([\d.]+)(?:/\S+)?\s+(\d+)(?:\s+(\d\d:\d\d:\d\d)\s+(\d\d/\d\d/\d{4}))?(?:\s.*)?"
)
_SIGNAL_LINE = re.compile(
    r"(\S+)\s+16(?:\+(\d+))?\s+([-\d.eE+]+)(?:\((-?\d+)\))?(?:/(\S+))?\s+\d+\s+(-?\d+)\s+-?\d+\s+(-?\d+)\s+\d+\s+(\S.*)"
)
_BITS = {"8": 8, "80": 8, "16": 16, "61": 16, "160": 16, "24": 24, "32": 32, "212": 12}  # of a sample
_NOT_MEASURED = -(2**15)  # of format 16


def header_of(path: Path) -> Path | None:
    """The header that a file of a WFDB record belongs to, None for other files."""
    header = path.with_suffix(".hea")
    return header if path.suffix.lower() in (".hea", ".dat", ".mat") and header.is_file() else None


def signal_files(folder: Path) -> set[str]:
    """The names of the signal files that the headers in a folder name."""
    return {
        line.split(maxsplit=1)[0]
        for header in folder.glob("*.hea")
        for line in _lines(header.read_text(encoding="latin-1"))[1:]
    }


@dataclass
class _Raw:
    """What header and signal files hold.

    digital    [channels, samples] float64 as stored, NaN where not measured
    gains      units per physical unit, units their names, baselines the unit at 0
    checksums  of the stored numbers modulo 65536, None where the header has none
    odd_time   what the header writes instead of a time
    """

    digital: np.ndarray
    names: list[str]
    gains: list[float]
    baselines: list[float]
    units: list[str]
    checksums: list[int | None]
    sampling_rate_hz: float
    time: datetime | None
    odd_time: str | None = None


def read_wfdb(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read the record that a .hea, .dat or .mat file belongs to. Raises EcgFileError naming file, record and field."""
    header = header_of(path)
    if header is None:
        raise EcgFileError(str(path), f"got no header, expected {path.stem}.hea beside it; put it there.", path.stem)
    text = header.read_text(encoding="latin-1")
    lines = _lines(text)
    if not lines:
        raise EcgFileError(str(header), "got no record line, expected name, channels, rate and samples.", header.stem)
    _check_names(header, lines)
    raw = _read_plain(header, lines) or _read_any(header, lines)
    draft = Draft(str(header), "WFDB", header.stem, raw.sampling_rate_hz, [], time=raw.time)
    if raw.odd_time:
        draft.notes.append(f"time: got {raw.odd_time!r}, which is none, left unknown")
    _check_sums(draft, raw)
    if any(len(words) < 3 or float(_leading(words[2])) == 0 for words in (line.split() for line in lines[1:])):
        draft.notes.append("the header states no gain for some channels: read as 200 per mV, the default of WFDB")
    _fill_channels(draft, raw)
    _read_comments(draft, [line.strip(" \t#") for line in text.splitlines() if line.strip().startswith("#")])
    return [assemble(draft)]


def _check_names(header: Path, lines: list[str]) -> None:
    """Raise EcgFileError where a header names a file of another folder: WFDB allows plain names, and a path may lead
    anywhere. Headers of segments are looked at as well."""
    for line in lines[1:]:
        name = line.split(maxsplit=1)[0]
        if "/" in name or "\\" in name or name in (".", ".."):
            raise EcgFileError(
                str(header),
                f"got {name!r}, expected a plain file name; put the signal beside the header and correct the name.",
                header.stem,
                "signal file",
            )
    if "/" in lines[0].split(maxsplit=1)[0]:  # name/segments
        for name in {line.split(maxsplit=1)[0] for line in lines[1:]}:
            if (segment := header.with_name(f"{name}.hea")).is_file():
                _check_names(segment, _lines(segment.read_text(encoding="latin-1")))


def _lines(text: str) -> list[str]:
    """The lines of a header that are no comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _read_plain(header: Path, lines: list[str]) -> _Raw | None:
    """A record whose channels all stand in one file of format 16; None for others, also for headers in error."""
    first, signals = _RECORD_LINE.fullmatch(lines[0]), [_SIGNAL_LINE.fullmatch(line) for line in lines[1:]]
    if first is None or not signals or int(first[1]) != len(signals):
        return None
    rows = [match for match in signals if match is not None]
    if len(rows) != len(signals) or len({row[1] for row in rows}) > 1 or any(float(_leading(r[3])) == 0 for r in rows):
        return None
    samples, offset = int(first[3]), int(rows[0][2] or 0)
    check_size(str(header), header.stem, samples, len(rows))
    _check_file(header, header.parent / rows[0][1], offset + 2 * len(rows) * samples, len(rows), samples)
    numbers = np.fromfile(header.parent / rows[0][1], "<i2", len(rows) * samples, offset=offset)
    digital = np.ascontiguousarray(numbers.reshape(samples, len(rows)).T, np.float64)
    digital[digital == _NOT_MEASURED] = np.nan
    return _Raw(
        digital,
        [row[8].strip() for row in rows],
        [float(_leading(row[3])) for row in rows],
        [float(row[4] if row[4] is not None else row[6]) for row in rows],  # without a baseline, the zero of the ADC
        [row[5] or "mV" for row in rows],
        [int(row[7]) for row in rows],
        float(first[2]),
        *_moment(f"{first[5]} {first[4]}" if first[5] else ""),
    )


def _moment(text: str) -> tuple[datetime | None, str | None]:
    """The time that a text means, or else the text, as the "00/00/0000 08:00:00" of anonymised exports."""
    try:
        return (datetime.strptime(text, "%d/%m/%Y %H:%M:%S") if text else None), None
    except ValueError:
        return None, text


def _leading(text: str) -> str:
    """The number that a gain begins with: "200(0)/mV" -> "200"; "nan" where there is none."""
    match = re.match(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text)
    return match[0] if match else "nan"


def _read_any(header: Path, lines: list[str]) -> _Raw:
    """Any other record, through wfdb."""
    name = lines[0].split(maxsplit=1)[0]
    if not name.endswith((".mat", ".dat", ".hea")):
        return _read_by_wfdb(header, header)
    with tempfile.TemporaryDirectory() as folder:  # some exports write the file's name, which WFDB forbids
        for file in header.parent.iterdir():
            if file.stem == header.stem and file != header:
                (Path(folder) / file.name).symlink_to(file.resolve())
        mended = Path(folder) / header.name
        text = header.read_text(encoding="latin-1").replace(name, name[: name.rindex(".")], 1)
        mended.write_text(text, encoding="latin-1")
        return _read_by_wfdb(header, mended)


def _read_by_wfdb(header: Path, standing_in: Path) -> _Raw:
    """header is named in messages; standing_in is what is read, the same file or a mended copy."""
    import wfdb

    try:
        facts = wfdb.rdheader(str(standing_in.with_suffix("")))
    except Exception as error:
        raise EcgFileError(str(header), f"not a WFDB header: {error}; correct it.", header.stem) from error
    check_size(str(header), header.stem, 1 if facts.sig_len is None else facts.sig_len, facts.n_sig or 0)
    if isinstance(facts, wfdb.Record):
        for file in dict.fromkeys(facts.file_name):
            rows = [row for row, other in enumerate(facts.file_name) if other == file]
            frame = sum(facts.samps_per_frame[row] or 1 for row in rows)
            size = int((facts.sig_len or 0) * frame * _BITS.get(facts.fmt[rows[0]], 0) // 8)
            size += facts.byte_offset[rows[0]] or 0
            _check_file(header, standing_in.parent / file, size, len(rows), facts.sig_len or 0)
    try:
        found = wfdb.rdrecord(str(standing_in.with_suffix("")), physical=False)
    except Exception as error:
        reason = f"wfdb cannot read the signals: {error}; compare header and signal files."
        raise EcgFileError(str(header), reason, header.stem, "signal") from error
    # wfdb marks what was not measured in physical values only
    digital = found.d_signal.T.astype(np.float64)
    physical = found.dac()
    digital[np.isnan(physical.T)] = np.nan
    moment = datetime.combine(found.base_date, found.base_time or time()) if found.base_date else None
    names, units = [name or "" for name in found.sig_name], [unit or "mV" for unit in found.units]
    sums = list(found.checksum) if found.checksum and max(found.samps_per_frame or [1]) == 1 else [None] * len(names)
    gains, baselines = [float(gain) for gain in found.adc_gain], [float(value) for value in found.baseline]
    return _Raw(digital, names, gains, baselines, units, sums, float(found.fs), moment)


def _check_file(header: Path, file: Path, expected: int, channels: int, samples: int) -> None:
    """Raise EcgFileError where a signal file is missing or shorter than the header says."""
    if not file.is_file():
        reason = f"the header names {file.name}, which is not there; put it beside."
        raise EcgFileError(str(header), reason, header.stem, "signal file")
    if (got := file.stat().st_size) < expected:
        raise EcgFileError(
            str(header),
            f"{file.name} has {got} bytes, expected {expected} for {channels} channels of {samples} samples; the file "
            "is truncated or the header belongs to another.",
            header.stem,
            "signal",
        )


def _check_sums(draft: Draft, raw: _Raw) -> None:
    sums = np.nansum(raw.digital, axis=1).astype(np.int64) % 65536
    wrong = [
        name
        for name, row, got, said in zip(raw.names, raw.digital, sums, raw.checksums, strict=True)
        if said is not None and got != said % 65536 and not np.isnan(row).any()
    ]
    if wrong:
        draft.notes.append(f"checksum in the header differs for {' '.join(wrong)}: signal or header was changed")


def _fill_channels(draft: Draft, raw: _Raw) -> None:
    voltages = [row for row, unit in enumerate(raw.units) if millivolts(unit) is not None]
    others = [f"{raw.names[row]} ({raw.units[row]})" for row in range(len(raw.names)) if row not in voltages]
    if others:
        draft.notes.append(f"channels {', '.join(others)}: no voltage, left out")
    if not voltages:
        raise draft.error(f"got the units {' '.join(raw.units)}, expected mV, uV or V; correct the header.", "units")
    per_mv = np.array([raw.gains[row] / (millivolts(raw.units[row]) or 1.0) for row in voltages])
    if not (np.isfinite(per_mv) & (per_mv != 0)).all():
        raise draft.error(f"got gains of {raw.gains}, expected finite ones other than 0; correct the header.", "gain")
    names = [raw.names[row] for row in voltages]
    baselines = np.array([raw.baselines[row] for row in voltages])
    signal, notes = calibrate(raw.digital[voltages], names, per_mv, baselines)
    draft.notes += notes
    draft.channels = list(zip(names, signal, strict=True))


def _read_comments(draft: Draft, comments: list[str]) -> None:
    codes: list[str] = []
    statements = False
    for line in comments:
        match = _COMMENT.fullmatch(line.strip())
        key, value = (match[1].lower(), match[2].strip()) if match else ("", "")
        if key == "age":
            draft.read_age(value)
        elif key in ("sex", "gender"):
            draft.read_sex(value)
        elif key == "dx":
            codes += [code.strip() for code in value.split(",") if code.strip().lower() not in ("", "unknown")]
        elif key in ("diagnoses", "diagnosis"):
            statements = True
            codes += [value] if value else []
        elif statements and line.strip():
            codes.append(line.strip())
    draft.codes = codes
