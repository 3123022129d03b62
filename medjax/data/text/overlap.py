"""Keeping what is trained on apart from what is graded.

Held-out records are chosen by a hash of their question, so that two copies of one question are on the same side. Exam
items are looked for in the training records before a run, because a score on items that were trained on says nothing.

Both compare letters and digits only: NFKC, lower case, without blanks and punctuation ("ＥＣＧ: 3 mV" -> "ecg3mv").

An item is found in a record by runs of letters that both have (50, or 20 where most are Japanese): the share of the
item's stem that such runs cover. A stem copied whole has share 1, a changed word costs little, and stems that only end
in the same phrase share little; runs that stand in many items are left out altogether.

    stem    七二歳の男性突然の胸痛を主訴に来院した心電図で…      record  七二歳の女性突然の胸痛を主訴に来院した心電図で…
    run                  |<------ 20 letters or more ---- …                     |<------ the same

A stem shorter than a run ("Which of the following is true?"), or changed too often for one, is found by the item's
choices or context: the record must hold them, word for word, and most of the stem in short pieces. An item with less
text than a run in all cannot be told from chance; it is listed as unchecked.

Every record is read once, by hashes that roll over its letters: the time grows with the text, not with text x items. A
long record (a book) is searched in windows that lap over each other by several times the longest item, and an item must
lie in one of them: so a record of any length takes the memory of one block, and short pieces that stand anywhere in a
book do not add up to an item.
"""

import copy
import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from medjax.data.hashing import mix
from medjax.data.text.records import Conversation, Record

SHARE = 0.7  # of a stem's letters: from here on a record holds the item
_RUN, _RUN_JAPANESE, _ANCHOR = 50, 20, 8  # letters
_PIECE, _PIECE_JAPANESE = 10, 4  # letters of a stem that count once the choices are there
_MANY_DETAILS = 8  # choices that more items have tell nothing of one of them (yes and no)
_MANY_ITEMS = 16  # a run in more items than this is a phrase of the trade
_BLOCK = 1 << 20  # letters hashed at one time
_WINDOW = 1 << 16  # characters of a long record that are looked at together
_LAP = 4  # windows share so many times the characters of the longest item, which blanks and line ends stretch
_FILTER_BITS = 24
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_NOT_LETTERS = re.compile(r"[\W_]+")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_HIGHEST = 1 << 64
_ZERO = ord("0")


def normalise(text: str) -> str:
    """Letters and digits of a text: NFKC, lower case."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text).lower())


def is_japanese(text: str) -> bool:
    """Whether most letters of a normalised text are kana or Chinese characters."""
    return 2 * len(_JAPANESE.findall(text)) > len(text)


@dataclass(frozen=True)
class Division:
    """Which records are held out: those whose question's hash is below `bound`, of 2^64."""

    bound: int

    def holds_out(self, record: Record) -> bool:
        return question_hash(record) < self.bound


NOTHING = Division(0)


def question_hash(record: Record) -> int:
    """A 64-bit hash of what is asked: the user's turns, instruction and input, or the text."""
    asked = record.question
    if isinstance(record, Conversation):
        asked = "\n".join(message.content for message in record.messages if message.role == "user") or asked
    return int.from_bytes(hashlib.blake2b(normalise(asked).encode(), digest_size=8).digest(), "big")


def divide(records: Iterable[Record], *, fraction: float = 0.0, count: int = 0) -> Division:
    """Choose what is held out: about a fraction of the records, or `count` of them.

    Records that ask the same question go together, so `count` may be exceeded by the copies of the last one. For a
    fraction the records are not read.

    Raises ValueError for both or neither, a fraction outside of 0 to 1, and a count that leaves nothing to train on.
    """
    if (fraction > 0) == (count > 0) or not 0 <= fraction < 1 or count < 0:
        raise ValueError(
            f"held out: got the fraction {fraction} and the count {count}, expected one of them: a fraction between 0 "
            "and 1, or a count of 1 or more."
        )
    if fraction:
        return Division(round(fraction * _HIGHEST))
    hashes = np.sort(np.fromiter((question_hash(record) for record in records), np.uint64))
    if count >= len(hashes) or hashes[count - 1] == hashes[-1]:
        raise ValueError(
            f"held out: got a count of {count}, expected fewer than the {len(np.unique(hashes))} different questions "
            f"of the {len(hashes)} records; lower it, or name a file of its own."
        )
    return Division(int(hashes[count - 1]) + 1)


