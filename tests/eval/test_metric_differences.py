"""Figures of a whole set compared on resamples: against plain versions on the resampled items themselves."""

import numpy as np
import pytest
from scipy import stats

from medjax.data.qa import Item
from medjax.eval.metric_differences import gains, has_answers, headlines, item_of, metric_differences
from medjax.eval.metrics import METRICS
from medjax.statistics.bootstrap import PatientBootstrap

LABELS = "abcd"


def choices(gold):
    return [Item(f"q{n}", "?", tuple("wxyz"), (letter,)) for n, letter in enumerate(gold)]


def similarities(gold):
    return [Item(f"s{n}", "?", (), (f"{value:.1f}",), kind="similarity") for n, value in enumerate(gold)]


def entities(*gold):
    return [Item(f"e{n}", "?", (), each, kind="entities") for n, each in enumerate(gold)]


def kappa(gold, said):
    """Cohen's kappa from the list of answers; None is a label."""
    agreed = np.mean([g == s for g, s in zip(gold, said, strict=True)])
    expected = sum(gold.count(label) * said.count(label) for label in set(gold)) / len(gold) ** 2
    return (agreed - expected) / (1 - expected)


def resampled(items, resamples, seed):
    """The numbers of the items that every resample holds."""
    bootstrap = PatientBootstrap(range(items), resamples=resamples, seed=seed)
    return [np.repeat(np.arange(items), row.astype(int)) for weights in bootstrap.weights() for row in weights]


