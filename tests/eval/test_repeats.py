"""What repeated asks say, by numbers counted by hand."""

import json
from collections import Counter
from itertools import permutations

import pytest
from small_evaluations import NUMBER, ONE, TWO, evaluation, texts

from medjax.eval.reading import ForcedGeneration, read_answers
from medjax.eval.repeats import repeats
from medjax.eval.samples import Finished, sample_lines
from medjax.eval.scoring import aggregate
from medjax.eval.settings import EvalSettings
from medjax.infer.generator import TOO_LONG
from medjax.infer.scorer import Score, Work

SETTINGS = EvalSettings(resamples=200)


def _finish(made, outputs):
    return Finished(made, read_answers(made, outputs), Work(), 0, 1.0)


def test_a_single_ask_has_nothing_to_say():
    assert repeats(_finish(evaluation("strict", (ONE, TWO)), texts("c", "a")), SETTINGS) == {}


def test_shifts():
    made = evaluation("strict", (ONE, TWO, NUMBER), rotate=True)
    #                    c throughout   right, then a, a, ?, a                     a number has one
    run = _finish(made, texts(*"cbaed", "a, d", "a", "a", "?", "a", "7.20"))
    found = repeats(run, SETTINGS)
    assert found["asks"] == 11
    rotation = found["rotation"]
    assert rotation["robust_accuracy"] == pytest.approx(2 / 3)
    assert rotation["mean_accuracy"] == pytest.approx((1 + 1 / 5 + 1) / 3)
    # the number is right under every shift
    assert rotation["by_shift"] == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert sum(rotation["by_shift"]) / 5 == pytest.approx(rotation["mean_accuracy"])
    assert rotation["consistent"] == 1 / 2  # of the two that were asked under several
    bias = rotation["position_bias"]
    # one at each letter, and a, d, a, a, a; right ones under the shifts that could be read
    assert bias["picked"] == {"a": 5, "b": 1, "c": 1, "d": 2, "e": 1}
    # of the second item: a d, c e, b d, b e; the fourth shift was not read
    assert bias["gold"] == {"a": 2, "b": 3, "c": 2, "d": 3, "e": 3}
    assert (bias["asks"], bias["unread"]) == (10, 1)
    # of the second item a d, b, c, e were read as the item's letters under shifts 0, 1, 2, 4
    read, shifts = (("a", "d"), ("b",), ("c",), ("e",)), (0, 1, 2, 4)
    every = [
        Counter("abcde"["abcde".index(x) - shift] for said, shift in zip(part, shifts, strict=True) for x in said)
        for part in permutations(read)
    ]
    mean = {letter: 1 + sum(count[letter] for count in every) / 24 for letter in "abcde"}
    chi = [sum((1 + count[x] - mean[x]) ** 2 / mean[x] for x in "abcde") for count in every]
    assert (bias["chi_square"], bias["permutations"]) == (pytest.approx(chi[0]), None)
    assert bias["p_value"] == sum(value >= chi[0] - 1e-9 for value in chi) / 24
    score = aggregate(made.task, made.items, [a.verdict for a in run.answers], rotated=True, resamples=200)
    assert score["accuracy"] == rotation["robust_accuracy"]
    assert score["accuracy_interval"] == rotation["robust_accuracy_interval"]
    assert score["chance"]["accuracy"] == pytest.approx((0.2**5 + 0.1**5 + 0) / 3)


def test_items_that_were_not_asked_count_in_every_shift_and_say_nothing_of_agreement():
    made = evaluation("choice-logprob", (ONE, TWO, NUMBER), rotate=True)
    #                  c under every shift of the first   a, d whatever stands there; the number is not asked
    best = [*("c", "b", "a", "e", "d"), *["ad"] * 5]
    outputs = [[Score((-1.0 if x in said else -9.0,), False) for x in "abcde"] for said in best]
    rotation = repeats(_finish(made, [*outputs, []]), SETTINGS)["rotation"]
    assert rotation["by_shift"] == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert rotation["mean_accuracy"] == pytest.approx((1 + 1 / 5 + 0) / 3)
    assert rotation["consistent"] == 1 / 2


