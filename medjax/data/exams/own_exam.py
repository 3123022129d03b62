"""An exam of the user's: .jsonl with one object a line, .json with an array of such objects, or a table.

.json  [{"id": ...}, ...], or an object in which one array holds objects: {"title": "...", "items": [{"id": ...}]}
.csv   a table with a header (medjax.data.exams.exam_table); .tsv: the same, separated by tabs
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medjax.data.decoding import TABLES, read_text
from medjax.data.exams.exam_table import table_rows
from medjax.data.gold import shown
from medjax.data.qa import OPTIONAL, REQUIRED, Item, check_characters, fields, items_of, read_jsonl

ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_HEAD = 1 << 20  # bytes that hold the first question of an array
_BLANK = re.compile(r"\s*")


def is_exam_file(name: str) -> bool:
    """Whether a task's name is the path of an exam file, by its ending."""
    return Path(name).suffix.lower() in ENDINGS


def holds_exam(path: Path) -> bool:
    """Whether a file among other data is an exam: a .csv or .tsv, or a .jsonl or .json whose first object is an item.

    A malformed file is none: whoever reads it says what is wrong.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS or not path.is_file():
        return False
    return ending in TABLES or _is_item(_first_object(path))


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
    if not isinstance(row, dict) or not row.keys() <= {*REQUIRED, *OPTIONAL}:
        return False  # with further fields it may be a pair to train on, or an exam in another form
    if isinstance(row.get("choices"), list) and isinstance(row.get("answer"), list):
        return True
    return {"id", "question", "answer"} <= row.keys() and not row.keys().isdisjoint(("choices", "kind"))


def read_exam(path: Path) -> list[Item]:
    """The items of an exam file. Raises FileNotFoundError, and ValueError naming file, line, item and field."""
    if not path.is_file():
        form = "a table" if path.suffix.lower() in TABLES else "one JSON object a line, a .json, .csv or .tsv"
        raise FileNotFoundError(
            f"{path}: got {'a folder' if path.is_dir() else 'no such file'}, expected an exam: {form}; correct the path"
        )
    if path.suffix.lower() == ".jsonl":
        return read_jsonl(path)
    return items_of(_json(path) if path.suffix.lower() == ".json" else table_rows(path), path)


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
