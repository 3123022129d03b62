"""An exam of the user's: .jsonl with one object a line, .json with an array of such objects, or .csv with a header.

.json  [{"id": ...}, ...], or an object in which one array holds objects: {"title": "...", "items": [{"id": ...}]}
.csv   comma-separated, UTF-8; columns are fields of medjax.data.qa by their names, and the choices: a, b, c ..., or
       choice_a, option_b, 選択肢1. Empty cells are fields left out, and choices that an item does not have. For items
       of kind entities, whose answers are lists, use .json.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medjax.data.decoding import read_text
from medjax.data.exams.rows import csv_rows
from medjax.data.gold import shown
from medjax.data.qa import OPTIONAL, REQUIRED, Item, check_characters, fields, items_of, read_jsonl

ENDINGS = (".jsonl", ".json", ".csv")
_HEAD = 1 << 20  # bytes that hold the first question of an array
_BLANK = re.compile(r"\s*")
_CHOICE = re.compile("(?:(?:choice|option|選択肢)[ _]?([a-z]|[0-9]{1,2})|([a-z]))")


def is_exam_file(name: str) -> bool:
    """Whether a task's name is the path of an exam file, by its ending."""
    return Path(name).suffix.lower() in ENDINGS


def holds_exam(path: Path) -> bool:
    """Whether a file among other data is an exam: a .csv, or a .jsonl or .json whose first object is an item.

    A malformed file is none: whoever reads it says what is wrong.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS or not path.is_file():
        return False
    return ending == ".csv" or _is_item(_first_object(path))


def _first_object(path: Path) -> object:
    """The first line of a .jsonl or .json; of a .json that is one array or object, the first object of its array."""
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8-sig", "ignore").lstrip()
        file.seek(0)
        first = next((line for line in file if line.strip()), b"")
    is_json = path.suffix.lower() == ".json"
    try:
        if is_json and head.startswith("["):
            return json.JSONDecoder().raw_decode(head, _skip(head, 1))[0]
        try:
            row = json.loads(first.removeprefix(b"\xef\xbb\xbf"))
        except json.JSONDecodeError:
            row = json.loads(read_text(path)) if is_json else None
    except (ValueError, RecursionError):
        return None
    arrays = [value for value in row.values() if _holds_objects(value)] if is_json and isinstance(row, dict) else []
    return arrays[0][0] if len(arrays) == 1 and not _is_item(row) else row


def _is_item(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    if isinstance(row.get("choices"), list) and isinstance(row.get("answer"), list):
        return True
    # a row with further fields may be a pair to train on
    needed = {"id", "question", "answer"} <= row.keys() and not row.keys().isdisjoint(("choices", "kind"))
    return needed and row.keys() <= {*REQUIRED, *OPTIONAL}


def read_exam(path: Path) -> list[Item]:
    """The items of an exam file. Raises FileNotFoundError, and ValueError naming file, line, item and field."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an exam: one JSON object a line, a .json or a .csv")
    if path.suffix.lower() == ".jsonl":
        return read_jsonl(path)
    return items_of(_json(path) if path.suffix.lower() == ".json" else _csv(path), path)


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            raise ValueError(
                f"{path}, line {error.lineno}: got a second object, expected one array of objects; name a file with "
                f"one object a line {path.stem}.jsonl"
            ) from None
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error}); close what is open, or drop it") from None
    except RecursionError:
        raise ValueError(f"{path}: got JSON that is nested too deeply, expected an array of objects") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: {error}; write such a number as text") from None
    arrays = _arrays(text, whole)
    if len(arrays) != 1:
        got = f"a JSON {type(whole).__name__}"
        if isinstance(whole, dict):
            got = f"an object {'with several arrays' if arrays else 'without an array'} of objects"
        raise ValueError(
            f"{path}: got {got}, expected an array of objects or an object in which one array holds objects; write the "
            f"questions as [{{...}}, ...], or one a line into {path.stem}.jsonl"
        )
    place, counted, line = arrays[0], 0, 1
    decoder = json.JSONDecoder(object_pairs_hook=fields)
    while text[place := _skip(text, place + 1)] != "]":  # after "[" or ","
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}, line {line}"
        try:
            row, place = decoder.raw_decode(text, place)
            check_characters(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: got {shown(row)[:60]}, expected an object with the fields of a question")
        yield where, row
        place = _skip(text, place)
        if text[place] == "]":
            return


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _arrays(text: str, whole: object) -> list[int]:
    """Where the brackets of the arrays that may be the questions stand in a valid text, those of one name too."""
    place = _skip(text, 0)
    if isinstance(whole, list):
        return [place]
    found: list[int] = []
    decoder = json.JSONDecoder()
    while isinstance(whole, dict) and text[place] != "}" and text[start := _skip(text, place + 1)] != "}":
        _, place = decoder.raw_decode(text, start)  # a name, after "{" or ","
        start = _skip(text, _skip(text, place) + 1)
        value, place = decoder.raw_decode(text, start)
        found += [start] if _holds_objects(value) else []
        place = _skip(text, place)
    return found


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    return match.end() if match else place


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv_rows(path)
    first = next(rows, None)
    if first is None:
        return
    header, where = first
    names = [unicodedata.normalize("NFKC", name).strip().lower() for name in header]
    choices = _choice_columns(names, where)
    known = {name: at for at, name in enumerate(names) if name and at not in choices}
    expected = [name for name in (*REQUIRED, *OPTIONAL) if name != "choices"]
    for name, at in known.items():
        if name not in expected:
            hint = "; separate the columns by commas" if len(names) == 1 else ""
            raise ValueError(
                f"{where}: got the column {shown(header[at])}, expected some of {', '.join(expected)}, and the choices "
                f"in a, b, c ...{hint}"
            )
    if len(known) + len(choices) < sum(map(bool, names)):
        raise ValueError(f"{where}: got a column twice in {', '.join(header)}, expected every column once")
    if missing := [name for name in REQUIRED if name not in known and name != "choices"]:
        raise ValueError(f"{where}: got no column {', '.join(missing)} in {', '.join(header)}, expected one of each")
    for cells, here in rows:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise ValueError(
                    f"{here}: got {len(cells)} columns, expected {len(header)} as in the header; a text that holds a "
                    "comma stands in double quotes"
                )
            for name, cell in zip(names, cells, strict=True):  # numbers are a table's own count of its rows
                if not name and cell.strip() and not cell.strip().isdecimal():
                    raise ValueError(
                        f"{here}: got {shown(cell)} in a column without a name, expected a name in the header; choices "
                        "are a, b, c ..."
                    )
            yield here, _fields_of(cells, known, choices, here)


def _choice_columns(names: list[str], where: str) -> list[int]:
    """Columns of the choices in order. Raises ValueError where one is left out or comes twice."""
    found = {at: match[1] or match[2] for at, name in enumerate(names) if (match := _CHOICE.fullmatch(name))}
    order = sorted(found, key=lambda at: (len(found[at]), found[at]))
    given = [found[at] for at in order]
    count = len(given)
    if given not in (list(string.ascii_lowercase[:count]), [str(number) for number in range(1, count + 1)]):
        raise ValueError(f"{where}: got the choices {', '.join(given)}, expected a, b, c ... without a gap, each once")
    return order


def _fields_of(cells: list[str], known: dict[str, int], choices: list[int], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {name: cells[at].strip() for name, at in known.items() if cells[at].strip()}
    texts = [cells[at].strip() for at in choices]
    while texts and not texts[-1]:
        texts.pop()
    if row.get("kind") == "entities":
        raise ValueError(f"{where}: kind: got entities, expected another kind in a .csv; give its lists in a .json")
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
