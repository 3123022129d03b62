"""What a model's text says: the letters of its answer, or nothing.

`parse_kasai`   full-width to half-width and lower case; the text is then judged as it stands.
`parse_strict`  a set of letters, or None (unparsed). It reads an answer only where the text says one:

  a line that is nothing but letters     c    (c)    C.    a, c    ａ、ｃ    a と c    **c**    a and c
  a line that is a letter and its text   c. <the text of choice c>
  an announcement                        答え: c    正解は c です。    The answer is (c).    \\boxed{c}

All readings of a text must agree. Prose in which a letter occurs ("a patient ..."), "a or d", letters the item does
not have, letters run together ("ac", which may be a word) and two different answers are unparsed. A <think> block is
removed first; one that never ends leaves nothing after it. For an item that asks for a number the first number counts,
after an announcement if there is one, as text and without thousands separators: "1,234.50 mL" is "1234.50".
"""

import re
import unicodedata

from medjax.data.qa import Item

# the printable ASCII block and the blank; full-width kana cannot be an answer, so they are left alone
_ZEN_TO_HAN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKS = re.compile(r"[*`_]+")
_BULLET = re.compile(r"^[\s>#・•-]+")
_LETTER = r"(?:[(\[「『\"'{<]+\s*)?(?<![A-Za-z])[A-Za-z](?![A-Za-z0-9])(?:\s*[)\]」』\"'}>]+)?"
_SEPARATOR = r"(?:\s*(?:,\s*and\b|and\b|[,、・/;&]|と|および|及び|→|->)\s*|\s+)"
_LIST = re.compile(rf"(?:(?:選択肢|options?|choices?)\s*)?({_LETTER}(?:{_SEPARATOR}{_LETTER})*)", re.IGNORECASE)
_CUE = re.compile(
    r"(?:答え|答|解答|回答|正解|正答|正しい選択肢|正しいもの|正しいの|適切なもの|適切なの)\s*(?:は\s*[:、]?|[:=])\s*"
    r"|\b(?:(?:(?:correct|best|right|final)\s+)+(?:options?|choices?)|answers?)(?:\s+(?:is|are)\b\s*:?|\s*[:=])\s*"
    r"|\\boxed\s*(?=\{)",
    re.IGNORECASE,
)
_BARE_END = re.compile(r"\s*(?:です|である|だ|が正解(?:です)?|が正しい(?:です)?)?\s*[.。:!]?\s*")
_SENTENCE_END = re.compile(
    r"\s*(?:$|[。!」』)\]\"'}]|\.(?![A-Za-z0-9])|(?:です|である|だ)(?=[。.!\s」』)]|$)|で(?:あり)?[、,]"
    r"|,?\s*(?:because|since)\b)",
    re.IGNORECASE,
)
# a minus sign only where no word or number stands before it: "3-5" holds a 3
_NUMBER = re.compile(r"(?<![A-Za-z0-9.])(?:(?<![^\s:=(は])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def parse_kasai(text: str) -> str:
    """Half-width and lower case, as IgakuQA's scripts store a prediction. Trims nothing: "a, c" stays wrong."""
    return text.translate(_ZEN_TO_HAN).lower()


def parse_strict(text: str, item: Item) -> tuple[str, ...] | None:
    """The letters a text answers with, sorted (in the order given for an `ordered` item), or one number text.

    None when it says nothing that can be read without guessing; see the docstring of this module.
    """
    text = _MARKS.sub("", unicodedata.normalize("NFKC", _without_thoughts(text)).replace("−", "-")).strip()
    readings = _numbers(text) if item.is_numeric else _letter_lists(text, item)
    if len(readings) != 1:
        return None
    (answer,) = readings
    return answer if item.is_numeric or set(answer) <= set(item.letters) else None


def _without_thoughts(text: str) -> str:
    text = _THINK.sub("", text)
    # some chat templates open the block themselves, so that only its end is generated
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _numbers(text: str) -> set[tuple[str, ...]]:
    spots = [cue.end() for cue in _CUE.finditer(text)] or [0]
    found = (_NUMBER.search(text, spot) for spot in spots)
    return {(number[0].replace(",", ""),) for number in found if number}


def _letter_lists(text: str, item: Item) -> set[tuple[str, ...]]:
    readings = set()
    for line in text.splitlines():
        readings.add(_read(_BULLET.sub("", line), item, _BARE_END, whole=True))
        readings.update(_read(line[cue.end() :], item, _SENTENCE_END, whole=False) for cue in _CUE.finditer(line))
    return {reading for reading in readings if reading}


def _read(text: str, item: Item, end: re.Pattern[str], *, whole: bool) -> tuple[str, ...] | None:
    match = _LIST.match(text)
    if not match:
        return None
    letters = re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", match[1].lower())
    rest = text[match.end() :]
    ends = end.fullmatch(rest) if whole else end.match(rest)
    if not ends and not (len(letters) == 1 and _is_choice_text(rest, letters[0], item)):
        return None
    return tuple(dict.fromkeys(letters)) if item.ordered else tuple(sorted(set(letters)))


def _is_choice_text(text: str, letter: str, item: Item) -> bool:
    if letter not in item.letters:
        return False
    return _plain(text) == _plain(item.choices[item.letters.index(letter)])


def _plain(text: str) -> str:
    """Letters, digits and signs only, so that brackets, blanks and a closing です do not matter."""
    text = unicodedata.normalize("NFKC", text).casefold().strip(" .。:、,()「」-")
    return re.sub(r"[\s*`_]+", "", text.removesuffix("です").rstrip(" .。)"))
