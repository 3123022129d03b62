"""Exam items: one question with its choices, its gold answer and what it is worth.

`Item` is the one form in which every question set reaches protocols and scoring. Letters are lower case and count from
"a"; an item without choices asks for a number, kept as text because "7.20" and "04" are not "7.2" and "4".

`read_jsonl` reads an exam of your own, one JSON object a line, UTF-8:

  {"id": "q1", "question": "Which two vessels ...?", "choices": ["...", "...", "...", "...", "..."],
   "answer": ["a", "d"], "points": 3, "section": "required", "category": "cardiology", "prohibited": ["e"]}

  id          text, unique in the file
  question    text
  choices     list of 2 to 26 different texts; [] for an item that asks for a number
  answer      list of letters, upper or lower case, in any order; for a number: one text such as ["7.20"], half-width
  points      optional number >= 0 (default 1); 0 means withdrawn: asked, but worth nothing
  section     optional text; "required" marks the part that has to be passed by itself
  category    optional text
  prohibited  optional list of letters that must never be chosen (harmful choices); none of them may be an answer
  context     optional text shown before the question (an abstract, a case)
  explanation optional text that explains the answer; never part of a question
  image       optional path relative to the file, inside the file's folder

(The example is wrapped here; in the file it is one line.)
"""

import difflib
import json
import math
import re
import string
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the form of a numeric answer; \d would also take full-width and other digits, which no answer is compared with
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_REQUIRED = ("id", "question", "choices", "answer")
_OPTIONAL = ("points", "section", "category", "prohibited", "context", "image", "explanation")


@dataclass(frozen=True)
class Item:
    """One exam question.

    answer        sorted lower-case letters (in the order asked for when `ordered`), or one number text without choices
    points        worth of a right answer; 0 for a withdrawn item
    prohibited    letters whose choice counts as a prohibited pick
    exam          year or number of the exam it was asked in
    accepted      every gold answer that is right, when there is more than one; None: only `answer`
    any_answer    counted right whatever is answered
    ordered       the order of the letters is part of the answer
    needs_image   cannot be solved from the text alone
    explanation   why the answer is right, for training; no prompt shows it

    Raises ValueError naming the item and the field.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: tuple[str, ...]
    points: int | float = 1
    section: str = ""
    category: str = ""
    prohibited: tuple[str, ...] = ()
    context: str = ""
    image: str | None = None
    exam: str = ""
    accepted: tuple[tuple[str, ...], ...] | None = None
    any_answer: bool = False
    ordered: bool = False
    needs_image: bool = False
    explanation: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id: got {self.id!r}, expected non-empty text")
        for name in ("question", "section", "category", "context", "exam", "explanation"):
            if not isinstance(getattr(self, name), str):
                raise self._error(name, getattr(self, name), "text")
        if not self.question.strip():
            raise self._error("question", self.question, "non-empty text")
        if not _texts(self.choices) or len(self.choices) == 1 or len(self.choices) > len(string.ascii_lowercase):
            raise self._error("choices", self.choices, "no choice (a number is asked for) or 2 to 26 texts")
        self._check_answer("answer", self.answer)
        if self.accepted is not None:
            if self.answer not in self.accepted:
                raise self._error("accepted", self.accepted, f"a list that holds the answer {self.answer}")
            for answer in self.accepted:
                self._check_answer("accepted", answer)
        if isinstance(self.points, bool) or not isinstance(self.points, int | float):
            raise self._error("points", self.points, "a number")
        if not math.isfinite(self.points) or self.points < 0:
            raise self._error("points", self.points, "a number >= 0")
        self._check_letters("prohibited", self.prohibited)
        golds = set(self.answer).union(*(self.accepted or ()))
        if clash := golds & set(self.prohibited):
            raise self._error("prohibited", self.prohibited, f"no letter of the answer; {sorted(clash)} is in both")
        if self.image is not None and (not isinstance(self.image, str) or not self.image):
            raise self._error("image", self.image, "a path or nothing")

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the choices: ("a", "b", ...), empty for an item that asks for a number."""
        return tuple(string.ascii_lowercase[: len(self.choices)])

    @property
    def is_numeric(self) -> bool:
        """Whether the item has no choices and asks for a number."""
        return not self.choices

    @property
    def num_answers(self) -> int:
        """How many letters (or numbers) the gold answer has."""
        return len(self.answer)

    @property
    def asked(self) -> tuple[str, str, tuple[str, ...]]:
        """Context, question and choices: items that agree in them are one question, whatever their ids."""
        return self.context, self.question, self.choices

    def _error(self, field: str, got: object, expected: str) -> ValueError:
        return ValueError(f"item {self.id}: {field}: got {got!r}, expected {expected}")

    def _check_letters(self, field: str, letters: tuple[str, ...]) -> None:
        if not isinstance(letters, tuple) or not set(letters) <= set(self.letters) or len(set(letters)) < len(letters):
            has = f"of {self.letters[0]} to {self.letters[-1]}" if self.letters else "(none: the item has no choices)"
            raise self._error(field, letters, f"different lower-case letters {has}")

    def _check_answer(self, field: str, answer: tuple[str, ...]) -> None:
        if self.is_numeric:
            if not _texts(answer) or len(answer) != 1 or not NUMBER.fullmatch(answer[0]):
                plain = unicodedata.normalize("NFKC", answer[0]) if _texts(answer) and len(answer) == 1 else ""
                hint = f"; write it half-width: {plain}" if NUMBER.fullmatch(plain) else ""
                raise self._error(field, answer, f"one number written as text, because the item has no choices{hint}")
            return
        self._check_letters(field, answer)
        if not answer:
            raise self._error(field, answer, "at least one letter")
        if not self.ordered and list(answer) != sorted(answer):
            raise self._error(field, answer, "letters in alphabetical order")


