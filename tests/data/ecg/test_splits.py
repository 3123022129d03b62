"""Splits: pinned shares, balanced folds, leaks by patient, waveform and recording."""

import hashlib

import numpy as np
import pytest

from medjax.data.ecg.splits import drop_leaks, folds, patient_keys, refuse_leaks, share_of, split_of

THIRDS = {"train": 0.7, "validation": 0.15, "test": 0.15}


def index(patients, recordings=None, waveforms=None):
    ids = np.array([f"r{i}" for i in range(len(patients))])
    recordings = ids if recordings is None else np.array(recordings)
    waveforms = np.array([f"w{i}" for i in range(len(patients))] if waveforms is None else waveforms)
    return {"id": ids, "patient": np.array(patients), "recording": recordings, "waveform": waveforms}


def test_shares_never_move():
    assert [share_of(f"p{i}", 0) for i in range(3)] == [0.780665613918961, 0.9862214478645893, 0.05514095133366149]
    assert share_of("患者", 7) == int.from_bytes(hashlib.sha256("7:患者".encode()).digest()[:8]) / 2**64
    names = [split_of(f"p{i}", 0, THIRDS) for i in range(20)]
    assert [i for i, name in enumerate(names) if name == "test"] == [2, 10, 14]
    assert [i for i, name in enumerate(names) if name == "validation"] == [7]


def test_shares_are_even_and_seeds_independent():
    shares = np.array([[share_of(f"p{i}", seed) for i in range(4000)] for seed in (0, 1)])
    for row in shares:
        assert np.abs(np.histogram(row, 10, (0, 1))[0] - 400).max() < 4 * 400**0.5
    assert abs(np.corrcoef(shares)[0, 1]) < 0.05


def test_test_set_does_not_depend_on_the_validation_share():
    patients = [f"p{i}" for i in range(500)]
    sets = []
    for validation in (0.0, 0.1, 0.3):
        fractions = {"train": 0.8 - validation, "validation": validation, "test": 0.2}
        sets.append({p for p in patients if split_of(p, 3, fractions) == "test"})
    assert sets[0] == sets[1] == sets[2]
    assert 70 < len(sets[0]) < 130
    assert {split_of(p, 3, {"train": 0.0, "validation": 0.5, "test": 0.5}) for p in patients} == {"validation", "test"}
    assert {split_of(p, 3, {"train": 1.0}) for p in patients} == {"train"}


@pytest.mark.parametrize(
    "fractions", [{"train": 0.5, "test": 0.4}, {"train": 1.2, "test": -0.2}, {"train": 0.5, "dev": 0.5}]
)
def test_fractions_must_make_one(fractions):
    with pytest.raises(
        ValueError, match=r"fractions: got .*, expected shares of train, validation and test that make 1"
    ):
        split_of("p", 0, fractions)


def test_a_record_without_a_patient_is_its_own_with_its_copies():
    keys = patient_keys(index(["a", "", "", "", "a"], recordings=["x", "y", "y", "z", "w"]))
    assert keys.tolist() == ["a", "recording:y", "recording:y", "recording:z", "a"]


def test_folds_never_move():
    number = folds([f"p{i}" for i in range(12)], ["a", "b", "b"] * 4, 3, seed=0)
    assert number.tolist() == PINNED
    assert folds([f"p{i}" for i in range(12)][::-1], ["b", "b", "a"] * 4, 3, seed=0).tolist() == PINNED[::-1]


PINNED = [0, 2, 1, 1, 1, 2, 2, 0, 1, 0, 2, 0]


def test_folds_are_balanced_in_every_stratum():
    rng = np.random.default_rng(0)
    strata = rng.choice(["AF", "sinus", "paced", ""], 503, p=[0.1, 0.7, 0.03, 0.17])
    for k in (2, 5, 10):
        number = folds([f"p{i}" for i in range(503)], strata, k, seed=4)
        for stratum in np.unique(strata):
            counts = np.bincount(number[strata == stratum], minlength=k)
            assert counts.max() - counts.min() <= 1
        counts = np.bincount(number, minlength=k)
        assert counts.max() - counts.min() <= len(np.unique(strata))


