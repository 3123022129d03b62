"""What a model's text says: the letters of its answer, or nothing.

`parse_answer`  by the kind of the item: letters and numbers as below, a similarity as a number, entities by
                medjax.eval.entities, a free text as it stands; after reasoning what follows the last "答え:".
`parse_kasai`   full-width to half-width and lower case; the text is then judged as it stands.
`parse_last`    after reasoning: the last answer that is announced, since reasoning names others before.
`parse_strict`  a set of letters, or None (unparsed). It reads an answer only where the text says one:

  a line that is nothing but letters     c    (c)    C.    a, c    ａ、ｃ    a と c    **c**    a and c
  a line that is a letter and its text   c. <the text of choice c>
  an announcement                        答え: c    正解は c です。    The answer is (c).    \\boxed{c}

All readings of a text must agree. Prose in which a letter occurs ("a patient ..."), "a or d", "the answer is a/d",
letters the item does not have, letters run together ("ac", which may be a word), a letter with the text of another
choice, and two different answers are unparsed.
What is announced as wrong ("不正解は a", "The incorrect answer is a") is not read. Thoughts (<think>, <thinking>,
<reasoning>) are removed first by `without_thoughts`; those that never end leave nothing after them. For an item that
asks for a number the first number counts, after an announcement if there is one, as text and without thousands
separators: "1,234.50 mL" is "1234.50". Every function takes time that is linear in the length of the text.
"""

import re
import unicodedata

from medjax.data.qa import Item
from medjax.eval.entities import parse_entities

# the printable ASCII block and the blank; full-width kana cannot be an answer, so they are left alone
_ZEN_TO_HAN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}

