"""Items that ask for entities, a similarity or a text: what is asked, what is read, and what they are graded by."""

import json
from dataclasses import replace

import pytest
from small_evaluations import ONE, evaluation, loaded, texts

from medjax.data.exams import wording
from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.eval.asking import choose_items
from medjax.eval.metrics import METRICS, grade
from medjax.eval.protocols import Protocol
from medjax.eval.reading import read_answers
from medjax.eval.samples import Finished, sample_lines
from medjax.eval.scoring import aggregate
from medjax.eval.settings import EvalSettings, ProtocolSettings
from medjax.infer.generator import TOO_LONG, Generation
from medjax.infer.scorer import Work

FOUND = Item("e", "病変を抜き出してください。\n発熱と咳嗽を認める。", (), ("発熱", "咳嗽"), kind="entities")
NONE = Item("z", "病変を抜き出してください。\n特記なし。", (), (), kind="entities")
ALIKE = Item("s", "文1: 熱がある。\n文2: 発熱した。", (), ("4.5",), kind="similarity")
TRANSLATED = Item("t", "日本語に翻訳してください。\nFever.", (), ("発熱。",), kind="text")
OPEN = Item("o", "治療方針を述べよ。", (), (), kind="text")


def _graded(name, items, metrics, *outputs, **settings):
    made = evaluation(name, items, **settings)
    made = replace(made, task=replace(made.task, metrics=metrics))
    return made, read_answers(made, outputs)


def test_what_strict_says_about_the_form_of_an_answer():
    tails = {item.kind: wording.question(item, "ja", asks_letter=True) for item in (FOUND, ALIKE, TRANSLATED)}
    assert tails["entities"].endswith(
        '。\n該当する表現を本文のとおりに、JSONのリストだけで答えてください。例: ["表現1", "表現2"] なければ []\n答え:'
    )
    assert tails["similarity"].endswith(
        "した。\n2つの文の意味がどれほど近いかを、0（まったく異なる）から5（同じ）までの数値1つだけで答えてください。\n答え:"
    )
    assert tails["text"] == "問題: 日本語に翻訳してください。\nFever.\n答え:"
    reasoned = wording.reasoned_question(FOUND, "en").splitlines()[-3:]
    assert reasoned[0] == 'Think step by step. On the last line write "Answer: " and the answer only.'
    assert reasoned[1].startswith("Reply with the expressions as they stand in the text, as a JSON list only")
    assert reasoned[2] == "Reasoning:"
    assert wording.reasoned_question(TRANSLATED, "ja").endswith("続けて答えだけを書いてください。\n考え方:")


def test_entities_and_texts_get_room():
    assert [evaluation("strict", items).max_new_tokens for items in ((ONE,), (FOUND,), (TRANSLATED, ONE))] == [
        32,
        512,
        512,
    ]
    assert evaluation("strict", (FOUND,), max_new_tokens=9).max_new_tokens == 9
    assert evaluation("strict", (FOUND,)).protocol.id == "strict-0shot"


@pytest.mark.parametrize(
    ("item", "name", "text", "picked", "right"),
    [
        (FOUND, "strict", '["咳嗽", "発熱"]', ("咳嗽", "発熱"), True),
        (FOUND, "strict", "<think>発熱、咳嗽</think>['発熱']", ("発熱",), False),
        (FOUND, "strict", "", None, False),
        (FOUND, "cot", "発熱がある。\n答え: 発熱、咳嗽", ("発熱", "咳嗽"), True),
        (FOUND, "cot", "発熱、咳嗽", None, False),
        (NONE, "strict", "[]", (), True),
        (NONE, "strict", "", None, False),
        (ALIKE, "strict", "4.5", ("4.5",), True),
        (ALIKE, "strict", "答え: ４．５０", ("4.50",), True),
        (ALIKE, "cot", "文1は3語、文2は2語。\n答え: 4", ("4",), False),
        (ALIKE, "strict", "近い", None, False),
        (TRANSLATED, "strict", " 発熱。\n", ("発熱。",), True),
        (TRANSLATED, "cot", "Feverは発熱。\n**答え:** 熱。", ("熱。",), False),
        (TRANSLATED, "strict", "<think>発熱。", None, False),
        (OPEN, "strict", "安静。", ("安静。",), False),
    ],
)
def test_what_is_read(item, name, text, picked, right):
    _, (answer,) = _graded(name, (item,), (), *texts(text))
    assert (answer.picked, answer.verdict.correct, answer.verdict.unparsed) == (picked, right, picked is None)


