"""Division of records by patient: what a checkpoint carries finds the same sets again."""

import numpy as np
import pytest

from medjax.data.ecg.division import SplitRule, fraction_of, target_values


def index_of(patients: int = 400, each: int = 2) -> dict:
    rng = np.random.default_rng(0)
    names = np.repeat([f"p{i}" for i in range(patients)], each)
    count = len(names)
    return {
        "id": np.array([f"r{i}" for i in range(count)]),
        "patient": names,
        "recording": np.array([f"w{i}" for i in range(count)]),
        "age_years": np.where(np.arange(count) % 10 == 0, np.nan, rng.uniform(20, 90, count)),
        "sex": np.array([["male", "female", ""][i % 3] for i in range(count)]),
        "labels": {"low_ef": np.repeat((rng.random(patients) < 0.1).astype(float), each)},
    }


@pytest.mark.parametrize("rule", [SplitRule(seed=3), SplitRule(folds=5, fold=2, strata="low_ef"), SplitRule(test=0.0)])
def test_every_record_is_in_one_set_and_patients_stay_together(rule):
    index = index_of()
    sets = SplitRule.from_json(rule.to_json()).divide(index)
    places = np.concatenate([sets[name] for name in ("train", "validation", "test")])
    assert sorted(places.tolist()) == list(range(800))
    sides = [set(index["patient"][sets[name]]) for name in sets]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_shares_are_met_and_more_patients_move_nobody():
    small, large = index_of(100), index_of(400)
    rule = SplitRule(seed=1, validation=0.2, test=0.1)
    few, many = rule.divide(small), rule.divide(large)
    for name, share in {"train": 0.7, "validation": 0.2, "test": 0.1}.items():
        assert set(small["id"][few[name]]) <= set(large["id"][many[name]])
        # 400 patients: four standard deviations of a binomial share
        assert abs(len(many[name]) / 800 - share) < 4 * (share * (1 - share) / 400) ** 0.5


def test_every_fold_is_the_test_set_once_and_strata_are_even():
    index = index_of()
    rules = [SplitRule(folds=5, fold=fold, strata="low_ef") for fold in range(5)]
    tests = [rule.divide(index)["test"] for rule in rules]
    assert sorted(np.concatenate(tests).tolist()) == list(range(800))
    positives = [index["labels"]["low_ef"][test].sum() / 2 for test in tests]
    assert max(positives) - min(positives) <= 1
    for fold in range(5):
        assert np.array_equal(rules[fold].divide(index)["validation"], tests[(fold + 1) % 5])


def test_a_smaller_fraction_of_labels_is_part_of_a_larger():
    index = index_of()
    places = np.arange(0, 800)
    one, ten, whole = (set(fraction_of(index, places, share, 0).tolist()) for share in (0.01, 0.1, 1.0))
    assert one <= ten <= whole
    assert len(whole) == 800
    assert 40 < len(ten) < 130
    assert all(place ^ 1 in ten for place in ten)  # both records of a patient


def test_targets_by_name():
    index = index_of(4)
    assert np.array_equal(target_values(index, "sex"), [1, 0, np.nan, 1, 0, np.nan, 1, 0], equal_nan=True)
    assert np.array_equal(target_values(index, "age"), index["age_years"], equal_nan=True)
    with pytest.raises(ValueError, match=r"data.targets: got lvsd, expected labels of the data: age, sex, low_ef"):
        target_values(index, "lvsd")


def test_targets_made_of_codes():
    """1 where a record has the code, 0 where it has others only, not known where it has none at all."""
    index = index_of(3)
    index["codes"] = np.empty(6, object)
    index["codes"][:] = [("164873001",), ("164873001", "Rhythm: sinus"), (), ("426783006",), ("16487300",), ()]
    expected = [1, 1, np.nan, 0, 0, np.nan]
    assert np.array_equal(target_values(index, "code:164873001"), expected, equal_nan=True)
    expected = [0, 1, np.nan, 0, 0, np.nan]
    assert np.array_equal(target_values(index, "code:Rhythm: sinus"), expected, equal_nan=True)
    with pytest.raises(ValueError, match=r"data.targets: got code:1, which no record has, .* as 164873001 \(2\), "):
        target_values(index, "code:1")


def test_a_rule_of_another_version_is_one_sentence():
    with pytest.raises(ValueError, match=r"^split: hospital missing or unknown, expected exactly fold, folds, seed, "):
        SplitRule.from_json(SplitRule().to_json() | {"hospital": 3})
    with pytest.raises(ValueError, match=r"^split: seed missing or unknown"):
        SplitRule.from_json({name: value for name, value in SplitRule().to_json().items() if name != "seed"})
