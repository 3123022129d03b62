"""XML: attacks are refused before anything else reads the file, and what the libraries drop is kept."""

import sys

import numpy as np
import pytest
from ecg_files import (
    LEADS,
    heart,
    rows_of,
    truth,
    write_aecg,
    write_mfer,
    write_mortara,
    write_muse,
    write_schiller,
    write_scp,
    write_sierra,
)

from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.record import EcgFileError

BOMB = '<!DOCTYPE RestingECG [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE RestingECG [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
PARAMETER = '<!DOCTYPE RestingECG [<!ENTITY % a SYSTEM "http://example.invalid/x.dtd"> %a;]>'


@pytest.mark.parametrize("prologue", [BOMB, EXTERNAL, PARAMETER])
@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_entities_are_refused_before_any_library_reads_the_file(prologue, encoding, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ecgdatakit.parsing.parsers.ge_muse_xml", None)
    path = write_muse(tmp_path / "a.xml", rows_of(LEADS), prologue=prologue)
    text = path.read_text().replace("ISO-8859-1", encoding)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(EcgFileError) as caught:
        read_ecg(path)
    assert str(caught.value) == (
        f"{path}: the XML declares entities or refers to other files (EntitiesForbidden), which attacks do and an ECG "
        "does not need; refused. Remove the declarations if you trust the file."
    )


@pytest.mark.parametrize("root", ["restingecgdata", "AnnotatedECG", "ECG", "anything"])
def test_bombs_in_every_kind(root, tmp_path):
    (tmp_path / "a.xml").write_text(f"<?xml version='1.0'?>{BOMB}<{root}>&b;</{root}>")
    with pytest.raises(EcgFileError, match="the XML declares entities"):
        read_ecg(tmp_path / "a.xml")


def test_a_document_type_without_entities_is_harmless(tmp_path):
    prologue = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'
    (record,) = read_ecg(write_muse(tmp_path / "a.xml", rows_of(LEADS), prologue=prologue))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)


def test_other_xml_and_broken_xml(tmp_path):
    (tmp_path / "a.xml").write_text("<?xml version='1.0'?><invoice><total>3</total></invoice>")
    with pytest.raises(EcgFileError, match=r"a\.xml: got XML with the root <invoice>, expected an ECG of GE MUSE"):
        read_ecg(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<RestingECG><Waveform></RestingECG>")
    with pytest.raises(EcgFileError, match=r"a\.xml: not well-formed XML: mismatched tag"):
        read_ecg(tmp_path / "a.xml")


@pytest.mark.parametrize("write", [write_muse, write_sierra, write_mortara])
@pytest.mark.parametrize(("age", "expected"), [(">89", 90.0), ("unknown", None), ("", None), ("64", 64.0)])
def test_ages_that_are_no_number(write, age, expected, tmp_path):
    (record,) = read_ecg(write(tmp_path / "a.xml", rows_of(LEADS), age=age.replace(">", "&gt;")))
    assert record.age_years == expected
    notes = {">89": "age: got '>89", "unknown": "age: got 'unknown"}
    assert [note.startswith(notes.get(age, "-")) for note in record.notes] == [True] * (age in notes)


def test_muse_age_in_months(tmp_path):
    (record,) = read_ecg(write_muse(tmp_path / "a.xml", rows_of(LEADS), age="30", age_units="MONTHS"))
    assert record.age_years == 2.5


@pytest.mark.parametrize(("write", "suffix"), [(write_muse, ".xml"), (write_aecg, ".xml"), (write_schiller, ".xml")])
@pytest.mark.parametrize("unit", ["", "apples"])
def test_units_are_never_guessed(write, suffix, unit, tmp_path):
    options = {write_muse: "units"}.get(write, "unit")
    with pytest.raises(EcgFileError, match=r"record a, unit.*: got .*, expected a voltage"):
        read_ecg(write(tmp_path / f"a{suffix}", rows_of(LEADS), **{options: unit}))


def test_mfer_without_a_scale_is_refused(tmp_path):
    with pytest.raises(EcgFileError, match="record a, unit of lead I: got no unit of amplitude, expected a voltage"):
        read_ecg(write_mfer(tmp_path / "a.mwf", rows_of(LEADS), scale=False))


@pytest.mark.parametrize("unit", ["mV", "uV"])
def test_aecg_units(unit, tmp_path):
    (record,) = read_ecg(write_aecg(tmp_path / "a.xml", rows_of(LEADS), unit=unit))
    factor = 1000 if unit == "mV" else 1
    np.testing.assert_allclose(record.signal, truth() * factor, rtol=1e-6, atol=1e-6)
    assert any("implausible" in note for note in record.notes) == (unit == "mV")


def test_rates_that_are_no_whole_number_are_exact(tmp_path):
    (aecg,) = read_ecg(write_aecg(tmp_path / "a.xml", rows_of(LEADS), rate=256.41))
    assert aecg.sampling_rate_hz == pytest.approx(256.41, rel=1e-9)
    (scp,) = read_ecg(write_scp(tmp_path / "a.scp", rows_of(LEADS), interval_us=3906))
    assert scp.sampling_rate_hz == pytest.approx(1e6 / 3906, rel=1e-12)


def test_schiller_that_is_cut_or_holds_averages_only(tmp_path):
    path = write_schiller(tmp_path / "a.xml", rows_of(LEADS), count=5000)
    with pytest.raises(
        EcgFileError, match=r"record a, lead I: got 1000 samples, the file says 5000; it is cut short\."
    ):
        read_ecg(path)
    path = write_schiller(tmp_path / "a.xml", rows_of(LEADS))
    path.write_text(path.read_text().replace("ECG_RHYTHMS", "ECG_AVERAGES"))
    with pytest.raises(EcgFileError, match="got no wavedata of type ECG_RHYTHMS, expected one"):
        read_ecg(path)


def test_the_median_beat_is_never_the_record(tmp_path):
    (record,) = read_ecg(write_muse(tmp_path / "a.xml", rows_of(LEADS)))
    assert record.samples == heart().shape[1]