_TAG = re.compile(r"<(/?)(think|thinking|reasoning)\s*>", re.IGNORECASE)
_MARKS = re.compile(r"[*`_]+")
_DASH = re.compile(r"^-+(?:\s+|(?![\s0-9.]))")  # "c - text", but the sign of "-40" stays
_BULLET = re.compile(r"^[\s>#・•-]+")
_LETTER = r"(?:[(\[「『\"'{<]+\s*)?(?<![A-Za-z])[A-Za-z](?![A-Za-z0-9])(?:\s*[)\]」』\"'}>]+)?"
_JOIN = r"(?:\s*(?:,\s*and\b|and\b|[,、・;&]|と|および|及び|→|->{})\s*|\s+)"
_LETTERS = r"(?:(?:選択肢|options?|choices?)\s*)?({}(?:{}{})*)"
_FIRST = re.compile(_LETTERS.format(_LETTER, "(?!)", ""), re.IGNORECASE)
# a line "a/c" lists letters, but "the answer is a/c" leaves open which
_LIST = re.compile(_LETTERS.format(_LETTER, _JOIN.format("|/"), _LETTER), re.IGNORECASE)
_ANNOUNCED = re.compile(_LETTERS.format(_LETTER, _JOIN.format(""), _LETTER), re.IGNORECASE)
_CUE = re.compile(
    r"(?:答え|答|解答|回答|正解|正答|正しい選択肢|正しいもの|正しいの|適切なもの|適切なの)\s*(?:は\s*[:、]?|[:=])\s*"
    r"|\b(?:(?:(?:correct|best|right|final)\s+){1,4}(?:options?|choices?)|answers?)(?:\s+(?:is|are)\b\s*:?|\s*[:=])\s*"
    r"|\\boxed\s*(?=\{)",
    re.IGNORECASE,
)
# right before a cue: it announces what is not the answer
_DENIAL = re.compile(
    r"(?:[不非誤]|(?:誤った|誤りの|誤っている|誤りである|間違った|間違いの|間違っている|不適切な|不正確な|(?<!間違い)ない)"
    r"|(?:\b(?:incorrect|wrong|false|inaccurate|invalid|worst|least|not|non)|n['’]t)[\s-]+(?:(?:the|an?|correct|right|best|final)\s+)*)$",
    re.IGNORECASE,
)
_LAST_CUE = re.compile(
    r"^[ \t\u3000*#>_]*(?:最終的な)?(?:答え|回答|(?:final )?answer)[*_]*[ \t\u3000]*[:：][*_]*",
    re.IGNORECASE | re.MULTILINE,
)
_DENIAL_REACH = 80  # characters before a cue
_ANSWER_REACH = 4000  # characters after a cue: no choice is longer
_BARE_END = re.compile(r"\s*(?:です|である|だ|が正解(?:です)?|が正しい(?:です)?)?\s*[.。:!]?\s*")
_SENTENCE_END = re.compile(
    r"\s*(?:$|[。!」』)\]\"'}]|\.(?![A-Za-z0-9])|(?:です|である|だ)(?=[。.!\s」』)]|$)|で(?:あり)?[、,]"
    r"|,?\s*(?:because|since)\b)",
    re.IGNORECASE,
)
# a minus sign only where no word or number stands before it: "3-5" holds a 3
_NUMBER = re.compile(r"(?<![A-Za-z0-9.])(?:(?<![^\s:=(は])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def parse_kasai(text: str) -> str:
    """Half-width and lower case, as IgakuQA's scripts store a prediction. Trims nothing: "a, c" stays wrong."""
    return text.translate(_ZEN_TO_HAN).lower()


def parse_answer(text: str, item: Item, *, reasoned: bool = False) -> tuple[str, ...] | None:
    """What a text answers, in the form of `Item.answer`; None where nothing can be read.

    reasoned  the text is reasoning that ends in an answer
    """
    if item.kind in ("choice", "number", "similarity"):
        return (parse_last if reasoned else parse_strict)(text, item)
    said: str | None = without_thoughts(text)
    if reasoned:
        said = _after_cue(said or "")
    if not said or not said.strip():
        return None
    return parse_entities(said) if item.kind == "entities" else (said.strip(),)


def _after_cue(text: str) -> str | None:
    """What follows the last line that opens with "答え:" or "Answer:"; None where there is no such line."""
    cues = list(_LAST_CUE.finditer(text))
    return text[cues[-1].end() :] if cues else None


def parse_strict(text: str, item: Item) -> tuple[str, ...] | None:
    """The letters a text answers with, sorted (in the order given for an `ordered` item), or one number text.

    None when it says nothing that can be read without guessing; see the docstring of this module.
    """
    readings = _readings(text, item, reasoned=False)
    return _checked(readings[0], item) if len(set(readings)) == 1 else None


def parse_last(text: str, item: Item) -> tuple[str, ...] | None:
    """The answer a text ends with, in the form of `parse_strict`.

    It is the last that is announced; letters, not numbers, may also stand on the last line by themselves where nothing
    is announced, and the line before is no such line.
    """
    readings = _readings(text, item, reasoned=True)
    return _checked(readings[-1], item) if readings else None


def _readings(text: str, item: Item, *, reasoned: bool) -> list[tuple[str, ...]]:
    """Every answer that the text says, in its order."""
    text = _MARKS.sub("", _normal(without_thoughts(text))).strip()
    return _letter_lists(text, item, reasoned) if item.kind == "choice" else _numbers(text, reasoned)


def _checked(answer: tuple[str, ...], item: Item) -> tuple[str, ...] | None:
    return answer if item.kind != "choice" or set(answer) <= set(item.letters) else None


def without_thoughts(text: str) -> str:
    """The text without its thoughts: blocks of <think>, <thinking> or <reasoning>, of which one may never end.

    Some chat templates open the block themselves, so that only its end is generated: what stands before it goes too.
    """
    kept: list[str] = []
    start, inside = 0, ""
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if tag[1]:
            if inside in ("", name):
                kept, start, inside = kept if inside else [], tag.end(), ""
        elif not inside:
            kept.append(text[start : tag.start()])
            inside = name
    if not inside:
        kept.append(text[start:])
    left = "".join(kept)
    return left if left == text else left.strip()


def open_thought(text: str) -> str:
    """The tag of the thoughts in which a text ends, such as "think"; "" where there are none or they have ended."""
    inside = ""
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        inside = inside or name if not tag[1] else "" if inside == name else inside
    return inside


def _normal(text: str) -> str:
    # NFKC leaves the minus sign alone, which is not the one of a keyboard
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def _cues(text: str) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
    """Announcements of the answer, and of what is not the answer."""
    found: tuple[list[re.Match[str]], list[re.Match[str]]] = ([], [])
    for cue in _CUE.finditer(text):
        found[bool(_DENIAL.search(text, max(0, cue.start() - _DENIAL_REACH), cue.start()))].append(cue)
    return found


def _numbers(text: str, reasoned: bool) -> list[tuple[str, ...]]:
    cues, denied = _cues(text)
    spots = [cue.end() for cue in cues] or ([] if denied or reasoned else [0])
    ends = [*spots[1:], len(text)]
    # up to the next announcement, where that number is read
    found = [_NUMBER.search(text, spot, end) for spot, end in zip(spots, ends, strict=False)]
    return [(number[0].replace(",", ""),) for number in found if number]


def _letter_lists(text: str, item: Item, reasoned: bool) -> list[tuple[str, ...]]:
    readings: list[tuple[str, ...] | None] = []
    lists_wrong_ones = False  # after a line "不正解:", up to the next announcement
    announced = False  # whether the line before ends in an announcement
    alone: list[tuple[str, ...] | None] = [None, None]  # what every line says by itself
    for line in filter(str.strip, text.splitlines()):
        cues, denied = _cues(line)
        if cues:
            lists_wrong_ones = False
        elif denied and not line[denied[-1].end() :].strip():
            lists_wrong_ones = True
        alone.append(None if lists_wrong_ones else _read(_BULLET.sub("", line), item, whole=True))
        if announced or not reasoned:
            readings.append(alone[-1])
        readings += [_read(line[cue.end() : cue.end() + _ANSWER_REACH], item, whole=False) for cue in cues]
        announced = bool(cues) and not line[cues[-1].end() :].strip()
    # reasoning goes through the choices line by line: what it ends with is an answer, a list of them is none
    if reasoned and not any(readings) and not alone[-2]:
        readings = alone[-1:]
    return [reading for reading in readings if reading]


def _read(text: str, item: Item, *, whole: bool) -> tuple[str, ...] | None:
    # before lists of letters, since a choice may begin with one: "b B型肝炎"
    if first := _FIRST.match(text):
        (letter,), after = _letters(first), text[first.end() :]
        if _is_choice_text(after, letter, item):
            return (letter,)
        # it names one choice and writes another
        if any(len(item.choices[i]) > 1 and _is_choice_text(after, a, item) for i, a in enumerate(item.letters)):
            return None
    match = (_LIST if whole else _ANNOUNCED).match(text)
    if not match or not (_BARE_END.fullmatch if whole else _SENTENCE_END.match)(text[match.end() :]):
        return None
    letters = _letters(match)
    return tuple(dict.fromkeys(letters)) if item.ordered else tuple(sorted(set(letters)))


def _letters(match: re.Match[str]) -> list[str]:
    return re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", match[1].lower())


def _is_choice_text(text: str, letter: str, item: Item) -> bool:
    if letter not in item.letters:
        return False
    written = item.choices[item.letters.index(letter)]
    if len(text) > 4 * len(written) + 64:  # no blanks and brackets make a choice that long
        return False
    choice = _plain(written)
    # "a, b" names two letters even where choice a is "B"
    is_next_letter = len(choice) == 1 and text.lstrip().startswith((",", "、"))
    return bool(choice) and not is_next_letter and _plain(text) == choice


def _plain(text: str) -> str:
    """Letters, digits and signs only, so that brackets, quotes, blanks and a closing です do not matter."""
    # quotes and newlines too: 52 choices of MedQA end in a stray newline and quote
    text = _DASH.sub("", _normal(text).casefold().strip(" \n.。:、,()「」\"'"))
    return re.sub(r"[\s*`_]+", "", text.removesuffix("です").rstrip(" .。)"))
