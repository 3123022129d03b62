"""Where exam items stand in stretches of training data: the surest place of each, and in how many records.

An item is its question. The context that it refers to (an abstract, a case) is looked for by itself, since a corpus may
hold the question without it, or the passage without the question:

  level       exact, normalised, near: how surely the question is there; context: the context is, the question is not
  context     of an item whose question was found: whether its context stands in the same record, in another, or nowhere

A question that only resembles its own context is not found there. A question too short to be looked for alone ("What is
the diagnosis?") is looked for with its choices, and is sure where all of these stand there too, or its words beside its
context. A context with too little text of its own is part of the question.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medjax.data.qa import Item
from medjax.data.text.near_duplicates import Near, NearIndex
from medjax.data.text.overlap import Asked, normalise
from medjax.data.text.stretches import Stretch

QUESTION_LEVELS = ("exact", "normalised", "near")
CONTEXT = "context"
LEVELS = (*QUESTION_LEVELS, CONTEXT)
SAME, ANOTHER, NOWHERE = "same record", "another record", "not found"
_AROUND = 60  # characters of an excerpt on both sides of what was found
_BESIDE = 2  # a short question is beside its context: within so many times the letters of question and choices
_MORE_RECORDS = 5  # named besides the best
Spans = list[list[int]]


@dataclass
class Match:
    """The best place of an item, and how many records hold it.

    context  SAME, ANOTHER or NOWHERE; None at the level "context", and where the item has none that is looked for
    asked    context, question and choices with the spans that agree; excerpt: the training text likewise
    """

    level: str
    near: Near
    stretch: Stretch
    excerpt: dict[str, Any]
    asked: dict[str, Any]
    context: str | None = None
    records: int = 1
    others: list[str] = field(default_factory=list)
    last: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        return -LEVELS.index(self.level), self.near.containment


class ItemFinder:
    """Looks for items in stretches of text.

    items, asked  the items, and as texts (data.exams.training.asked_of)
    index         makes the index of some texts, with its thresholds
    found         item number -> best match so far
    unchecked     numbers of the items that hold too little text to be looked for
    not_alone     numbers of those whose question is too short to be looked for without its choices or its context
    """

    def __init__(
        self, items: Sequence[Item], asked: Sequence[Asked], index: Callable[[Sequence[Asked]], NearIndex]
    ) -> None:
        sharing: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            if letters := normalise(item.context):
                sharing.setdefault(letters, []).append(number)
        self._contexts = index([Asked("", items[numbers[0]].context) for numbers in sharing.values()])
        self._sharing = list(sharing.values())
        self._context_of = {
            number: context
            for context, numbers in enumerate(self._sharing)
            for number in numbers
            if not self._contexts.needs_choices[context]  # long enough to be told from others
        }
        self._items = items
        self._asked = [
            each._replace(details=item.choices) if number in self._context_of else each
            for number, (item, each) in enumerate(zip(items, asked, strict=True))
        ]
        self._questions = index(self._asked)
        self.unchecked = [number for number in self._questions.unchecked if number not in self._context_of]
        self.not_alone = [
            number
            for number in sorted({*self._questions.not_alone, *self._questions.unchecked})
            if number in self._questions.not_alone or number in self._context_of
        ]
        self._needs_choices = set(self._questions.not_alone)
        self.found: dict[int, Match] = {}
        self._alone: dict[int, str] = {}  # item number -> the last record in which its context stands alone

    def look(self, block: Sequence[Stretch]) -> Iterator[tuple[int, Match]]:
        """Look in stretches, taken in order; every item met in each of them, with its place there."""
        texts = [normalise(stretch.text) for stretch in block]
        contexts: dict[tuple[int, int], Near] = {}
        for near in self._contexts.find(texts) if self._context_of else ():
            for number in self._sharing[near.item]:
                if number in self._context_of:
                    contexts[near.text, number] = near
        questions = {(near.text, near.item): near for near in self._questions.find(texts)}
        by_text: dict[int, np.ndarray] = {}
        for text, number in sorted({*questions, *contexts}):
            stretch, letters = block[text], texts[text]
            if text not in by_text:
                by_text[text] = letter_places(stretch.text, len(letters))
            both = questions.get((text, number)), contexts.get((text, number))
            match = self._match(number, *both, stretch, letters, by_text[text])
            self._keep(number, match)
            yield number, match

    def _match(
        self,
        number: int,
        question: Near | None,
        context: Near | None,
        stretch: Stretch,
        letters: str,
        places: np.ndarray,
    ) -> Match:
        """The match of an item of which a stretch holds the question, the context or both."""
        item, asked = self._items[number], self._asked[number]
        if question:
            needs = (asked.stem, *asked.details) if number in self._needs_choices else (asked.stem,)
            match = self._shown(number, question, stretch, letters, places)
            text = self._surroundings(number, question, stretch, places)
            match.level = _level(text, lambda text, plain: all(plain(part) in text for part in needs))
            if not (match.level == "near" and context and _is_within(question, context)):
                if number in self._context_of:
                    match.context = SAME if context else NOWHERE
                return match
        assert context  # one of the two was found
        if self._questions.needs_choices[number] and (beside := _beside(asked, context, letters)):
            match = self._shown(number, beside, stretch, letters, places)
            parts = item.context, asked.stem
            text = self._surroundings(number, beside, stretch, places)
            match.level = _level(text, lambda text, plain: all(plain(part) in text for part in parts))
            match.context = SAME
            return match
        match = self._shown(number, context, stretch, letters, places)
        match.level = CONTEXT
        return match

    def _shown(self, number: int, near: Near, stretch: Stretch, letters: str, places: np.ndarray) -> Match:
        """A match whose level is not known yet, with both texts and what agrees."""
        window = letters[near.start : near.end]
        first, last = int(places[near.start]), int(places[near.end - 1]) + 1
        begin, end = max(0, first - _AROUND), min(len(stretch.text), last + _AROUND)
        marked = self._questions.marks(window, number)
        if number in self._context_of:
            marked = marked | self._contexts.marks(window, self._context_of[number])
        excerpt = {
            "text": stretch.text[begin:end],
            "marks": _spans(marked, places[near.start : near.end], begin),
            "start": stretch.start + begin,
            "cut": [stretch.start + begin > 0, end < len(stretch.text)],
        }
        item = self._items[number]
        parts = {"context": item.context, "question": item.question}
        asked: dict[str, Any] = {name: self._marked(number, text, window) for name, text in parts.items() if text}
        asked["choices"] = [self._marked(number, choice, window) for choice in item.choices]
        return Match("", near, stretch, excerpt, asked, last=stretch.where)

    def _surroundings(self, number: int, near: Near, stretch: Stretch, places: np.ndarray) -> str:
        """The text of a stretch that may belong to a match: a window that is cut short does not hold all of an item."""
        asked = self._asked[number]
        room = _AROUND + sum(len(part) + 1 for part in (asked.stem, *asked.details))
        return stretch.text[max(0, int(places[near.start]) - room) : int(places[near.end - 1]) + 1 + room]

    def _marked(self, number: int, text: str, window: str) -> dict[str, Any]:
        letters = normalise(text)
        held = self._questions.held_marks(number, letters, window)
        return {"text": text, "marks": _spans(held, letter_places(text, len(letters)), 0)}

    def _keep(self, number: int, match: Match) -> None:
        # a long record comes in several stretches
        if match.level == CONTEXT:
            self._alone[number] = match.stretch.where
        elif match.context == NOWHERE and self._alone.get(number) == match.stretch.where:
            match.context = SAME
        known = self.found.get(number)
        if known is None:
            self.found[number] = match
            return
        # the question and its context alone are counted apart
        if (match.level == CONTEXT) != (known.level == CONTEXT):
            kept = known if match.level == CONTEXT else match
            self.found[number] = kept
            if kept is known and known.last == match.stretch.where:
                kept.context = SAME
            kept.context = ANOTHER if kept.context == NOWHERE else kept.context
            return
        if known.last != match.stretch.where:
            known.records += 1
            known.last = match.stretch.where
            if len(known.others) < _MORE_RECORDS:
                known.others.append(match.stretch.where)
        order = (NOWHERE, ANOTHER, SAME)
        if match.context and known.context:
            known.context = match.context = max(known.context, match.context, key=order.index)
        if match.rank > known.rank:
            match.records, match.last = known.records, known.last
            others = [known.stretch.where, *known.others]
            match.others = [where for where in dict.fromkeys(others) if where != match.stretch.where][:_MORE_RECORDS]
            self.found[number] = match


def letter_places(text: str, letters: int) -> np.ndarray:
    """Which character of a text each of its normalised letters comes from, [letters] int64.

    Where characters are composed by normalisation (half-width kana and their marks), nearly.
    """
    lengths = {character: len(normalise(character)) for character in set(text)}
    each = np.fromiter((lengths[character] for character in text), np.int64, len(text))
    places = np.repeat(np.arange(len(text)), each)
    if len(places) != letters and letters:
        places = places[np.arange(letters) * len(places) // letters]
    return places


def _level(text: str, holds: Callable[[str, Callable[[str], str]], bool]) -> str:
    """How surely a text holds an item that is near it; holds(text, plain): whether it does, parts being made plain."""
    if holds(text, str.strip):
        return "exact"
    return "normalised" if holds(normalise(text), normalise) else "near"


def _is_within(question: Near, context: Near) -> bool:
    return context.start <= question.start and question.end <= context.end


def _beside(asked: Asked, context: Near, letters: str) -> Near | None:
    """The place of a context and of the stem before or after it, to the letter; None without the stem."""
    stem = normalise(asked.stem)
    room = _BESIDE * sum(len(normalise(part)) for part in (stem, *asked.details))
    before = letters.rfind(stem, max(0, context.start - room), context.start)
    after = letters.find(stem, context.end, context.end + room)
    if not stem or max(before, after) < 0:
        return None
    if after >= 0:
        return context._replace(end=after + len(stem))
    return context._replace(start=before)


def _spans(marked: np.ndarray, places: np.ndarray, begin: int) -> Spans:
    """First and last + 1 character of each run of marked letters, counted from `begin`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    return [[int(places[a]) - begin, int(places[b - 1]) + 1 - begin] for a, b in edges.reshape(-1, 2)]
