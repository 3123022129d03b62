"""The sets of JMedBench (Coldog2333/JMedBench on the model hub, read by nii-nlp/med-eval) -> items.

A set is a folder <name>/ with test.jsonl and mostly train.jsonl, one object a line; the pool of demonstrations is the
latter, less its lines that are no items. Lines by what is asked for:

  choices      sample_id, question, options, answer_idx (from 0), metadata {source, context}
  entities     text, labels (["none"]: there are none), entity_type
  similarity   sample_id, premise, hypothesis, label (0 to 5)
  translation  english, japanese

`as_published` and `graded` make items that are scored as the harness scores them: entities as one line of text between
", ", a similarity as one of the grades 0 to 5. Their questions are its standard templates.

Files are looked for in the folder JMedBench/ of the question sets, else fetched from the hub. Ids that a set gives to
several of its questions get a number: "7", "7-2".
"""

import contextlib
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from medjax import assets
from medjax.data.exams.rows import Files, Rows, json_rows, located
from medjax.data.gold import shown
from medjax.data.qa import Item

HUB_ID = "Coldog2333/JMedBench"
_FOLDER = "JMedBench"
_ENTITIES = {
    "disease": "患者に実際に認められた病変や症状の存在を示す異常などの所見を表す表現",
    "medicine value": "処方量など薬品にかかわる値",
    "medicine key": "薬品名",
}
_TRANSLATE = {
    "japanese": ("次の英文を日本語に訳してください。", "english"),
    "english": ("Translate the following Japanese text into English.", "japanese"),
}
_GRADES = tuple("012345")
Read = Callable[[dict[str, Any], str], Item]


def choices(files: Files, language: str, *, name: str) -> Rows:
    """Questions of choice; the context of a question (PubMedQA's abstract) stands in its metadata."""
    return _rows(files, name, _choice_item)


def entities(files: Files, language: str, *, name: str) -> Rows:
    """Named entities of one type in a text."""
    return _rows(files, name, _entity_item)


def similarity(files: Files, language: str, *, name: str) -> Rows:
    """How alike two sentences are, from 0 to 5."""
    return _rows(files, name, _similarity_item)


def as_published(files: Files, language: str, *, name: str) -> Rows:
    """Named entities as the harness asks for them: a line of text, to be graded by entity_first_line_f1."""
    return _rows(files, name, _line_item)


def graded(files: Files, language: str, *, name: str) -> Rows:
    """How alike two sentences are as the harness asks it: a choice of the grades 0 to 5."""
    return _rows(files, name, _grade_item)


def translation(files: Files, language: str, *, name: str, into: str) -> Rows:
    """Sentences to translate into "japanese" or "english"."""
    instruction, source = _TRANSLATE[into]

    def read(row: dict[str, Any], number: str) -> Item:
        return Item(number, f"{instruction}\n{row[source]}", (), (row[into],), kind="text")

    return _rows(files, name, read)


def _rows(files: Files, name: str, read: Read) -> Rows:
    test, train = (_folder(files, name) / f"{split}.jsonl" for split in ("test", "train"))
    items: list[Item] = []
    for row, where in _lines(files, name, test):
        with located(where):
            items.append(read(row, str(row.get("sample_id", len(items) + 1))))
    pool: list[Item] = []
    if train.is_file():
        for row, _ in _lines(files, name, train):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                pool.append(read(row, f"train-{row.get('sample_id', len(pool) + 1)}"))
    return Rows(_numbered(items), _numbered(pool) if pool else None)


def provided(files: Files, name: str) -> Path | None:
    """The folder of a set in the folder of the question sets; None where it is not there."""
    own = assets.data_folder(_FOLDER, files.data_dir)
    return own / name if own and (own / name / "test.jsonl").is_file() else None


def fetched(name: str) -> bool:
    """Whether a set was fetched from the hub before."""
    try:
        folder = assets.hub_dataset(HUB_ID, (f"{name}/*.jsonl",), fetch=False)
    except FileNotFoundError:
        return False
    return (folder / name / "test.jsonl").is_file()


def _folder(files: Files, name: str) -> Path:
    """The folder of a set. Raises FileNotFoundError that says how to get it."""
    if own := provided(files, name):
        return own
    try:
        folder = assets.hub_dataset(HUB_ID, (f"{name}/*.jsonl",), fetch=files.fetch) / name
        reason = "" if (folder / "test.jsonl").is_file() else "; the hub has no such file"
    except FileNotFoundError as error:
        reason = f"; {error}" if files.fetch else "; not on this machine"
    if reason:
        raise FileNotFoundError(
            f"{_FOLDER}/{name}/test.jsonl: not in the folder of the question sets{reason}. With a network it is "
            f"fetched when the set is named in --tasks; or clone https://huggingface.co/datasets/{HUB_ID} into that "
            "folder."
        )
    return folder


def _lines(files: Files, name: str, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    files.record(f"{_FOLDER}/{name}/{path.name}", path)
    yield from json_rows(path)


def _choice_item(row: dict[str, Any], name: str) -> Item:
    options, index = tuple(row["options"]), row["answer_idx"]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
        raise ValueError(f"item {name}: answer_idx: got {shown(index)}, expected a number from 0 to {len(options) - 1}")
    metadata = row.get("metadata")
    context = (metadata.get("context") or "") if isinstance(metadata, dict) else ""
    return Item(name, row["question"], options, (string.ascii_lowercase[index],), context=context)


def _entity_item(row: dict[str, Any], name: str) -> Item:
    gold = tuple(dict.fromkeys(label.strip() for label in row["labels"] if label.strip()))
    kind = row["entity_type"]
    asked = _ENTITIES.get(kind.lower(), kind)
    question = f"次の文章から、「{asked}」にあたるものをすべて抜き出してください。\n{row['text']}"
    return Item(name, question, (), () if gold == ("none",) else gold, category=kind, kind="entities")


def _similarity_item(row: dict[str, Any], name: str) -> Item:
    question = f"文1: {row['premise']}\n文2: {row['hypothesis']}"
    return Item(name, question, (), (f"{float(row['label']):g}",), kind="similarity")


def _line_item(row: dict[str, Any], name: str) -> Item:
    kind = row["entity_type"]
    asked = _ENTITIES.get(kind.lower(), kind)
    question = f"以下の段落において、{asked}は？\n段落: {row['text']} => {asked}:"
    # the harness splits answers at ", " but no gold label, so that one with ", " in it is never found: nor is it here
    gold = ", ".join(label.strip().replace(", ", ",\u00a0") for label in row["labels"])
    return Item(name, question, (), (gold,), category=kind, kind="text")


def _grade_item(row: dict[str, Any], name: str) -> Item:
    question = f"テキスト1：{row['premise']}\nテキスト2：{row['hypothesis']}\n類似度 (0-5)："
    if row["label"] not in range(len(_GRADES)):
        raise ValueError(f"item {name}: label: got {shown(row['label'])}, expected a whole number from 0 to 5")
    return Item(name, question, _GRADES, (string.ascii_lowercase[int(row["label"])],))


def _numbered(items: list[Item]) -> tuple[Item, ...]:
    times: Counter[str] = Counter()
    found = []
    for item in items:
        times[item.id] += 1
        found.append(replace(item, id=f"{item.id}-{times[item.id]}") if times[item.id] > 1 else item)
    return tuple(found)
