"""JMED-LLM and JMMLU: csv files -> items.

The files of JMED-LLM (sociocom/JMED-LLM) have a header; questions of choice have columns tag, question, optionA ...,
answer, those of named entities tag, question, answer with a Python list of texts. The 100-item sets are parts of the
full ones under all/: the pool of demonstrations is the rest, without any question about a report or post of the test.
JMMLU's own files have a byte order mark and no header.
"""

import ast
from collections import Counter
from dataclasses import replace
from pathlib import Path

from medjax import assets
from medjax.data.exams.rows import Files, Rows, choice_items, csv_rows, located, sha256_of_question
from medjax.data.qa import Item

JMMLU_SUBJECTS = (
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "human_aging", "human_sexuality"),
    *("medical_genetics", "nutrition", "professional_medicine", "professional_psychology", "virology"),
)
_MOST_GOLD = 20_000  # characters
_OWN = (
    "Its licence, CC BY-NC-SA 4.0, allows no commercial use: if yours is none, copy datasets/{file} of "
    "https://github.com/sociocom/JMED-LLM there, as jmed-llm/{file}."
)


def jmmlu(files: Files, language: str, *, file: str) -> Rows:
    """Five medical subjects of JMMLU from JMED-LLM; the pool of the 100-item edition is the rest of the full one."""
    items = _choices(files.find("jmed-llm", file)[0])
    if file == "all/JMMLU-Med.csv":
        return Rows(items)
    asked = {(item.question, item.choices) for item in items}
    rest = _choices(files.find("jmed-llm", "all/JMMLU-Med.csv")[0])
    return Rows(items, tuple(item for item in rest if (item.question, item.choices) not in asked))


def jmmlu_folder(files: Files, language: str) -> Rows:
    """The medical subjects of JMMLU from its own <subject>.csv files: in data_dir, or JMMLU/ of the data folder."""
    names = [f"{subject}.csv" for subject in JMMLU_SUBJECTS]
    folder = Path(files.data_dir) if files.data_dir else assets.data_folder("JMMLU")
    if folder is None:
        raise FileNotFoundError(
            f"jmmlu-medical-11: got no data folder, expected one with {', '.join(names)}; name it by --data-dir"
        )
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
    return Rows(choice_items((path.stem, row, where) for path in paths for row, where in csv_rows(path)))


def smdis(files: Files, language: str) -> Rows:
    """SMDIS of JMED-LLM: 100 posts, half of them about somebody who has the disease asked for.

    The pool is the rest of the full edition, without any post that holds one of the test, and balanced as the test is:
    every yes, and as many no of the same disease, those whose question has the lowest sha256.
    """
    test, full = files.find("jmed-llm", "smdis.csv", "all/SMDIS.csv")
    items = _choices(test)
    posts = {_post(item) for item in items}
    every = [(item, _post(item)) for item in _choices(full)]
    rest = [item for item, text in every if not any(post in text for post in posts)]
    kept = {item.id for item in rest if item.answer == ("a",)}
    for disease, count in Counter(item.category for item in rest if item.id in kept).items():
        others = [item for item in rest if item.category == disease and item.answer == ("b",)]
        kept |= {item.id for item in sorted(others, key=sha256_of_question)[:count]}
    return Rows(items, tuple(replace(item, id=f"all-{item.id}") for item in rest if item.id in kept))


def _post(item: Item) -> str:
    """What stands in 「」 after the question, without the full stop at its end."""
    return item.question.partition("「")[2].rstrip("」。")


def reports(files: Files, language: str, *, file: str, full: str) -> Rows:
    """CRADE and RRTNM: choices about a case report or a radiology report, whose text follows the question's line."""
    test, every = files.find("jmed-llm", file, full)
    items = _choices(test)
    return Rows(items, _others(_choices(every), items))


def entities(files: Files, language: str, *, file: str, full: tuple[str, ...] = ()) -> Rows:
    """A set of named entities; `full` are those that hold it, whose other reports are the demonstrations."""
    test, *every = files.find("jmed-llm", file, *full)
    items = _entities(test)
    if not full:
        return Rows(items)
    asked = {item.category for item in items}
    rest = [item for path in every for item in _entities(path) if item.category in asked]
    return Rows(items, _others(rest, items))


def nrner(files: Files, language: str) -> Rows:
    """NRNER: entities in nursing records, from the user's own copy."""
    return Rows(_entities(files.own("jmed-llm", "nrner.csv", _OWN.format(file="nrner.csv"))))


def jcsts(files: Files, language: str) -> Rows:
    """JCSTS: how alike two sentences are, in six grades a to f, from the user's own copy."""
    return Rows(_choices(files.own("jmed-llm", "jcsts.csv", _OWN.format(file="jcsts.csv"))))


def _others(rest: list[Item] | tuple[Item, ...], items: tuple[Item, ...]) -> tuple[Item, ...]:
    asked = {_report(item) for item in items}
    return tuple(replace(item, id=f"all-{item.id}") for item in rest if _report(item) not in asked)


def _report(item: Item) -> str:
    return item.question.partition("\n")[2]


def _choices(path: Path) -> tuple[Item, ...]:
    """Items of a file with a header; without a column tag the file's name stands for it."""
    header, rows = _with_header(path)
    letters = [name.removeprefix("option") for name in header if name.startswith("option")]
    tagged = header[0] == "tag"
    expected = ["tag"] * tagged + ["question", *(f"option{letter}" for letter in letters), "answer"]
    if header != expected or not letters:
        raise ValueError(
            f"{path}, row 1: got the columns {', '.join(header)}, expected tag, question, optionA, ..., answer"
        )
    return choice_items(
        ((row[0], row[1:], where) if tagged else (path.stem, row, where) for row, where in rows), "".join(letters)
    )


def _entities(path: Path) -> tuple[Item, ...]:
    header, rows = _with_header(path)
    if header != ["tag", "question", "answer"]:
        raise ValueError(f"{path}, row 1: got the columns {', '.join(header)}, expected tag, question, answer")
    counts: Counter[str] = Counter()
    items = []
    for cells, where in rows:
        if len(cells) != 3:
            raise ValueError(
                f"{where}: got {len(cells)} columns, expected tag, question, answer; a text that holds a comma stands "
                "in double quotes"
            )
        tag, question, answer = cells
        counts[tag] += 1
        name = f"{path.stem.lower()}-{tag}-{counts[tag]}"
        with located(where):
            gold = _python_list(answer)
            items.append(Item(id=name, question=question, choices=(), answer=gold, category=tag, kind="entities"))
    return tuple(items)


def _python_list(text: str) -> tuple[str, ...]:
    """The gold texts, as the files write them: one flat list of at most some kilobytes."""
    try:
        found = ast.literal_eval(text) if len(text) < _MOST_GOLD else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, list) or not all(isinstance(entity, str) for entity in found):
        raise ValueError(f"answer: got {text[:60]!r}, expected a list of texts such as ['a', 'b']")
    return tuple(dict.fromkeys(entity.strip() for entity in found))


def _with_header(path: Path) -> tuple[list[str], list[tuple[list[str], str]]]:
    rows = list(csv_rows(path))
    if len(rows) < 2:
        raise ValueError(f"{path}: got {len(rows)} rows, expected a header and one row an item")
    return rows[0][0], rows[1:]
