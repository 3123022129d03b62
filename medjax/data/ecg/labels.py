"""Labels of records from a CSV file: a column that names the record, and a column of numbers for each label.

  id,low_ef,ef             or   path,low_ef,ef
  E07509,1,31.5                 georgia/E07509.hea,1,31.5
  E07510,,                      georgia/E07510,yes,

A cell is a number, a word for 1 or 0 (true, yes, positive; false, no, negative), or empty where the label is not known.
Ages as privacy hides them (">89") are read as data.ecg.readers.demographics reads them, in columns whose name begins
with "age". Other text is left unknown and counted; a column of nothing else is an error.
"""

import csv
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from medjax.data.ecg.readers.demographics import age_in_years

_KEYS = ("id", "path", "file", "record")
_UNKNOWN = {"", "nan", "na", "n/a", "none", "null", "unknown", "?", "-"}
_WORDS = dict.fromkeys(("true", "yes", "y", "positive", "pos"), 1.0)
_WORDS |= dict.fromkeys(("false", "no", "n", "negative", "neg"), 0.0)
_SHOWN = 10


@dataclass
class Labels:
    """A label file, read.

    key      the column that names records; by_path: it holds paths, else ids
    names    of the labels
    values   [lines, labels] float64, NaN where not known
    keys     of each line
    lines    number of each line in the file
    strange  label -> how many cells hold text that is no number, and the first: "line 7: 'maybe'"
    """

    path: Path
    key: str
    by_path: bool
    names: tuple[str, ...]
    keys: list[str]
    lines: list[int]
    values: np.ndarray
    strange: dict[str, tuple[int, str]]


@dataclass
class Match:
    """Which records the labels met.

    columns    label -> float64 [records], NaN where not known
    labelled   records that got a line
    unknown    keys of lines whose record is not there
    ambiguous  keys of lines that fit several records of the same id; they were left unlabelled
    """

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    labelled: int = 0
    unknown: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def read_labels(path: str | Path, columns: Sequence[str] = ()) -> Labels:
    """Read a label file in UTF-8.

    columns  labels to take; none: all columns but the key

    Raises FileNotFoundError, or ValueError naming file, line and column: no key, a key without a name or twice with
    different labels, a column that is not there or holds no number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a CSV file of labels; correct the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not CSV in UTF-8 ({error}); save it as CSV UTF-8.") from None
    lower = [name.lower() for name in header]
    key = next((lower.index(name) for name in _KEYS if name in lower), None)
    if key is None:
        raise ValueError(
            f"{path}, line 1: got the columns {', '.join(header) or 'none'}, expected one of {', '.join(_KEYS)} to "
            "name the record; rename it."
        )
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{path}, line 1: got the column {twice[0]} twice, expected each once; rename one.")
    names = tuple(columns) or tuple(name for number, name in enumerate(header) if number != key and name)
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"{path}: got no column {missing[0]}, expected one of {', '.join(header)}; correct it.")
    labels = Labels(path, header[key], lower[key] in ("path", "file"), names, [], [], np.empty((0, len(names))), {})
    _fill(labels, rows, key, [header.index(name) for name in names], len(header))
    return labels


def _fill(labels: Labels, rows: list[tuple[int, list[str]]], key: int, at: list[int], width: int) -> None:
    values = np.full((len(rows), len(at)), np.nan)
    seen: dict[str, int] = {}
    known: Counter[str] = Counter()
    for number, (line, row) in enumerate(rows):
        where = f"{labels.path}, line {line}"
        if len(row) != width:
            raise ValueError(f"{where}: got {len(row)} cells, expected {width}, as many as the header has; correct it.")
        name = row[key].strip()
        if not name:
            raise ValueError(f"{where}, {labels.key}: got nothing, expected the record's name; fill it in.")
        for column, (label, place) in enumerate(zip(labels.names, at, strict=True)):
            value = _number(row[place].strip(), label)
            if value is None:
                count, first = labels.strange.get(label, (0, f"line {line}: {row[place].strip()!r}"))
                labels.strange[label] = count + 1, first
            else:
                values[number, column] = value
                known[label] += value == value
        if (before := seen.setdefault(name, number)) != number:
            differ = [n for n, a, b in zip(labels.names, values[before], values[number], strict=True) if a != b == b]
            if differ:
                raise ValueError(
                    f"{where}, {differ[0]}: got another value for {name} than in line {labels.lines[before]}, expected "
                    "one line a record; correct or remove one."
                )
        labels.keys.append(name)
        labels.lines.append(line)
    if wordy := [label for label in labels.strange if not known[label]]:
        raise ValueError(
            f"{labels.path}, {labels.strange[wordy[0]][1]}: got no number in the column {wordy[0]}, expected numbers, "
            "yes or no; name the columns to take with --label_columns."
        )
    labels.values = values


def _number(text: str, label: str) -> float | None:
    """The number that a cell means, NaN where it is not known, None for any other text."""
    word = text.lower()
    if word in _UNKNOWN:
        return math.nan
    if word in _WORDS:
        return _WORDS[word]
    try:
        value = float(word)
    except ValueError:
        return age_in_years(text)[0] if label.lower().startswith("age") else None
    return value if math.isfinite(value) else None


def match(
    labels: Labels,
    ids: Sequence[str],
    sources: Sequence[str],
    *,
    plain_ids: Sequence[str] = (),
    root: Path | None = None,
) -> Match:
    """Give each record its line.

    ids, sources  of the records, sources relative to root, with "/"
    plain_ids     what the files call the records, where ids were made unique
    root          folder of the sources: paths of the label file that lead below it are understood

    Raises ValueError naming both lines where two name one record, in two spellings, and differ.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, (name, source) in enumerate(zip(ids, sources, strict=True)):
        keys = _path_keys(source) if labels.by_path else {name, *plain_ids[place : place + 1]}
        for key in keys:
            places[key].append(place)
    found = Match({name: np.full(len(ids), np.nan) for name in labels.names})
    met: dict[int, int] = {}  # record -> the first line that named it
    for number, key in enumerate(labels.keys):
        names = _path_keys_of(key, labels.path, root) if labels.by_path else (key,)
        at = next((places[name] for name in names if name in places), [])
        if not at:
            found.unknown.append(key)
        elif len(at) > 1 and not labels.by_path:
            found.ambiguous.append(key)
        else:  # a file of several records labels them all
            for name, value in zip(labels.names, labels.values[number], strict=True):
                if value == value:
                    column = found.columns[name]
                    if differ := [place for place in at if column[place] == column[place] and column[place] != value]:
                        _refuse_second(labels, name, number, met[differ[0]], ids[differ[0]])
                    column[at] = value
            for place in at:
                met.setdefault(place, number)
    found.labelled = len(met)
    return found


