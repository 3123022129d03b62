"""Terminal tables: exact lines, columns of wide characters, refusals."""

import unicodedata

import pytest

from medjax.report.table import display_width, text_table


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("mini", 4),
        ("医師国試", 8),
        ("ＡＢ", 4),  # full-width letters
        ("ｶﾞ", 2),  # half-width kana and its half-width mark
        ("が", 2),
        (unicodedata.normalize("NFD", "が"), 2),  # kana and a combining mark, which by itself is wide
        ("café", 4),
        (unicodedata.normalize("NFD", "café"), 4),
        ("a\u200bb", 2),  # zero width space
        ("±α", 2),  # ambiguous
        ("", 0),
    ],
)
def test_columns_of_a_text(text, columns):
    assert display_width(text) == columns


def test_wide_characters_keep_columns_straight():
    rows = [("医師国試", "38.3 %", "合格"), ("mini", "6.7 %", "fail")]
    assert text_table(rows, ("task", "accuracy", "判定"), align="lrl").split("\n") == [
        "task     │ accuracy │ 判定",
        "─────────┼──────────┼─────",
        "医師国試 │   38.3 % │ 合格",
        "mini     │    6.7 % │ fail",
    ]


def test_columns_that_all_rows_share_are_said_above():
    rows = [("医師国試", "kasai-3shot", "400", "38.3 %"), ("医師国試", "strict-0shot", "400", " 6.7 %")]
    header = ("task", "protocol", "items", "accuracy")
    once = ("task", "protocol", "items")
    assert text_table(rows, header, align="llrr", once=once).split("\n") == [
        "task 医師国試, items 400",
        "protocol     │ accuracy",
        "─────────────┼─────────",
        "kasai-3shot  │   38.3 %",
        "strict-0shot │    6.7 %",
    ]
    # a single row keeps its name, and what differs stays
    assert text_table(rows[:1], header, once=once).split("\n") == [
        "protocol kasai-3shot, items 400",
        "task     │ accuracy",
        "─────────┼─────────",
        "医師国試 │   38.3 %",
    ]
    assert text_table(rows, header, once=("protocol",)) == text_table(rows, header)
    # of what no row holds nothing is said
    unknown = [["a", "strict", "", "1"], ["b", "strict", "", "2"]]
    header = ["task", "protocol", "chance", "n"]
    assert text_table(unknown, header, once=("protocol", "chance")).split("\n")[:2] == ["protocol strict", "task │ n"]
    assert text_table(unknown, header, once=("chance",)).split("\n")[0] == "task │ protocol │ n"
    assert text_table([], header, once=once) == text_table([], header)


def test_rules_in_ascii_and_centred_columns():
    assert text_table([("a", "x", "1"), ("bcd", "医療用", "10")], ("", "c", "n"), align="rcl", ascii_rules=True) == (
        "    |   c    | n\n"
        "----+--------+---\n"
        "  a |   x    | 1\n"
        "bcd | 医療用 | 10"
    )  # fmt: skip


def test_default_alignment_and_no_rows():
    assert text_table([("ab", "1")], ("t", "items")) == "t  │ items\n───┼──────\nab │     1"
    assert text_table([], ("task", "n")) == "task │ n\n─────┼──"


def test_control_characters_cannot_break_the_table():
    table = text_table([("a\nb\x1b[31m\u2028c", "1")], ("t", "n"))
    assert table.split("\n")[2] == "a b [31m c │ 1"


def test_refusals():
    with pytest.raises(ValueError, match="row 2: got 1 cells, expected 2, one a column of task, n"):
        text_table([("a", "1"), ("b",)], ("task", "n"))
    with pytest.raises(ValueError, match="align: got 'lx', expected 2 letters out of l, r and c"):
        text_table([], ("task", "n"), align="lx")
    with pytest.raises(ValueError, match="align: got 'l', expected 2 letters"):
        text_table([], ("task", "n"), align="l")