def test_each_item_has_the_metrics_of_its_set():
    names = ("entity_partial_f1", "entity_exact_f1")
    made, answers = _graded("strict", (FOUND, NONE, FOUND), names, *texts('["発熱"]', "[]"), TOO_LONG)
    assert [answer.metrics["entity_exact_f1"] for answer in answers] == [pytest.approx(2 / 3), 1, 0]
    assert [answer.verdict.outcome for answer in answers] == ["wrong", "right", "too_long"]
    assert list(answers[0].metrics) == list(answers[2].metrics) == ["exact_match", *names]
    found = grade(names, made.items, [answer.picked for answer in answers], resamples=50)
    assert found["entity_exact_f1"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["entity_exact_f1"]["unparsed"] == 1
    lines = [json.loads(line) for line in sample_lines([Finished(made, answers, Work(), 0, 1.0)])]
    assert lines[0]["doc"]["kind"] == "entities"
    assert lines[0]["entity_exact_f1"] == pytest.approx(2 / 3)
    assert lines[1]["picked"] == []
    _, (alike,) = _graded("strict", (ALIKE,), ("pearson", "spearman", "mae"), *texts("3"))
    assert alike.metrics == {"exact_match": 0.0, "mae": 1.5}


def test_an_output_that_names_half_a_character_is_written():
    made, answers = _graded("strict", (FOUND,), ("entity_exact_f1",), *texts(r'["\ud842", "\u767a\u71b1"]'))
    (line,) = sample_lines([Finished(made, answers, Work(), 0, 1.0)])
    assert json.loads(line.encode())["picked"] == ["\ufffd", "発熱"]


def test_open_questions_without_a_reference_are_counted():
    made, answers = _graded("strict", (OPEN, TRANSLATED, ONE), (), *texts("安静。", "発熱。", "c"))
    score = aggregate(made.task, made.items, [answer.verdict for answer in answers], resamples=10)
    assert (score["no_reference"], score["correct"], score["accuracy_items"], score["items"]) == (1, 1, 1, 3)


def test_drawn_lists_of_entities_vote():
    outputs = texts("['発熱']", "発熱、咳嗽", "['発熱', '咳嗽']")
    _, (answer,) = _graded("strict", (FOUND,), ("entity_exact_f1",), *outputs, samples=3, temperature=0.5)
    assert (answer.picked, answer.metrics) == (("発熱", "咳嗽"), {"exact_match": 1.0, "entity_exact_f1": 1.0})


@pytest.mark.parametrize("name", ["kasai", "choice-logprob", "gestalt"])
def test_protocols_for_choices_leave_other_kinds_out(name):
    protocol = Protocol(name, ProtocolSettings())
    assert not any(protocol.asks(item, "ja") for item in (FOUND, ALIKE, TRANSLATED, OPEN))
    made, _ = choose_items(loaded((FOUND, ONE)), protocol, EvalSettings())
    assert (made.items, made.unasked) == ((ONE,), 1)
    with pytest.raises(ValueError, match=f"task exam: got 1 item, of which protocol {name} asks none"):
        choose_items(loaded((FOUND,)), protocol, EvalSettings())


def test_what_people_are_to_judge_is_neither_right_nor_wrong():
    items = tuple(replace(OPEN, id=f"o{n}") for n in range(4))
    outputs = [*texts("輸液を行う。", ""), Generation((1,), "", "length"), TOO_LONG]
    made, answers = _graded("strict", (*items, TRANSLATED), ("chrf",), *outputs, *texts("咳。"))
    verdicts = [answer.verdict for answer in answers]
    # where nothing was written there is nothing to judge; a text with a reference is right or wrong
    assert [v.outcome for v in verdicts] == ["no_reference", "unparsed", "cut_off", "too_long", "wrong"]
    scores = aggregate(made.task, made.items, verdicts, resamples=10)
    assert scores["outcomes"] == {
        **{"right": 0, "wrong": 1, "unparsed": 1, "cut_off": 1, "not_asked": 0, "too_long": 1, "no_reference": 1}
    }
    assert (scores["no_reference"], scores["correct"]) == (4, 0)
    lines = sample_lines([Finished(made, answers, Work(), 0, 1.0)])
    assert next(json.loads(line)["outcome"] for line in lines) == "no_reference"


def test_the_named_entities_of_jmed_llm_score_one_when_answered_as_asked(shared_data):
    task = load_task("mrner-disease", data_dir=shared_data)
    made = replace(evaluation("strict", task.items), task=task)
    answers = read_answers(made, texts(*(wording.answer(item, as_letters=True) for item in task.items)))
    assert {value for answer in answers for value in answer.metrics.values()} == {1.0}
    assert set(task.metrics) <= set(METRICS)
