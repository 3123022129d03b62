"""Exam items: one question with its choices, its gold answer and what it is worth.

`Item` is the one form in which every question set reaches protocols and scoring. `kind` says what is asked for; the
answer is a tuple of texts whatever the kind:

  choice      letters of the right choices, lower case, counted from "a"              ("a", "d")
  number      a number, kept as text because "7.20" and "04" are not "7.2" and "4"    ("7.20",)
  entities    the expressions that a text holds, different ones; there may be none    ("発熱", "咳嗽")
  similarity  how close two texts are in meaning, a number from 0 to 5                ("3.5",)
  text        one reference text (a translation, an open answer), or no reference     ("The patient ...",)

`read_jsonl` reads an exam of your own, one JSON object a line, UTF-8 (.json and tables: medjax.data.exams.own_exam):

  {"id": "q1", "question": "Which two vessels ...?", "choices": ["...", "...", "...", "...", "..."],
   "answer": ["a", "d"], "points": 3, "section": "required", "category": "cardiology", "prohibited": ["e"]}

  id          text, unique in the file
  kind        optional, one of the above; without it choice, or number where choices is []
  question    text
  choices     list of 2 to 26 different texts; [] for a number; left out for entities, similarity and text
  answer      list of letters, upper or lower case, in any order, or whatever else medjax.data.gold reads without doubt;
              for a number: one text such as ["7.20"]; for the other kinds as above
  points      optional number, 0 or 0.000001 to 1,000,000 (default 1); 0 means withdrawn: asked, but worth nothing
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
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medjax.data.decoding import TABLES, read_text
from medjax.data.gold import read_letters, shown

Kind = Literal["choice", "number", "entities", "similarity", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEAST_POINTS, MOST_POINTS = 1e-6, 1_000_000  # of an item that counts: sums of their squares stay exact enough
SIMILARITY = (0.0, 5.0)  # lowest and highest answer of an item of kind similarity
# the form of a numeric answer; \d would also take full-width and other digits, which no answer is compared with
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# kana, half-width ones too, and CJK ideographs
_JAPANESE = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_HALF = re.compile("[\ud800-\udfff]")  # a surrogate without its partner, which JSON can name
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line ends among them
REQUIRED = ("id", "question", "choices", "answer")
OPTIONAL = ("kind", "points", "section", "category", "prohibited", "context", "image", "explanation")
_WITH_CHOICES = ("choice", "number")


@dataclass(frozen=True)
class Item:
    """One exam question.

    answer        sorted lower-case letters (in the order asked for when `ordered`), or what the kind says
    points        worth of a right answer; 0 for a withdrawn item
    prohibited    letters whose choice counts as a prohibited pick
    exam          year or number of the exam it was asked in
    accepted      every gold answer that is right, when there is more than one; None: only `answer`
    any_answer    counted right whatever is answered
    ordered       the order of the letters is part of the answer
    needs_image   cannot be solved from the text alone
    explanation   why the answer is right, for training and for worked examples of reasoning; no question shows it
    kind          what is asked for; None: choice where there are choices, else number
    human_accuracy  share of the people who sat the exam that were right, 0 to 1; None: not known

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
    kind: Kind | None = None
    human_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", "choice" if self.choices else "number")
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id: got {shown(self.id)}, expected non-empty text")
        for name in ("question", "section", "category", "context", "exam", "explanation"):
            if not isinstance(getattr(self, name), str):
                raise self._error(name, getattr(self, name), "text")
        if not self.question.strip():
            raise self._error("question", self.question, "non-empty text")
        if self.kind not in KINDS:
            raise self._error("kind", self.kind, f"one of {', '.join(KINDS)}")
        if not _texts(self.choices) or len(self.choices) == 1 or len(self.choices) > len(string.ascii_lowercase):
            raise self._error("choices", self.choices, "no choice (a number is asked for) or 2 to 26 texts")
        if bool(self.choices) != (self.kind == "choice"):
            expected = "2 to 26 texts" if self.kind == "choice" else "no choice"
            raise self._error("choices", self.choices, f"{expected} for an item of kind {self.kind}")
        self._check_answer("answer", self.answer)
        if self.accepted is not None:
            if self.answer not in self.accepted:
                raise self._error("accepted", self.accepted, f"a list that holds the answer {shown(self.answer)}")
            for answer in self.accepted:
                self._check_answer("accepted", answer)
        if isinstance(self.points, bool) or not isinstance(self.points, int | float):
            raise self._error("points", self.points, "a number")
        if not (self.points == 0 or LEAST_POINTS <= self.points <= MOST_POINTS):
            raise self._error("points", self.points, f"0, or a number from {LEAST_POINTS:.6f} to {MOST_POINTS:,}")
        if self.human_accuracy is not None and not 0 <= self.human_accuracy <= 1:
            raise self._error("human_accuracy", self.human_accuracy, "a share from 0 to 1, or nothing")
        self._check_letters("prohibited", self.prohibited)
        golds = set(self.answer).union(*(self.accepted or ()))
        if clash := golds & set(self.prohibited):
            raise self._error(
                "prohibited", self.prohibited, f"no letter of the answer; {', '.join(sorted(clash))} is in both"
            )
        if self.image is not None and (not isinstance(self.image, str) or not self.image):
            raise self._error("image", self.image, "a path or nothing")

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the choices: ("a", "b", ...), empty for an item that asks for a number."""
        return tuple(string.ascii_lowercase[: len(self.choices)])

    @property
    def is_numeric(self) -> bool:
        """Whether the item asks for a number that must agree as text; a similarity is no such number."""
        return self.kind == "number"

    @property
    def num_answers(self) -> int:
        """How many letters (or numbers) the gold answer has."""
        return len(self.answer)

    @property
    def asked(self) -> tuple[str, str, tuple[str, ...]]:
        """Context, question and choices: items that agree in them are one question, whatever their ids."""
        return self.context, self.question, self.choices

    def _error(self, field: str, got: object, expected: str) -> ValueError:
        return ValueError(f"item {self.id}: {field}: got {shown(got)}, expected {expected}")

    def _check_letters(self, field: str, letters: tuple[str, ...]) -> None:
        if not isinstance(letters, tuple) or not set(letters) <= set(self.letters) or len(set(letters)) < len(letters):
            has = f"of {self.letters[0]} to {self.letters[-1]}" if self.letters else "(none: the item has no choices)"
            raise self._error(field, letters, f"different lower-case letters {has}")

    def _check_answer(self, field: str, answer: tuple[str, ...]) -> None:
        if self.kind == "choice":
            self._check_gold_letters(field, answer)
            return
        if not isinstance(answer, tuple) or not _texts(answer):
            raise self._error(field, answer, "a list of texts")
        blank = any(not text.strip() for text in answer)
        if self.kind == "entities" and (blank or len(set(answer)) < len(answer)):
            raise self._error(field, answer, "different texts, none of them blank")
        if self.kind == "text" and (blank or len(answer) > 1):
            raise self._error(field, answer, "one reference text, or none")
        if self.kind in ("number", "similarity") and not (len(answer) == 1 and NUMBER.fullmatch(answer[0])):
            plain = unicodedata.normalize("NFKC", answer[0]) if len(answer) == 1 else ""
            hint = f"; write it half-width: {plain}" if NUMBER.fullmatch(plain) else ""
            why = "the item has no choices" if self.kind == "number" else "a similarity is asked for"
            raise self._error(field, answer, f"one number written as text, because {why}{hint}")
        low, high = SIMILARITY
        if self.kind == "similarity" and not low <= float(answer[0]) <= high:
            raise self._error(field, answer, f"a number from {low:g} to {high:g}")

    def _check_gold_letters(self, field: str, answer: tuple[str, ...]) -> None:
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
        raise FileNotFoundError(
            f"{path}: got {'a folder' if path.is_dir() else 'no such file'}, expected an exam with one JSON object a "
            "line; correct the path"
        )
    return items_of(((f"{path}, line {number}", row) for number, row in json_lines(path)), path)


def items_of(rows: Iterable[tuple[str, dict[str, Any]]], path: Path) -> list[Item]:
    """Items of an exam's rows, each with file and line; `exam` of every item is the file's name without ending.

    Raises ValueError naming file, line, item and field for anything malformed, and where there are no rows.
    """
    items: list[Item] = []
    first: dict[str, str] = {}
    for where, row in rows:
        try:
            item = _item(row, path)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if item.id in first:
            raise ValueError(
                f"{where}: id: got {shown(item.id)} again (first on {first[item.id]}), expected every id once; rename "
                "one of them"
            )
        first[item.id] = where.removeprefix(f"{path}, ")
        items.append(item)
    if not items:
        if _is_table(path):
            raise ValueError(
                f"{path}: got no questions, expected a header such as id,question,a,b,answer and below it one row a "
                "question; add them"
            )
        raise ValueError(f"{path}: got no items, expected one JSON object a line, or an array of them in a .json")
    return items


def is_japanese(text: str) -> bool:
    """Whether a text holds kana or a Chinese character."""
    return bool(_JAPANESE.search(text))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line of a UTF-8 file with one JSON object a line; blank lines are left out.

    Raises ValueError naming file and line.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, _object(line)
            except RecursionError:
                raise ValueError(
                    f"{path}, line {number}: got JSON that is nested too deeply, expected one object a line; close "
                    "what is open"
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"got a JSON {type(row).__name__}, expected one object a line")
    if "\\u" in line:
        check_characters(row)
    return row


def check_characters(value: object) -> None:
    """Raise ValueError for half a character, which JSON can name and no file can hold."""
    if half := _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(
            f"got half a character (\\u{ord(half[0]):04x}), which cannot be written as UTF-8, expected both halves; "
            "write the character itself"
        )


def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON decoder's pairs. Raises ValueError for a name that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: got this field twice, expected it once; drop one of them")
    return found


def _item(row: dict[str, Any], path: Path) -> Item:
    """Raises ValueError naming the item, where its id is known, and the field."""
    name = row.get("id")
    try:
        return _checked(row, path)
    except ValueError as error:
        known = f"item {name}: " if isinstance(name, str) and name and not _CONTROL.search(name) else ""
        raise ValueError(f"{'' if str(error).startswith(known) else known}{error}") from None


def _checked(row: dict[str, Any], path: Path) -> Item:
    known = REQUIRED + OPTIONAL
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"{shown(key) if _CONTROL.search(key) else key}: unknown field{hint} Known are {', '.join(known)}."
            )
    kind = row.get("kind")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {shown(kind)}, expected one of {', '.join(KINDS)}")
    needed = [key for key in REQUIRED if key != "choices" or kind is None or kind in _WITH_CHOICES]
    for key in needed:
        if key not in row and _is_table(path):
            optional = ("choices", "answer") if kind == "text" else ("choices",)
            named = ", ".join(name for name in needed if name not in optional)
            raise ValueError(f"{key}: got an empty cell, expected text; every row needs {named}")
        if key not in row:
            raise ValueError(f"{key}: missing; every line needs {', '.join(needed)}")
    if isinstance(row["id"], str) and _CONTROL.search(row["id"]):  # tables and messages show it
        raise ValueError(
            f"id: got {shown(row['id'])}, expected text of one line, without control characters; rename it"
        )
    choices = _list(row, "choices")
    if len(choices) == 1 or len(choices) > len(string.ascii_lowercase):
        raise ValueError(f"choices: got {shown(choices)}, expected no choice (a number is asked for) or 2 to 26 texts")
    if blank := [i for i, choice in enumerate(choices) if not choice.strip()]:
        raise ValueError(f"choices: choice {string.ascii_lowercase[blank[0] % 26]} is blank, expected text in each")
    first: dict[str, str] = {}
    for letter, choice in zip(string.ascii_lowercase, choices, strict=False):
        if first.setdefault(choice.strip(), letter) != letter:
            same = first[choice.strip()]
            raise ValueError(
                f"choices: choice {letter} repeats choice {same} ({shown(choice)}), expected different texts"
            )
    in_table = _is_table(path)
    if in_table and not choices and "prohibited" in row:
        raise ValueError(f"prohibited: got {shown(row['prohibited'])}, expected an empty cell: there are no choices")
    answer = _answer(row, choices, kind, in_table)
    image = row.get("image")
    return Item(
        id=row["id"],
        question=row["question"],
        choices=choices,
        answer=answer,
        points=row.get("points", 1),
        section=row.get("section", ""),
        category=row.get("category", ""),
        prohibited=_letters(row, "prohibited", choices, in_table) if choices else _list(row, "prohibited"),
        context=row.get("context", ""),
        image=None if image is None else _image(image, path.parent),
        exam=path.stem,
        needs_image=image is not None,
        explanation=row.get("explanation", ""),
        kind=kind,
    )


def _is_table(path: Path) -> bool:
    """Whether messages speak of rows and cells instead of JSON."""
    return path.suffix.lower() in TABLES


def _answer(row: dict[str, Any], choices: tuple[str, ...], kind: object, in_table: bool) -> tuple[str, ...]:
    """The gold answer in the form of `Item.answer`, from every form in which it has one meaning."""
    if choices and kind in (None, "choice"):
        return _letters(row, "answer", choices, in_table)
    if kind in (None, "number", "similarity"):
        given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        return tuple(_number(value, row["answer"], exact=kind != "similarity") for value in given)
    if kind == "text" and isinstance(row["answer"], str):
        return (row["answer"],)
    return _list(row, "answer")


def _letters(row: dict[str, Any], key: str, choices: tuple[str, ...], in_table: bool) -> tuple[str, ...]:
    try:
        return read_letters(row.get(key, []), choices, in_table=in_table)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _number(value: object, answer: object, *, exact: bool) -> str:
    """A number as text, half-width; exact: 7.20 is not 7.2, so that JSON's own decimal numbers will not do."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not (exact and isinstance(value, float)):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f'answer: got {shown(answer)}, expected one number written as text, such as ["7.20"]')
    plain = unicodedata.normalize("NFKC", value).strip()
    return plain if NUMBER.fullmatch(plain) else value


def _list(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not _texts(value):
        raise ValueError(f'{key}: got {shown(value)}, expected a list of texts such as ["a"]')
    return tuple(value)


def _image(image: object, folder: Path) -> str:
    if not isinstance(image, str) or not image:
        raise ValueError(f"image: got {shown(image)}, expected a path relative to the file")
    resolved = (folder / image).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(
            f"image: got {shown(image)}, which leads out of {folder}; keep images in the folder of the exam"
        )
    if not resolved.is_file():
        raise ValueError(
            f"image: got {shown(image)}, which does not exist in {folder}, expected a file beside the exam; put "
            "it there"
        )
    return str(folder / image)


def _texts(values: Iterable[object]) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
