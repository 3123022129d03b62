"""From outputs to answers: shifts, votes, thoughts, reasoning, and items that are too long."""

import numpy as np
import pytest
from small_evaluations import NUMBER, ONE, TWO, evaluation, texts

from medjax.data.qa import Item
from medjax.eval.reading import ForcedGeneration, headline, read_answers
from medjax.infer.generator import TOO_LONG, Generation
from medjax.infer.scorer import Score

TEMPLATES = (("a.txt", "{{question}} "), ("b.txt", "Q: {{question}}\n"), ("c.txt", "{{question}}: "))


def _one(made, outputs):
    (answer,) = read_answers(made, outputs)
    return answer


# shifts


def test_right_under_every_shift_is_right():
    rotated = evaluation("strict", rotate=True)
    # 肺塞栓 stands at c, b, a, e, d
    steady = _one(rotated, texts("c", "b", "a", "e", "d"))
    assert [reply.picked for reply in steady.replies] == [("c",)] * 5
    assert (steady.picked, steady.verdict.correct, steady.verdict.points) == (("c",), True, 3)
    assert steady.metrics == {"exact_match": 1.0, "exact_match_mean": 1.0}
    assert steady.agreement is None
    stuck = _one(rotated, texts(*"aaaaa"))
    assert [reply.picked for reply in stuck.replies] == [(letter,) for letter in "abcde"]
    assert (stuck.verdict.correct, stuck.verdict.points, stuck.metrics["exact_match_mean"]) == (False, 0, 0.2)
    assert stuck.verdict.prohibited  # once the letter e of the item was picked


def test_one_wrong_shift_makes_an_item_wrong_and_shows_what_most_said():
    answer = _one(evaluation("strict", rotate=True), texts("c", "b", "a", "e", "?"))
    assert (answer.picked, answer.verdict.outcome) == (("c",), "wrong")
    assert answer.metrics == {"exact_match": 0.0, "exact_match_mean": 0.8}
    nothing = _one(evaluation("strict", rotate=True), texts(*"?????", finish="length"))
    assert (nothing.picked, nothing.verdict.outcome) == (None, "cut_off")


def test_two_answers_and_scored_choices_rotate_too():
    two = _one(evaluation("strict", (TWO,), rotate=True), texts("a, d", "c, e", "b, d", "a, c", "b, e"))
    assert [reply.picked for reply in two.replies] == [("a", "d")] * 5
    assert two.verdict.correct
    rotated = evaluation("choice-logprob", rotate=True)
    place = [ask.order.index(2) for ask in rotated.asks]  # where the right text stands
    scores = [[Score((-1.0 if i == right else -9.0,), False) for i in range(5)] for right in place]
    answer = _one(rotated, scores)
    assert (answer.picked, answer.metrics) == (("c",), {"acc": 1.0, "acc_mean": 1.0})
    assert headline(rotated.protocol) == "acc"


def test_an_order_of_letters_comes_back_in_its_order():
    item = Item("o", "順に並べよ。", ONE.choices, ("c", "a", "b"), ordered=True)
    answer = _one(evaluation("strict", (item,), rotate=True), texts("c,a,b", "b,e,a", "a,d,e", "e,c,d", "d,b,c"))
    assert [reply.picked for reply in answer.replies] == [("c", "a", "b")] * 5
    assert answer.verdict.correct


def test_an_item_without_choices_is_asked_once():
    answer = _one(evaluation("strict", (NUMBER,), rotate=True), texts("7.20"))
    assert (answer.verdict.correct, len(answer.replies)) == (True, 1)
    for name, metric in (("strict", "exact_match"), ("choice-logprob", "acc")):
        made = evaluation(name, (ONE, NUMBER), rotate=True)
        scored = [[Score((-1.0,), False)] * 5] * 5 + [[]]
        one, number = read_answers(made, texts(*"ccccc", "7.20") if name == "strict" else scored)
        assert list(one.metrics) == list(number.metrics) == [metric, f"{metric}_mean"]


