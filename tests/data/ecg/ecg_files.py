"""Writers of small ECG files in each format, made from the formats' specifications, and the truth they hold.

All store the same heart: twelve leads in steps of 5 uV that keep the laws of limb leads exactly.
"""

import base64
import binascii
import struct
import zlib

import numpy as np

from medjax.data.ecg.leads import LEADS

STEP_UV = 5
EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
CODES = dict(
    zip(
        ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6", "III", "aVR", "aVL", "aVF"),
        (*range(1, 9), *range(61, 65)),
        strict=True,
    )
)


def heart(samples=1000, rate=500.0):
    """[12, samples] int16 in steps of 5 uV, rows in the order of LEADS."""
    t = np.arange(samples) / rate
    phase = t % 0.8
    waves = [(0.16, 0.02, 12.0), (0.25, 0.008, -8.0), (0.28, 0.01, 100.0), (0.31, 0.01, -20.0), (0.5, 0.04, 25.0)]
    beat = sum(size * np.exp(-(((phase - at) / width) ** 2)) for at, width, size in waves)
    slow = 4 * np.sin(2 * np.pi * 0.3 * t)
    one, two = (2 * np.round(x) for x in (0.8 * beat + slow, 1.1 * beat - slow))
    rows = {"I": one, "II": two, "III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    rows |= {f"V{n}": np.round((0.4 * n - 1) * beat + n * np.sin(2 * np.pi * t)) for n in range(1, 7)}
    return np.stack([rows[lead] for lead in LEADS]).astype(np.int16)


def truth(samples=1000, rate=500.0):
    """[12, samples] mV."""
    return heart(samples, rate) * (STEP_UV / 1000)


def rows_of(leads, samples=1000, rate=500.0):
    return {lead: heart(samples, rate)[LEADS.index(lead)] for lead in leads}


def write_wfdb(
    folder, name, digital, *, rate=500, gains=200.0, names=LEADS, comments=(), unit="mV", record=None, mat=False
):
    """One .hea and one .dat or .mat of format 16. gains: units per mV, one or one a channel."""
    gains = np.broadcast_to(gains, len(digital))
    file = f"{name}.{'mat' if mat else 'dat'}"
    lines = [f"{record or name} {len(digital)} {rate} {digital.shape[1]}"]
    for lead, gain, row in zip(names, gains, digital, strict=True):
        total = int(row.astype(np.int64).sum()) % 65536
        lines.append(f"{file} 16{'+24' if mat else ''} {gain:g}(0)/{unit} 16 0 {row[0]} {total} 0 {lead}")
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"#{comment}" for comment in comments)]) + "\n")
    (folder / file).write_bytes(b"\0" * (24 if mat else 0) + digital.T.astype("<i2").tobytes())
    return folder / f"{name}.hea"


