"""Reading the answer out of a model's text: what counts as said, and what does not."""

import pytest

from medjax.data.qa import Item
from medjax.eval.answers import parse_kasai, parse_strict

ITEM = Item("q", "?", ("Gaucher病", "von Gierke病", "Hurler症候群", "メープルシロップ尿症", "OTC欠損症"), ("c",))
NUMBER = Item("n", "?", (), ("26",))
ORDER = Item("o", "?", ("1", "2", "3", "4", "5"), ("c", "a", "b"), ordered=True)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        *[(text, "c") for text in ("c", "(c)", "C.", "c)", "ｃ", "「c」", "**C**", "- c", " c \n", "c。", "Option C")],
        *[
            (text, "ac")
            for text in ("a, c", "ａ、ｃ", "a と c", "cとa", "a and c", "a c", "A,C", "[a] [c]", "a・c", "a/c")
        ],
        *[(text, "ace") for text in ("a,c,e", "a, c, and e", "e、c、a。")],
        *[
            (text, "c")
            for text in ("答え: c", "答え：ｃ。", "正解は c です。", "答えは「c」", "正しいのはcです", "解答：Ｃ")
        ],
        *[(text, "c") for text in ("The answer is c", "Answer: (C)", "The correct option is **C**.", r"\boxed{c}")],
        ("The correct answers are a and c.", "ac"),
        ("正解はcとdです", "cd"),
        ("The answer is c because lysosomes fail.", "c"),
        ("正解はcであり、aは誤り。", "c"),
        ("c. Hurler症候群", "c"),
        ("(c) Hurler 症候群。", "c"),
        ("Answer: C) Hurler症候群", "c"),
        ("正解はｃ（Hurler症候群）です。", "c"),
        ("c\n\n解説: aは誤り。", "c"),
        ("長い説明。\n答え:\nc", "c"),
        ("<think>a? No, b.</think>\nc", "c"),
        ("a? No, b.</think>\n\n答え: c", "c"),
        ("最終的な答え: c\n答え: c", "c"),
    ],
)
def test_a_said_answer_is_read(text, letters):
    assert parse_strict(text, ITEM) == tuple(letters)


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "f", "a, f", "I", "ac", "bad", "答え: ac", "no idea", "わかりません。"),
        *(
            "a patient with fever",
            "A 45-year-old man",
            "The answer is a patient",
            "The answer is a combination of a and b",
        ),
        *("a or d", "aまたはd", "aかd", "答え: aまたはd", "The answer is a or d", "either a, b"),
        *("答えはaではなくcです。", "The answer is not a.", "答えはcですか？", "The answer is e.g. unknown"),
        *(
            "a. 全然ちがう文",
            "c. Gaucher病",
            "a. Gaucher病\nb. von Gierke病",
            "a\nb\nc",
            "c\n答え: d",
            "答え: a\n答え: c",
        ),
        *("<think>the answer is c", "I think vitamin c is low", "選択肢はa, b, c, d, e", "c because it is"),
    ],
)
def test_anything_else_is_unparsed(text):
    assert parse_strict(text, ITEM) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("26", "26"), ("２６", "26"), ("答え: 26", "26"), ("約26 kg/m2", "26"), ("BMIは26です", "26"), ("26.", "26")],
        *[("7.20 mL", "7.20"), ("04", "04"), ("1,234.50", "1234.50"), ("12,345,678", "12345678"), ("−5", "-5")],
        *[("3-5", "3"), ("70÷(1.65)の2乗で、答えは25.7", "25.7"), ("<think>99</think>26", "26"), ("0.04", "0.04")],
        *[("no number", None), ("", None), ("答え: 26\n答え: 27", None)],
    ],
)
def test_the_first_number_is_read_as_text(text, number):
    assert parse_strict(text, NUMBER) == (None if number is None else (number,))


def test_an_ordered_item_keeps_the_order():
    assert parse_strict("c→a→b", ORDER) == ("c", "a", "b")
    assert parse_strict("答え: c, a, b", ORDER) == ("c", "a", "b")


def test_letters_reach_as_far_as_the_item():
    eight = Item("x", "?", tuple("12345678"), ("h",))
    assert parse_strict("h", eight) == ("h",)
    assert parse_strict("i", eight) is None


def test_kasai_maps_width_and_case_and_trims_nothing():
    assert parse_kasai("Ａ，Ｃ") == "a,c"
    assert parse_kasai(" A,\u3000c ") == " a, c "
    assert parse_kasai("７．２０") == "7.20"
    assert parse_kasai("ａ、ｃ") == "a、c"