def test_kappa_on_the_same_resamples_against_a_plain_version():
    rng = np.random.default_rng(1)
    gold = [LABELS[i] for i in rng.integers(0, 4, 60)]
    runs = [
        [g if rng.random() < share else (None if rng.random() < 0.1 else LABELS[rng.integers(0, 4)]) for g in gold]
        for share in (0.3, 0.6)
    ]
    readings = [[None if letter is None else (letter,) for letter in run] for run in runs]
    (found,) = metric_differences([METRICS["kappa"]], choices(gold), *readings, resamples=300, seed=7)
    assert (found["metric"], found["items"], found["left_out"], found["higher_is_better"]) == ("kappa", 60, 0, True)
    assert found["first"] == pytest.approx(kappa(gold, runs[0]))
    assert found["second"] == pytest.approx(kappa(gold, runs[1]))
    assert found["difference"] == pytest.approx(kappa(gold, runs[1]) - kappa(gold, runs[0]))
    drawn = []
    for numbers in resampled(60, 300, 7):
        one, two = (kappa([gold[i] for i in numbers], [run[i] for i in numbers]) for run in runs)
        drawn.append(two - one)
    assert found["difference_interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    beyond = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
    assert found["p_value"] == pytest.approx(2 * (1 + beyond) / 301)


def test_correlation_against_scipy_where_a_resample_may_be_constant():
    gold, said = [0.0, 1.0, 2.5, 5.0], [["0", "2", "2", "4"], ["1", "1", "1", "4"]]
    readings = [[(text,) for text in run] for run in said]
    (found,) = metric_differences([METRICS["pearson"]], similarities(gold), *readings, resamples=200, seed=0)
    assert found["first"] == pytest.approx(stats.pearsonr(gold, [0, 2, 2, 4]).statistic)
    assert found["second"] == pytest.approx(stats.pearsonr(gold, [1, 1, 1, 4]).statistic)
    constant = sum(
        any(len({run[i] for i in numbers}) == 1 for run in (gold, *said)) for numbers in resampled(4, 200, 0)
    )
    assert found["left_out"] == constant > 0
    low, high = found["difference_interval"]
    assert -2 <= low <= found["difference"] <= high <= 2


def test_the_same_answers_differ_by_nothing():
    gold = list("abcdabcdaabb")
    readings = [(letter,) for letter in "abcaabcdbabb"]
    (found,) = metric_differences([METRICS["kappa"]], choices(gold), readings, readings, resamples=100, seed=0)
    # every resample gives 0, which is no measure of doubt
    assert (found["difference"], found["difference_interval"], found["p_value"]) == (0.0, None, 1.0)
    assert found["no_interval"] == "the same on every resample"


def test_a_difference_that_every_resample_gives_has_no_interval_and_no_test():
    items = entities(*[("咳", "発熱")] * 8)
    found = [
        metric_differences([METRICS["entity_exact_f1"]], items, [("咳",)] * 8, said, resamples=100, seed=0)[0]
        for said in ([("咳", "発熱")] * 8, [("咳", "発熱")] * 7 + [("咳",)])
    ]
    one, two = ([each[key] for key in ("difference_interval", "p_value", "no_interval")] for each in found)
    assert found[0]["difference"] == pytest.approx(1 / 3)
    assert one == [None, None, "the same on every resample"]
    assert two[0][0] < two[0][1] == pytest.approx(1 / 3)
    assert two[1:] == [pytest.approx(2 / 101), ""]


def test_what_is_undefined_is_none():
    constant = [("1",)] * 4
    (found,) = metric_differences(
        [METRICS["pearson"]], similarities([0, 1, 2, 5]), constant, [("0",), ("1",), ("2",), ("5",)],
        resamples=50, seed=0,
    )  # fmt: skip
    assert (found["first"], found["second"]) == (None, pytest.approx(1.0))
    assert (found["difference"], found["difference_interval"], found["p_value"]) == (None, None, None)
    assert found["no_interval"] == "not defined on these items"
    # of one item a resample is the item again, which is no sample
    (found,) = metric_differences(
        [METRICS["entity_exact_f1"]], entities(("咳",)), [("熱",)], [("咳",)], resamples=50, seed=0
    )
    assert (found["difference"], found["difference_interval"], found["p_value"]) == (1.0, None, None)
    assert found["no_interval"] == "a single item"
    assert metric_differences([METRICS["bleu"]], choices("ab"), [None, None], [None, None], resamples=9, seed=0) == []


def test_a_set_is_compared_by_the_first_metric_of_each_kind():
    some = choices("ab")

    def names(metrics, items):
        return [metric.name for metric in headlines(metrics, items)]

    assert names(["kappa_linear", "accuracy"], some) == ["kappa_linear"]
    assert names(["accuracy", "f1_macro"], some) == []
    assert names(["pearson", "spearman", "mae"], similarities([1])) == ["pearson"]
    assert names(["accuracy", "entity_partial_f1", "entity_exact_f1"], some + entities(("咳",))) == [
        "entity_partial_f1"
    ]
    with pytest.raises(ValueError, match=r"metric: got 'rouge', expected one of accuracy, .*; grade the set again"):
        headlines(["rouge"], some)


def test_right_and_wrong_are_a_test_where_an_item_has_an_answer_to_pick_or_no_other_figure():
    choice, listed, known, unknown = ("choice", ["a"]), ("entities", []), ("text", ["x"]), ("text", [])
    figure = [object()]
    assert has_answers([listed, choice], figure)
    assert has_answers([("number", ["1"])], figure)
    assert not has_answers([listed, known, unknown], figure)
    assert has_answers([listed, unknown], [])
    assert not has_answers([unknown], [])


def test_gains_of_single_items():
    items = [*entities(("咳", "発熱")), *choices("a"), *similarities([4.0])]
    metrics = [METRICS["entity_exact_f1"], METRICS["mae"]]
    found = list(gains(metrics, items, [("咳",), ("b",), ("1",)], [("咳", "発熱"), ("a",), ("3",)]))
    # F1 2/3 to 1; a choice has no value of its own; the error falls from 3 to 1
    assert found == [pytest.approx(1 / 3), None, pytest.approx(2.0)]


def test_items_are_those_of_the_sample():
    doc = {"id": "x", "question": "?", "choices": ["u", "v"], "answer": ["b"], "category": "heart"}
    assert item_of(doc) == Item("x", "?", ("u", "v"), ("b",))
    assert item_of({"id": "x", "question": "?", "choices": [], "answer": [], "kind": "entities"}).kind == "entities"
