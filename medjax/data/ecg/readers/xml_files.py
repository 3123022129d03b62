"""XML of ECG machines: GE MUSE, HL7 aECG, Philips Sierra, Mortara ELI (through ecgdatakit) and Schiller.

The root element says which it is, not the name of the file. Before anything else reads it, a file is parsed by
defusedxml: entities, which is how XML bombs and reads of other files work, are refused.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from medjax.data.ecg.readers.assembly import Draft, assemble
from medjax.data.ecg.readers.demographics import years_between
from medjax.data.ecg.readers.kit import draft_of
from medjax.data.ecg.readers.stated import Stated, millivolts
from medjax.data.ecg.record import EcgFileError, EcgRecord

LARGEST_BYTES = 100_000_000  # most of an hour of twelve leads as decimal text
_SCHILLER_ROOT = "com.xiriuz.sema.xml.schilleredi.schilleredi"


def read_xml(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read an ECG in XML. Raises EcgFileError naming file, record and field, also for XML that is no ECG."""
    root = parse(path)
    kind = _local(root.tag)
    if kind.lower() not in _READERS:
        raise EcgFileError(
            str(path),
            f"got XML with the root <{kind[:60]}>, expected an ECG of GE MUSE (RestingECG), HL7 aECG (AnnotatedECG), "
            "Philips (restingecgdata), Mortara (ECG) or Schiller (SchillerEDI); export it in one of these.",
        )
    return [assemble(_READERS[kind.lower()](path, root))]


