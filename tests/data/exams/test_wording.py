"""medjax's own wording to the byte, and that grading and training are given the same."""

import pytest

from medjax.data.exams import wording
from medjax.data.qa import Item
from medjax.eval.protocols import Protocol
from medjax.eval.settings import ProtocolSettings

FEVER = Item("q", "Which one?", (" fever", "", "cough\n"), ("a",), context="An abstract.")
TWO = Item("w", "2つ選べ。", ("肺炎", "喘息", "気胸"), ("b", "c"))
NUMBER = Item("n", "How many?", (), ("7.20",))


def test_a_question_with_and_without_the_line_that_asks_for_letters():
    stem = "An abstract.\nQuestion: Which one?\na.  fever\nb. \nc. cough\n\n"
    assert wording.question(FEVER, "en", asks_letter=False) == f"{stem}Answer:"
    assert wording.question(FEVER, "en", asks_letter=True) == (
        f"{stem}Reply with the letter of the correct choice only.\nAnswer:"
    )
    assert wording.question(TWO, "ja", asks_letter=True) == (
        "問題: 2つ選べ。\na. 肺炎\nb. 喘息\nc. 気胸\n正しい選択肢の記号を2つ、コンマで区切って答えてください。\n答え:"
    )
    assert wording.question(NUMBER, "en", asks_letter=True) == (
        "Question: How many?\nReply with the number only.\nAnswer:"
    )


def test_answers_and_what_stands_before_them():
    assert [wording.answer(TWO, as_letters=letters) for letters in (True, False)] == ["b,c", "喘息,気胸"]
    assert [wording.answer(NUMBER, as_letters=letters) for letters in (True, False)] == ["7.20", "7.20"]
    assert wording.scored_choices(FEVER) == ("fever", "b", "cough")
    assert [wording.answer_gap(text) for text in ("Answer:", "答え:", "Answer: ", "Answer:\n", "")] == [
        *(" ", " ", "", "", " ")
    ]


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("name", ["strict", "choice-logprob"])
def test_a_worked_example_is_question_gap_and_answer(name, language):
    letters = name == "strict"
    shown = Protocol(name, ProtocolSettings(num_fewshot=1)).prompt(FEVER, (TWO,), language, None)
    question = wording.question(TWO, language, asks_letter=letters)
    assert shown.text == "\n".join(
        [
            wording.system(language),
            question + wording.answer_gap(question) + wording.answer(TWO, as_letters=letters),
            wording.question(FEVER, language, asks_letter=letters),
        ]
    )
    assert shown.continuations == (() if letters else (" fever", " b", " cough"))


def test_questions_without_choices_say_what_is_wanted():
    alike = Item("s", "A / B", (), ("3.5",), kind="similarity")
    found = Item("e", "症状は？", (), ("発熱", "咳"), kind="entities")
    translated = Item("t", "Translate: 熱", (), ("fever",), kind="text")
    for asks_letter in (True, False):
        assert wording.question(alike, "ja", asks_letter=asks_letter) == (
            "問題: A / B\n2つの文の意味がどれほど近いかを、0（まったく異なる）から5（同じ）までの数値1つだけで"
            "答えてください。\n答え:"
        )
        assert wording.question(translated, "en", asks_letter=asks_letter) == "Question: Translate: 熱\nAnswer:"
    assert [wording.answer(item, as_letters=False) for item in (alike, found, translated)] == [
        "3.5",
        '["発熱", "咳"]',
        "fever",
    ]
