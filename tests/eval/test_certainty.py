"""Calibration and difficulty against plain counting."""

import math

import numpy as np
import pytest
from small_evaluations import FIVE, ONE, TWO, evaluation

from medjax.data.qa import Item
from medjax.eval.certainty import certainty
from medjax.eval.protocols import probability_of_best
from medjax.eval.reading import read_answers
from medjax.eval.samples import Finished
from medjax.eval.settings import EvalSettings
from medjax.infer.scorer import Score, Work

SETTINGS = EvalSettings(resamples=100)


def finish(made, outputs):
    return Finished(made, read_answers(made, outputs), Work(1, 1), 0, 1.0)


def scores(*values):
    return [Score((value,), False) for value in values]


def items(count, people=lambda number: None):
    return tuple(Item(f"q{n}", f"{n}?", FIVE, ("abcde"[n % 5],), human_accuracy=people(n)) for n in range(count))


def test_probability_of_the_best_is_its_softmax():
    values = [-3.0, -1.0, -2.5, -700.0]
    assert probability_of_best(values) == pytest.approx(math.exp(-1) / sum(map(math.exp, values)), rel=1e-12)
    assert probability_of_best([-2000.0, -2001.0]) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-12)


def test_a_pick_of_one_letter_has_a_probability_from_the_scores_it_was_picked_by():
    made = evaluation("choice-logprob", (ONE, TWO), normalise="token")
    rows = [[Score((-1.0, -3.0), False), *scores(-3.0, -2.5, -4.0, -9.0)], scores(-1.0, -2.0, -3.0, -4.0, -5.0)]
    one, two = read_answers(made, rows)
    assert one.picked == ("a",)  # -2 a token
    assert one.probability == pytest.approx(probability_of_best([-2.0, -3.0, -2.5, -4.0, -9.0]))
    assert (two.picked, two.probability) == (("a", "b"), None)


def test_calibration_is_that_of_plain_counting():
    generator = np.random.default_rng(0)
    made = evaluation("choice-logprob", (*items(400), TWO))
    rows = [scores(*row) for row in generator.normal(0, 2, (401, 5))]
    found = certainty(finish(made, rows), SETTINGS)["calibration"]
    picks = []
    for item, row in zip(made.items[:400], rows, strict=False):
        values = np.array([score.logprob for score in row])
        share = np.exp(values) / np.exp(values).sum()
        picks.append((share.max(), "abcde"[share.argmax()] == item.answer[0]))
    picks.sort()
    p, right = np.array(picks).T
    assert (found["picks"], found["left_out"]) == (400, 1)
    assert found["confidence"] == pytest.approx(p.mean())
    assert found["accuracy"] == right.mean()
    bins = [slice(40 * n, 40 * (n + 1)) for n in range(10)]
    ece = sum(abs(p[part].mean() - right[part].mean()) for part in bins) / 10
    assert found["ece"]["value"] == pytest.approx(ece)
    assert found["ece"]["low"] <= ece <= found["ece"]["high"]
    assert found["brier"]["value"] == pytest.approx(((p - right) ** 2).mean())
    curve = [(entry["mean_predicted"], entry["observed"], entry["records"]) for entry in found["curve"]]
    assert curve == [pytest.approx((p[part].mean(), right[part].mean(), 40)) for part in bins]


def test_few_picks_share_few_bins():
    rows = [scores(*row) for row in np.random.default_rng(1).normal(0, 1, (45, 5))]
    curve = certainty(finish(evaluation("choice-logprob", items(45)), rows), SETTINGS)["calibration"]["curve"]
    assert [entry["records"] for entry in curve] == [23, 22]


def test_difficulty_is_accuracy_by_tenths():
    people = (0.05, 0.1, 0.29, 0.3, 0.95, 1.0, None)
    made = evaluation("choice-logprob", items(7, people.__getitem__))
    right = (False, True, True, False, True, True, True)
    rows = [
        scores(*(0.0 if (letter == item.answer[0]) == good else -5.0 for letter in "abcde"))
        for item, good in zip(made.items, right, strict=True)
    ]
    found = certainty(finish(made, rows), SETTINGS)["difficulty"]
    counted = [(part["from"], part["to"], part["items"], part["correct"]) for part in found["bins"]]
    assert counted == [(0.0, 0.1, 1, 0), (0.1, 0.2, 1, 1), (0.2, 0.3, 1, 1), (0.3, 0.4, 1, 0), (0.9, 1.0, 2, 2)]
    assert (found["items"], found["accuracy"]) == (6, pytest.approx(4 / 6))
    assert found["human_accuracy"] == pytest.approx((0.05 + 0.1 + 0.29 + 0.3 + 0.95 + 1) / 6)
    last = found["bins"][-1]
    assert last["human_accuracy"] == pytest.approx(0.975)
    # Wilson's interval of 2 of 2: 1 / (1 + z² / 2) to 1
    assert (last["low"], last["high"]) == (pytest.approx(1 / (1 + 3.841458820694124 / 2)), 1.0)


def test_nothing_is_said_where_nothing_is_known():
    assert certainty(finish(evaluation("choice-logprob", (TWO,)), [scores(-1, -2, -3, -4, -5)]), SETTINGS) == {}
