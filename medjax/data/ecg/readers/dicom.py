"""DICOM ECG: 12-lead, general and ambulatory ECG waveforms.

A file holds groups of channels: the rhythm, and often a median beat, which is left out. Groups with different leads
that belong to one recording (older machines store 4 x 3 leads, one after the other) become one record on a common time
line. Channels are named by codes of one of two schemes (SCPECG 5.6.3-9-n, MDC 2:n, the same n) or, failing that, by a
label.
"""

import re
import warnings
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.leads import standard_name
from medjax.data.ecg.readers.assembly import Draft, assemble, check_size, noted
from medjax.data.ecg.readers.demographics import years_between
from medjax.data.ecg.readers.stated import Stated, millivolts
from medjax.data.ecg.record import EcgFileError, EcgRecord

# the numbers of SCP-ECG (EN 1064, section 3), which ISO 11073-10101 took over
_LEAD_CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {n + 2: f"V{n}" for n in range(1, 7)}
_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d+)")
_MDC_PARTITION = 2 * 65536  # context-free MDC codes: partition 2, then the number
_KINDS = {"SB": "i1", "UB": "u1", "SS": "<i2", "US": "<u2", "SL": "<i4", "UL": "<u4"}
_SHORTEST_RHYTHM_S = 2.0
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LARGEST_BYTES = 1_000_000_000  # of a file, once inflated


def read_dicom(path: Path, stated: Stated) -> list[EcgRecord]:
    """Read the ECGs of a DICOM file. Raises EcgFileError naming file, record and field."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd identifiers, which nothing here reads
        try:
            _check_inflated(path)
            data = pydicom.dcmread(path, stop_before_pixels=True)
            groups = list(data.get("WaveformSequence") or ())
        except EcgFileError:
            raise
        except Exception as error:
            raise EcgFileError(str(path), f"not readable as DICOM: {error}; export it again.", path.stem) from error
        if not groups:
            kind = data.get("SOPClassUID", "")
            raise EcgFileError(
                str(path),
                f"got DICOM without a waveform ({getattr(kind, 'name', kind) or 'no SOP class'}), expected an ECG; "
                "export the waveform, not a picture or a report of it.",
                path.stem,
                "WaveformSequence",
            )
        rhythms = [index for index, group in enumerate(groups) if not _is_median(group)]
        if not rhythms:
            raise EcgFileError(
                str(path), "got median beats only, expected the rhythm; export it too.", path.stem, "WaveformSequence"
            )
        drafts: list[Draft] = []
        for index in rhythms:
            _place(drafts, _draft(path, data, groups[index], index))
        if len(drafts) < len(rhythms) and not any(groups[index].get("MultiplexGroupTimeOffset") for index in rhythms):
            drafts[0].notes.append("groups of leads without a time offset: taken as recorded at once")
        for number, draft in enumerate(drafts[1:], 2):
            draft.id = f"{draft.id}_{number}"
        return [assemble(draft) for draft in drafts]


def _check_inflated(path: Path) -> None:
    """Raise EcgFileError for a deflated file that is too large once inflated: pydicom inflates without a bound."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    with path.open("rb") as file:
        read_preamble(file, force=True)
        if str(_read_file_meta_info(file).get("TransferSyntaxUID", "")) != _DEFLATED:
            return
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (
            not unpacker.eof and size <= _LARGEST_BYTES and (packed := unpacker.unconsumed_tail or file.read(1 << 16))
        ):
            size += len(unpacker.decompress(packed, 1 << 24))
    if size > _LARGEST_BYTES:
        reason = f"inflates to more than {_LARGEST_BYTES:,} bytes, expected a recording; export it again."
        raise EcgFileError(str(path), reason, path.stem)


def _is_median(group: Any) -> bool:
    label = str(group.get("MultiplexGroupLabel") or "").upper()
    rate, samples = float(group.get("SamplingFrequency") or 0), int(group.get("NumberOfWaveformSamples") or 0)
    short = rate > 0 and samples / rate < _SHORTEST_RHYTHM_S
    return "MEDIAN" in label or "AVERAGE" in label or (short and group.get("WaveformOriginality") == "DERIVED")