def test_folds_keep_patients_together():
    rng = np.random.default_rng(1)
    patients = np.array([f"p{i}" for i in rng.integers(0, 60, 400)])
    strata = rng.choice(["0", "1"], 400, p=[0.8, 0.2])
    number = folds(patients, strata, 5, seed=0)
    for patient in np.unique(patients):
        assert len(set(number[patients == patient])) == 1
    positive = np.bincount(number[strata == "1"], minlength=5)
    assert positive.max() - positive.min() <= 8  # a patient has up to 15 records
    assert np.ptp(np.bincount(number, minlength=5)) <= 30


@pytest.mark.parametrize("k", [1, 4])
def test_folds_need_patients(k):
    with pytest.raises(ValueError, match=rf"folds: got {k}, expected 2 to 3, the number of patients"):
        folds(["a", "b", "c", "a"], ["x"] * 4, k, seed=0)


SETS = {"train": np.array([0, 1, 2]), "validation": np.array([3]), "test": np.array([4, 5])}


def test_clean_sets_pass():
    clean = index(["a", "a", "", "b", "", "c"])
    refuse_leaks(clean, SETS)
    kept, dropped = drop_leaks(clean, SETS)
    assert dropped == 0
    assert {name: at.tolist() for name, at in kept.items()} == {name: at.tolist() for name, at in SETS.items()}


@pytest.mark.parametrize(
    ("made", "message", "kept"),
    [
        (
            index(["a", "x", "", "b", "a", "c"]),
            r"in two sets: the same patient, a: r0 \(train\), r4 \(test\), expected .* --data\.leaks drop",
            {"train": [1, 2], "validation": [3], "test": [4, 5]},
        ),
        (
            index(["a", "x", "", "b", "e", "c"], waveforms=["0", "1", "2", "3", "4", "1"]),
            r"the same waveform, r1 \(train\), r5 \(test\), expected",
            {"train": [0, 2], "validation": [3], "test": [4, 5]},
        ),
        (
            index([""] * 6, recordings=["0", "1", "2", "2", "4", "5"]),
            r"the same recording, as altered copies, r2 \(train\), r3 \(validation\), expected",
            {"train": [0, 1], "validation": [3], "test": [4, 5]},
        ),
        (
            index(["a", "b", "c", "a", "b", "c"]),
            r"the same patient, a: r0 \(train\), r3 \(validation\); b: r1 \(train\), r4 \(test\); c: r2",
            {"train": [], "validation": [3], "test": [4, 5]},
        ),
        (
            index(["a", "y", "z", "b", "b", "c"]),
            r"the same patient, b: r3 \(validation\), r4 \(test\), expected",
            {"train": [0, 1, 2], "validation": [], "test": [4, 5]},
        ),
    ],
)
def test_leaks_are_refused_or_dropped(made, message, kept):
    with pytest.raises(ValueError, match=message):
        refuse_leaks(made, SETS)
    found, dropped = drop_leaks(made, SETS)
    assert {name: at.tolist() for name, at in found.items()} == kept
    assert dropped == 6 - sum(map(len, kept.values()))
    refuse_leaks(made, found)


def test_many_leaks_are_counted():
    made = index([f"p{i}" for i in range(10)] * 2)
    with pytest.raises(ValueError, match=r"p0: .*; p1: .*; p2: r2 \(train\), r12 \(test\) and 7 more, expected"):
        refuse_leaks(made, {"train": np.arange(10), "test": np.arange(10, 20)})


def test_patients_live_in_the_namespace_of_their_institution():
    made = index(["17", "17", "", "17"]) | {"institution": np.array(["north", "south", "north", ""], object)}
    assert patient_keys(made).tolist() == ["north:17", "south:17", "recording:r2", "17"]
    sets = {"train": np.array([0, 2]), "test": np.array([1, 3])}
    refuse_leaks(made, sets)
    assert drop_leaks(made, sets)[1] == 0
    made["institution"] = np.array(["north"] * 4, object)
    with pytest.raises(ValueError, match=r"the same patient, north:17: r0 \(train\), r1 \(test\)"):
        refuse_leaks(made, sets)


def test_keys_are_made_once_for_an_index():
    made = index(["a", ""])
    keys = patient_keys(made)
    assert patient_keys(made) is keys
    made["patient"] = np.array(["b", ""])
    assert patient_keys(made).tolist() == ["b", "recording:r1"]
