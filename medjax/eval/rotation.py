"""Rotation of choices: every cyclic shift of an item, and what the answers to them say about position bias.

Shift k shows choice (i + k) mod n at letter i; an item of five choices is asked five times, and the right text stands
once at each letter:

  order  (0, 1, 2, 3, 4)   a. 肺炎  b. 喘息  c. 肺塞栓 …      gold c
         (1, 2, 3, 4, 0)   a. 喘息  b. 肺塞栓 …               gold b

An item is right if it is right under every shift (robust accuracy). A model that always says "a" is right under one of
five: its mean accuracy over shifts is 20 %, its robust accuracy 0.
"""

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from scipy.special import chdtrc

from medjax.data.qa import Item

Order = tuple[int, ...]  # which choice of the item stands at each letter


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


def position_bias(asked: Iterable[tuple[Item, Order, tuple[str, ...] | None]]) -> dict[str, Any]:
    """How often each position was picked, against how often a right choice stood there.

    asked    item, order, and the letters of the item that were read; answers that could not be read are left out
    returns  picked, gold: letter as shown -> count; chi_square, degrees, p_value of the hypothesis that positions are
             picked as often as right choices stand there (Pearson's test; answers to one item are not independent,
             which makes it cautious for a model that keeps to its choice). None where nothing can be tested.
    """
    picked, gold = Counter[str](), Counter[str]()
    for item, order, letters in asked:
        if letters is not None and order:
            picked.update(_moved(letters, order, False))
            gold.update(_moved(item.answer, order, False))
    positions = sorted(gold | picked)
    total, scale = sum(picked.values()), sum(picked.values()) / max(sum(gold.values()), 1)
    expected = {letter: gold[letter] * scale for letter in positions}
    degrees = len(positions) - 1
    statistic = p_value = None
    if total and degrees > 0 and all(expected.values()):
        statistic = sum((picked[letter] - mean) ** 2 / mean for letter, mean in expected.items())
        p_value = float(chdtrc(degrees, statistic))
    return {
        "picked": {letter: picked[letter] for letter in positions},
        "gold": {letter: gold[letter] for letter in positions},
        "chi_square": statistic,
        "degrees": degrees if statistic is not None else None,
        "p_value": p_value,
    }


_LETTERS = string.ascii_lowercase


def _moved(letters: Sequence[str], order: Order, ordered: bool) -> tuple[str, ...]:
    """Letters as they are shown for letters of the item."""
    found = [_LETTERS[order.index(_LETTERS.index(letter))] for letter in letters]
    return tuple(found if ordered else sorted(found))
