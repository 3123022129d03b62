"""The gestalt protocol reproduces the harness it is named after: filter sizes and the score of nine kinds of answer."""

import pytest

from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.eval.gestalt import extract, gold_text, is_asked, judge_gestalt

ITEM = Item("q", "?", ("甲状腺", "副腎", "1.5 mL", "心臓", "腎臓"), ("c",))


def test_extraction_takes_the_first_line():
    assert extract("\n \n心臓。 \n説明") == "心臓。"
    assert extract("") == ""


def test_points_are_removed_before_texts_are_compared():
    assert judge_gestalt(ITEM, "15 mL.").exact
    assert not judge_gestalt(ITEM, "1.5mL").exact


def test_similarity_decides_and_the_first_choice_wins_a_tie():
    assert judge_gestalt(ITEM, "1.5 mLです").letters == ("c",)
    nothing = judge_gestalt(ITEM, "")
    assert (nothing.exact, nothing.gestalt, nothing.letters) == (False, False, ("a",))
    two = Item("r", "?", ITEM.choices, ("d", "e"))
    assert judge_gestalt(two, "腎臓,心臓").gestalt
    comma = Item("s", "?", ("1,000", "b1", "c1", "d1", "e1"), ("a",))
    assert judge_gestalt(comma, "1,000").gestalt is False  # the gold splits into "1" and "000"


def test_choices_of_the_same_text_are_told_apart_by_position():
    item = Item("t", "?", ("肺炎", "気胸", "喘息", "気胸", "心不全"), ("b", "d"))
    both = judge_gestalt(item, "気胸,気胸")
    assert (both.exact, both.gestalt, both.letters) == (True, True, ("b", "d"))
    one = judge_gestalt(Item("u", "?", item.choices, ("d",)), "気胸")
    assert (one.gestalt, one.letters) == (True, ("b",))  # texts are compared, as the harness does


@pytest.fixture(scope="module")
def asked(shared_data):
    return [item for item in load_task("igakuqa", data_dir=shared_data).items if is_asked(item, "ja")]


def test_filter_sizes(shared_data, asked):
    japanese = load_task("igakuqa", data_dir=shared_data, text_only=True).items
    english = load_task("igakuqa", data_dir=shared_data, language="en").items
    assert sum(len(item.choices) == 5 for item in japanese) == 1455
    assert (len(asked), sum(item.num_answers > 1 for item in asked)) == (1450, 221)
    assert sum(is_asked(item, "en") for item in english) == 1420


def _golds(item):
    return [item.choices[item.letters.index(letter)] for letter in item.answer]


@pytest.mark.parametrize(
    ("respond", "exact", "gestalt", "single"),
    [
        pytest.param(lambda item: "", 0, 16.97, 18.14, id="empty"),
        pytest.param(lambda item: ",".join(item.answer), 0, 16.41, 17.58, id="right letter"),
        pytest.param(lambda item: ",".join(f"({x.upper()})" for x in item.answer), 0, 17.17, 18.31, id="(C)"),
        pytest.param(gold_text, 100, 99.24, 99.59, id="right text"),
        pytest.param(lambda item: ",".join(t.rstrip("。") for t in _golds(item)), 77.93, 99.24, 99.59, id="no stop"),
        pytest.param(lambda item: "、".join(_golds(item)), 84.76, 99.24, 99.59, id="other comma"),
        pytest.param(
            lambda item: ",".join(f"{x}. {t}" for x, t in zip(item.answer, _golds(item), strict=True)),
            *(0, 99.24, 99.59),
            id="letter and text",
        ),
        pytest.param(lambda item: ",".join(item.choices), 0, 20.76, 22.21, id="all choices"),
        pytest.param(lambda item: item.question, 0, 19.31, 20.83, id="the question"),
    ],
)
def test_scores_of_kinds_of_answer(asked, respond, exact, gestalt, single):
    verdicts = [judge_gestalt(item, extract(respond(item))) for item in asked]
    singles = [verdict.gestalt for item, verdict in zip(asked, verdicts, strict=True) if item.num_answers == 1]
    got = (
        100 * sum(verdict.exact for verdict in verdicts) / len(asked),
        100 * sum(verdict.gestalt for verdict in verdicts) / len(asked),
        100 * sum(singles) / len(singles),
    )
    assert tuple(round(value, 2) for value in got) == (exact, gestalt, single)
