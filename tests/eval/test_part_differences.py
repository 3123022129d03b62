"""Scores of the items found against those of the others: closed forms, and a plain version on the drawn items."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from medjax.data.qa import Item
from medjax.eval.audit import _score
from medjax.eval.part_differences import part_differences
from medjax.statistics.bootstrap import stratified_weights
from medjax.statistics.differences import independent

HOW = {"resamples": 300, "seed": 4}


def answered(right, *, kind="choice", said=(), gold=("a",)):
    choices = ("x", "y", "z") if kind == "choice" else ()
    picked = said or [["a"] if each else ["b"] for each in right]
    return [
        (Item(f"q{n}", "?", choices, gold, kind=kind), {"correct": each, "picked": pick})
        for n, (each, pick) in enumerate(zip(right, picked, strict=True))
    ]


def test_accuracy_by_newcombe_and_what_the_whole_would_lose():
    (found,) = part_differences(answered([1, 0] * 30), answered([1, 1, 1, 1, 0] * 8), [], **HOW)
    gap = independent((30, 60), (32, 40))
    moved, lost = found["matched_minus_without"], found["all_minus_without"]
    assert (found["metric"], found["items"]) == ("accuracy", [60, 40])
    assert (moved["value"], *moved["interval"]) == pytest.approx((0.3, gap.low, gap.high))
    assert lost["value"] == pytest.approx(62 / 100 - 30 / 60)
    assert lost["interval"] == pytest.approx([0.4 * gap.low, 0.4 * gap.high])


def test_parts_that_are_all_right_leave_doubt():
    (found,) = part_differences(answered([1] * 6), answered([1] * 4), [], **HOW)
    low, high = found["matched_minus_without"]["interval"]
    assert (low, high) == pytest.approx((-3.8415 / (4 + 3.8415), 3.8415 / (6 + 3.8415)), abs=1e-4)
    assert part_differences(answered([1, 0]), [], [], **HOW) == part_differences([], answered([1]), [], **HOW) == []


def test_another_figure_on_resamples_of_both_parts():
    rng = np.random.default_rng(0)
    parts = []
    for size, share in ((30, 0.4), (12, 0.8)):
        said = [["咳", "熱"] if rng.random() < share else ["咳"] if rng.random() < 0.5 else None for _ in range(size)]
        parts.append(answered([False] * size, kind="entities", said=said, gold=("咳", "熱")))
    _, found = part_differences(*parts, ["entity_partial_f1"], **HOW)
    f1 = [
        np.array([0 if s["picked"] is None else 2 * len(s["picked"]) / (2 + len(s["picked"])) for _, s in part])
        for part in parts
    ]
    drawn = [
        (w[1] @ f1[1] / 12 - w[0] @ f1[0] / 30, (w[0] @ f1[0] + w[1] @ f1[1]) / 42 - w[0] @ f1[0] / 30)
        for chunk in stratified_weights([30, 12], 300, 4)
        for w in zip(*chunk, strict=True)
    ]
    together = np.concatenate(f1).mean()
    for name, value, column in (
        ("matched_minus_without", f1[1].mean() - f1[0].mean(), 0),
        ("all_minus_without", together - f1[0].mean(), 1),
    ):
        assert found[name]["value"] == pytest.approx(value)
        expected = np.quantile([row[column] for row in drawn], [0.025, 0.975]).tolist()
        assert found[name]["interval"] == pytest.approx(expected)
        assert found[name]["no_interval"] == ""


def test_a_part_that_no_resample_changes_gives_no_interval():
    mixed = answered([0] * 9, kind="entities", said=[["咳"], ["咳", "熱"], None] * 3, gold=("咳", "熱"))
    same = answered([0] * 5, kind="entities", said=[["咳"]] * 5, gold=("咳", "熱"))
    for part, reason in ((same, "the same on every resample"), (same[:1], "a single item")):
        _, found = part_differences(mixed, part, ["entity_partial_f1"], **HOW)
        moved = found["matched_minus_without"]
        assert moved == {"value": pytest.approx(2 / 3 - 5 / 9), "interval": None, "no_interval": reason}


def test_a_figure_that_is_not_defined_is_none():
    parts = [
        [
            (Item(f"s{n}", "?", (), (f"{gold:.1f}",), kind="similarity"), {"correct": False, "picked": [said]})
            for n, (gold, said) in enumerate(zip(golds, texts, strict=True))
        ]
        for golds, texts in (((0, 2, 5), "135"), ((1, 4), "33"))  # a constant correlates with nothing
    ]
    _, found = part_differences(*parts, ["pearson"], **HOW)
    assert found["matched_minus_without"]["value"] is None
    assert found["matched_minus_without"]["no_interval"] == "not defined on these items"
    assert found["all_minus_without"]["value"] < 0


def test_in_an_exam_of_choices_and_texts_accuracy_is_of_the_choices():
    texts = answered([False] * 5, kind="text", said=[["熱"]] * 5, gold=("咳",))
    choices = answered([1, 0] * 30), answered([1, 1, 1, 1, 0] * 8)
    alone = part_differences(*choices, [], **HOW)
    assert part_differences(choices[0] + texts, texts + choices[1], [], **HOW) == alone
    # a part of texts alone has no accuracy to compare
    (found,) = part_differences(choices[0], texts, [], **HOW)
    assert (found["items"], found["matched_minus_without"]["value"]) == ([60, 0], None)


def test_the_score_of_a_part_counts_what_the_accuracy_of_the_set_counts():
    both = answered([1, 0, 0]) + [
        (replace(item, id=f"t{n}"), sample)
        for n, (item, sample) in enumerate(answered([False] * 2, kind="text", said=[["熱"]] * 2, gold=("咳",)))
    ]
    items = {item.id: item for item, _ in both}
    samples = {item.id: sample | {"points": 0} for item, sample in both}
    settings = SimpleNamespace(resamples=20, seed=0)
    score = _score(samples, items, [], settings)
    assert (score["items"], score["accuracy_items"], score["accuracy"]) == (5, 3, 1 / 3)
    only_texts = {item: sample for item, sample in samples.items() if item.startswith("t")}
    score = _score(only_texts, items, [], settings)
    assert (score["items"], score["accuracy"], score["accuracy_interval"]) == (2, None, None)