def read_code_labels(texts: Sequence[str]) -> dict[str, frozenset[str]]:
    """Label -> codes, of texts as "lvh=164873001|Left ventricular hypertrophy".

    Raises ValueError for a text without a name or a code, and for a name given twice.
    """
    found: dict[str, frozenset[str]] = {}
    for text in texts:
        name, _, codes = text.partition("=")
        meant = frozenset(_plain_code(code) for code in codes.split("|") if code.strip())
        if not name.strip() or not meant or name.strip() in found:
            raise ValueError(
                f"code_labels: got {text!r}, expected NAME=CODE or NAME=CODE|CODE, each name once; correct it."
            )
        found[name.strip()] = meant
    return found


def code_columns(labels: Mapping[str, frozenset[str]], codes: Iterable[Sequence[str]]) -> dict[str, np.ndarray]:
    """Label -> float64 [records]: 1 where a record has one of the label's codes, 0 where it has others only, NaN where
    it has none at all.

    labels  as read_code_labels gives them;  codes  of each record
    """
    plain = [{_plain_code(code) for code in of} for of in codes]
    return {
        name: np.array([float(not meant.isdisjoint(of)) if of else math.nan for of in plain], np.float64)
        for name, meant in labels.items()
    }


def _plain_code(code: str) -> str:
    return code.strip().rstrip(".").casefold()


def _refuse_second(labels: Labels, label: str, number: int, before: int, record: str) -> None:
    raise ValueError(
        f"{labels.path}, line {labels.lines[number]}, {label}: got another value for the record {record}, called "
        f"{labels.keys[number]!r} here and {labels.keys[before]!r} in line {labels.lines[before]}, expected one line a "
        "record; correct or remove one."
    )


def _path_keys_of(text: str, file: Path, root: Path | None) -> tuple[str, ...]:
    """What a path of the label file may be called: as it stands, and as seen from its own folder."""
    path = Path(text).expanduser()
    whole = Path(os.path.abspath(file.parent / path))
    base = Path(os.path.abspath(root)) if root else whole
    below = [whole.relative_to(base).as_posix()] if whole.is_relative_to(base) else []
    return (PurePosixPath(path.as_posix()).as_posix(), *below)


def _path_keys(source: str) -> set[str]:
    """A source with and without its ending: a record of two files may be called by either, or by neither."""
    path = PurePosixPath(source)
    bare = path.with_suffix("")
    return {str(path), str(bare), *(f"{bare}{ending}" for ending in (".hea", ".mat", ".dat"))}
