"""Threshold choice against a search over all thresholds, and the confusion table against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics

from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.thresholds import Threshold, choose, operating_point


def searched(y, s):
    """Sensitivity and specificity of every threshold, none called positive first."""
    found = []
    for t in [np.inf, *sorted(set(s), reverse=True)]:
        called = s >= t
        found.append(((called & y).sum() / y.sum(), (~called & ~y).sum() / (~y).sum()))
    return np.array(found)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_choices_are_the_best_of_all_thresholds(seed, ties):
    rng = np.random.default_rng(seed)
    y = rng.random(150) < 0.3
    s = 1 / (1 + np.exp(-rng.normal(size=150) - y))
    s = np.round(s, 1) if ties else s
    pairs = searched(y, s)
    youden = choose(y, s)
    assert youden.sensitivity + youden.specificity == pytest.approx(pairs.sum(1).max())
    at_sensitivity = choose(y, s, "sensitivity", 0.9)
    assert at_sensitivity.specificity == pytest.approx(pairs[pairs[:, 0] >= 0.9, 1].max())
    at_specificity = choose(y, s, "specificity", 0.9)
    assert at_specificity.sensitivity == pytest.approx(pairs[pairs[:, 1] >= 0.9, 0].max())
    for chosen in (youden, at_sensitivity, at_specificity):
        called = chosen.decide(s)
        assert (called & y).sum() / y.sum() == pytest.approx(chosen.sensitivity)
        assert (~called & ~y).sum() / (~y).sum() == pytest.approx(chosen.specificity)
        # a rounding error of a score turns no decision
        assert (chosen.decide(s + 1e-9) == called).all()
        assert (chosen.decide(s - 1e-9) == called).all() or chosen.value == s.min()


def test_extreme_choices():
    y, s = np.array([0, 0, 1, 1], bool), np.array([0.1, 0.9, 0.2, 0.8])
    strict = choose(y, s, "specificity", 1.0)
    assert (strict.sensitivity, strict.specificity) == (0.0, 1.0)
    assert strict.value > 0.9
    everyone = choose(y, s, "sensitivity", 1.0)
    assert (everyone.sensitivity, everyone.specificity, everyone.value) == (1.0, 0.5, pytest.approx(0.15))
    near = np.nextafter(0.5, 1)
    assert choose([0, 1], [0.5, near]).value == near


def test_one_class_gives_a_half_and_the_reason():
    found = choose([1, 1], [0.3, 0.4])
    assert (found.value, found.rule) == (0.5, "given")
    assert found.reason == "all 2 records are positive: no threshold can be chosen"


def test_a_threshold_travels_as_json_and_tells_its_story():
    found = choose([0, 1, 0, 1], [0.1, 0.4, 0.35, 0.8], "sensitivity", 0.9, origin="validation")
    assert Threshold.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.story == "validation: sensitivity at least 0.9"
    assert Threshold(0.3, "given").story == "given"
    assert choose([0, 1], [0, 1]).story == "validation: Youden's index"


def test_operating_point_equals_scikit_learn():
    rng = np.random.default_rng(3)
    y = (rng.random(400) < 0.2).astype(int)
    called = (rng.random(400) < np.where(y, 0.7, 0.1)).astype(int)
    found = operating_point(y, called, PatientBootstrap(np.arange(400), resamples=2000), np.arange(400))
    tn, fp, fn, tp = metrics.confusion_matrix(y, called).ravel()
    assert found["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    for name, expected in {
        "sensitivity": metrics.recall_score(y, called),
        "specificity": metrics.recall_score(1 - y, 1 - called),
        "ppv": metrics.precision_score(y, called),
        "npv": metrics.precision_score(1 - y, 1 - called),
        "f1": metrics.f1_score(y, called),
        "accuracy": metrics.accuracy_score(y, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
        "flagged": called.mean(),
    }.items():
        assert found[name].value == pytest.approx(expected, abs=1e-12), name
        assert found[name].low < expected < found[name].high, name
    # the bootstrap of F1 against its delta-method standard error (2 tp over 2 tp + fp + fn)
    f1 = found["f1"].value
    influence = (2 * (y & called) - f1 * (y + called)) / (y + called).mean()
    assert found["f1"].high - found["f1"].low == pytest.approx(2 * 1.96 * influence.std() / 20, rel=0.06)


def test_undefined_figures_say_why():
    bootstrap = PatientBootstrap(np.arange(3), resamples=50)
    found = operating_point([0, 0, 0], [0, 0, 0], bootstrap, np.arange(3))
    assert found["sensitivity"].reason == "no record is positive"
    assert found["ppv"].reason == "no record is called positive"
    assert found["f1"].value is None
    assert found["specificity"].value == 1.0


def test_wrong_rules_are_refused():
    with pytest.raises(ValueError, match="rule: got 'best'"):
        choose([0, 1], [0, 1], "best")
    with pytest.raises(ValueError, match="at: got None, expected the sensitivity to reach"):
        choose([0, 1], [0, 1], "sensitivity")
    with pytest.raises(ValueError, match=r"at: got 90"):
        choose([0, 1], [0, 1], "specificity", 90)
