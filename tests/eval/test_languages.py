"""The same questions in two languages: pairs by id, and McNemar's test on them."""

from dataclasses import replace

import pytest
from scipy.stats import binomtest
from small_evaluations import FIVE, evaluation, texts

from medjax.data.qa import Item
from medjax.eval.languages import languages_compared
from medjax.eval.reading import read_answers
from medjax.eval.samples import Finished
from medjax.eval.settings import EvalSettings
from medjax.infer.scorer import Work

SETTINGS = EvalSettings(resamples=200)


def _run(language, outputs, numbers=range(8), **more):
    items = [Item(f"i{n}", f"Q{n} {language}", FIVE, ("a",)) for n in numbers]
    made = evaluation("strict", items, language=language, **more)
    return Finished(made, read_answers(made, texts(*outputs)), Work(), 0, 1.0)


def test_items_are_paired_by_id():
    japanese = _run("ja", "aaaaabbb")
    english = _run("en", "bbbbabba"[::-1], range(7, -1, -1))  # asked in another order
    (found,) = languages_compared([japanese, english], SETTINGS)
    assert (found["task"], found["protocol"], found["first"], found["second"]) == ("exam", "strict-0shot", "ja", "en")
    assert (found["items"], found["first_accuracy"], found["second_accuracy"]) == (8, 5 / 8, 2 / 8)
    assert [found[key] for key in ("both", "only_first", "only_second", "neither")] == [1, 4, 1, 2]
    assert found["p_value"] == pytest.approx(binomtest(1, 5).pvalue)
    assert found["accuracy_difference"] == pytest.approx(-3 / 8)
    assert (found["left_out"], found["metrics"], found["has_answers"]) == (0, [], True)


def test_a_set_graded_by_another_figure_is_compared_by_that_with_the_answers_of_each_language():
    gold = {"ja": [("咳", "熱"), ("腹痛",), ("めまい",)], "en": [("cough", "fever"), ("pain",), ("vertigo",)]}
    runs = []
    for language, outputs in (
        ("ja", ('["咳"]', '["腹痛"]', "[]")),
        ("en", ('["cough", "fever"]', '["pain"]', '["x"]')),
    ):
        numbers = (0, 1, 2) if language == "ja" else (2, 1, 0)
        items = [Item(f"n{n}", f"Text {n} {language}", (), gold[language][n], kind="entities") for n in numbers]
        made = evaluation("strict", items, language=language)
        made = replace(made, task=replace(made.task, metrics=("entity_partial_f1", "entity_exact_f1")))
        runs.append(Finished(made, read_answers(made, texts(*(outputs[n] for n in numbers))), Work(), 0, 1.0))
    (found,) = languages_compared(runs, SETTINGS)
    (metric,) = found["metrics"]
    assert (metric["metric"], metric["items"], found["has_answers"]) == ("entity_partial_f1", 3, False)
    # F1 of one of two found 2/3, of all 1, of none 0
    assert (metric["first"], metric["second"]) == pytest.approx(((2 / 3 + 1) / 3, 2 / 3))
    assert metric["difference"] == pytest.approx(1 / 9)
    low, high = metric["difference_interval"]
    assert (low, high) == pytest.approx((0, 1 / 3))  # the one item that differs drawn never, or three times


def test_what_one_language_alone_asks_is_left_out():
    (found,) = languages_compared([_run("ja", "aaa", range(3)), _run("en", "aab", range(1, 4))], SETTINGS)
    assert (found["items"], found["both"], found["left_out"]) == (2, 2, 2)


def test_sets_protocols_and_variants_are_kept_apart():
    runs = [_run("ja", "aa", range(2)), _run("en", "ab", range(2), task="other"), _run("en", "ab", range(5, 7))]
    assert languages_compared(runs, SETTINGS) == []
    base, adapter = (
        [replace(run, evaluation=replace(run.evaluation, variant=variant)) for run in pair]
        for variant, pair in (
            ("base", [_run("ja", "aa", range(2)), _run("en", "bb", range(2))]),
            ("adapter", [_run("ja", "aa", range(2)), _run("en", "ab", range(2))]),
        )
    )
    found = languages_compared([base[0], adapter[0], base[1], adapter[1]], SETTINGS)
    assert [(entry["variant"], entry["only_first"]) for entry in found] == [("base", 2), ("adapter", 1)]
