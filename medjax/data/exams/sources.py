"""Rows of published question sets -> items, one function a format.

Each function takes `Files`, which finds the files and remembers what was read, and a language, and returns `Rows`.
What is irregular in a set is put right here and nowhere else:

  IgakuQA  prohibited letters glued together ("de", " e") in 10 items and full-width ("ｂ") in 5 others; 116A71 right
           whatever is answered; 112B30 with two golds; points as text; 11 withdrawn items with 0 points (kept: the
           published accuracy counts them)
  DenQA    21 withdrawn items whose answer is the text "NA" (dropped); 7 whose answer is an order of letters
  YakugakuQA  digits instead of letters; left out are 20 items without a solution, 391 others whose choices are images
           ("choices" holds the text "IMAGES") and one without text; in 8 any one or two of the letters given are right,
           as a remark in the answer or the metadata says
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medjax.data.decoding import read_text
from medjax.data.exams.own_exam import read_exam
from medjax.data.exams.rows import Files, Rows, check_new, json_rows, located, unique
from medjax.data.gold import shown
from medjax.data.qa import Item

EXAMS = Path(__file__).parent
_YES_NO_MAYBE = ("yes", "no", "maybe")
_EXAM_ID = re.compile(r"([0-9]{3})([A-F])[0-9]+")
_EXAM_FILE = re.compile(r"[0-9]{3}-[A-Z]")
_LAYOUT = "119-A.jsonl, 119-A_metadata.jsonl, 119-B.jsonl"
_ANY_OF = re.compile(r"いずれか([1-9一二三])つ")
_DIGITS = {"一": 1, "二": 2, "三": 3}
_EXAMS = range(97, 110)
YAKUGAKUQA_FILES = tuple(f"data/{exam + 1915}/{part}{exam:03}.jsonl" for exam in _EXAMS for part in ("", "metadata_"))
# the last question of each part of the pharmacists' exam
_YAKUGAKU_PARTS = ((90, "必須"), (195, "理論"), (345, "実践"))


def igakuqa(files: Files, language: str) -> Rows:
    """Physician licensing exams 112 to 116 (2018 to 2022), jungokasai/IgakuQA, with the authors' demonstrations."""
    english = language == "en"
    *paths, prompt_path = files.find("igakuqa", *igakuqa_files(language))
    return Rows(
        _igakuqa_items(paths, english),
        tuple(_igakuqa_item(row, where, english) for row, where in json_rows(prompt_path)),
        pool_by_authors=True,
    )


def igakuqa_files(language: str) -> tuple[str, ...]:
    """The files of IgakuQA in its repository, the demonstrations last."""
    sections = [f"data/{exam + 1906}/{exam}-{section}" for exam in range(112, 117) for section in "ABCDEF"]
    endings = (".jsonl", "_metadata.jsonl", *(["_translate.jsonl"] if language == "en" else []))
    prompt = "scripts/prompts/prompt_translate.jsonl" if language == "en" else "scripts/prompts/prompt.jsonl"
    return (*(section + ending for section in sections for ending in endings), prompt)


