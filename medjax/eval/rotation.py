"""Rotation of choices: every cyclic shift of an item, and what the answers to them say about position bias.

Shift k shows choice (i + k) mod n at letter i; an item of five choices is asked five times, and the right text stands
once at each letter:

  order  (0, 1, 2, 3, 4)   a. 肺炎  b. 喘息  c. 肺塞栓 …      gold c
         (1, 2, 3, 4, 0)   a. 喘息  b. 肺塞栓 …               gold b

An item is right if it is right under every shift (robust accuracy). A model that always says "a" is right under one of
five: its mean accuracy over shifts is 20 %, its robust accuracy 0.
"""

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medjax.data.qa import Item
from medjax.statistics.intervals import RESAMPLES

Order = tuple[int, ...]  # which choice of the item stands at each letter
_ROUNDING = 1e-9  # relative: values of chi-square that only rounding tells apart


def orders(item: Item, rotate: bool) -> list[Order]:
    """The orders in which an item is asked, its own first; only that one without `rotate` or without choices."""
    count = len(item.choices)
    shifts = range(count) if rotate and count else range(1)
    return [tuple((i + shift) % count for i in range(count)) for shift in shifts]


def shown(item: Item, order: Order) -> Item:
    """The item as it is shown in an order: its choices, and all that names them, moved along."""
    if list(order) == sorted(order):
        return item
    accepted = item.accepted and tuple(_moved(answer, order, item.ordered) for answer in item.accepted)
    return replace(
        item,
        choices=tuple(item.choices[place] for place in order),
        answer=_moved(item.answer, order, item.ordered),
        prohibited=_moved(item.prohibited, order, False),
        accepted=accepted,
    )


def original(letters: Sequence[str], order: Order, ordered: bool) -> tuple[str, ...]:
    """Letters of the item for letters as they were shown, sorted unless their order is part of the answer."""
    found = [_LETTERS[order[_LETTERS.index(letter)]] for letter in letters]
    return tuple(found if ordered else sorted(found))


def position_bias(
    asked: Iterable[tuple[Item, Order, tuple[str, ...] | None]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """How often each position was picked, and whether it matters where a choice stands.

    asked      item, order, and the letters of the item that were read, None where none could be; items are told apart
               by id, and those without choices left out
    resamples  permutations that are drawn where there are more than these
    returns    asks, unread (of these); picked, gold: letter as shown -> count, of the asks that were read;
               chi_square, sum of (picked - expected)^2 / expected; p_value; permutations, how many were drawn, None for
               all of them. None where nothing was read

    The test: to a model that looks at the texts alone, an item's answers could have come under any of its shifts. So
    they are permuted among the shifts of the item that were read, within each item, and p is the share of these
    permutations with a chi_square at least as large; expected is the mean over them. All are counted where they are at
    most `resamples`; else that many are drawn, and the observed one is counted among them. Answers to one item may
    depend on each other, and counts may be small: nothing is taken to be chi-square distributed.
    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 3rd ed. 2005, chapter 3; one added to both
    counts: Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010) 39.
    """
    asks = unread = most = 0
    picked, gold = Counter[str](), Counter[str]()
    answers: dict[int, list[tuple[Order, tuple[str, ...]]]] = {}
    numbers: dict[str, int] = {}
    for item, order, letters in asked:
        if order:
            asks += 1
            unread += letters is None
            if letters is not None:
                most = max(most, len(order))
                picked.update(_moved(letters, order, False))
                gold.update(_moved(item.answer, order, False))
                answers.setdefault(numbers.setdefault(item.id, len(numbers)), []).append((order, letters))
    positions = list(_LETTERS[:most])
    found = {"chi_square": None, "p_value": None, "permutations": None}
    if picked:
        found = _permutation_test(list(answers.values()), resamples, seed)
    counts = {
        name: {letter: count[letter] for letter in positions} for name, count in (("picked", picked), ("gold", gold))
    }
    return {"asks": asks, "unread": unread, **counts, **found}


def _permutation_test(
    items: Sequence[Sequence[tuple[Order, tuple[str, ...]]]], resamples: int, seed: int
) -> dict[str, Any]:
    """items: of each its orders and what was read under them."""
    tables = [_places(answers) for answers in items]
    expected = sum(table.mean(0).sum(0) for table in tables)
    observed = sum(table[range(len(table)), range(len(table))].sum(0) for table in tables)
    reached = expected > 0

    def chi_square(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((counts - expected)[..., reached] ** 2 / expected[reached]).sum(-1)

    statistic = float(chi_square(observed))
    free = [table for table in tables if (table != table[:1]).any()]  # of the others every permutation is the same
    fixed = observed - sum(
        (table[range(len(table)), range(len(table))].sum(0) for table in free), np.zeros(len(expected))
    )
    is_exact = math.prod(math.factorial(len(table)) for table in free) <= resamples
    counts = np.tile(fixed, (1 if is_exact else resamples, 1))
    random = np.random.default_rng(seed)
    for table in free:
        shifts = np.arange(len(table))
        if is_exact:
            moved = np.array([table[list(order), shifts].sum(0) for order in permutations(shifts)])
            counts = (counts[:, None] + moved).reshape(-1, len(expected))
        else:
            order = random.permuted(np.tile(shifts, (resamples, 1)), axis=1)
            counts = counts + table[order, shifts].sum(1)
    extreme = int((chi_square(counts) >= statistic * (1 - _ROUNDING) - _ROUNDING).sum())
    p_value = extreme / len(counts) if is_exact else (1 + extreme) / (1 + resamples)
    return {"chi_square": statistic, "p_value": p_value, "permutations": None if is_exact else resamples}


def _places(answers: Sequence[tuple[Order, tuple[str, ...]]]) -> NDArray[np.float64]:
    """[answers, orders, positions]: 1 where an answer stands if it is given under an order."""
    table = np.zeros((len(answers), len(answers), len(_LETTERS)))
    for row, (_, letters) in enumerate(answers):
        for column, (order, _) in enumerate(answers):
            for letter in _moved(letters, order, False):
                table[row, column, _LETTERS.index(letter)] = 1
    return table


_LETTERS = string.ascii_lowercase


def _moved(letters: Sequence[str], order: Order, ordered: bool) -> tuple[str, ...]:
    """Letters as they are shown for letters of the item."""
    found = [_LETTERS[order.index(_LETTERS.index(letter))] for letter in letters]
    return tuple(found if ordered else sorted(found))