def _draft(path: Path, data: Any, group: Any, index: int) -> Draft:
    """One group of channels, starting as many samples late as its time offset says."""
    draft = Draft(str(path), "DICOM", path.stem, float(group.get("SamplingFrequency") or 0), [])
    late = round(float(group.get("MultiplexGroupTimeOffset") or 0) / 1000 * draft.sampling_rate_hz)
    count, length = int(group.get("NumberOfWaveformChannels") or 0), int(group.get("NumberOfWaveformSamples") or 0)
    check_size(str(path), path.stem, length + abs(late) if length else 0, count)
    expected = count * length * int(group.get("WaveformBitsAllocated") or 0) // 8
    if (got := len(group.get("WaveformData") or b"")) < expected:
        reason = f"got {got} bytes, expected {expected} for {count} channels of {length} samples; the file is cut."
        raise draft.error(reason, "WaveformData")
    factors = [_factor(draft, channel) for channel in group.ChannelDefinitionSequence]
    try:
        raw = _unscaled(data, group, index)
    except Exception as error:
        raise draft.error(f"pydicom cannot decode the samples: {error}; export it again.", "WaveformData") from error
    draft.channels = [
        (_name(channel), np.concatenate([np.full(max(late, 0), np.nan), row * factor]))
        for channel, row, factor in zip(group.ChannelDefinitionSequence, raw, factors, strict=True)
    ]
    _read_facts(draft, data)
    return draft


def _unscaled(data: Any, group: Any, index: int) -> np.ndarray:
    """[channels, samples] float64 in each channel's unit, NaN for padding."""
    values = np.array(data.waveform_array(index).T, np.float64)
    padding = group.get("WaveformPaddingValue")
    if padding is None:
        return values
    kind = _KINDS[group.WaveformSampleInterpretation]
    empty = np.frombuffer(padding, kind)[0] if isinstance(padding, bytes) else padding
    stored = np.frombuffer(group.WaveformData, kind, values.size).reshape(values.shape[1], values.shape[0]).T
    values[stored == empty] = np.nan
    return values


def _factor(draft: Draft, channel: Any) -> float:
    """Millivolts in one unit of a channel."""
    units = channel.get("ChannelSensitivityUnitsSequence")
    if channel.get("ChannelSensitivity") is None or not units:
        raise draft.error(
            "got samples without sensitivity or its unit, expected both, as 1.25 uV; export the file with its scale.",
            f"channel {_name(channel)}",
        )
    unit = str(units[0].get("CodeValue") or "")
    factor = millivolts(unit) or millivolts(str(units[0].get("CodeMeaning") or ""))
    if factor is None:
        raise draft.error(f"got the unit {unit!r}, expected a voltage as uV or mV.", f"channel {_name(channel)}")
    return factor


def _name(channel: Any) -> str:
    """The lead of a channel, or whatever the file calls it."""
    label = str(channel.get("ChannelLabel") or "")
    for source in channel.get("ChannelSourceSequence") or ():
        value, meaning = str(source.get("CodeValue") or ""), str(source.get("CodeMeaning") or "")
        match = _CODE.fullmatch(value)
        number = int(match[1]) if match else int(value) - _MDC_PARTITION if value.isdecimal() else 0
        if lead := _LEAD_CODES.get(number) or standard_name(value) or standard_name(meaning):
            return lead
        label = label or meaning or value
    return label or "unnamed"


def _place(drafts: list[Draft], group: Draft) -> None:
    """Join a group to the recording it belongs to, or begin another one."""
    leads = {name for name, _ in group.channels}
    for draft in drafts:
        if draft.sampling_rate_hz == group.sampling_rate_hz and not leads & {name for name, _ in draft.channels}:
            draft.channels = [*draft.channels, *group.channels]
            return
    drafts.append(group)


def _read_facts(draft: Draft, data: Any) -> None:
    with noted(draft, "patient"):
        draft.patient = str(data.get("PatientID") or "")
    with noted(draft, "sex"):
        draft.read_sex(str(data.get("PatientSex") or ""))
    with noted(draft, "device"):
        draft.device = f"{data.get('Manufacturer') or ''} {data.get('ManufacturerModelName') or ''}"
    with noted(draft, "time"):
        moment = str(data.get("AcquisitionDateTime") or "")
        moment = moment or str(data.get("ContentDate") or "") + str(data.get("ContentTime") or "")
        draft.time = _datetime(moment)
    with noted(draft, "age"):
        draft.read_age(str(data.get("PatientAge") or ""))
        birth = _datetime(str(data.get("PatientBirthDate") or ""))
        if draft.age_years is None and birth and draft.time:
            draft.age_years = years_between(birth.date(), draft.time.date())
    with noted(draft, "statements"):
        draft.codes = [
            str(annotation.UnformattedTextValue)
            for annotation in data.get("WaveformAnnotationSequence") or ()
            if annotation.get("UnformattedTextValue")
        ]


def _datetime(text: str) -> datetime | None:
    digits = re.match(r"\d{8}(\d{6})?", text)
    try:
        return datetime.strptime(digits[0].ljust(14, "0"), "%Y%m%d%H%M%S") if digits else None
    except ValueError:
        return None
