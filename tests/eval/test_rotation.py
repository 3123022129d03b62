"""Cyclic shifts of choices: what is shown, how letters come back, and the test of position bias."""

import random
from itertools import permutations, product

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


def _asked(items, said):
    """What is read under every shift: said(item, shift) names a position."""
    every = [(item, order, shift) for item in items for shift, order in enumerate(orders(item, rotate=True))]
    return [(item, order, original(said(item, shift), order, ordered=False)) for item, order, shift in every]


def _items(count, choices=FIVE):
    return [Item(f"i{n}", "?", choices, ("abcdefgh"[n % len(choices)],)) for n in range(count)]


def test_a_model_that_always_says_a_is_biased_and_one_that_keeps_to_its_choice_is_not():
    stuck = position_bias(_asked(_items(4), lambda item, shift: ("a",)), resamples=999)
    assert stuck["picked"] == {"a": 20, "b": 0, "c": 0, "d": 0, "e": 0}
    assert stuck["gold"] == dict.fromkeys("abcde", 4)
    assert stuck["chi_square"] == pytest.approx(chisquare([20, 0, 0, 0, 0], [4] * 5).statistic)
    assert (stuck["p_value"], stuck["permutations"]) == (1 / 1000, 999)  # none of those drawn comes near
    steady = position_bias([(item, order, ("b",)) for item in _items(4) for order in orders(item, rotate=True)])
    assert (steady["picked"], steady["chi_square"], steady["p_value"]) == (dict.fromkeys("abcde", 4), 0, 1)
    assert (stuck["asks"], stuck["unread"], steady["asks"]) == (20, 0, 20)


def test_few_answers_are_permuted_in_every_way():
    """Two items of three choices, always a: by hand, of the 36 permutations those that put all six on one position."""
    found = position_bias(_asked(_items(2, FIVE[:3]), lambda item, shift: ("a",)))
    # three of six permutations of an item put all on one position, a different one each
    assert (found["p_value"], found["permutations"]) == (pytest.approx(3 / 36), None)
    assert found["chi_square"] == pytest.approx(12)
    # the chi-square distribution would have said 0.0025
    assert chisquare([6, 0, 0]).pvalue < 0.003
    # two answers of one item, one unread: of two permutations both are as extreme
    (item,) = _items(1, FIVE[:3])
    one, two, _ = _asked([item], lambda item, shift: ("a",))
    found = position_bias([one, two, (item, (2, 0, 1), None)])
    assert (found["asks"], found["unread"], found["picked"]) == (3, 1, {"a": 2, "b": 0, "c": 0})
    assert found["p_value"] == _slow([one, two])


def _slow(asked):
    """The share of all permutations within items, by plain loops."""
    by_item = {}
    for item, order, letters in asked:
        by_item.setdefault(item.id, []).append((order, letters))
    totals = []
    for chosen in product(*(list(permutations(range(len(part)))) for part in by_item.values())):
        counts = dict.fromkeys("abcde", 0)
        for part, places in zip(by_item.values(), chosen, strict=True):
            for (order, _), place in zip(part, places, strict=True):
                for letter in part[place][1]:
                    counts["abcde"[order.index("abcde".index(letter))]] += 1
        totals.append(counts)
    mean = {x: sum(counts[x] for counts in totals) / len(totals) for x in "abcde"}
    chi = [sum((counts[x] - mean[x]) ** 2 / mean[x] for x in "abcde" if mean[x]) for counts in totals]
    return sum(value >= chi[0] - 1e-9 for value in chi) / len(totals)


def test_permutations_that_are_drawn_agree_with_all_of_them():
    draw = random.Random(4)
    asked = _asked(_items(3, FIVE[:4]), lambda item, shift: tuple(draw.choices("abcd", (3, 2, 2, 2))))
    exact = position_bias(asked, resamples=24**3)
    assert (exact["p_value"], exact["permutations"]) == (pytest.approx(_slow(asked)), None)
    assert 0.02 < exact["p_value"] < 0.9
    drawn = position_bias(asked, resamples=24**3 - 1, seed=1)
    assert drawn["permutations"] == 24**3 - 1
    assert drawn["p_value"] == pytest.approx(exact["p_value"], abs=0.015)
    assert position_bias(asked, resamples=500, seed=1) == position_bias(asked, resamples=500, seed=1)
    assert position_bias(asked, resamples=500, seed=2)["p_value"] != drawn["p_value"]


def test_without_a_liking_for_positions_one_in_twenty_is_below_a_twentieth():
    """Few items, and a model that mostly keeps to its choice: the answers to an item depend on each other."""
    draw, below = random.Random(0), 0
    for number in range(400):
        asked = []
        for item in _items(6, FIVE[:4]):
            liked = draw.choice("abcd")
            asked += [
                (item, order, (liked if draw.random() < 0.6 else draw.choice("abcd"),)) for order in orders(item, True)
            ]
        below += position_bias(asked, resamples=199, seed=number)["p_value"] <= 0.05
    # binomial (400, 0.05): within 8 and 34 in 99.9 %; held against the chi-square distribution it is almost never
    assert 8 <= below <= 34


def test_unread_answers_and_numbers_are_left_out_of_positions():
    asked = [(ITEM, (0, 1, 2, 3, 4), None), (NUMBER, (), ("7.20",))]
    assert position_bias(asked) == {
        **{"asks": 1, "unread": 1, "picked": {}, "gold": {}},
        **{"chi_square": None, "p_value": None, "permutations": None},
    }
