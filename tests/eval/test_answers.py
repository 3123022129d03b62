"""Reading the answer out of a model's text: what counts as said, and what does not."""

import time

import pytest

from medjax.data.qa import Item
from medjax.eval.answers import open_thought, parse_kasai, parse_last, parse_strict, without_thoughts

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
        ("正解: c\n不正解: a, d", "c"),
        ("不正解:\n- a\n- b\n正解:\n- c", "c"),
        ("間違いない答えは c", "c"),
        ("迷うかもしれない 答え: c", "c"),
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
            "答え: c. Gaucher病",
            "正解はc。Gaucher病。",
            "The answer is c. Gaucher病",
            "a. Gaucher病\nb. von Gierke病",
            "a\nb\nc",
            "c\n答え: d",
            "答え: a\n答え: c",
        ),
        *(
            "不正解はaです。",
            "不正解: a, c",
            "不正解：\na, c",
            "不正解:\n- a\n- c",
            "不正解はa。",
            "誤答: a",
            "誤った解答はa。",
        ),
        *("The incorrect answer is a.", "wrong answers: a, c", "Wrong answer:\na", "It is not the correct answer: a"),
        *("The answer is a/b", "答え: a/c", "不適切なのはaです", "正しくない答えは a です", "最も適切でない答えは a"),
        *("This isn't the right answer: a", "Non-answer: a"),
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
        *[("no number", None), ("", None), ("答え: 26\n答え: 27", None), ("٢٦", None)],
        *[("不正解は5、正解は6", "6"), ("The wrong answer is 5", None)],
    ],
)
def test_the_first_number_is_read_as_text(text, number):
    assert parse_strict(text, NUMBER) == (None if number is None else (number,))


LATIN = Item("l", "?", ("150−32", "B型肝炎", "B", "Tピース法", "C反応性蛋白", 'Propranolol\n"', "-40度"), ("d",))


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        *[
            (text, "d")
            for text in ("d) Tピース法", "(d) Tピース法。", "d Tピース法", "答え: d. Tピース法です", "**d** Tピース法")
        ],
        *[(text, "b") for text in ("(b) B型肝炎", "b B型肝炎", "b　Ｂ型肝炎", "正解は b) B型肝炎")],
        *[(text, "a") for text in ("a. 150−32", "a. 150-32", "a) １５０－３２", "The answer is a. 150−32")],
        *[(text, "c") for text in ("c B", "c) B", "c. B")],
        *[(text, "f") for text in ("f. Propranolol", 'f) "propranolol"', "f Propranolol")],
        *[("a B", "ab"), ("答え: a B", "ab"), ("c, B", "bc"), ("c と b", "bc"), ("e) C反応性蛋白", "e")],
        *[("b - B型肝炎", "b"), ("b -B型肝炎", "b"), ("g. −40度", "g"), ("g -40度", "g"), ("g. 40度", None)],
        *[("d) B型肝炎", None), ("d B型肝炎", None), ("b Tピース法", None)],
    ],
)
def test_a_choice_may_begin_with_a_letter_or_hold_a_minus_sign(text, letters):
    assert parse_strict(text, LATIN) == (None if letters is None else tuple(letters))


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


# thoughts and reasoning


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>c", "c"),
        ("<thinking>\nこれはa\n</thinking>\n\n答え: c\n", "答え: c"),
        ("<Reasoning>a</reasoning >b", "b"),
        ("c <think>a", "c"),
        ("a</think>b", "b"),
        ("<think>a<think>b</think>c", "c"),
        ("<think>a</thinking>b</think>c", "c"),
        ("<think>a</think>b<reasoning>c</reasoning>d", "bd"),
        ("a</think>b</think>c<think>d", "c"),
        ("a < b and <b>c</b> ", "a < b and <b>c</b> "),
    ],
)
def test_thoughts_are_removed(text, left):
    assert without_thoughts(text) == left


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<think>a", "think"),
        ("<think>a</think>b", ""),
        ("<THINKING>a</think>", "thinking"),
        ("a", ""),
        ("a</think>", ""),
    ],
)
def test_thoughts_that_have_not_ended(text, tag):
    assert open_thought(text) == tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aは誤り。答え: b としたいが、\n答え: c", ("c",)),
        ("The answer is a. No, wait.\nThe answer is (b).", ("b",)),
        ("肺炎を考える。", None),
        ("答え: c\n不正解: a", ("c",)),
        ("答え: b\n答え: z", None),  # the last one is no letter of the item
        ("<think>答え: a", None),
        ("<think>答え: a</think>答え: d, b", ("b", "d")),
        ("", None),
        # going through the choices is no answer, the line it ends with is one
        ("a. 肺炎\nb. 喘息\nc. 肺塞栓\nd. 気胸", None),
        ("a\n\nb\n", None),
        ("- a. 肺炎\n  ではない。\nc. 肺塞栓", ("c",)),
        ("a. 肺炎\nb. 喘息\nを除くと、\n**c**\n", ("c",)),
        ("a. 肺炎\nb. 喘息\n答え: d\nほかは、\nc. 肺塞栓\n", ("d",)),
        ("b\nを考える。", None),
        ("a. 肺炎\n答え:\n\nb\n以上。", ("b",)),
        ("不正解:\na\n正解:\nc\n以上。", ("c",)),
    ],
)
def test_the_last_answer_counts_after_reasoning(text, expected):
    item = Item("q", "?", ("肺炎", "喘息", "肺塞栓", "気胸"), ("c",))
    assert parse_last(text, item) == expected
    assert parse_last("BMIは 70/1.7² で、\n答え: 24.2\n答え: 24.22 kg", Item("n", "?", (), ("24.22",))) == ("24.22",)
    assert parse_last("70 / 2.89", Item("n", "?", (), ("24.22",))) is None


HUNDRED_KB = {
    **{"letters": "a " * 50_000, "lines": "a\n" * 50_000, "prose": "これはaと考える。" * 11_000},
    **{"announced": "答え: a. " * 14_000, "denied": "不正解: a " * 13_000, "adjectives": "correct " * 12_500},
    **{"tags": "<think>" * 14_000, "closings": "</think>" * 12_500, "brackets": "(" * 100_000, "blanks": " " * 100_000},
    **{"cues": "answer is " * 10_000, "numbers": "1," * 50_000, "not": "not the " * 12_500, "marks": "*a*" * 33_000},
    **{
        "joined": "a,b," * 25_000 + "?",
        "digits": "1" * 100_000,
        "boxed": "\\boxed" * 16_000,
        "choice": "a. 肺炎" * 20_000,
    },
}


@pytest.mark.parametrize("name", HUNDRED_KB)
def test_a_hundred_kilobytes_are_read_in_linear_time(name):
    items = (Item("q", "?", ("肺炎", "喘息"), ("a",)), Item("n", "?", (), ("7",)))
    start = time.process_time()
    for item in items:
        for parse in (parse_strict, parse_last):
            parse(HUNDRED_KB[name], item)
    parse_kasai(HUNDRED_KB[name])
    assert time.process_time() - start < 6  # a quadratic reader takes minutes