# votes


def test_the_most_frequent_sample_counts():
    drawn = evaluation("strict", samples=5, temperature=0.7)
    answer = _one(drawn, texts("a", "c", "?", "c", "a"))
    # a and c twice each; c reached two first
    assert (answer.picked, answer.verdict.correct, answer.agreement) == (("c",), True, 0.4)
    assert (answer.text, answer.metrics) == ("c", {"exact_match": 1.0})
    assert answer.resps == [["a"], ["c"], ["?"], ["c"], ["a"]]
    unread = _one(drawn, texts(*"?????"))
    assert (unread.picked, unread.verdict.outcome, unread.agreement) == (None, "unparsed", 0)


@pytest.mark.parametrize(
    ("kind", "gold", "outputs", "picked", "agreement"),
    [
        ("entities", ("発熱", "咳嗽"), ["['嘔吐']", "['発熱', '咳嗽']", "咳嗽、発熱"], ("発熱", "咳嗽"), 2 / 3),
        ("similarity", ("4.5",), ["3", "4.5", "4.50"], ("4.5",), 2 / 3),
        ("text", ("熱",), ["咳", "熱", "熱\n"], ("熱",), 2 / 3),
    ],
)
def test_answers_that_say_the_same_vote_together(kind, gold, outputs, picked, agreement):
    item = Item("q", "?", (), gold, kind=kind)
    answer = _one(evaluation("strict", (item,), samples=3, temperature=0.7), texts(*outputs))
    assert (answer.picked, answer.verdict.correct, answer.agreement) == (picked, True, pytest.approx(agreement))


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"samples": 3, "temperature": 0.7}, 3), ({"rotate": True}, 5)],
    ids=["drawn", "rotated"],
)
def test_of_several_unread_answers_one_cut_off_makes_the_item_cut_off(settings, count):
    made = evaluation("strict", **settings)
    outputs = texts(*"?" * count)
    outputs[1] = Generation((1,), "まず", "length")
    answer = _one(made, outputs)
    assert (answer.verdict.outcome, answer.truncated) == ("cut_off", True)
    outputs[0] = Generation((1,), "c", "stop")
    read = _one(made, outputs)
    assert (read.picked, read.verdict.outcome == "cut_off", read.truncated) == (("c",), False, False)


def test_kasai_tells_a_trimmed_answer_from_one_that_is_not():
    drawn = evaluation("kasai", (TWO,), samples=3, temperature=1.0)
    answer = _one(drawn, texts("a, d", "a,d", "a, d"))
    assert (answer.picked, answer.verdict.correct, answer.agreement) == (("a", "d"), False, pytest.approx(2 / 3))


def test_templates_vote_and_shifts_hold_their_vote():
    prompts = evaluation("strict", templates=TEMPLATES, majority=True, template=("a", "b", "c"))
    answer = _one(prompts, texts("c", "e", "c"))
    assert (answer.picked, answer.verdict.prohibited, answer.agreement) == (("c",), False, pytest.approx(2 / 3))
    both = evaluation("strict", rotate=True, samples=3, temperature=0.7)
    outputs = texts(*"cca", *"bbb", *"aba", *"eee", *"dde")
    answer = _one(both, outputs)
    assert answer.verdict.correct
    assert len(answer.shifts) == 5
    assert answer.agreement == pytest.approx((2 / 3 + 1 + 2 / 3 + 1 + 2 / 3) / 5)
    assert not _one(both, texts(*"cca", *"aab", *"aba", *"eee", *"dde")).verdict.correct


# thoughts and reasoning


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("strict", "<think>答え: a</think>\n\nc"),
        ("strict", "<thinking>a</thinking>答え: c<reasoning>a"),
        ("kasai", "<reasoning>a</reasoning>\nc"),
        ("gestalt", "<think>\n肺炎\n</think>\n肺塞栓"),
        ("cot", "<think>a</think>答え: c"),
    ],
)
def test_thoughts_are_no_answer_in_any_protocol(name, output):
    answer = _one(evaluation(name), texts(output))
    assert (answer.picked, answer.verdict.correct, answer.text) == (("c",), True, output)


