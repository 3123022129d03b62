"""Names of leads, derivation and the laws of limb leads."""

import numpy as np
import pytest
from ecg_files import truth

from medjax.data.ecg.leads import LEADS, derive, einthoven_error, goldberger_error, standard_name


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize(
    "spelling",
    ["{}", " {} ", "{u}", "{l}", "Lead {}", "lead_{l}", "{} lead", "ECG {u}", "EKG {}", "MDC_ECG_LEAD_{u}", "{} (uV)"],
)
def test_spellings_of_every_lead(lead, spelling):
    assert standard_name(spelling.format(lead, u=lead.upper(), l=lead.lower())) == lead


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DI", "I"),
        ("DII", "II"),
        ("d3", "III"),
        ("L1", "I"),
        ("C1", "V1"),
        ("C6", "V6"),
        ("a VR", "aVR"),
        ("Lead I (Einthoven)", "I"),
        ("Ⅲ", "III"),
        ("第Ⅱ誘導", "II"),
        ("Ｖ５", "V5"),
        ("-aVR", None),
        ("MDC_ECG_LEAD_AVRneg", None),
        ("MLII", None),
        ("V4R", None),
        ("V7", None),
        ("vx", None),
        ("ECG", None),
        ("lead", None),
        ("", None),
        ("1", None),
        ("respiration", None),
    ],
)
def test_other_spellings_and_other_leads(text, expected):
    assert standard_name(text) == expected


def test_derive_fills_missing_rows_by_the_closed_forms():
    signal = np.full((12, 3), np.nan)
    signal[0], signal[1] = [1.0, 2.0, np.nan], [3.0, 2.0, 1.0]
    filled = derive(signal)
    np.testing.assert_array_equal(filled[2], [2.0, 0.0, np.nan])
    np.testing.assert_array_equal(filled[3], [-2.0, -2.0, np.nan])
    np.testing.assert_array_equal(filled[4], [-0.5, 1.0, np.nan])
    np.testing.assert_array_equal(filled[5], [2.5, 1.0, np.nan])
    assert np.isnan(filled[6:]).all()
    assert np.isnan(signal[2:]).all(), "the input is left as it was"


def test_derive_leaves_measured_rows_alone_and_equals_what_was_removed():
    whole = truth()
    kept = derive(whole + np.arange(12)[:, None])
    np.testing.assert_array_equal(kept, whole + np.arange(12)[:, None])
    eight = whole.astype(np.float32)
    eight[2:6] = np.nan
    filled = derive(eight)
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled, whole, atol=1e-6)


def test_errors_of_the_laws():
    signal = truth()
    assert einthoven_error(signal) == pytest.approx(0, abs=1e-12)
    assert goldberger_error(signal) == pytest.approx(0, abs=1e-12)
    signal[2, 7] += 0.25
    signal[4, 9] -= 0.125
    signal[1, 50] = np.nan
    assert einthoven_error(signal) == pytest.approx(0.25)
    assert goldberger_error(signal) == pytest.approx(0.125)
    signal[0] = np.nan
    assert np.isnan(einthoven_error(signal))
    assert np.isnan(goldberger_error(signal))


def test_a_signal_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"signal: got shape \(5, 12\), expected \(12, samples\), one row a lead"):
        derive(np.zeros((5, 12)))


@pytest.mark.parametrize(
    ("text", "lead"),
    [
        *(("Lead I (Einthoven)", "I"), ("aVF (Goldberger)", "aVF"), ("V1 (uV)", "V1"), ("V2 [mV]", "V2")),
        *(("aVR (inverted)", None), ("V4 (R)", None), ("V4 [right]", None), ("II (modified)", None)),
    ],
)
def test_a_remark_that_names_another_lead_is_not_thrown_away(text, lead):
    assert standard_name(text) == lead
