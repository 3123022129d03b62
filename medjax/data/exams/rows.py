"""Rows of question sets on disk: where their files lie, and reading them so that every mistake names file and line."""

import contextlib
import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medjax import assets
from medjax.data.decoding import read_text
from medjax.data.qa import Item, json_lines


@dataclass
class Files:
    """Finds the files of question sets and remembers the sha256 of each one read, under the name "set/file".

    fetch  False: only what is on this machine counts, nothing is fetched
    """

    data_dir: str | Path | None = None
    fetch: bool = True
    sha256: dict[str, str] = field(default_factory=dict)
    unpinned: list[str] = field(default_factory=list)

    def find(self, name: str, *files: str) -> list[Path]:
        """Files of a published set, fetched where they are missing. Raises FileNotFoundError when they cannot be."""
        if not self.fetch and not assets.at_hand(name, self.data_dir, files):
            raise FileNotFoundError(
                f"{name}: not on this machine; with a network it is fetched when you name one of its sets in --tasks "
                f"(from https://github.com/{assets.ORIGINS[name].repo})"
            )
        paths = assets.data_files(name, files, self.data_dir)
        for file, path in zip(files, paths, strict=True):
            if self.record(f"{name}/{file}", path) != assets.pins()[name, file][1]:
                self.unpinned.append(f"{name}/{file}")
        return paths

    def own(self, name: str, file: str, how: str) -> Path:
        """A file that only the user can provide: name/file in the folder of the question sets, or file in data_dir.

        how  to get it, one sentence for the FileNotFoundError
        """
        if path := self.own_at_hand(name, file):
            self.record(f"{name}/{file}", path)
            return path
        raise FileNotFoundError(
            f"{name}/{file}: not in the folder of the question sets (--data-dir, MEDJAX_DATA). {how}"
        )

    def own_at_hand(self, name: str, file: str) -> Path | None:
        """Where a file lies that only the user can provide; None where it is missing."""
        folders = [assets.data_folder(name, self.data_dir), Path(self.data_dir) if self.data_dir else None]
        return next((folder / file for folder in folders if folder and (folder / file).is_file()), None)

    def record(self, label: str, path: Path) -> str:
        self.sha256[label] = assets.sha256_file(path)
        return self.sha256[label]


@dataclass(frozen=True)
class Rows:
    """What a source gave: items in file order, demonstrations (None: the items themselves), item id -> why dropped.

    pool_by_authors  the demonstrations are those that the set's authors show, in their order
    """

    items: tuple[Item, ...]
    pool: tuple[Item, ...] | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    pool_by_authors: bool = False


def json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file with one a line, each with where it stands. Raises ValueError naming file and line."""
    for number, row in json_lines(path):
        yield row, f"{path}, line {number}"


def csv_rows(path: Path, separator: str = ",") -> Iterator[tuple[list[str], str]]:
    """The rows of a csv file, each with where it stands: its row and, after texts of several lines, its line.

    Raises ValueError for what is no csv, or no UTF-8.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    number, line = 1, 1
    try:
        for row in rows:
            if row:
                yield row, _row_of(path, number, line)
            number, line = number + 1, rows.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{_row_of(path, number, line)}: {error}; look for a double quote that is not closed, or not doubled in a "
            "text"
        ) from None


def _row_of(path: Path, number: int, line: int) -> str:
    return f"{path}, row {number}" + (f" (line {line})" if line != number else "")


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put file and line before the message of what goes wrong inside."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{where}: {error.args[0]}: missing; this is not the file the set was published with"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def unique(items: Iterable[tuple[Item, str]]) -> tuple[Item, ...]:
    """The items, given with where they stand. Raises ValueError where an id comes again."""
    found: dict[str, str] = {}
    kept = []
    for item, where in items:
        check_new(item.id, where, found)
        kept.append(item)
    return tuple(kept)


def check_new(name: str, where: str, found: dict[str, str]) -> None:
    """Remember where an id stands. Raises ValueError when it was found before."""
    if first := found.get(name):
        raise ValueError(
            f"{where}: id: got {name!r} again (first in {first}), expected every id once; rename one of them"
        )
    found[name] = where


def choice_items(rows: Iterable[tuple[str, list[str], str]], letters: str = "ABCD") -> tuple[Item, ...]:
    """Items of rows subject, [question, choices ..., answer letter], where; ids count within a subject."""
    items: list[Item] = []
    counts: dict[str, int] = {}
    for subject, cells, where in rows:
        if len(cells) != len(letters) + 2:
            raise ValueError(
                f"{where}: got {len(cells)} columns, expected question, {', '.join(letters)}, answer; a text that "
                "holds a comma stands in double quotes"
            )
        question, *choices, answer = cells
        counts[subject] = counts.get(subject, 0) + 1
        name = f"{subject}-{counts[subject]}"
        gold = (answer.strip().lower(),)
        with located(where):
            items.append(Item(id=name, question=question, choices=tuple(choices), answer=gold, category=subject))
    return tuple(items)


def sha256_of_question(item: Item) -> str:
    return hashlib.sha256(item.question.encode()).hexdigest()