def test_nothing_under_several_shifts_leaves_no_share_of_agreement():
    rotation = repeats(_finish(evaluation("strict", (ONE, NUMBER), rotate=True), [TOO_LONG] * 5 + texts("8")), SETTINGS)
    assert (rotation["rotation"]["consistent"], rotation["rotation"]["by_shift"]) == (None, [0.0] * 5)


def test_drawn_answers():
    made = evaluation("strict", (ONE, TWO), samples=4, temperature=0.7, top_p=0.9)
    found = repeats(_finish(made, [*texts("c", "c", "a", "?"), *texts("a, d", "b", "b", "b")]), SETTINGS)
    assert found["agreement"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    samples = found["samples"]
    assert {key: samples[key] for key in ("count", "temperature", "top_p")} == {
        **{"count": 4, "temperature": 0.7, "top_p": 0.9},
    }
    assert samples["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_templates_are_scored_one_by_one():
    files = (("x/a.txt", "{{question}} "), ("b.txt", "Q: {{question}}\n"), ("c.txt", "{{question}}: "))
    made = evaluation("strict", (ONE, TWO), templates=files, majority=True, template=("a", "b", "c"))
    found = repeats(_finish(made, texts("c", "c", "a", "a, d", "?", "b")), SETTINGS)
    accuracies = {name: (score["accuracy"], score["unparsed"]) for name, score in found["templates"].items()}
    assert accuracies == {"a": (1, 0), "b": (0.5, 1), "c": (0, 0)}
    assert found["agreement"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_forced_answers_are_counted():
    made = evaluation("cot", (ONE, TWO))
    outputs = [ForcedGeneration((1,), "…\n答え: c", "stop"), *texts("答え: a, d")]
    assert repeats(_finish(made, outputs), SETTINGS) == {"forced": 1}


def test_outcomes_are_disjoint_and_complete():
    made = evaluation("strict", (ONE, TWO, NUMBER))
    outputs = [*texts("c"), *texts("まず", finish="length"), TOO_LONG]
    score = aggregate(made.task, made.items, [a.verdict for a in read_answers(made, outputs)], resamples=200)
    assert score["outcomes"] == {
        **{"right": 1, "wrong": 0, "unparsed": 0, "cut_off": 1, "not_asked": 0, "too_long": 1},
        "no_reference": 0,
    }
    assert (score["accuracy"], score["points"], score["too_long"]) == (pytest.approx(1 / 3), 3, 1)


def test_a_sample_keeps_every_ask_in_the_letters_of_the_item():
    run = _finish(evaluation("strict", rotate=True), texts("c", "b", "a", "e", "?"))
    (line,) = sample_lines([run])
    sample = json.loads(line)
    assert [ask["order"][0] for ask in sample["asks"]] == [0, 1, 2, 3, 4]
    assert [ask["parsed"] for ask in sample["asks"]] == [["c"]] * 4 + [None]
    assert [ask["output"] for ask in sample["asks"]] == ["c", "b", "a", "e", "?"]
    assert len({ask["prompt_hash"] for ask in sample["asks"]}) == 5
    assert sample["asks"][0]["prompt_hash"] == sample["prompt_hash"]
    assert [entry["arg_0"] for entry in sample["arguments"].values()] == [a.prompt.text for a in run.evaluation.asks]
    assert (sample["outcome"], sample["correct"], sample["picked"], sample["exact_match_mean"]) == (
        *("wrong", False, ["c"], 0.8),
    )
    drawn = _finish(evaluation("strict", samples=2, temperature=0.5), texts("c", "c"))
    sample = json.loads(next(sample_lines([drawn])))
    assert (sample["agreement"], [ask["sample"] for ask in sample["asks"]]) == (1, [0, 1])
    assert sample["arguments"]["gen_args_1"]["arg_1"] == {
        **{"until": ["\n"], "max_gen_toks": 32, "do_sample": True, "temperature": 0.5, "top_p": 1.0},
    }