def igakuqa_folder(files: Files, language: str, *, folder: Path) -> Rows:
    """Further exams of the user's in IgakuQA's layout: <exam>-<section>.jsonl anywhere under a folder.

    Beside them <exam>-<section>_metadata.jsonl, and _translate.jsonl for English, where there are such files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"igakuqa-folder: {folder}: no such folder; expected one that holds {_LAYOUT}")
    problems = [path for path in sorted(folder.rglob("*.jsonl")) if _EXAM_FILE.fullmatch(path.stem)]
    if not problems:
        raise FileNotFoundError(f"igakuqa-folder: {folder}: got no exam, expected files such as {_LAYOUT}")
    paths = []
    for path in problems:
        more = [path.with_stem(f"{path.stem}_{part}") for part in ("metadata", "translate")]
        if language == "en" and not more[1].is_file():
            raise FileNotFoundError(f"igakuqa-folder: {more[1]}: no such file; ask in Japanese, or add the translation")
        paths += [path, *(part for part in more[: 2 if language == "en" else 1] if part.is_file())]
    for path in paths:
        files.record(path.relative_to(folder).as_posix(), path)
    return Rows(_igakuqa_items(paths, language == "en"))


def _igakuqa_items(paths: Sequence[Path], english: bool) -> tuple[Item, ...]:
    """Items of problem files, with what metadata and translation files say about the same ids, and only they say."""
    rows: dict[str, tuple[dict[str, Any], str]] = {}
    found: dict[str, dict[str, str]] = {}  # kind of file -> id -> where
    for path in paths:
        kind = path.stem.partition("_")[2]
        for row, where in json_rows(path):
            with located(where):
                check_new(row["problem_id"], where, found.setdefault(kind, {}))
                if kind and row["problem_id"] not in rows:
                    raise ValueError(f"problem_id: got {row['problem_id']!r}, which the problem files do not hold")
                known, _ = rows.setdefault(row["problem_id"], ({}, where))
                known |= {name: value for name, value in row.items() if name not in known}
    return tuple(_igakuqa_item(row, where, english) for row, where in rows.values())


def _igakuqa_item(row: dict[str, Any], where: str, english: bool) -> Item:
    with located(where):
        name = row["problem_id"]
        exam, section = _exam_and_section(name)
        if not exam:
            raise ValueError(f"problem_id: got {name!r}, expected exam, section and number such as 119A1")
        answer, accepted = tuple(row["answer"]), None
        if len(answer) == 1 and " or " in answer[0]:  # 112B30: "a or d"
            accepted = tuple((letter,) for letter in answer[0].split(" or "))
            answer = accepted[0]
        return Item(
            id=name,
            question=row["problem_text_en" if english else "problem_text"],
            choices=tuple(row["choices_en" if english else "choices"]),
            answer=answer,
            points=_points(row.get("points", 1)),  # the demonstrations have none
            section=section,
            category=row.get("category", ""),
            prohibited=_prohibited(row.get("kinki", [])),
            exam=str(int(exam) + 1906),
            accepted=accepted,
            any_answer=name == "116A71",
            needs_image=not row["text_only"],
            human_accuracy=float(row["human_accuracy"]) / 100 if row.get("human_accuracy") else None,
        )


def _prohibited(texts: Sequence[str]) -> tuple[str, ...]:
    """The letters in texts such as "de", " e" and "ｂ"."""
    return tuple(sorted(set(unicodedata.normalize("NFKC", "".join(texts)).lower()) - set(" ,、")))


def benchmark(files: Files, language: str, *, file: str) -> Rows:
    """A set in the record schema of aistairc/medLLM_QA_benchmark; exam and section come from ids such as 116A84."""
    (path,) = files.find("medllm_qa_benchmark", file)
    items: list[tuple[Item, str]] = []
    dropped = {}
    for row, where in json_rows(path):
        with located(where):
            name = str(row["problem_id"])
            if row["answer"] == "NA":
                dropped[name] = "withdrawn: the set gives no answer"
                continue
            exam, section = _exam_and_section(name)
            item = Item(
                id=name,
                question=row["problem_text"],
                choices=tuple(row["choices"]),
                answer=tuple(row["answer"]),
                points=_points(row["points"]),
                section=section,
                context=row.get("context", ""),
                exam=exam,
                ordered=list(row["answer"]) != sorted(row["answer"]),
                needs_image=not row["text_only"],
            )
            items.append((item, where))
    return Rows(unique(items), dropped=dropped)


def pubmedqa(files: Files, language: str) -> Rows:
    """The 500 test questions of PubMedQA; demonstrations from the 500 other labelled ones, with their long answers."""
    test = benchmark(files, language, file="pubmedqa.jsonl")
    asked = {item.id for item in test.items}
    return Rows(test.items, tuple(item for item in _pubmedqa_items(files) if item.id not in asked))


def pubmedqa_conclusion(files: Files, language: str) -> Rows:
    """PubMedQA with the abstract's conclusion in place of the rest, its authors' reasoning-free setting; same split."""
    test = benchmark(files, language, file="pubmedqa.jsonl").items
    every = _pubmedqa_items(files)
    items = {item.id: replace(item, context=item.explanation, explanation="") for item in every}
    if unknown := [item.id for item in test if item.id not in items]:
        raise ValueError(f"pubmedqa.jsonl: got item {unknown[0]}, which ori_pqal.json does not hold; fetch both again")
    return Rows(tuple(items.pop(item.id) for item in test), tuple(items.values()))


def _pubmedqa_items(files: Files) -> tuple[Item, ...]:
    """All 1,000 labelled questions, in the order of their file."""
    (path,) = files.find("pubmedqa", "ori_pqal.json")
    text = read_text(path)
    with located(str(path)):
        return tuple(_pubmedqa_item(name, row) for name, row in json.loads(text).items())


def _pubmedqa_item(name: str, row: dict[str, Any]) -> Item:
    return Item(
        id=name,
        question=row["QUESTION"],
        choices=_YES_NO_MAYBE,
        answer=("abc"[_YES_NO_MAYBE.index(row["final_decision"])],),
        context=" ".join(row["CONTEXTS"]),
        explanation=row["LONG_ANSWER"],
    )


def yakugakuqa(files: Files, language: str) -> Rows:
    """Pharmacist licensing exams 97 to 109 (2012 to 2024), EQUES-Inc/pharma-LLM-eval; 2012's is `Item.exam` "2012"."""
    paths = files.find("yakugakuqa", *YAKUGAKUQA_FILES)
    items: list[tuple[Item, str]] = []
    dropped = {}
    for problems, metadata in zip(paths[::2], paths[1::2], strict=True):
        about: dict[str, dict[str, Any]] = {}
        for row, where in json_rows(metadata):
            with located(where):
                about[row["problem_id"]] = row  # every line stands three times, all alike
        for row, where in json_rows(problems):
            with located(where):
                name = row["problem_id"]
                remark = about.get(name, {}).get("note", "") + "".join(row["answer"])
                if "解なし" in remark:
                    dropped[name] = "withdrawn: the question has no solution"
                elif isinstance(row["choices"], str):
                    dropped[name] = "its choices are images"
                elif not row["problem_text"].strip():
                    dropped[name] = "the set gives no text of the question"
                else:
                    items.append((_yakugaku_item(row, remark, about.get(name, {}).get("category", "")), where))
    return Rows(unique(items), dropped=dropped)


