"""EDF and BDF, through pyedflib: channels with a voltage and a lead's name, at the rate most leads have."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.leads import standard_name
from medjax.data.ecg.readers.assembly import Draft, assemble, check_size, noted
from medjax.data.ecg.readers.demographics import years_between
from medjax.data.ecg.readers.stated import Stated, millivolts
from medjax.data.ecg.record import EcgFileError, EcgRecord

_NO_DATE = datetime(1985, 1, 1).date()  # what the format's clipping of years leaves of an unknown date


def read_edf(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read an EDF or BDF file. Raises EcgFileError naming file, record and field."""
    import pyedflib

    try:
        file = pyedflib.EdfReader(str(path))
    except Exception as error:
        reason = f"cannot be read as EDF: {' '.join(str(error).split())}; export it again."
        raise EcgFileError(str(path), reason, path.stem) from error
    with file:
        headers: list[dict[str, Any]] = [dict(header) for header in file.getSignalHeaders()]
        counts = [int(count) for count in file.getNSamples()]
        if stated.leads and len(stated.leads) == len(headers):
            headers = [header | {"label": lead} for header, lead in zip(headers, stated.leads, strict=True)]
        named = [row for row, header in enumerate(headers) if standard_name(header["label"])] or list(
            range(len(headers))
        )
        rates = [float(headers[row]["sample_frequency"]) for row in named]
        rate = max(rates, key=rates.count, default=0.0)
        draft = Draft(str(path), "EDF", path.stem, rate, [])
        channels: list[tuple[str, np.ndarray]] = []
        for row, header in enumerate(headers):
            label, unit = header["label"], header["dimension"]
            factor = millivolts(unit)
            if row in named and factor is None:
                raise draft.error(f"got {unit!r}, expected a voltage as uV or mV.", f"unit of channel {label}")
            if row not in named or float(header["sample_frequency"]) != rate:
                draft.notes.append(
                    f"channel {label!r} ({header['sample_frequency']:g} Hz, {unit or 'no unit'}): left out"
                )
                continue
            check_size(str(path), path.stem, counts[row], len(headers))
            channels.append((label, _samples(draft, file, row) * (factor or 1.0)))
        draft.channels = channels
        with noted(draft, "header"):
            _read_facts(draft, file)
    return [assemble(draft)]


def _samples(draft: Draft, file: Any, row: int) -> np.ndarray:
    try:
        return np.asarray(file.readSignal(row), np.float64)
    except Exception as error:
        raise draft.error(
            f"pyedflib cannot read the samples: {error}; export it again.", f"channel {row + 1}"
        ) from error


def _read_facts(draft: Draft, file: Any) -> None:
    header = file.getHeader()
    start = header["startdate"]
    draft.time = None if start.date() == _NO_DATE else start
    draft.patient, draft.device = header["patientcode"], header["equipment"]
    draft.read_sex(str(header.get("sex") or header.get("gender") or ""))
    try:
        birth = datetime.strptime(str(header["birthdate"]), "%d %b %Y")
    except ValueError:
        return
    if draft.time:
        draft.age_years = years_between(birth.date(), draft.time.date())
