"""Gold answers as people write them -> letters, where only one reading is possible.

  ["a", "c"]  "ac"  "a,c"  "A、C"  "ａｃ"  [1, 3]  "1,3"  "①"  "アスピリン"  ["アスピリン", "ヘパリン"]

A number is a place counted from 1. In a text, letters may stand together, numbers and choice texts between commas,
blanks or slashes; each entry of a list is one letter, one number or the text of one choice. Texts agree after NFKC,
without regard to case and blanks. A lower-case letter of the item is always that letter, whatever the choices say: it
is the form of the schema. Anything else that can be read in two ways (the blood group "AB" beside choices a and b; "2"
where choice c is "2" or "2.0") is refused.
"""

import difflib
import json
import re
import string
import unicodedata
from collections.abc import Sequence

_SEPARATOR = re.compile(r"[,、;/・\s]+")
_PLACE = re.compile("[0-9]{1,2}")
_SHOWN = 300  # characters
_DECIMAL = re.compile(r"[0-9]+\.[0-9]+")


def read_letters(value: object, choices: Sequence[str], *, in_table: bool = False) -> tuple[str, ...]:
    """The letters, sorted, that a gold answer or a list of prohibited choices means.

    value     as JSON gives it
    in_table  errors name letters as one writes them in a cell, a,b, not as a list in JSON
    Raises ValueError that says what was got and expected, without the name of the field.
    """
    if isinstance(value, list):
        read = [_single(_ways(entry, choices), entry, value, choices, in_table) for entry in value]
        found = [letter for (letter,) in read]
    else:
        found = list(_single(_readings(value, choices), value, value, choices, in_table))
    if len(set(found)) < len(found):
        raise ValueError(f"got {shown(value)}, expected every choice once; drop one of them")
    return tuple(sorted(found))


def shown(value: object) -> str:
    """A value as JSON writes it, which is how users write it: a tuple is a list, texts stand in double quotes.

    Of a very long one only the beginning.
    """
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text)} characters)"


Ways = dict[tuple[str, ...], str]  # letters -> how they are meant


def _single(ways: Ways, entry: object, value: object, choices: Sequence[str], in_table: bool) -> tuple[str, ...]:
    def written(letters: Sequence[str]) -> str:
        return ",".join(letters) if in_table else shown(letters)

    if len(ways) == 1:
        return next(iter(ways))
    alone = entry is value or value == [entry]
    got = shown(value) if alone else f"{shown(entry)} in {shown(value)}"
    if ways:
        meant = " and ".join(f"{how} ({', '.join(letters)})" for letters, how in ways.items())
        clear = " or ".join(map(written, ways))
        raise ValueError(f"got {got}, which is {meant}, expected one meaning; write {clear}")
    last = string.ascii_lowercase[len(choices) - 1]
    hint = ""
    if isinstance(entry, str) and (near := difflib.get_close_matches(entry, choices, n=1)):
        hint = f"; did you mean {shown(near[0])}, choice {string.ascii_lowercase[list(choices).index(near[0])]}?"
    elif str(entry).strip() == "0":
        hint = "; places count from 1"
    raise ValueError(
        f"got {got}, expected letters from a to {last} such as {written(['a'])}, places from 1 to {len(choices)}, or "
        f"texts of the choices{hint}"
    )


def _readings(value: object, choices: Sequence[str]) -> Ways:
    """Every way to read one text or number that is not in a list."""
    ways = _ways(value, choices)
    if not isinstance(value, str):
        return ways
    text = _key(value)
    letters = string.ascii_lowercase[: len(choices)]
    if len(text) > 1 and set(text) <= set(letters) and len(set(text)) == len(text):
        ways.setdefault(tuple(sorted(text)), "letters")
    pieces = [piece for piece in _SEPARATOR.split(unicodedata.normalize("NFKC", value).strip()) if piece]
    if len(pieces) > 1:
        each = [_ways(piece, choices) for piece in pieces]
        if all(each):
            for at in (0, -1):  # every piece in its first way, and in its last
                read = tuple(sorted(letter for one in each for letter in list(one)[at]))
                ways.setdefault(read, "several answers")
    return ways


def _ways(entry: object, choices: Sequence[str]) -> Ways:
    """Every way to read one letter, one place or the text of one choice."""
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        return {}
    letters = string.ascii_lowercase[: len(choices)]
    text = str(entry).strip()
    if len(text) == 1 and text in letters:
        return {(text,): "a letter"}
    ways: Ways = {}
    key = _key(text)
    if len(key) == 1 and key in letters:
        ways[(key,)] = "a letter"
    if _PLACE.fullmatch(key) and 1 <= int(key) <= len(choices):
        ways.setdefault((letters[int(key) - 1],), "a place")
    same = [letter for letter, choice in zip(letters, choices, strict=True) if choice.strip() == text]
    same = same or [letter for letter, choice in zip(letters, choices, strict=True) if _key(choice) == key]
    if ways and not same and _PLACE.fullmatch(key):  # 2 where a choice is 2.0: not its text, and yet not only a place
        same = [letter for letter, choice in zip(letters, choices, strict=True) if _value(choice) == int(key)]
    for letter in same if key else []:
        ways.setdefault((letter,), "the text of a choice")
    return ways


def _value(text: str) -> float | None:
    key = _key(text)
    return float(key) if _DECIMAL.fullmatch(key) else None


def _key(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()