def parse(path: Path) -> Element:
    """The root element of a file. Raises EcgFileError where it is no XML, too large, or declares entities."""
    from defusedxml import DefusedXmlException
    from defusedxml import ElementTree as SafeTree

    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise EcgFileError(str(path), f"got {size} bytes, expected at most {LARGEST_BYTES} of XML; cut the recording.")
    try:
        return SafeTree.parse(str(path), forbid_entities=True, forbid_external=True).getroot()
    except DefusedXmlException as error:
        raise EcgFileError(
            str(path),
            f"the XML declares entities or refers to other files ({type(error).__name__}), which attacks do and an ECG "
            "does not need; refused. Remove the declarations if you trust the file.",
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise EcgFileError(str(path), f"not well-formed XML: {error}; export it again.") from error


def _muse(path: Path, root: Element) -> Draft:
    from ecgdatakit.parsing.parsers.ge_muse_xml import GEMuseXMLParser

    draft = draft_of(path, "MUSE XML", GEMuseXMLParser)
    _take_age(draft, _text(root, "PatientDemographics/PatientAge"), _text(root, "PatientDemographics/AgeUnits"))
    return draft


def _aecg(path: Path, root: Element) -> Draft:
    from ecgdatakit.parsing.parsers.hl7_aecg import HL7aECGParser

    return draft_of(path, "HL7 aECG", HL7aECGParser)


def _sierra(path: Path, root: Element) -> Draft:
    from ecgdatakit.parsing.parsers.sierra_xml import SierraXMLParser

    draft = draft_of(path, "Philips Sierra XML", SierraXMLParser)
    _take_age(draft, _text(root, "patient/generalpatientdata/age/years"), "years")
    return draft


def _mortara(path: Path, root: Element) -> Draft:
    from ecgdatakit.parsing.parsers.mortara_el250 import MortaraEL250Parser

    draft = draft_of(path, "Mortara XML", MortaraEL250Parser)
    _take_age(draft, root.get("AGE", ""), root.get("AGE_UNITS", ""))
    return draft


def _take_age(draft: Draft, age: str, unit: str) -> None:
    """The age as the file writes it: ecgdatakit cuts it to whole years, and drops ">89"."""
    counted = draft.age_years
    if age:
        draft.read_age(f"{age} {unit}".strip())
    if draft.age_years is None:
        draft.age_years = counted


def _schiller(path: Path, root: Element) -> Draft:
    """Schiller SEMA XML: the rhythm of the first event, never the averaged beats."""
    draft = Draft(str(path), "Schiller XML", path.stem, 0.0, [])
    rhythms = [wave for wave in root.iter("wavedata") if _text(wave, "type").upper() == "ECG_RHYTHMS"]
    if not rhythms:
        raise draft.error("got no wavedata of type ECG_RHYTHMS, expected one; export the recording, not the averages.")
    if len(rhythms) > 1:
        draft.notes.append(f"{len(rhythms)} rhythms in the file, the first one read")
    wave = rhythms[0]
    draft.sampling_rate_hz = _number(draft, wave, "resolution/samplerate/value", "sampling rate")
    if (exponent := _text(wave, "resolution/samplerate/exponent")) not in ("", "0", "1"):
        raise draft.error(f"got the exponent {exponent!r}, expected 0 or 1; say what it means.", "sampling rate")
    unit = _text(wave, "resolution/yres/units")
    if (factor := millivolts(unit)) is None:
        raise draft.error(f"got {unit!r}, expected a voltage as UV; export the file with its scale.", "units")
    step = _number(draft, wave, "resolution/yres/unitperbit", "unitperbit") * factor
    channels = []
    for channel in wave.findall("channel"):
        name, cells = _text(channel, "name"), _text(channel, "data")
        try:
            samples = (
                np.array([float(cell) if cell.strip() else np.nan for cell in cells.rstrip(", \n").split(",")]) * step
            )
        except ValueError as error:
            raise draft.error(f"{error}; expected numbers and commas.", f"data of lead {name}") from error
        count = _text(channel, "samplecount")
        if count and count != str(len(samples)):
            raise draft.error(f"got {len(samples)} samples, the file says {count}; it is cut short.", f"lead {name}")
        channels.append((name, samples))
    draft.channels = channels
    _schiller_facts(draft, root)
    return draft


def _schiller_facts(draft: Draft, root: Element) -> None:
    start = _text(root, "examdescript/startdatetime/date") + _text(root, "examdescript/startdatetime/time")[:6]
    if not start.startswith("19700101"):  # the machine's clock was never set
        draft.time = _date(start, "%Y%m%d%H%M%S")
    birth = _date(_text(root, "patdata/birthdate"), "%Y%m%d")
    if birth and draft.time:
        draft.age_years = years_between(birth.date(), draft.time.date())
    draft.patient = _text(root, "patdata/id")
    draft.read_sex(_text(root, "patdata/gender"))
    hardware = root.find("examdescript/aquiringdevice/hardware")
    if hardware is not None:
        draft.device = f"{_text(hardware, 'vendor')} {_text(hardware, 'model')}"
    draft.codes = [
        _text(part, "textdata") for part in root.iter("textdata") if _text(part, "type").upper() == "INTERPRETATION"
    ]


_READERS: dict[str, Callable[[Path, Element], Draft]] = {
    "restingecg": _muse,
    "annotatedecg": _aecg,
    "restingecgdata": _sierra,
    "ecg": _mortara,
    _SCHILLER_ROOT: _schiller,
}


def _local(tag: Any) -> str:
    """A tag without its namespace."""
    return str(tag).rsplit("}", 1)[-1]


def _text(node: Element, path: str) -> str:
    """Text of the first element at a path, whatever its namespace; "" where there is none."""
    for step in path.split("/"):
        found = next((child for child in node if _local(child.tag) == step), None)
        if found is None:
            return ""
        node = found
    return " ".join((node.text or "").split()) if step != "data" else (node.text or "")


def _number(draft: Draft, node: Element, path: str, what: str) -> float:
    text = _text(node, path)
    try:
        return float(text)
    except ValueError as error:
        raise draft.error(f"got {text!r} as {path}, expected a number; export the file again.", what) from error


def _date(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)
    except ValueError:
        return None
