"""The record of what validation chose: one object, stored as JSON, applied to logits."""

import json

import numpy as np
import pytest

from medjax.statistics import calibration, conformal, thresholds
from medjax.statistics.agreement import GapCorrection
from medjax.statistics.detector import DetectorRule, fit_detector


def sample(records=300, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(records) < 0.3).astype(int)
    return y, rng.normal(-1, 1, records) + 2 * y


def test_parts_are_chosen_one_after_the_other():
    y, z = sample()
    patients = np.arange(300) // 2
    rule = fit_detector(y, z, patients, threshold="sensitivity", at=0.9, draws=30, seed=2)
    fitted = calibration.fit(y, z, patients, draws=30, seed=2)
    assert rule.calibration == fitted
    assert rule.threshold == thresholds.choose(y, fitted.apply(z), "sensitivity", 0.9)
    assert rule.conformal == conformal.fit(y, fitted.apply(z), patients, seed=2)
    assert rule.decide(z)[y == 1].mean() >= 0.9
    np.testing.assert_array_equal(rule.sets(z, 0.8), rule.conformal.apply(rule.probability(z), 0.8))


def test_a_rule_travels_as_json():
    y, z = sample()
    rule = fit_detector(y, z, np.arange(300))
    again = DetectorRule.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False)))
    assert again == rule
    np.testing.assert_array_equal(again.interval(z), rule.interval(z))


@pytest.mark.parametrize("labels", [[0, 0, 0], []])
def test_one_class_gives_the_sigmoid_and_the_reasons(labels):
    rule = fit_detector(labels, np.arange(len(labels)), np.arange(len(labels)))
    assert rule.probability([0.0]).tolist() == [0.5]
    assert (rule.interval([0.0]), rule.sets([0.0]), rule.threshold.value) == (None, None, 0.5)
    assert rule.calibration.reason.endswith("no calibration can be fitted")
    assert rule.threshold.reason.endswith("no threshold can be chosen")
    assert DetectorRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_a_rule_of_another_version_is_one_sentence():
    y, z = sample()
    known = fit_detector(y, z, np.arange(300)).to_json()
    gap = GapCorrection(0.4, 35.0, 50).to_json()
    for cls, value in (
        (DetectorRule, known),
        (calibration.Calibration, known["calibration"]),
        (thresholds.Threshold, known["threshold"]),
        (conformal.ConformalSets, known["conformal"]),
        (GapCorrection, gap),
    ):
        assert cls.from_json(value).to_json() == value
        with pytest.raises(ValueError, match=f"^{cls.__name__}: colour missing or unknown, expected exactly "):
            cls.from_json(value | {"colour": "red"})
        first = next(iter(value))
        with pytest.raises(ValueError, match=f"^{cls.__name__}: {first} missing or unknown"):
            cls.from_json({name: each for name, each in value.items() if name != first})
