"""Formats that ecgdatakit decodes: MFER, SCP-ECG and ISHNE here, four kinds of XML in xml_files.py.

Its numbers are taken raw, with the resolution that the file states, and made millivolts here, because it leaves a lead
without a unit as it is. Rates are taken exactly where the file is exact and it rounds them to whole hertz; ages that it
drops because they are no number are read from the file again (xml_files.py). Its warnings become notes.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.readers.assembly import Draft, assemble, check_size
from medjax.data.ecg.readers.stated import Stated, millivolts
from medjax.data.ecg.record import EcgFileError, EcgRecord

_SMALLEST_SAMPLE = {"MFER": 1.0, "SCP-ECG": 0.125, "ISHNE": 2.0}  # bytes; SCP packs samples by Huffman codes
_MOST_LEADS = 12  # the fewer leads, the longer a file of a size: bounded by twelve of the longest


def read_mfer(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read an MFER file (ISO 22077). Raises EcgFileError naming file, record and field."""
    from ecgdatakit.parsing.parsers.mfer import MFERParser

    return [assemble(draft_of(path, "MFER", MFERParser))]


def read_scp(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read an SCP-ECG file (EN 1064). Raises EcgFileError naming file, record and field."""
    from ecgdatakit.parsing.parsers.scp_ecg import SCPECGParser

    return [assemble(draft_of(path, "SCP-ECG", SCPECGParser))]


def read_ishne(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read an ISHNE Holter file of an hour at most. Raises EcgFileError naming file, record and field."""
    from ecgdatakit.parsing.parsers.ishne_holter import ISHNEHolterParser

    return [assemble(draft_of(path, "ISHNE", ISHNEHolterParser))]


def draft_of(path: Path, kind: str, parser: Any) -> Draft:
    """What a parser of ecgdatakit makes of a file, in mV."""
    if kind in _SMALLEST_SAMPLE:
        check_size(str(path), path.stem, path.stat().st_size / _SMALLEST_SAMPLE[kind] / _MOST_LEADS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = parser().parse(path)
        except Exception as error:  # the parsers raise whatever the bytes lead them to
            reason = f"cannot be read as {kind}: {_plain(error, path)}; export it again."
            raise EcgFileError(str(path), reason, path.stem) from error
    draft = Draft(str(path), kind, path.stem, _rate(found, path), [])
    draft.notes += _summed([" ".join(str(warning.message).split()) for warning in said])
    draft.channels = [(lead.label, _millivolts(lead, draft)) for lead in found.leads]
    person, recording, device = found.patient, found.recording, found.recording.device
    draft.patient = person.patient_id
    draft.age_years = None if person.age is None else float(person.age)
    draft.sex = {"M": "male", "F": "female"}.get(person.sex)
    draft.device = " ".join(dict.fromkeys(text for text in (device.manufacturer, device.model) if text))
    draft.time = recording.date
    draft.codes = [" ".join(part for part in parts if part) for parts in found.interpretation.statements]
    return draft


def _millivolts(lead: Any, draft: Draft) -> np.ndarray:
    unit = lead.resolution_unit if lead.is_raw else lead.units
    factor = millivolts(unit or "")
    if factor is None:
        raise draft.error(
            f"got {unit or 'no unit'} of amplitude, expected a voltage; export the file with its scale.",
            f"unit of lead {lead.label}",
        )
    samples = np.asarray(lead.samples, np.float64)
    samples = (samples * lead.resolution + lead.offset) * factor if lead.is_raw else samples * factor
    late = int(lead.annotations.get("start_sample", 1)) - 1  # SCP-ECG: leads that were not recorded at once
    return np.concatenate([np.full(late, np.nan), samples]) if late else samples


def _rate(found: Any, path: Path) -> float:
    """Samples a second, exact where the file is."""
    rates = {lead.sampling_rate for lead in found.leads}
    if len(rates) != 1:
        reason = f"got leads of {', '.join(f'{rate} Hz' for rate in sorted(rates)) or 'no rate'}, expected one rate."
        raise EcgFileError(str(path), reason, path.stem, "sampling rate")
    facts = found.raw_metadata
    exact = {
        "mfer": lambda: facts["sampling_rates"][0],
        "scp_ecg": lambda: 1e6 / facts["rhythm_sample_interval_us"],
        "hl7_aecg": lambda: facts["rhythm_time"]["sampling_rate_exact"],
    }
    return float(exact.get(found.source_format, rates.pop)())


def _summed(messages: list[str]) -> list[str]:
    """Messages, of those that begin alike (one a lead) the first and how many follow."""
    kinds: dict[str, list[str]] = {}
    for message in messages:
        kinds.setdefault(" ".join(message.split()[:3]), []).append(message)
    return [first if not rest else f"{first}; {len(rest)} more of this kind" for first, *rest in kinds.values()]


def _plain(error: Exception, path: Path) -> str:
    """What an exception says, without the path that stands before it anyway."""
    text = re.sub(rf"\s*\b(of|in)?\s*{re.escape(str(path))}", "", " ".join(str(error).split()))
    return text or type(error).__name__
