"""The text of a file in UTF-8; for any other encoding an error that names the likely one and how to convert it.

Exams come out of Japanese office software in CP932 (Windows' Shift_JIS), EUC-JP, ISO-2022-JP or UTF-16. None of them is
read: a wrong guess would change questions without a word.
"""

import re
import shlex
from pathlib import Path

TABLES = (".csv", ".tsv")  # endings of what spreadsheets write
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_JAPANESE = {"CP932": "cp932", "EUC-JP": "euc_jp"}  # iconv's name -> Python's
_USUAL = re.compile("[\u3001-\u30ff\u4e00-\u9fff]")
# accented Latin letters, read as CP932, give single kanji
_WORDS = re.compile("[\u3041-\u30ff]|[\u4e00-\u9fff]{2}")
# half-width katakana: what EUC-JP looks like when it is read as CP932
_UNUSUAL = re.compile("[\uff61-\uff9f\ue000-\uf8ff]")
_LOOKED_AT = 1000  # bytes that must show zeros for UTF-16 without a mark


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises ValueError naming file, line, the encoding that the bytes look like, and the command that converts them;
    of a table Excel's way, too.
    """
    data = path.read_bytes()
    wide = _wide(data)
    try:
        if wide:
            raise ValueError(f"{path}, line 1: got bytes that are not UTF-8 ({wide})" + _advice(path, wide))
        if b"\x1b$" in data:
            line = data.count(b"\n", 0, data.index(b"\x1b$")) + 1
            raise ValueError(
                f"{path}, line {line}: got bytes that are not UTF-8 (ISO-2022-JP)" + _advice(path, "ISO-2022-JP")
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: got bytes that are not UTF-8 ({error.reason}: {data[error.start]:#04x})"
            + _advice(path, _likely(data))
        ) from None


def _advice(path: Path, encoding: str | None) -> str:
    is_table = path.suffix.lower() in TABLES
    if encoding is None:
        return ", expected UTF-8; save the file as UTF-8" + ' (Excel: "CSV UTF-8")' * is_table
    name = f"{path.stem}-utf8{path.suffix}"
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(path.with_name(name)))}"
    excel = 'save it in Excel as "CSV UTF-8", or: ' if is_table else ""  # Windows has no iconv
    return f", expected UTF-8; it looks like {encoding}: {excel}{command}"


def _wide(data: bytes) -> str | None:
    """UTF-16 by its mark, or by the zeros that ASCII characters have there."""
    if mark := _MARKS.get(data[:2]):
        return mark
    first = data[:_LOOKED_AT]
    even, odd = (first[at::2].count(0) for at in (0, 1))
    if 10 * max(even, odd) < len(first) or not first:
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _likely(data: bytes) -> str | None:
    """The Japanese encoding that gives the most Japanese and the least oddities; None where none can be."""
    scores = {}
    for name, codec in _JAPANESE.items():
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if _WORDS.search(text):
            scores[name] = len(_USUAL.findall(text)) - len(_UNUSUAL.findall(text))
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best and scores[best] > 0 else None
