"""Exam items found again in other text although letters, numbers or the order of choices were changed.

Text and item are compared by their n-grams of letters (`overlap.normalise`; 5 where most letters are Japanese, which
has no word spaces, else 6), in which every digit counts as 0, so that changed numbers cost nothing. An n-gram that
stands in k of the items has weight 1 / k, as phrases of the trade ("意識は清明") tell little, and none where k > 16.

  index      of each item the n-grams with the smallest hashes, 64 of them: its bottom-k MinHash sketch. All sketches
             lie in one inverted index, which is locality-sensitive hashing with bands of a single n-gram
  candidate  a stretch of text, somewhat longer than the item, that holds a good part of the sketch: the share found
             estimates the containment (standard error 0.06 or less), so an item inside a long text is seen as well as
             one that stands alone
  verdict    the exact share of the item's n-grams, by weight, in the best window of that stretch (containment), and
             the exact Jaccard similarity of all n-grams of item and window; both must be large enough

Where a stretch holds another item more than twice as well, it is taken for that one alone. An item is its stem. Where
the stem has too little of its own to tell one item from another, it is stem and choices; its stem by itself is then
looked for too, but must be there to the letter, as must stem and choices where even these are short. An item with too
little text in all is listed as unchecked. Time grows with the text, not with text x items.

Sources: Broder, On the resemblance and containment of documents (SEQUENCES 1997); Lee et al., Deduplicating training
data makes language models better (ACL 2022), for near duplicates by n-grams and MinHash.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.text.overlap import Asked, Runs, is_japanese, normalise, rolling_hashes

CONTAINMENT, JACCARD = 0.35, 0.2  # from here on a text holds the item
NGRAM_JAPANESE, NGRAM, SKETCH = 5, 6, 64
_VERBATIM = 0.95, 0.9  # containment and Jaccard similarity of a stem that is too short for changes
_VERBATIM_WHOLE = 0.95, 0.2  # of a short stem with choices, which the text may label and turn
_SHORTEST_JAPANESE, _SHORTEST = 18, 45  # letters of such a stem
_OUTDONE = 0.5  # of the containment of another item in the same place: less does not count
_LEAST = 24  # n-grams that an item needs; of a stem alone by weight
_LEAST_VERBATIM = 8
_ROOM = 1.25  # a window's length, in items
_FEWEST = 3  # n-grams of a sketch that make a candidate
_CANDIDATE = 0.5  # share of the containment asked for that a candidate's sketch must show


class Near(NamedTuple):
    """A text that holds an item; `start` and `end` are letters of the normalised text."""

    text: int
    item: int
    containment: float
    jaccard: float
    start: int
    end: int


class _Unit(NamedTuple):
    """What is looked for of an item: normalised parts."""

    parts: tuple[str, ...]
    ngram: int  # letters

    @property
    def room(self) -> int:
        """Letters of a window that holds all parts, each with a label; few more, as something may stand between."""
        return round(_ROOM * sum(len(part) + 1 for part in self.parts))


class NearIndex:
    """Exam items, to be looked for in normalised texts.

    containment, jaccard    the least that counts, shares
    ngram_japanese, ngram   letters of an n-gram where most letters are Japanese, and elsewhere
    sketch                  n-grams of each item that are looked for at first
    needs_choices           [items] whether the stem is too short to be looked for alone if changed
    unchecked               numbers of the items that hold too little text to be looked for
    not_alone               numbers of the others whose stem is too short to be told from other text: it is looked for
                            with its choices, but not without them, even to the letter

    Raises ValueError for a share that is none, and for n-grams or a sketch without size.
    """

    def __init__(
        self,
        items: Sequence[Asked],
        *,
        containment: float = CONTAINMENT,
        jaccard: float = JACCARD,
        ngram_japanese: int = NGRAM_JAPANESE,
        ngram: int = NGRAM,
        sketch: int = SKETCH,
    ) -> None:
        for name, share in (("containment", containment), ("jaccard", jaccard)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}: got {share}, expected a share above 0 and at most 1, such as 0.35.")
        for name, size in (("ngram_japanese", ngram_japanese), ("ngram", ngram), ("sketch", sketch)):
            if size < 2:
                raise ValueError(
                    f"{name}: got {size}, expected 2 or more, such as {SKETCH if name == 'sketch' else 5}."
                )
        stems = [normalise(item.stem) for item in items]
        japanese = [is_japanese(stem) for stem in stems]
        alone = [_Unit((stem,), ngram_japanese if ja else ngram) for stem, ja in zip(stems, japanese, strict=True)]
        own = _by_item(_runs(alone, rare=True), len(items))
        self.needs_choices = [float(weights.sum()) < _LEAST for weights in _weights(own)]
        units = [
            _Unit((*unit.parts, *filter(None, map(normalise, item.details))), unit.ngram) if short else unit
            for unit, item, short in zip(alone, items, self.needs_choices, strict=True)
        ]
        short = [
            number
            for number, stem in enumerate(stems)
            if self.needs_choices[number]
            and len(stem) >= (_SHORTEST_JAPANESE if japanese[number] else _SHORTEST)
            and len(own[number]) >= _LEAST_VERBATIM
        ]
        self._search = _Search(units, range(len(items)), (containment, jaccard), sketch, _LEAST)
        verbatim = _Search([alone[n] for n in short], short, _VERBATIM, sketch, _LEAST_VERBATIM)
        tiny = [n for n in range(len(items)) if self.needs_choices[n] and n not in self._search.checked]
        few = _Search([units[n] for n in tiny], tiny, _VERBATIM_WHOLE, sketch, _LEAST_VERBATIM)
        self._searches = self._search, verbatim, few
        self.unchecked = sorted(set(range(len(items))).difference(*(search.checked for search in self._searches)))
        needy = {number for number, short in enumerate(self.needs_choices) if short}
        self.not_alone = sorted(needy.difference(verbatim.checked, self.unchecked))

    def find(self, texts: Sequence[str]) -> list[Near]:
        """The best place of every item in every normalised text that holds it, by text and item."""
        joined = "\0".join(texts)
        starts = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])[:-1]]).astype(np.int64)
        both = itertools.chain(*(search.find(texts, joined, starts) for search in self._searches))
        best: dict[tuple[int, int], Near] = {}
        for near in both:
            key = near.text, near.item
            if key not in best or near.containment > best[key].containment:
                best[key] = near
        by_text = itertools.groupby(sorted(best.values()), lambda near: near.text)
        return sorted(near for _, group in by_text for near in _undone(group))

    def marks(self, text: str, item: int) -> np.ndarray:
        """Which letters of a normalised text lie in an n-gram of the item, [len(text)] bool."""
        size = self._search.units[item].ngram
        places = np.flatnonzero(np.isin(rolling_hashes(text, size, same_digits=True), self._search.every[item]))
        return _covered(places, size, len(text))

    def held_marks(self, item: int, part: str, text: str) -> np.ndarray:
        """Which letters of a part of an item lie in an n-gram of a normalised text, [len(part)] bool."""
        size = self._search.units[item].ngram
        ngrams = rolling_hashes(text, size, same_digits=True)
        return _covered(np.flatnonzero(np.isin(rolling_hashes(part, size, same_digits=True), ngrams)), size, len(part))


class _Search:
    """Some units, each of an item, and how well a text must hold them.

    owners   item of each unit
    least    containment and Jaccard similarity asked for
    sketch   n-grams of a unit that are looked for at first
    fewest   n-grams that a unit needs to be looked for
    every    sorted n-grams of each unit; checked: items that are looked for
    """

    def __init__(
        self, units: Sequence[_Unit], owners: Sequence[int], least: tuple[float, float], sketch: int, fewest: int
    ) -> None:
        self.units = units
        self._owners = owners
        self._containment, self._jaccard = least
        runs = _runs(units, rare=True)
        self._own = _by_item(runs, len(units))
        self._weights = _weights(self._own)
        self.every = _by_item(_runs(units, rare=False), len(units))
        self._sketches = [each.sketch(sketch) for each in runs]
        sizes = np.array([len(ngrams) for ngrams in self._own], np.int64)
        self._is_checked = sizes >= fewest
        self.checked = {owners[number] for number in np.flatnonzero(self._is_checked).tolist()}
        share = _CANDIDATE * self._containment
        self._needed = np.maximum(_FEWEST, np.floor(share * np.minimum(sketch, sizes))).astype(np.int64)
        self._windows = np.array([unit.room for unit in units], np.int64)

    def find(self, texts: Sequence[str], joined: str, starts: np.ndarray) -> Iterator[Near]:
        """The best place of every unit; joined: the texts with a separator, starts: where each begins in it."""
        for sketches in self._sketches:
            for text, unit, place in self._candidates(sketches, joined, starts):
                near = self._verdict(texts[text], text, unit, place - int(starts[text]))
                if near:
                    yield near

    def _candidates(self, sketches: Runs, joined: str, starts: np.ndarray) -> Iterable[tuple[int, int, int]]:
        """Text, unit and first letter (of `joined`) of the stretch that holds most n-grams of the sketch, each once."""
        places, numbers, _, ngrams = sketches.find(joined)
        wanted = self._is_checked[numbers]
        places, numbers, ngrams = places[wanted], numbers[wanted], ngrams[wanted]
        if not len(places):
            return []
        texts = np.searchsorted(starts, places, "right") - 1
        new = _first_within(self._windows[numbers], places, texts, ngrams)
        groups, places, numbers = (texts * len(self.units) + numbers)[new], places[new], numbers[new]
        order = np.lexsort((places, groups))
        groups, places, numbers = groups[order], places[order], numbers[order]
        # groups far apart on one line, so that a window never reaches into the next
        _, rank = np.unique(groups, return_inverse=True)
        line = rank * (2 * len(joined) + int(self._windows.max()) + 1) + places
        held = np.searchsorted(line, line + self._windows[numbers], "left") - np.arange(len(line))
        enough = np.flatnonzero(held >= self._needed[numbers])
        best = enough[np.lexsort((-held[enough], groups[enough]))]
        best = best[np.append(True, groups[best][1:] != groups[best][:-1])[: len(best)]]
        return zip(
            *(part.tolist() for part in (groups[best] // len(self.units), numbers[best], places[best])), strict=True
        )

    def _verdict(self, text: str, number: int, unit: int, place: int) -> Near | None:
        size, window, own = self.units[unit].ngram, int(self._windows[unit]), self._own[unit]
        begin = max(0, place - window)
        hashes = rolling_hashes(text[begin : place + 2 * window + size], size, same_digits=True)
        at = np.flatnonzero(np.isin(hashes, own))
        weights = self._weights[unit]
        first, weight = densest(hashes[at], weights[np.searchsorted(own, hashes[at])], at, window, len(hashes))
        containment = min(1.0, weight / float(weights.sum()))
        if containment < self._containment:
            return None
        inside = at[(at >= first) & (at < first + window)]
        every = self.every[unit]
        # phrases of the trade before and after belong to the item as well
        breaks = np.flatnonzero(~np.isin(hashes, every))
        low = int(breaks[: np.searchsorted(breaks, inside[0])].max(initial=-1)) + 1
        high = int(breaks[np.searchsorted(breaks, inside[-1]) :].min(initial=len(hashes)))
        held = np.unique(hashes[low:high])
        both = int(np.isin(held, every).sum())
        jaccard = both / (len(every) + len(held) - both)
        if jaccard < self._jaccard:
            return None
        return Near(number, self._owners[unit], containment, jaccard, begin + low, begin + high + size - 1)


def densest(values: np.ndarray, weights: np.ndarray, places: np.ndarray, window: int, length: int) -> tuple[int, float]:
    """The stretch of `window` places whose different values weigh most: its first place, and the weight.

    values, weights  [n]; places: [n] increasing, where each stands among `length` places
    """
    if not len(places):
        return 0, 0.0
    order = np.lexsort((places, values))
    before = np.full(len(places), -1)
    again = values[order[1:]] == values[order[:-1]]
    before[order[1:][again]] = places[order[:-1][again]]
    # a value counts in the stretches that begin after its last occurrence and reach its place
    changes = np.zeros(length + 1)
    np.add.at(changes, np.maximum(np.maximum(before, places - window) + 1, 0), weights)
    np.add.at(changes, places + 1, -weights)
    held = np.cumsum(changes)
    first = int(held.argmax())
    return first, float(held[first])


def _first_within(windows: np.ndarray, places: np.ndarray, texts: np.ndarray, ngrams: np.ndarray) -> np.ndarray:
    """Which n-grams met do not stand in the window before as well, [n] bool.

    A word that a text says often is no more of an item than one that it says once.
    """
    order = np.lexsort((places, texts, ngrams))
    new = np.ones(len(places), bool)
    one, two = order[:-1], order[1:]
    same = (ngrams[one] == ngrams[two]) & (texts[one] == texts[two])
    new[two] = ~(same & (places[two] - places[one] < windows[two]))
    return new


def _undone(found: Iterable[Near]) -> Iterator[Near]:
    """Without the items that another one outdoes in the same stretch of the same text."""
    kept: list[Near] = []
    for near in sorted(found, key=lambda near: -near.containment):
        rivals = (other for other in kept if other.start < near.end and near.start < other.end)
        if all(near.containment >= _OUTDONE * other.containment for other in rivals):
            kept.append(near)
            yield near


def _weights(ngrams: Sequence[np.ndarray]) -> list[np.ndarray]:
    """1 / (number of items that have it), for each n-gram of each item."""
    if not ngrams:
        return []
    every = np.concatenate(ngrams)
    _, inverse, counts = np.unique(every, return_inverse=True, return_counts=True)
    return np.split(1 / counts[inverse], np.cumsum([len(each) for each in ngrams])[:-1])


def _covered(places: np.ndarray, size: int, length: int) -> np.ndarray:
    """Which of `length` letters lie in a run of `size` that begins at one of the places."""
    edges = np.zeros(length + 1, np.int64)
    edges[places] += 1
    edges[places + size] -= 1
    return np.cumsum(edges[:-1]) > 0


def _runs(units: Sequence[_Unit], *, rare: bool) -> list[Runs]:
    """The n-grams of items, each once, by their length; rare: without those of many items."""
    found = []
    for size in sorted({unit.ngram for unit in units}):
        parts = ((number, part) for number, unit in enumerate(units) if unit.ngram == size for part in unit.parts)
        runs = Runs(parts, size, same_digits=True).distinct()
        found.append(runs.rare() if rare else runs)
    return found


def _by_item(runs: Sequence[Runs], items: int) -> list[np.ndarray]:
    """The n-grams of each item, whichever their length."""
    return (
        [np.concatenate(parts) for parts in zip(*(each.by_item(items) for each in runs), strict=True)] if runs else []
    )