def test_reasoning_may_name_other_letters():
    reasoned = evaluation("cot")
    answer = _one(reasoned, texts("aは肺炎で、答え: a とも考えたが、\n答え: c"))
    assert (answer.picked, answer.forced) == (("c",), False)
    forced = _one(reasoned, [ForcedGeneration((1, 2), "肺炎を考え\n答え: c", "stop")])
    assert (forced.picked, forced.forced, forced.verdict.outcome) == (("c",), True, "right")


# outcomes


@pytest.mark.parametrize(
    ("text", "finish", "outcome"),
    [
        *[("c", "stop", "right"), ("c", "length", "right"), ("a", "stop", "wrong"), ("a", "length", "wrong")],
        *[("", "stop", "unparsed"), ("まず", "length", "cut_off"), ("x" * 100_000, "length", "cut_off")],
        ("", "too_long", "too_long"),
    ],
)
def test_every_item_has_one_outcome(text, finish, outcome):
    output = TOO_LONG if finish == "too_long" else Generation((1,), text, finish)
    verdict = _one(evaluation("strict"), [output]).verdict
    assert verdict.outcome == outcome
    assert (verdict.points > 0) == verdict.correct == (outcome == "right")


@pytest.mark.parametrize("name", ["strict", "cot", "kasai", "gestalt", "choice-logprob"])
def test_what_is_too_long_is_worth_nothing_even_where_any_answer_is_right(name):
    item = Item("any", "?", ONE.choices, ("a",), any_answer=True)
    long, read = read_answers(
        evaluation(name, (item, ONE)),
        [TOO_LONG, [Score((-1.0,), False)] * 5 if name == "choice-logprob" else Generation((1,), "c", "stop")],
    )
    assert (long.verdict.outcome, long.verdict.points, long.picked) == ("too_long", 0, None)
    assert list(long.metrics) == list(read.metrics)
    rotated = _one(evaluation(name, (item,), rotate=True), [TOO_LONG] * 5)
    assert (rotated.verdict.outcome, rotated.verdict.correct) == ("too_long", False)


def test_choices_with_commas_are_read_by_their_letters():
    item = Item("q", "?", ("a, b", "Na 140, K 4.0", "c,d"), ("b",))
    for text, picked in (("b", ("b",)), ("b. Na 140, K 4.0", ("b",)), ("a, b", ("a", "b")), ("c. c,d", ("c",))):
        assert _one(evaluation("strict", (item,)), texts(text)).picked == picked


def test_gestalt_reads_a_hundred_kilobytes():
    answer = _one(evaluation("gestalt"), texts("肺塞栓" * 34_000))
    assert answer.picked == ("c",)


# scored choices


def test_choices_are_ranked_as_lm_eval_and_jmedbench_rank_them():
    """lm-eval: sums, and sums by characters and bytes; JMedBench: the least loss, and the least loss a token."""
    draw = np.random.default_rng(4)
    words = ("心不全", "fever", "Na 140, K 4.0", "β遮断薬", "うつ病・双極性障害", "x")
    for _ in range(200):
        choices = tuple(words[i] for i in draw.permutation(len(words))[:4])
        losses = [draw.gamma(2, 2, draw.integers(1, 7)) for _ in choices]
        total = np.array([loss.sum() for loss in losses])
        divisors = {
            **{"acc": [1] * 4, "acc_norm": [len(text) for text in choices]},
            **{"acc_bytes": [len(text.encode()) for text in choices], "acc_per_token": [len(loss) for loss in losses]},
        }
        item = Item("q", "?", choices, ("b",))
        answer = _one(evaluation("choice-logprob", (item,)), [[Score(tuple(-loss), False) for loss in losses]])
        expected = {name: float((total / sizes).argmin() == 1) for name, sizes in divisors.items()}
        assert answer.metrics == expected