def write_dicom(
    path,
    digital,
    *,
    scheme="SCPECG",
    unit="uV",
    sensitivity=STEP_UV,
    leads=LEADS,
    rate=500,
    median=True,
    groups=None,
    **facts,
):
    """12-lead ECG Waveform Storage. groups: (leads, samples, offset in ms) instead of one rhythm and a median beat."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def code(value, scheme):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "x"
        return [item]

    def group(leads, samples, offset, label):
        item = Dataset()
        item.MultiplexGroupTimeOffset, item.MultiplexGroupLabel = offset, label
        item.WaveformOriginality = "DERIVED" if label == "MEDIAN BEAT" else "ORIGINAL"
        item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = samples.shape
        item.SamplingFrequency, item.WaveformBitsAllocated, item.WaveformSampleInterpretation = rate, 16, "SS"
        item.ChannelDefinitionSequence = []
        for lead in leads:
            channel = Dataset()
            prefix = {"SCPECG": "5.6.3-9-", "MDC": "2:"}[scheme]
            channel.ChannelSourceSequence = code(f"{prefix}{CODES[lead]}", scheme)
            if sensitivity is not None:
                channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = sensitivity, 1
                channel.ChannelBaseline, channel.ChannelSensitivityUnitsSequence = 0, code(unit, "UCUM")
            channel.WaveformBitsStored = 16
            item.ChannelDefinitionSequence.append(channel)
        item.WaveformData = samples.T.astype("<i2").tobytes()
        return item

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name, value in facts.items():
        setattr(data, name, value)
    if groups is not None:
        data.WaveformSequence = [group(*parts, "RHYTHM") for parts in groups]
    elif digital is not None:
        data.WaveformSequence = [group(leads, digital, 0, "RHYTHM")]
        if median:
            data.WaveformSequence.insert(0, group(leads, digital[:, :300] // 2, 0, "MEDIAN BEAT"))
    data.save_as(path, enforce_file_format=True)
    return path


def write_muse(path, rows, *, rate=500, units="MICROVOLTS", age="64", age_units="YEARS", prologue=""):
    """RestingECG with a rhythm and, before it, a median beat of half the size."""

    def lead(name, samples):
        raw = samples.astype("<i2").tobytes()
        text = base64.b64encode(raw).decode()
        return (
            f"<LeadData><LeadByteCountTotal>{len(raw)}</LeadByteCountTotal><LeadSampleCountTotal>{len(samples)}"
            f"</LeadSampleCountTotal><LeadAmplitudeUnitsPerBit>{STEP_UV}</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>"
            f"{units}</LeadAmplitudeUnits><LeadID>{name}</LeadID><LeadSampleSize>2</LeadSampleSize><LeadDataCRC32>"
            f"{zlib.crc32(raw)}</LeadDataCRC32><WaveFormData>{text}</WaveFormData></LeadData>"
        )

    def waveform(kind, rows):
        leads = "".join(lead(name, samples) for name, samples in rows.items())
        base = f"<SampleBase>{rate}</SampleBase><SampleExponent>0</SampleExponent>"
        return f"<Waveform><WaveformType>{kind}</WaveformType>{base}{leads}</Waveform>"

    median = waveform("Median", {name: samples[:300] // 2 for name, samples in rows.items()})
    path.write_text(
        f'<?xml version="1.0" encoding="ISO-8859-1"?>{prologue}<RestingECG><PatientDemographics>'
        f"<PatientID>P17</PatientID><PatientAge>{age}</PatientAge><AgeUnits>{age_units}</AgeUnits><Gender>FEMALE</Gender>"
        "</PatientDemographics><TestDemographics><AcquisitionDevice>MAC55</AcquisitionDevice><AcquisitionDate>03-31-2021</AcquisitionDate>"
        "<AcquisitionTime>08:15:30</AcquisitionTime></TestDemographics><Diagnosis><DiagnosisStatement><StmtFlag>ENDSLINE"
        "</StmtFlag><StmtText>Sinus rhythm</StmtText></DiagnosisStatement></Diagnosis>"
        f"{median}{waveform('Rhythm', rows)}</RestingECG>"
    )
    return path


def write_aecg(path, rows, *, rate=500, unit="uV", sex="F"):
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{name.upper()}"/><value xsi:type="SLIST_PQ"><origin value="0" '
        f'unit="{unit}"/><scale value="{STEP_UV}" unit="{unit}"/><digits>{" ".join(map(str, samples))}</digits></value>'
        "</sequence></component>"
        for name, samples in rows.items()
    )
    path.write_text(
        '<?xml version="1.0"?><AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        '<effectiveTime><low value="20210331081530"/></effectiveTime><componentOf><timepointEvent><componentOf>'
        '<subjectAssignment><subject><trialSubject><id extension="P17"/><subjectDemographicPerson>'
        f'<administrativeGenderCode code="{sex}"/><birthTime value="19570102"/></subjectDemographicPerson>'
        "</trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"
        '<component><series><code code="RHYTHM"/><component><sequenceSet>'
        '<component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS"><head '
        f'value="20210331081530"/><increment value="{1 / rate}" unit="s"/></value></sequence></component>{sequences}'
        "</sequenceSet></component></series></component></AnnotatedECG>"
    )
    return path


def write_sierra(path, rows, *, rate=500, age="64"):
    samples = np.stack(list(rows.values()))
    text = base64.b64encode(samples.astype("<i2").tobytes()).decode()
    path.write_text(
        '<?xml version="1.0"?><restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo><documenttype>PhilipsECG'
        "</documenttype><documentversion>1.04</documentversion></documentinfo><patient><generalpatientdata>"
        f"<patientid>P17</patientid><age><years>{age}</years></age><sex>Female</sex></generalpatientdata></patient>"
        '<dataacquisition date="2021-03-31" time="08:15:30"><machine detaildescription="Philips Medical:860315:A">'
        f"PageWriter</machine><signalcharacteristics><samplingrate>{rate}</samplingrate><resolution>{STEP_UV}</resolution>"
        "<numberchannelsallocated>12</numberchannelsallocated><acquisitiontype>STD-12</acquisitiontype>"
        '</signalcharacteristics></dataacquisition><waveforms><parsedwaveforms dataencoding="Base64" '
        f'durationperchannel="{samples.shape[1] * 1000 // rate}" leadlabels="{" ".join(rows)}">{text}</parsedwaveforms>'
        "</waveforms></restingecgdata>"
    )
    return path


def write_mortara(path, rows, *, rate=500, age="64"):
    channels = "".join(
        f'<CHANNEL NAME="{name}" BITS="16" FORMAT="SIGNED" UNITS_PER_MV="{1000 // STEP_UV}" SAMPLE_FREQ="{rate}" '
        f'DURATION="{len(samples)}" ENCODING="BASE64" '
        f'DATA="{base64.b64encode(samples.astype("<i2").tobytes()).decode()}"/>'
        for name, samples in rows.items()
    )
    path.write_text(
        f'<?xml version="1.0"?><ECG ACQUISITION_TIME="20210331081530" AGE="{age}" AGE_UNITS="YEARS"><SUBJECT ID="P17" '
        f'GENDER="Female"/><SOURCE TYPE="ECG" MODEL="ELI 250"/>{channels}</ECG>'
    )
    return path


def write_schiller(path, rows, *, rate=500, unit="UV", count=None):
    def wave(kind, rows):
        channels = "".join(
            f"<channel><annotation_lead><name>R_AMPL</name><value>1</value></annotation_lead><name>{name}</name><data>"
            f"{','.join(map(str, samples))},</data><samplecount>{count or len(samples)}</samplecount></channel>"
            for name, samples in rows.items()
        )
        return (
            f"<wavedata><type>{kind}</type><resolution><samplerate><exponent>1</exponent><value>{rate}</value></samplerate>"
            f"<yres><unitperbit>{STEP_UV}.0</unitperbit><units>{unit}</units></yres></resolution>{channels}</wavedata>"
        )

    path.write_text(
        '<?xml version="1.0"?><com.xiriuz.sema.xml.schillerEDI.SchillerEDI><patdata><id>P17</id><birthdate>19570102'
        "</birthdate><gender>FEMALE</gender></patdata><examdescript><startdatetime><date>20210331</date><time>081530000"
        "</time></startdatetime><aquiringdevice><hardware><vendor>Schiller</vendor><model>AT-10P</model></hardware>"
        "</aquiringdevice></examdescript><eventdata><event>"
        f"{wave('ECG_AVERAGES', {name: samples[:300] // 2 for name, samples in rows.items()})}"
        f"{wave('ECG_RHYTHMS', rows)}"
        "<textdata><type>INTERPRETATION</type><textdata>Sinus rhythm</textdata></textdata></event></eventdata>"
        "</com.xiriuz.sema.xml.schillerEDI.SchillerEDI>"
    )
    return path


def write_mfer(path, rows, *, rate=500, scale=True, age=64):
    """ISO 22077, little endian, one frame of one block a channel."""

    def tag(number, value):
        size = bytes([len(value)]) if len(value) < 128 else b"\x84" + struct.pack(">I", len(value))
        return bytes([number]) + size + value

    samples = np.stack(list(rows.values())).astype("<i2")
    parts = [
        tag(0x40, b"MFR".ljust(32)),
        tag(0x01, b"\x01"),
        tag(0x17, b"Fukuda^FX^1^2"),
        tag(0x82, b"P17"),
        tag(0x84, b"\x02"),
    ]
    parts += [tag(0x83, bytes([age, 0, 0]) + struct.pack("<HBB", 1957, 1, 2))]
    parts += [tag(0x85, struct.pack("<HBBBBB", 2021, 3, 31, 8, 15, 30)), tag(0x08, struct.pack("<H", 1))]
    parts += [tag(0x0B, struct.pack("<Bbh", 0, 0, rate))]
    parts += [tag(0x0C, struct.pack("<Bbh", 0, -6, STEP_UV))] if scale else []
    parts += [tag(0x04, struct.pack("<I", samples.shape[1])), tag(0x05, struct.pack("<H", len(samples)))]
    parts += [tag(0x06, struct.pack("<H", 1))]
    for channel, lead in enumerate(rows):
        name = tag(0x09, struct.pack("<H", CODES[lead]))
        parts.append(bytes([0x3F, channel, len(name)]) + name)
    path.write_bytes(b"".join([*parts, tag(0x1E, samples.tobytes()), b"\x80\x00"]))
    return path


def write_scp(path, rows, *, interval_us=2000, age=64):
    """EN 1064, sections 0, 1, 3 and 6, neither compressed nor differenced."""

    def section(number, body):
        body += b"\0" * (len(body) % 2)
        head = struct.pack("<HIBB6s", number, 16 + len(body), 20, 20, b"" if number else b"SCPECG") + body
        return struct.pack("<H", binascii.crc_hqx(head, 0xFFFF)) + head

    def field(tag, value):
        return struct.pack("<BH", tag, len(value)) + value

    samples = list(rows.values())
    facts = field(2, b"P17\0") + field(4, struct.pack("<HB", age, 1)) + field(8, b"\x02")
    facts += field(25, struct.pack("<HBB", 2021, 3, 31)) + field(26, bytes([8, 15, 30])) + field(255, b"")
    leads = struct.pack("<BB", len(rows), 4 | len(rows) << 3)
    leads += b"".join(struct.pack("<IIB", 1, len(row), CODES[name]) for name, row in rows.items())
    data = struct.pack("<HHBB", STEP_UV * 1000, interval_us, 0, 0)
    data += b"".join(struct.pack("<H", 2 * len(row)) for row in samples)
    data += b"".join(row.astype("<i2").tobytes() for row in samples)
    sections = {1: section(1, facts), 3: section(3, leads), 6: section(6, data)}
    at = 6 + 16 + 10 * 12
    pointers = struct.pack("<HII", 0, 16 + 10 * 12, 7)
    for number in range(1, 12):
        body = sections.get(number, b"")
        pointers += struct.pack("<HII", number, len(body), at + 1 if body else 0)
        at += len(body)
    record = section(0, pointers) + b"".join(sections.values())
    rest = struct.pack("<I", 6 + len(record)) + record
    path.write_bytes(struct.pack("<H", binascii.crc_hqx(rest, 0xFFFF)) + rest)
    return path


def write_ishne(path, rows, *, rate=500):
    spec = {"I": 5, "II": 6, "III": 7, "aVR": 8, "aVL": 9, "aVF": 10} | {f"V{n}": 10 + n for n in range(1, 7)}
    head = bytearray(522)
    samples = np.stack(list(rows.values())).astype("<i2")
    head[:8] = b"ISHNE1.0"
    struct.pack_into("<iiiih", head, 10, 0, samples.size, 522, 522, 1)
    head[108:111] = b"P17"
    struct.pack_into("<hh9h", head, 128, 2, 1, 2, 1, 1957, 31, 3, 2021, 31, 3, 2021)
    struct.pack_into("<3hh", head, 150, 8, 15, 30, len(rows))
    for channel, lead in enumerate(rows):
        struct.pack_into("<h", head, 158 + 2 * channel, spec[lead])
        struct.pack_into("<h", head, 182 + 2 * channel, 1)
        struct.pack_into("<h", head, 206 + 2 * channel, STEP_UV * 1000)
    head[232:238] = b"SEER 1"
    struct.pack_into("<h", head, 272, rate)
    path.write_bytes(bytes(head) + samples.T.tobytes())
    return path


def write_edf(path, rows, *, rate=500, unit="uV", labels=None):
    """Through pyedflib, digital numbers as they are."""
    import pyedflib

    with pyedflib.EdfWriter(str(path), len(rows), file_type=pyedflib.FILETYPE_EDFPLUS) as file:
        for channel, name in enumerate(labels or rows):
            file.setSignalHeader(
                channel,
                {
                    "label": name,
                    "dimension": unit,
                    "sample_frequency": rate,
                    "physical_max": 32767.0 * STEP_UV / 10,
                    "physical_min": -32768.0 * STEP_UV / 10,
                    "digital_max": 32767,
                    "digital_min": -32768,
                    "prefilter": "",
                    "transducer": "",
                },
            )
        file.setPatientCode("P17")
        file.setSex(0)
        file.writeSamples([np.ascontiguousarray(row * 10, np.int32) for row in rows.values()], digital=True)
    return path
