"""Rows of published question sets -> items, one function a format.

Each function takes `Files`, which finds the files and remembers what was read, and a language, and returns `Rows`.
What is irregular in a set is put right here and nowhere else:

  IgakuQA  prohibited letters glued together ("de", " e") in 10 items and full-width ("ｂ") in 5 others; 116A71 right
           whatever is answered; 112B30 with two golds; points as text; 11 withdrawn items with 0 points (kept: the
           published accuracy counts them)
  DenQA    21 withdrawn items whose answer is the text "NA" (dropped); 7 whose answer is an order of letters
  JMMLU    a byte order mark and no header in the original files, a header in the JMED-LLM edition
"""

import contextlib
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medjax import assets
from medjax.data.qa import Item, read_jsonl

EXAMS = Path(__file__).parent
JMMLU_SUBJECTS = (
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "human_aging", "human_sexuality"),
    *("medical_genetics", "nutrition", "professional_medicine", "professional_psychology", "virology"),
)
_YES_NO_MAYBE = ("yes", "no", "maybe")
_HALF_WIDTH = {0xFF41 + i: chr(0x61 + i) for i in range(26)}
_EXAM_ID = re.compile(r"([0-9]{3})([A-F])[0-9]+")


@dataclass
class Files:
    """Finds the files of question sets and remembers the sha256 of each one read, under the name "set/file"."""

    data_dir: str | Path | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    unpinned: list[str] = field(default_factory=list)

    def find(self, name: str, *files: str) -> list[Path]:
        paths = assets.data_files(name, files, self.data_dir)
        for file, path in zip(files, paths, strict=True):
            if self.record(f"{name}/{file}", path) != assets.pins()[name, file][1]:
                self.unpinned.append(f"{name}/{file}")
        return paths

    def record(self, label: str, path: Path) -> str:
        self.sha256[label] = assets.sha256_file(path)
        return self.sha256[label]


@dataclass(frozen=True)
class Rows:
    """What a source gave: items in file order, demonstrations (None: the items themselves), item id -> why dropped."""

    items: tuple[Item, ...]
    pool: tuple[Item, ...] | None = None
    dropped: dict[str, str] = field(default_factory=dict)


def igakuqa(files: Files, language: str) -> Rows:
    """Physician licensing exams 112 to 116 (2018 to 2022), jungokasai/IgakuQA, with the authors' demonstrations."""
    sections = [f"data/{exam + 1906}/{exam}-{section}" for exam in range(112, 117) for section in "ABCDEF"]
    english = language == "en"
    endings = (".jsonl", "_metadata.jsonl", *(["_translate.jsonl"] if english else []))
    prompt = "scripts/prompts/prompt_translate.jsonl" if english else "scripts/prompts/prompt.jsonl"
    *paths, prompt_path = files.find("igakuqa", *(s + ending for s in sections for ending in endings), prompt)
    rows: dict[str, tuple[dict[str, Any], str]] = {}
    for path in paths:
        for row, where in _json_rows(path):
            with _located(where):
                rows.setdefault(row["problem_id"], ({}, where))[0].update(row)
    return Rows(
        tuple(_igakuqa_item(row, where, english) for row, where in rows.values()),
        tuple(_igakuqa_item(row, where, english) for row, where in _json_rows(prompt_path)),
    )


def _igakuqa_item(row: dict[str, Any], where: str, english: bool) -> Item:
    with _located(where):
        name = row["problem_id"]
        exam, section = _exam_and_section(name)
        answer, accepted = tuple(row["answer"]), None
        if name == "112B30":  # the file says "a or d"
            answer, accepted = ("a",), (("a",), ("d",))
        return Item(
            id=name,
            question=row["problem_text_en" if english else "problem_text"],
            choices=tuple(row["choices_en" if english else "choices"]),
            answer=answer,
            points=_points(row.get("points", 1)),  # the demonstrations have none
            section=section,
            category=row.get("category", ""),
            prohibited=tuple(sorted(set("".join(row.get("kinki", [])).translate(_HALF_WIDTH)) & set("abcdefgh"))),
            exam=str(int(exam) + 1906),
            accepted=accepted,
            any_answer=name == "116A71",
            needs_image=not row["text_only"],
        )