class Asked(NamedTuple):
    """An exam item as text: its stem, and what comes with it (choices, context)."""

    id: str
    stem: str
    details: tuple[str, ...] = ()


class Overlap(NamedTuple):
    """A training record that holds an item; share of the stem's letters found in it."""

    record: str
    item: str
    share: float


class _Entry(NamedTuple):
    """An item, normalised; run and piece are the letters that its language asks for.

    whole  only the whole stem tells the item: its details are those of many items, so the rest may be a template's
    """

    stem: str
    details: tuple[str, ...]
    run: int
    piece: int
    whole: bool = False

    @property
    def anchors(self) -> tuple[str, str]:
        """What is looked for first: both ends of the longest detail, since it is the rarest.

        Where all details are short, the beginning of the stem, twice.
        """
        longest = max(self.details, key=len, default="")
        if len(longest) >= _ANCHOR:
            return longest[:_ANCHOR], longest[-_ANCHOR:]
        return self.stem[:_ANCHOR], self.stem[:_ANCHOR]

    def share_in(self, text: "_Text", least: float) -> float:
        """Share of the stem's letters that a text holds; 0 where it lacks the details."""
        letters = sum(map(len, self.details))
        if sum(len(part) for part in self.details if part in text.letters) < least * letters:
            return 0.0
        if (is_held := self.stem in text.letters) or not letters or self.whole:
            return float(is_held)
        held = text.pieces(self.piece)
        offsets = [i for i in range(len(self.stem) - self.piece + 1) if self.stem[i : i + self.piece] in held]
        pieces = np.array(offsets, np.int64)
        return float(_union(np.zeros_like(pieces), pieces, self.piece, 1)[0] / max(len(self.stem), 1))


class _Text:
    """A normalised text, and its pieces, collected when they are first asked for: many items are looked up in it."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self._pieces: dict[int, set[str]] = {}

    def pieces(self, length: int) -> set[str]:
        """All runs of `length` letters."""
        if length not in self._pieces:
            count = len(self.letters) - length + 1
            self._pieces[length] = {self.letters[i : i + length] for i in range(count)}
        return self._pieces[length]


class Runs:
    """All runs of `length` letters of some texts, found again in other text.

    texts        (item, text); an item may have several
    same_digits  every digit counts as 0
    """

    def __init__(self, texts: Iterable[tuple[int, str]], length: int, *, same_digits: bool = False) -> None:
        self.length = length
        self.same_digits = same_digits
        hashes, items, offsets = [], [], []
        for item, text in texts:
            found = rolling_hashes(text, length, same_digits=same_digits)
            hashes.append(found)
            items.append(np.full(len(found), item))
            offsets.append(np.arange(len(found)))
        self._hashes = np.concatenate([*hashes, np.empty(0, np.uint64)])
        order = np.argsort(self._hashes, kind="stable")
        self._hashes = self._hashes[order]
        self._items = np.concatenate([*items, np.empty(0, np.int64)])[order].astype(np.int64)
        self._offsets = np.concatenate([*offsets, np.empty(0, np.int64)])[order].astype(np.int64)
        self._set_filter()

    def _set_filter(self) -> None:
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def rare(self) -> "Runs":
        """Without the runs that stand in many items; self is changed."""
        _, inverse, counts = np.unique(self._hashes, return_inverse=True, return_counts=True)
        return self._only(counts[inverse] <= _MANY_ITEMS)

    def distinct(self) -> "Runs":
        """Every run of an item once; self is changed."""
        order = np.lexsort((self._hashes, self._items))
        items, hashes = self._items[order], self._hashes[order]
        again = np.zeros(len(order), bool)
        again[order[1:]] = (items[1:] == items[:-1]) & (hashes[1:] == hashes[:-1])
        return self._only(~again)

    def sketch(self, size: int) -> "Runs":
        """The `size` runs of each item whose hashes are smallest: its bottom-k MinHash sketch; self is unchanged."""
        order = np.lexsort((self._hashes, self._items))
        counts = np.bincount(self._items)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = copy.copy(self)._only(rank < size)
        chosen._set_filter()
        return chosen

    def by_item(self, items: int) -> list[np.ndarray]:
        """The runs' hashes of each item, sorted."""
        order = np.lexsort((self._hashes, self._items))
        ends = np.cumsum(np.bincount(self._items, minlength=items))[:-1]
        return np.split(self._hashes[order], ends)

    def _only(self, keep: np.ndarray) -> "Runs":
        self._hashes, self._items, self._offsets = self._hashes[keep], self._items[keep], self._offsets[keep]
        return self

    def covered(self, items: int) -> np.ndarray:
        """Letters of each item that its runs cover, [items]."""
        return _union(self._items, self._offsets, self.length, items)

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Every run met: place in the text, item, offset in the item's text, and a number that the run alone has."""
        met = rolling_hashes(text, self.length, same_digits=self.same_digits)
        places = np.flatnonzero(self._filter[met >> np.uint64(64 - _FILTER_BITS)])
        first = np.searchsorted(self._hashes, met[places], "left")
        last = np.searchsorted(self._hashes, met[places], "right")
        times = last - first
        index = np.repeat(first - np.cumsum(times) + times, times) + np.arange(times.sum())
        return np.repeat(places, times), self._items[index], self._offsets[index], index


