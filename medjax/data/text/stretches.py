"""Training data as stretches of text of bounded length, whatever their form: for work that must never hold it whole.

A record longer than a stretch comes in several that lap over each other, so that what is looked for lies whole in one
of them. Text files are read stretch by stretch; other files as `records.read` reads them, one record (of JSON lists,
one file) at a time. What training refuses is read, too: an exam (data.exams.own_exam: .jsonl, .json, .csv, .tsv) item
by item, and rows with choices in any other form as all text in them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from medjax.data.decoding import TABLES
from medjax.data.exams.own_exam import holds_exam, read_exam
from medjax.data.text.records import Passage, Record, read

LONGEST = 1 << 19  # characters of a stretch


class Stretch(NamedTuple):
    """A part of a record.

    record, where  its id, and file and line
    start          of the stretch in the record, characters
    fresh          characters that no earlier stretch held
    done           what was read of all files after it, bytes; of files with more than text about
    """

    record: str
    where: str
    text: str
    start: int
    fresh: int
    done: int


def size_of(files: Iterable[Path]) -> int:
    """Bytes of files and of all in folders."""
    inside = (part for file in files for part in ([file] if file.is_file() else file.rglob("*")))
    return sum(part.stat().st_size for part in inside if part.is_file())


def stretches(files: Iterable[Path], *, lap: int, split: str = "train", longest: int = LONGEST) -> Iterator[Stretch]:
    """Read files, as `records.find_files` gives them, in order.

    lap      characters that two stretches of a record share, fewer than `longest`
    split    of folders that tensorflow-datasets wrote

    Raises ValueError naming file, line and field for what cannot be read.
    """
    before = 0
    for file in files:
        size, done = size_of([file]), 0
        pieces = _of_text(file, lap, longest) if file.suffix == ".txt" else _of_records(file, lap, longest, split)
        for record, where, start, text, fresh in pieces:
            done += len(text[len(text) - fresh :].encode("utf-8", "surrogatepass"))
            yield Stretch(record, where, text, start, fresh, before + min(done, size))
        before += size


def _of_text(file: Path, lap: int, longest: int) -> Iterator[tuple[str, str, int, str, int]]:
    empty, start, kept = True, 0, ""
    name, where = f"{file.name}:1", f"{file}, record 1"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            while fresh := lines.read(longest - len(kept)):
                empty = empty and not fresh.strip()
                text = kept + fresh
                yield name, where, start, text, len(fresh)
                kept = text[len(text) - lap :] if len(text) > lap else text
                start += len(text) - len(kept)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got bytes that are not UTF-8 ({error.reason}); save the file as UTF-8.") from None
    if empty:
        raise ValueError(f"{file}: got no records, expected at least one; leave the file out, or fill it.")


def _of_records(file: Path, lap: int, longest: int, split: str) -> Iterator[tuple[str, str, int, str, int]]:
    records: Iterable[Record] = _exam(file) if holds_exam(file) else read([file], split=split, exams=True)
    for record in records:
        text = "\n".join(part for part in record.texts if part)
        reached = 0
        while reached < len(text):
            start = max(0, reached - lap)
            part = text[start : start + longest]
            yield record.id, record.where, start, part, start + len(part) - reached
            reached = start + len(part)


def _exam(file: Path) -> Iterator[Record]:
    try:
        items = read_exam(file)
    except ValueError as error:
        if file.suffix.lower() not in TABLES:
            raise
        raise ValueError(f"{error} (a {file.suffix.lower()} is read as an exam; write other data as .jsonl)") from None
    for item in items:
        text = "\n".join(part for part in (item.context, item.question, *item.choices, item.explanation) if part)
        yield Passage(item.id, f"{file}, item {item.id}", text)
