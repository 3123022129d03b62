"""Slots of the cache: how many there are, how much room each group of them has, and which prompt is next in one.

Attention to the cache costs what the room of a slot is, not what is in it. So prompts of different lengths are split
into classes of as many each, longest first, and slots into as many groups, with room for the longest of a class. A slot
takes prompts of its own class, then of those with shorter ones.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

_STEP = 128  # rooms are multiples of it: few shapes
_GROUPS = (2, 4)  # into how many slots are split where it saves enough
_FEW = 16  # prompts of a class, at the least: every group makes the program larger
_SAVED = 0.1  # at the least, of the room of all slots


def slots(batch_size: int, shards: int) -> int:
    """Slots of the cache: the batch size, rounded up to a multiple of the parts that they are split into."""
    return -(-batch_size // shards) * shards


def slots_for(prompts: int, batch_size: int, shards: int) -> int:
    """Slots for so many prompts: the batch size, or a power of two that is enough for them."""
    return slots(min(batch_size, 1 << (prompts - 1).bit_length()), shards)


def cache_room(tokens: int) -> int:
    """Tokens of a slot when the longest sequence, without the prefix, has so many, its new ones included."""
    return -(-tokens // _STEP) * _STEP


def rooms(tokens: Sequence[int], slots: int, shards: int) -> tuple[int, ...]:
    """The room of each group of slots.

    tokens  of the sequences, longest first, their new ones included
    """
    best: tuple[int, ...] = (cache_room(tokens[0]),)
    for number in _GROUPS:
        if slots % (number * shards) or len(tokens) < number * _FEW:
            break
        found = tuple(cache_room(tokens[start]) for start in _starts(len(tokens), number))
        if sum(found) / number <= (1 - _SAVED) * sum(best) / len(best):
            best = found
    return best


class Waiting:
    """Prompts that have no slot yet, in classes of which each group of slots has one.

    order  of the prompts, longest first
    """

    def __init__(self, order: Sequence[int], groups: int):
        starts = [*_starts(len(order), groups), len(order)]
        self._classes = [deque(order[a:b]) for a, b in pairwise(starts)]

    def __len__(self) -> int:
        return sum(map(len, self._classes))

    def takeable(self, free: Sequence[int]) -> int:
        """How many of them can be taken, given the free slots of each group."""
        left, total = [len(each) for each in self._classes], 0
        for group, count in enumerate(free):
            for number in range(group, len(left)):
                taken = min(count, left[number])
                left[number] -= taken
                count -= taken
                total += taken
        return total

    def take(self, group: int) -> int | None:
        """The next prompt for a slot of this group; None when all that wait are too long for it."""
        return next((each.popleft() for each in self._classes[group:] if each), None)


def _starts(count: int, number: int) -> list[int]:
    return [count * group // number for group in range(number)]
