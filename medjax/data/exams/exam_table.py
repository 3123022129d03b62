"""An exam of the user's as a table: .csv separated by commas, semicolons or tabs, .tsv by tabs; UTF-8, with a header.

Columns are fields of medjax.data.qa by their names or as Japanese tables call them, and the choices: a, b, c ..., or
choice_a, option_b, 選択肢1; width and case do not matter. Empty cells are fields left out, and choices that an item
does not have. Columns of remarks (備考, notes ...) are not read. For items of kind entities, whose answers are lists,
there is .json.
"""

import csv
import difflib
import io
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medjax.data.decoding import read_text
from medjax.data.exams.rows import csv_rows
from medjax.data.gold import shown
from medjax.data.qa import OPTIONAL, REQUIRED

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_FIELDS = tuple(name for name in (*REQUIRED, *OPTIONAL) if name != "choices")
# as Japanese tables call them; 回答 is left out: it may be what a candidate wrote
_JAPANESE = {
    "id": ("問題番号", "設問番号", "問題id", "番号", "no", "no."),
    "question": ("問題文", "設問文", "問題", "設問"),
    "answer": ("正解", "解答", "正答", "答え"),
    "points": ("配点",),
    "category": ("分野", "科目"),
    "prohibited": ("禁忌", "禁忌肢"),
    "context": ("症例", "症例文"),
    "image": ("画像",),
    "explanation": ("解説",),
}
_FIELD_OF = {name: name for name in _FIELDS} | {name: field for field, names in _JAPANESE.items() for name in names}
# what editors write beside a question; no field, whatever it says
_REMARKS = ("備考", "メモ", "出典", "remark", "remarks", "note", "notes", "comment", "comments")
_CHOICE = re.compile("(?:(?:choice|option|選択肢|選択枝)[ _-]?([a-z]|[0-9]{1,2})|([a-z]))")


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a table, each with where it stands. Raises ValueError naming file, row and column."""
    separator = _separator(path)
    rows = csv_rows(path, separator)
    first = next(rows, None)
    if first is None:
        return
    header, where = first
    names = [_plain(name) for name in header]
    choices = _choice_columns(header, names, where)
    separators = "tabs, or call the file .csv" if path.suffix.lower() == ".tsv" else "commas, semicolons or tabs"
    known = _fields(header, names, choices, where, separators)
    for cells, here in rows:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise ValueError(
                    f"{here}: got {len(cells)} columns, expected {len(header)} as in the header; a text that holds a "
                    f"{_SEPARATORS[separator]} stands in double quotes"
                )
            for name, cell in zip(names, cells, strict=True):  # numbers are a table's own count of its rows
                if not name and cell.strip() and not cell.strip().isdecimal():
                    raise ValueError(
                        f"{here}: got {shown(cell)} in a column without a name, expected a name in the header; choices "
                        "are a, b, c ..."
                    )
            yield here, _fields_of(cells, known, choices, here)


def _separator(path: Path) -> str:
    """The one that cuts the header into the most columns that are known; the comma where all are alike."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    text = read_text(path)

    def known(separator: str) -> int:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            header = [_plain(name) for name in next(filter(None, rows), [])]
        except csv.Error:
            return 0
        return sum(name in _FIELD_OF or _CHOICE.fullmatch(name) is not None for name in header)

    return max(_SEPARATORS, key=known)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).lower().split())


def _fields(
    header: Sequence[str], names: Sequence[str], choices: Sequence[int], where: str, separators: str
) -> dict[str, int]:
    """Field -> its column. Raises ValueError for a column that is not known, comes twice or is missing."""
    got = f"{where}: got the columns {', '.join(' '.join(name.split()) for name in header if name.strip())}"
    known: dict[str, int] = {}
    for at, name in enumerate(names):
        if not name or at in choices or name in _REMARKS:
            continue
        field = _FIELD_OF.get(name)
        if field is None:
            near = difflib.get_close_matches(name, _FIELD_OF, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; rename or drop it"
            if len(names) == 1:
                hint = f"; separate the columns by {separators}"
            raise ValueError(
                f"{got}, of which {shown(header[at])} is not known, expected some of {', '.join(_FIELDS)}, and the "
                f"choices in a, b, c ... or 選択肢1, 選択肢2 ...{hint}"
            )
        if field in known:
            both = f"{shown(header[known[field]])} and {shown(header[at])}"
            raise ValueError(f"{got}, of which {both} both mean {field}, expected every column once; drop one of them")
        known[field] = at
    if missing := [name for name in REQUIRED if name not in known and name != "choices"]:
        also = {name: f"{name} ({', '.join(_JAPANESE[name])})" for name in missing}
        raise ValueError(f"{got}, expected one for {' and one for '.join(also.values())} too; add what is missing")
    return known


def _choice_columns(header: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Columns of the choices in order. Raises ValueError where one is left out or comes twice."""
    found = {at: match[1] or match[2] for at, name in enumerate(names) if (match := _CHOICE.fullmatch(name))}
    order = sorted(found, key=lambda at: (len(found[at]), found[at]))
    given = [found[at] for at in order]
    count = len(given)
    if given not in (list(string.ascii_lowercase[:count]), [str(number) for number in range(1, count + 1)]):
        raise ValueError(
            f"{where}: got the choices {', '.join(header[at].strip() for at in order)}, expected a, b, c ... (or 1, 2, "
            "3 ... after 選択肢) without a gap, each once"
        )
    return order


def _fields_of(cells: list[str], known: dict[str, int], choices: list[int], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {name: cells[at].strip() for name, at in known.items() if cells[at].strip()}
    texts = [cells[at].strip() for at in choices]
    while texts and not texts[-1]:
        texts.pop()
    if row.get("kind") == "entities":
        raise ValueError(f"{where}: kind: got entities, expected another kind in a table; give its lists in a .json")
    row["choices"] = texts
    if row.get("kind") == "text":
        row.setdefault("answer", [])
    if "points" in row:
        row["points"] = _points(row["points"], where)
    return row


def _points(text: str, where: str) -> int | float:
    try:
        number = float(text.replace("_", " "))  # Python alone reads 1_0 as 10
    except ValueError:
        raise ValueError(f"{where}: points: got {shown(text)}, expected a number") from None
    return int(number) if number.is_integer() else number