class OverlapIndex:
    """Exam items, to be looked for in training records.

    unchecked  ids of items that hold too little text to be looked for
    """

    def __init__(self, items: Iterable[Asked]) -> None:
        self._ids: list[str] = []
        self.unchecked: list[str] = []
        self._entries: list[_Entry] = []
        for item in items:
            self._ids.append(item.id)
            stem = normalise(item.stem)
            details = tuple(part for part in map(normalise, item.details) if part)
            sizes = (_RUN_JAPANESE, _PIECE_JAPANESE) if is_japanese(stem) else (_RUN, _PIECE)
            self._entries.append(_Entry(stem, details, *sizes))
        times = Counter(entry.details for entry in self._entries)
        self._entries = [entry._replace(whole=times[entry.details] > _MANY_DETAILS) for entry in self._entries]
        numbered = list(enumerate(self._entries))
        self._runs = [
            Runs([(number, entry.stem) for number, entry in numbered if entry.run == run], run).rare()
            for run in (_RUN, _RUN_JAPANESE)
        ]
        covered = np.sum([runs.covered(len(numbered)) for runs in self._runs], axis=0)
        # a stem of phrases that many items have is as good as none
        enough = [covered[number] >= max(entry.run, len(entry.stem) / 2) for number, entry in numbered]
        self._letters = np.where(np.array(enough, bool), covered, 0)
        anchors = []
        for number, entry in numbered:
            if len(entry.stem) + sum(map(len, entry.details)) >= entry.run and len(entry.anchors[0]) == _ANCHOR:
                anchors += [(2 * number + end, text) for end, text in enumerate(entry.anchors)]
            elif not enough[number]:
                self.unchecked.append(self._ids[number])
        self._anchors = Runs(anchors, _ANCHOR)
        self._lap = _LAP * max((len(entry.stem) + sum(map(len, entry.details)) for entry in self._entries), default=0)

    def find(self, records: Iterable[Record], *, share: float = SHARE) -> list[Overlap]:
        """Records that hold an item, in the order of the records; share is the least that counts."""
        names: dict[int, str] = {}
        best: dict[tuple[int, int], float] = {}  # record, item -> share
        for block in _blocks(self._windows(records)):
            for place, item, held in self._search([text for *_, text in block], share):
                number, name, _ = block[place]
                names[number] = name
                best[number, item] = max(held, best.get((number, item), 0.0))
        return [Overlap(names[number], self._ids[item], held) for (number, item), held in sorted(best.items())]

    def _windows(self, records: Iterable[Record]) -> Iterator[tuple[int, str, str]]:
        """Number and id of each record, and its normalised text; of a long record several, which lap over."""
        size = max(_WINDOW, 2 * self._lap)
        for number, record in enumerate(records):
            text = " ".join(record.texts)
            for start in range(0, max(1, len(text) - self._lap), size - self._lap):
                yield number, record.id, normalise(text[start : start + size])

    def _search(self, texts: list[str], share: float) -> Iterator[tuple[int, int, float]]:
        """Number of a text, item and share, wherever a text holds an item."""
        text = "\0".join(texts)
        starts = np.concatenate([[0], np.cumsum([len(part) + 1 for part in texts])[:-1]]).astype(np.int64)
        count = len(self._ids)
        found: dict[int, float] = {}  # text x item -> share
        for runs in self._runs:
            places, items, offsets, _ = runs.find(text)
            pairs = (np.searchsorted(starts, places, "right") - 1) * count + items
            which, inverse = np.unique(pairs, return_inverse=True)
            shares = _union(inverse, offsets, runs.length, len(which)) / np.maximum(self._letters[which % count], 1)
            checked = (self._letters[which % count] > 0) & (shares >= share)
            found |= dict(zip(which[checked].tolist(), shares[checked].tolist(), strict=True))
        places, items, *_ = self._anchors.find(text)
        ends = np.unique((np.searchsorted(starts, places, "right") - 1) * 2 * count + items)
        pairs = ends[:-1][ends[1:] == ends[:-1] + 1] if len(ends) else ends
        for number, group in groupby((pairs[pairs % 2 == 0] // 2).tolist(), key=lambda pair: pair // count):
            looked_at = _Text(texts[number])
            for pair in group:
                held = self._entries[pair % count].share_in(looked_at, share)
                if held >= max(share, found.get(pair, 0.0)):
                    found[pair] = held
        for pair in sorted(found):
            yield pair // count, pair % count, found[pair]


def refuse_overlap(records: Iterable[Record], items: Iterable[Asked], *, share: float = SHARE) -> list[str]:
    """Check that no training record holds an exam item; returns the ids of the items that could not be checked.

    Raises ValueError naming records and items otherwise.
    """
    index = OverlapIndex(items)
    found = index.find(records, share=share)
    if found:
        held, where = len({o.item for o in found}), len({o.record for o in found})
        named = "; ".join(f"{o.item} in {o.record} ({math.floor(100 * o.share)} %)" for o in found[:5])
        more = "; …" if len(found) > 5 else ""
        raise ValueError(
            f"data: got {where} training records that hold {held} items of the evaluation: {named}{more}, expected "
            "none, since a score on items trained on says nothing; remove these records, or evaluate on other items."
        )
    return index.unchecked


def rolling_hashes(text: str, length: int, *, same_digits: bool = False) -> np.ndarray:
    """A 64-bit hash of every run of `length` characters: [len(text) - length + 1] uint64.

    same_digits  0 to 9 count as one character
    A polynomial in an odd base modulo 2^64, from its running sum: sum(c[i+j] base^j) = (P[i+length] - P[i]) base^-i.
    """
    if len(text) < length:
        return np.empty(0, np.uint64)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if same_digits:
        codes[(codes >= _ZERO) & (codes <= _ZERO + 9)] = _ZERO
    codes = mix(codes)
    powers, inverses = (_powers(base, len(text)) for base in (_BASE, pow(_BASE, -1, _HIGHEST)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers)])
    return mix((sums[length:] - sums[:-length]) * inverses[: len(text) - length + 1])


def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _union(groups: np.ndarray, offsets: np.ndarray, length: int, count: int) -> np.ndarray:
    """Letters that the runs [offset, offset + length) of each group cover together, [count]."""
    order = np.lexsort((offsets, groups))
    groups, offsets = groups[order], offsets[order]
    last = np.append(groups[1:] != groups[:-1], True)[: len(groups)]
    following = np.append(offsets[1:], 0)[: len(offsets)]
    covered = np.where(last, length, np.minimum(length, following - offsets))
    return np.bincount(groups, weights=covered, minlength=count).astype(np.int64)


def _blocks(windows: Iterable[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    """Windows in lists of about `_BLOCK` letters."""
    block: list[tuple[int, str, str]] = []
    letters = 0
    for window in windows:
        block.append(window)
        letters += len(window[-1]) + 1
        if letters > _BLOCK:
            yield block
            block, letters = [], 0
    if block:
        yield block
