"""Expressions that a model found in a text: how its output is read, and how they are compared with the gold ones.

`parse_entities` reads an output in time proportional to its length and runs none of it. It takes, in this order,

  a flat list of quoted texts, as JSON or Python write it    ["発熱", "咳嗽"]    ['a', 'b']    {"entities": ["a"]}
  a word for nothing at all                                  []    なし    該当なし    none
  what stands between commas or on lines of their own        発熱、咳嗽    - a\\n- b    [発熱, 咳嗽]    答え: 発熱

Every complete list in the output must say the same, as all readings of a letter must: an output with two different ones
is unparsed (None). Without a list a sentence ("。" at its end, a colon, or more than 100 characters between commas) is
no entity, and an output that holds one is unparsed. A list without its end is not read either.

Two scores of one item, both macro-averaged over items:

  exact F1    of the sets of texts, byte for byte (blanks around them removed): what JMED-LLM prints as exact F1
  partial F1  every gold entity is matched with one predicted entity at most, and the other way round, so that the sum
              of overlaps is largest; overlap(g, p) = 2 * longest common run of characters / (characters of g and p),
              after NFKC, lower case and without blanks; precision = sum / predicted, recall = sum / gold

Overlaps are at most 1 and pairs at most min(gold, predicted), so partial F1 never exceeds 1. With nothing to find,
saying so scores 1. Of an output that names more than a thousand entities the first thousand are matched; all of them
count in the precision.

Two published scores, kept for comparison with published tables; for anything new use those above:

  partial F1 of JMED-LLM (sociocom/JMED-LLM@3774a34, src/utils.py)  looks in sets for whole members, never for parts of
             texts, and counts every gold entity as found once one prediction is exactly right: one right answer of four
             gets 1.6 there and 0.4 here
  F1 of JMedBench (nii-nlp/med-eval@9e03013, evaluate_ner.py)  of the first line of an output, split at ", " and
             nowhere else; "none" is an entity like any other, and an empty line says it
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

_MOST_MATCHED = 1000
MOST_CHARACTERS = 1_000_000  # longer outputs are not read
_LONGEST = 100  # characters of an entity that no list marks as one; gold ones have up to 76
_QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’", "「": "」", "『": "』"}
_STRING = re.compile("|".join(rf"{start}((?:[^{end}\\]|\\.)*){end}" for start, end in _QUOTES.items()), re.DOTALL)
_BLANK = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*[,、，]\s*")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NOTHING = {"なし", "無し", "該当なし", "特になし", "該当する表現なし", "ありません", "none", "n/a", "null"}
_NOTHING |= {"no entities", "nothing"}
_COMMA = re.compile(r"(?<![0-9０-９])[,，]|[,，](?![0-9０-９])|、")
_BULLET = re.compile(r"^\s*(?:[-*・•●]+|[(（]?[0-9０-９]{1,3}[.)．）](?![0-9０-９]))\s*")
_LABEL = re.compile(r"^[^:：0-9０-９]{1,20}[:：]\s*")
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_SENTENCE = re.compile(r"[。:：!！?？]|です$|ます$")


def parse_entities(text: str) -> tuple[str, ...] | None:
    """The different entities an output names, in its order; () for an explicit none, None where nothing can be read.

    text  the output after any thoughts were removed; of more than a million characters it is unparsed
    """
    if len(text) > MOST_CHARACTERS:
        return None
    lists, is_cut = _lists(text)
    if lists:
        return lists.pop() if len(lists) == 1 else None
    return None if is_cut else _plain(text)


def _lists(text: str) -> tuple[set[tuple[str, ...]], bool]:
    """The different complete lists in a text, and whether one of quoted texts was cut off by the end of the text.

    A failed attempt goes on where it failed, so every character is looked at a bounded number of times.
    """
    found: set[tuple[str, ...]] = set()
    start = text.find("[")
    while start >= 0:
        entities, place = _list(text, start + 1)
        if place is None:
            return found, True
        if entities is not None:
            found.add(entities)
        start = text.find("[", place)
    return found, False


def _list(text: str, place: int) -> tuple[tuple[str, ...] | None, int | None]:
    """A list whose bracket ends before `place`: its texts and where it ends; None and where it stopped being one.

    (None, None) for a list that does not end.
    """
    entities: list[str] = []
    while True:
        place = _skip(_BLANK, text, place)
        if text.startswith("]", place):
            return _different(entities), place + 1
        if not (string := _STRING.match(text, place)):
            if place == len(text) or text[place] in _QUOTES:
                # no end of this quote up to the end of the text: a further attempt could only run there again
                return None, len(text) if "]" in text[place:] else None
            return None, place
        entities.append(_unescaped(next(group for group in string.groups() if group is not None)))
        place = string.end()
        if separator := _SEPARATOR.match(text, place):
            place = separator.end()
        elif not text.startswith("]", _skip(_BLANK, text, place)):
            return None, None if _skip(_BLANK, text, place) == len(text) else place


def _skip(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return match.end() if match else place


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPED.get(code, code)

    # JSON writes what lies beyond U+FFFF in two halves; one alone is no character, and could not be written to a file
    return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(text: str) -> tuple[str, ...] | None:
    """Entities between commas and on lines; None where a piece is a sentence or nothing is said."""
    text = _FENCE.sub("", text).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
        if not text:
            return ()
    lines = [_LABEL.sub("", _BULLET.sub("", line)) for line in text.splitlines()]
    pieces = [_trimmed(piece) for line in lines for piece in _COMMA.split(line)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) == 1 and pieces[0].lower().rstrip("。.") in _NOTHING:
        return ()
    if not pieces or any(len(piece) > _LONGEST or _SENTENCE.search(piece) for piece in pieces):
        return None
    return _different(pieces)


def _trimmed(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _different(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def exact_f1(gold: Iterable[str], predicted: Iterable[str]) -> float:
    """F1 of two sets of texts; 1 when both are empty."""
    one, two = {text.strip() for text in gold}, {text.strip() for text in predicted}
    return _f1(len(one & two), len(one), len(two))


def published_partial_f1(gold: Iterable[str], predicted: Iterable[str]) -> float:
    """JMED-LLM's partial F1 of one item, up to 2: every gold entity is found as soon as one prediction is a gold one.

    1 where both are empty; its authors divide by zero where there is no gold.
    """
    one, two = set(gold), set(predicted)
    if not one or not two:
        return float(one == two)
    recall, precision = (1.0, len(one) / len(two)) if one & two else (0.0, 0.0)
    return 2 * recall * precision / (recall + precision) if recall else 0.0


def first_line_f1(gold: str, output: str) -> float:
    """JMedBench's F1 of one item: the sets of what stands between ", ", in lower case, on the first line of an output.

    gold  entities joined by ", ", or "none"
    """
    one, two = ({part.strip().lower() for part in text.split(", ")} for text in (gold, _first_line(output) or "none"))
    return _f1(len(one & two), len(one), len(two))


def _first_line(text: str) -> str:
    return text.split("\n")[0].strip()


def partial_f1(gold: Iterable[str], predicted: Iterable[str]) -> float:
    """F1 of the best one-to-one matching by overlap of characters, at most 1; 1 when both are empty.

    Source of the matching: Kuhn, Naval Research Logistics Quarterly 2 (1955) 83-97, as in scipy.optimize.
    """
    one, two = list(dict.fromkeys(map(_normal, gold))), list(dict.fromkeys(map(_normal, predicted)))
    if not one or not two:
        return _f1(0, len(one), len(two))
    overlaps = np.array([[overlap(g, p) for p in two[:_MOST_MATCHED]] for g in one])
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return _f1(float(overlaps[rows, columns].sum()), len(one), len(two))


def overlap(first: str, second: str) -> float:
    """2 * longest common run of characters / characters of both: 1 for equal texts, 0 for none in common."""
    short, long = sorted((first, second), key=len)
    if not short:
        return float(not long)
    low, high = 0, len(short)  # a common run of length n holds one of every length below
    while low < high:
        middle = (low + high + 1) // 2
        if any(piece in long for piece in _runs(short, middle)):
            low = middle
        else:
            high = middle - 1
    return 2 * low / (len(short) + len(long))


def _runs(text: str, length: int) -> Iterator[str]:
    return (text[start : start + length] for start in range(len(text) - length + 1))


def _normal(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def _f1(found: float, gold: int, predicted: int) -> float:
    """2 P R / (P + R) with P = found / predicted and R = found / gold, which is 2 found / (gold + predicted)."""
    return 2 * found / (gold + predicted) if gold + predicted else 1.0