def _yakugaku_item(row: dict[str, Any], remark: str, category: str) -> Item:
    name, number = row["problem_id"], int(row["problem_id"][3:])
    letters = tuple(sorted(_letter(answer[:1], name) for answer in row["answer"]))
    accepted = None
    if any_of := _ANY_OF.search(remark):
        count = _DIGITS.get(any_of[1]) or int(any_of[1])
        accepted = tuple(itertools.combinations(letters, count))
    return Item(
        id=name,
        question=row["problem_text"],
        choices=tuple(row["choices"]),
        answer=accepted[0] if accepted else letters,
        points=_points(row["points"]),
        section=next((part for last, part in _YAKUGAKU_PARTS if number <= last), ""),
        category=category,
        exam=str(int(name[:3]) + 1915),
        accepted=accepted,
        needs_image=not row["text_only"],
        explanation=row.get("comment", ""),
    )


def _letter(digit: str, name: str) -> str:
    if digit not in tuple("12345678"):
        raise ValueError(f"item {name}: answer: got {digit!r}, expected a digit from 1 to 8")
    return chr(ord("a") + int(digit) - 1)


def harness_file(files: Files, language: str, *, set_name: str, file: str, how: str) -> Rows:
    """A file of the user's in the schema of stardust-coder/japanese-lm-med-harness.

    One object a line: problem_text, choices, answer (the text of the right choice), optionally problem_id. With choices
    that are all blank, or none, it is an open question, whose answer is a reference text or nothing.
    """
    path = files.own(set_name, file, how)
    return Rows(unique((_harness_item(row, where, n), where) for n, (row, where) in enumerate(json_rows(path), 1)))


def _harness_item(row: dict[str, Any], where: str, number: int) -> Item:
    with located(where):
        name, choices = str(row.get("problem_id", number)), tuple(row["choices"])
        answer = row.get("answer") or ""
        if not isinstance(answer, str):
            raise ValueError(f"item {name}: answer: got {shown(answer)}, expected one text")
        if not any(choice.strip() for choice in choices):
            gold = (answer,) if answer.strip() else ()
            return Item(id=name, question=row["problem_text"], choices=(), answer=gold, kind="text")
        if choices.count(answer) != 1:
            raise ValueError(
                f"item {name}: answer: got {shown(answer)}, expected the text of one of the choices {shown(choices)}"
            )
        letter = chr(ord("a") + choices.index(answer))
        return Item(id=name, question=row["problem_text"], choices=choices, answer=(letter,))


def exam_file(files: Files, language: str, *, path: Path) -> Rows:
    """An exam in the schema of medjax.data.qa; "{language}" in the name stands for the language."""
    exam = path.stem.removesuffix("_{language}")
    path = Path(str(path).replace("{language}", language))
    items = tuple(replace(item, exam=exam) for item in read_exam(path))
    files.record(path.name, path)
    return Rows(items)


def _exam_and_section(name: str) -> tuple[str, str]:
    match = _EXAM_ID.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")


def _points(value: str | float) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number