def benchmark(files: Files, language: str, *, file: str) -> Rows:
    """A set in the record schema of aistairc/medLLM_QA_benchmark; exam and section come from ids such as 116A84."""
    (path,) = files.find("medllm_qa_benchmark", file)
    items, dropped = [], {}
    for row, where in _json_rows(path):
        with _located(where):
            name = str(row["problem_id"])
            if row["answer"] == "NA":
                dropped[name] = "withdrawn: the set gives no answer"
                continue
            exam, section = _exam_and_section(name)
            items.append(
                Item(
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
            )
    return Rows(tuple(items), dropped=dropped)


def pubmedqa(files: Files, language: str) -> Rows:
    """The 500 test questions of PubMedQA; demonstrations from the 500 other labelled ones, with their long answers."""
    test = benchmark(files, language, file="pubmedqa.jsonl")
    (path,) = files.find("pubmedqa", "ori_pqal.json")
    asked = {item.id for item in test.items}
    rows = json.loads(path.read_text("utf-8"))
    return Rows(test.items, tuple(_pubmedqa_item(name, row) for name, row in rows.items() if name not in asked))


def pubmedqa_conclusion(files: Files, language: str) -> Rows:
    """PubMedQA with the abstract's conclusion in place of the rest, its authors' reasoning-free setting; same split."""
    asked = [item.id for item in benchmark(files, language, file="pubmedqa.jsonl").items]
    (path,) = files.find("pubmedqa", "ori_pqal.json")
    rows = json.loads(path.read_text("utf-8"))
    items = {
        name: replace(_pubmedqa_item(name, row), context=row["LONG_ANSWER"], explanation="")
        for name, row in rows.items()
    }
    test = tuple(items.pop(name) for name in asked)
    return Rows(test, tuple(items.values()))


def _pubmedqa_item(name: str, row: dict[str, Any]) -> Item:
    return Item(
        id=name,
        question=row["QUESTION"],
        choices=_YES_NO_MAYBE,
        answer=("abc"[_YES_NO_MAYBE.index(row["final_decision"])],),
        context=" ".join(row["CONTEXTS"]),
        explanation=row["LONG_ANSWER"],
    )


def jmmlu(files: Files, language: str, *, file: str) -> Rows:
    """Five medical subjects of JMMLU from JMED-LLM; the pool of the 100-item edition is the rest of the full one."""
    items = _jmed_csv(files.find("jmed-llm", file)[0])
    if file == "all/JMMLU-Med.csv":
        return Rows(items)
    asked = {(item.question, item.choices) for item in items}
    rest = _jmed_csv(files.find("jmed-llm", "all/JMMLU-Med.csv")[0])
    return Rows(items, tuple(item for item in rest if (item.question, item.choices) not in asked))


def jmmlu_folder(files: Files, language: str) -> Rows:
    """The medical subjects of JMMLU from its own <subject>.csv files: in data_dir or data_dir/JMMLU."""
    names = [f"{subject}.csv" for subject in JMMLU_SUBJECTS]
    if files.data_dir is None:
        raise FileNotFoundError(
            f"jmmlu-medical-11: got no data folder, expected one with {', '.join(names)}; name it by --data-dir"
        )
    folder = Path(files.data_dir)
    # an incomplete folder is still the one that is meant
    folder = next((f for f in (folder, folder / "JMMLU") if any((f / name).is_file() for name in names)), folder)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"jmmlu-medical-11: {folder}: got no {', '.join(missing)}, expected all of JMMLU's medical subjects "
            f"({len(names)} files); copy them there, or ask for jmmlu-medical"
        )
    paths = [folder / name for name in names]
    for path in paths:
        files.record(f"JMMLU/{path.name}", path)
    return Rows(_choice_items((path.stem, row, where) for path in paths for row, where in _csv_rows(path)))


def smdis(files: Files, language: str) -> Rows:
    """SMDIS of JMED-LLM: 100 posts, half of them about somebody who has the disease asked for.

    The pool is the rest of the full edition, without any post that holds one of the test, and balanced as the test is:
    every yes, and as many no of the same disease, those whose question has the lowest sha256.
    """
    test, full = files.find("jmed-llm", "smdis.csv", "all/SMDIS.csv")
    items = _jmed_csv(test, choices=2)
    posts = {_post(item) for item in items}
    every = _jmed_csv(full, choices=2)
    rest = [item for item in every if not any(post in _post(item) for post in posts)]
    kept = {item.id for item in rest if item.answer == ("a",)}
    for disease, count in Counter(item.category for item in rest if item.id in kept).items():
        others = [item for item in rest if item.category == disease and item.answer == ("b",)]
        kept |= {item.id for item in sorted(others, key=_sha256_of_question)[:count]}
    return Rows(items, tuple(replace(item, id=f"all-{item.id}") for item in rest if item.id in kept))


def _post(item: Item) -> str:
    """What stands in 「」 after the question, without the full stop at its end."""
    return item.question.partition("「")[2].rstrip("」。")


def _sha256_of_question(item: Item) -> str:
    return hashlib.sha256(item.question.encode()).hexdigest()


def _jmed_csv(path: Path, choices: int = 4) -> tuple[Item, ...]:
    rows = list(_csv_rows(path))[1:]
    return _choice_items(((row[0], row[1:], where) for row, where in rows), choices)


def _choice_items(rows: Iterable[tuple[str, list[str], str]], count: int = 4) -> tuple[Item, ...]:
    items: list[Item] = []
    counts: dict[str, int] = {}
    for subject, cells, where in rows:
        if len(cells) != count + 2:
            letters = ", ".join("ABCD"[:count])
            raise ValueError(f"{where}: got {len(cells)} columns, expected question, {letters}, answer")
        question, *choices, answer = cells
        counts[subject] = counts.get(subject, 0) + 1
        name = f"{subject}-{counts[subject]}"
        gold = (answer.strip().lower(),)
        with _located(where):
            items.append(Item(id=name, question=question, choices=tuple(choices), answer=gold, category=subject))
    return tuple(items)


def exam_file(files: Files, language: str, *, path: Path) -> Rows:
    """An exam in the schema of medjax.data.qa; "{language}" in the name stands for the language."""
    exam = path.stem.removesuffix("_{language}")
    path = Path(str(path).replace("{language}", language))
    items = tuple(replace(item, exam=exam) for item in read_jsonl(path))
    files.record(path.name, path)
    return Rows(items)


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                with _located(where):
                    row = json.loads(line)
                yield row, where


def _csv_rows(path: Path) -> Iterator[tuple[list[str], str]]:
    text = path.read_bytes().decode("utf-8-sig")
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        if row:
            yield row, f"{path}, row {number}"


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Put file and line before the message of what goes wrong inside."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{where}: {error.args[0]}: missing; this is not the file the set was published with"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _exam_and_section(name: str) -> tuple[str, str]:
    match = _EXAM_ID.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")


def _points(value: str | float) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number
