"""From channels to a record: padding, texts of any length, facts that cannot be read."""

import numpy as np
import pytest
from ecg_files import truth

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers.assembly import Draft, assemble, check_size, noted
from medjax.data.ecg.record import EcgFileError

RATE = 500.0


def draft(signal=None, **facts):
    signal = truth() if signal is None else signal
    return Draft("a.hea", "WFDB", facts.pop("id", "a"), RATE, list(zip(LEADS, signal, strict=True)), **facts)


def noisy(samples=5000):
    return truth(samples) + np.random.default_rng(0).normal(0, 0.01, (12, samples))


@pytest.mark.parametrize(
    ("start", "end", "taken"),
    [
        (0, 250, True),
        (0, 240, False),
        (4700, 5000, True),
        (4800, 5000, False),
        (2000, 2500, True),
        (2000, 2400, False),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1.25])
def test_a_stretch_in_which_all_leads_rest_is_padding(start, end, taken, value):
    signal = noisy()
    signal[:, start:end] = value
    record = assemble(draft(signal))
    empty = np.isnan(record.signal)
    assert empty[:, start:end].all() == taken
    assert empty.sum() == (12 * (end - start) if taken else 0)
    words = (
        f"padding: all leads rest at one value from {start / RATE:.2f} to {end / RATE:.2f} s; counts as not measured"
    )
    assert (words in record.notes) == taken


def test_padding_is_seen_beside_flat_and_missing_leads_and_short_groups_are_none():
    signal = noisy()
    signal[:, 4000:] = 0.0
    signal[3], signal[4] = 0.7, np.nan
    record = assemble(draft(signal))
    assert record.status[3:5] == ("flat", "derived")
    assert np.isnan(record.signal[:, 4000:]).all()
    assert not np.isnan(record.signal[[0, 1, 4, 6], :4000]).any()
    columns = np.full((12, 5000), np.nan)  # three leads after three, as older machines store them
    for group in range(4):
        columns[3 * group : 3 * group + 3, 1250 * group : 1250 * (group + 1)] = noisy()[
            3 * group : 3 * group + 3, :1250
        ]
    gap = noisy()
    gap[:, 1000:2000] = np.nan
    for whole in (columns, gap):
        np.testing.assert_array_equal(assemble(draft(whole)).signal, whole.astype(np.float32))


def test_a_record_of_nothing_but_padding_is_flat():
    steps = np.repeat(np.where(np.arange(5000) < 2500, 0.0, 1.0)[None], 12, axis=0)
    assert assemble(draft(steps)).status == ("flat",) * 12


def test_texts_are_bounded_and_stay_different():
    codes = ["x" * 300, "plain", *(f"c{i}" for i in range(300))]
    one, other = (
        assemble(draft(patient="p" * 1000 + end, device="d" * 500, codes=codes, notes=["n" * 5000])) for end in "ab"
    )
    assert (len(one.patient), len(one.device)) == (200, 200)
    assert one.patient[:183] == "p" * 183
    assert one.patient != other.patient
    assert one.device == other.device
    assert (len(one.codes), len(one.codes[0]), one.codes[1]) == (200, 200, "plain")
    assert one.notes[0] == "n" * 500 + "…"
    assert "patient: got 1,001 characters, cut to 200" in one.notes
    assert "codes: got 302, the first 200 kept" in one.notes
    assert assemble(draft(patient=" P1 ", device="MAC  5500")).device == "MAC 5500"


def test_a_fact_that_cannot_be_read_is_noted():
    made = draft()
    with noted(made, "sex"):
        raise KeyError("odd")
    assert assemble(made).notes == ("sex: cannot be read (KeyError: 'odd'), left unknown",)


def test_sizes_are_bounded_in_all():
    check_size("a", "a", 3_600_000, 12)
    check_size("a", "a", 10_000, 256)
    for samples, channels in ((3_600_001, 1), (1000, 257), (3_600_000, 17)):
        with pytest.raises(EcgFileError, match=f"got {channels} channels of {samples} samples, expected at most 16 of"):
            check_size("a", "a", samples, channels)
