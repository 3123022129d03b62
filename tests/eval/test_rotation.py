"""Cyclic shifts of choices: what is shown, how letters come back, and the test of position bias."""

import random

import pytest
from scipy.stats import chisquare

from medjax.data.qa import Item
from medjax.eval.rotation import orders, original, position_bias, shown

FIVE = ("肺炎", "喘息", "肺塞栓", "気胸", "心不全")
ITEM = Item("q", "2つ選べ。", FIVE, ("b", "d"), prohibited=("e",), accepted=(("b", "d"), ("a", "b")))
NUMBER = Item("n", "いくつか。", (), ("7.20",))


def test_every_choice_stands_once_at_every_letter():
    every = orders(ITEM, rotate=True)
    assert every == [(0, 1, 2, 3, 4), (1, 2, 3, 4, 0), (2, 3, 4, 0, 1), (3, 4, 0, 1, 2), (4, 0, 1, 2, 3)]
    assert all(sorted(order[place] for order in every) == [0, 1, 2, 3, 4] for place in range(5))
    assert orders(ITEM, rotate=False) == [(0, 1, 2, 3, 4)]
    assert orders(NUMBER, rotate=True) == [()]


def test_what_names_a_choice_moves_with_it():
    item = shown(ITEM, (1, 2, 3, 4, 0))
    assert item.choices == ("喘息", "肺塞栓", "気胸", "心不全", "肺炎")
    assert (item.answer, item.prohibited, item.accepted) == (("a", "c"), ("d",), (("a", "c"), ("a", "e")))
    assert shown(ITEM, (0, 1, 2, 3, 4)) is ITEM
    assert shown(NUMBER, ()) is NUMBER
    ordered = Item("o", "順に並べよ。", FIVE, ("c", "a", "b"), ordered=True)
    assert shown(ordered, (2, 3, 4, 0, 1)).answer == ("a", "d", "e")


def test_letters_that_were_shown_name_the_same_texts_in_the_item():
    draw = random.Random(0)
    for order in orders(ITEM, rotate=True):
        item = shown(ITEM, order)
        assert original(item.answer, order, ordered=False) == ITEM.answer
        letters = draw.sample("abcde", 3)
        texts = [item.choices["abcde".index(letter)] for letter in letters]
        back = original(letters, order, ordered=True)
        assert [FIVE["abcde".index(letter)] for letter in back] == texts
        assert original(letters, order, ordered=False) == tuple(sorted(back))


def test_a_model_that_always_says_a_is_biased_and_one_that_keeps_to_its_choice_is_not():
    items = [Item(f"i{n}", "?", FIVE, ("abcde"[n % 5],)) for n in range(4)]
    asked = [(item, order) for item in items for order in orders(item, rotate=True)]
    stuck = position_bias((item, order, original(("a",), order, ordered=False)) for item, order in asked)
    assert stuck["picked"] == {"a": 20, "b": 0, "c": 0, "d": 0, "e": 0}
    assert stuck["gold"] == dict.fromkeys("abcde", 4)
    oracle = chisquare([20, 0, 0, 0, 0], [4] * 5)
    assert (stuck["chi_square"], stuck["degrees"]) == (pytest.approx(oracle.statistic), 4)
    assert stuck["p_value"] == pytest.approx(oracle.pvalue, rel=1e-9)
    steady = position_bias((item, order, ("b",)) for item, order in asked)
    assert (steady["picked"], steady["chi_square"], steady["p_value"]) == (dict.fromkeys("abcde", 4), 0, 1)


def test_positions_are_held_against_where_right_choices_stood():
    # not rotated: gold a three times and b once, so that picking a is right more often
    items = [Item(f"i{n}", "?", ("x", "y"), ("b",) if n == 3 else ("a",)) for n in range(4)]
    found = position_bias((item, (0, 1), (letter,)) for item, letter in zip(items, "aaab", strict=True))
    assert found["chi_square"] == 0
    found = position_bias((item, (0, 1), (letter,)) for item, letter in zip(items, "aabb", strict=True))
    assert found["chi_square"] == pytest.approx(chisquare([2, 2], [3, 1]).statistic)


def test_unread_answers_and_numbers_are_left_out_of_positions():
    asked = [(ITEM, (0, 1, 2, 3, 4), None), (NUMBER, (), ("7.20",))]
    assert position_bias(asked) == {"picked": {}, "gold": {}, "chi_square": None, "degrees": None, "p_value": None}
