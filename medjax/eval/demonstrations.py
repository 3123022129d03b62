"""Worked examples (few-shot): which items of a task's pool are shown before a question.

  fixed    the first of the pool in its order; for IgakuQA its authors' three, the default there
  random   a choice by seed
  nearest  those most similar to the question, the most similar last, right before it

Similarity is the cosine of the counts of character 2-, 3- and 4-grams (Japanese has no word spaces) of context and
question, half-width and lower case, without blanks; the earlier one of the pool wins a tie. Fixed and random examples
are the same for every item, so that they are a prefix all prompts share; where the pool is the set itself one is kept
in reserve for the item that is among them. No item ever sees its own question, be it under another id.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
from scipy.sparse import csr_array

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.eval.settings import FEWSHOT
from medjax.eval.templates import stem

GRAMS = (2, 3, 4)


class Demonstrations:
    """The worked examples of a task.

    count  for each item
    how    "fixed", "random", "nearest"; None: fixed where the task has examples by its authors, else random
    seed   of "random"

    Raises ValueError when the pool is too small.
    """

    def __init__(self, task: LoadedTask, count: int, how: str | None = None, seed: int = 0):
        if how is None:
            how = "fixed" if task.pool_by_authors else "random"
        if how not in FEWSHOT:
            raise ValueError(f"fewshot: got {how!r}, expected one of {', '.join(FEWSHOT)}.")
        self.count = count
        self._pool = list(task.fewshot)
        reserve = 1 if task.pool_is_test else 0
        if count and len(self._pool) < count + reserve:
            raise ValueError(
                f"task {task.name}: got num_fewshot={count}, expected at most {max(0, len(self._pool) - reserve)}: its "
                f"pool holds {len(self._pool)}{', of which one is kept in reserve' if reserve else ''}; ask for fewer."
            )
        self._chosen: list[Item] | None = None
        self._near: _Similarity | None = None
        if count and how == "nearest":
            self._near = _Similarity(self._pool)
        elif count:
            drawn = random.Random(f"{seed}:{task.name}").sample if how == "random" else _first
            self._chosen = drawn(self._pool, count + reserve)

    def of(self, item: Item) -> list[Item]:
        """The examples shown with an item, in the order in which they are shown."""
        # not by id: a set may repeat a question under another one, and a pool of its own may use ids again
        if self._near is not None:
            ranked = (self._pool[i] for i in self._near.ranking(item))
            others = (demo for demo in ranked if demo.asked != item.asked)
            return list(islice(others, self.count))[::-1]
        return [demo for demo in self._chosen or [] if demo.asked != item.asked][: self.count]


def _first(pool: list[Item], count: int) -> list[Item]:
    return pool[:count]


class _Similarity:
    """Cosine of an item's character n-grams with those of every item of a pool."""

    def __init__(self, pool: Sequence[Item]):
        self._numbers: dict[str, int] = {}  # of the n-grams
        places, columns, counts = [], [], []
        for place, item in enumerate(pool):
            for gram, count in grams(stem(item)).items():
                places.append(place)
                columns.append(self._numbers.setdefault(gram, len(self._numbers)))
                counts.append(float(count))
        self._counts = csr_array((counts, (columns, places)), shape=(len(self._numbers), len(pool)))
        norms = np.sqrt(np.bincount(places, np.square(counts), len(pool)))
        self._norms = np.where(norms > 0, norms, 1.0)

    def ranking(self, item: Item) -> list[int]:
        """Positions in the pool, the most similar first; the item's own norm is the same for all of them."""
        found = {self._numbers[gram]: count for gram, count in grams(stem(item)).items() if gram in self._numbers}
        # sums of whole numbers: exact, so that equals are equal
        products = np.asarray(list(found.values()), np.float64) @ self._counts[list(found)]
        return np.argsort(-products / self._norms, kind="stable").tolist()


def grams(text: str) -> Counter[str]:
    """Character n-grams of a text, with their counts."""
    plain = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return Counter(plain[i : i + n] for n in GRAMS for i in range(len(plain) - n + 1))