def read_jsonl(path: str | Path) -> list[Item]:
    """Read an exam in the schema of this module's docstring; `exam` of every item is the file's name without ending.

    Raises FileNotFoundError, and ValueError naming file, line and field for anything malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an exam with one JSON object a line")
    items: list[Item] = []
    first_line: dict[str, int] = {}
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8 ({error}); save the file as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _item(_object(line), path)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if item.id in first_line:
            raise ValueError(
                f"{path}, line {number}: id: got {item.id!r} again (first on line {first_line[item.id]}), "
                "expected every id once; rename one of them"
            )
        first_line[item.id] = number
        items.append(item)
    if not items:
        raise ValueError(f"{path}: got no items, expected one JSON object a line")
    return items


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"got a JSON {type(row).__name__}, expected an object with the keys {', '.join(_REQUIRED)}")
    return row


def _item(row: dict[str, Any], path: Path) -> Item:
    known = _REQUIRED + _OPTIONAL
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(f"{key}: unknown field{hint} Known are {', '.join(known)}.")
    for key in _REQUIRED:
        if key not in row:
            raise ValueError(f"{key}: missing; every line needs {', '.join(_REQUIRED)}")
    choices = _list(row, "choices")
    if blank := [i for i, choice in enumerate(choices) if not choice.strip()]:
        raise ValueError(f"choices: choice {string.ascii_lowercase[blank[0] % 26]} is blank, expected text in each")
    first: dict[str, str] = {}
    for letter, choice in zip(string.ascii_lowercase, choices, strict=False):
        if first.setdefault(choice.strip(), letter) != letter:
            same = first[choice.strip()]
            raise ValueError(f"choices: choice {letter} repeats choice {same} ({choice!r}), expected different texts")
    letters = bool(choices)
    answer = _list(row, "answer")
    image = row.get("image")
    return Item(
        id=row["id"],
        question=row["question"],
        choices=choices,
        answer=tuple(sorted(letter.lower() for letter in answer)) if letters else answer,
        points=row.get("points", 1),
        section=row.get("section", ""),
        category=row.get("category", ""),
        prohibited=tuple(sorted(letter.lower() for letter in _list(row, "prohibited"))),
        context=row.get("context", ""),
        image=None if image is None else _image(image, path.parent),
        exam=path.stem,
        needs_image=image is not None,
        explanation=row.get("explanation", ""),
    )


def _list(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not _texts(value):
        raise ValueError(f'{key}: got {value!r}, expected a list of texts such as ["a"]')
    return tuple(value)


def _image(image: object, folder: Path) -> str:
    if not isinstance(image, str) or not image:
        raise ValueError(f"image: got {image!r}, expected a path relative to the file")
    resolved = (folder / image).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(f"image: got {image!r}, which leads out of {folder}; keep images in the folder of the exam")
    if not resolved.is_file():
        raise ValueError(f"image: {folder / image} does not exist; expected a file beside the exam")
    return str(folder / image)


def _texts(values: Iterable[object]) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
