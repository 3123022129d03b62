"""Training records from files: conversations, prompt-response pairs and plain text, read one at a time.

The fields of a row say what it is; other fields (an id, a source) are left alone:

  {"messages": [{"role": "user", "content": …}, …]}      a conversation, roles system, user, assistant
  {"prompt": …, "response": …}                           a pair; also prompt/completion and question/answer
  {"instruction": …, "input": …, "output": …}            a pair in the Alpaca form; input is optional
  {"text": …}                                            plain text; a row with one of the above and `text` is the above

Files, known by their ending: .jsonl and .json (one object a line, or one JSON list), .parquet, .txt (the whole file is
one text), .array_record (one JSON object a record), and a folder written by tensorflow-datasets in the ArrayRecord
format. Any other folder stands for all such files in it and below it, in the order of their names.

A record is called by its field `id`, else by its file and line ("notes.jsonl:12").
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Paths = str | os.PathLike | Iterable[str | os.PathLike]
ROLES = ("system", "user", "assistant")
ENDINGS = (".jsonl", ".json", ".parquet", ".txt", ".array_record")
_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_FORMS = "messages; prompt and response (or completion); instruction and output (and input); question and answer; text"
_KNOWN = ("messages", "text", "input", *dict.fromkeys(name for pair in _PAIRS for name in pair))
_CHOICES = ("choices", "options")  # of an exam in another form than medjax's; empty where a number is asked for
_PARQUET_ROWS = 256  # read at one time; a row may be a whole article
_SHARD = re.compile(r"\.array_record(-[0-9]+-of-[0-9]+)?$")  # tensorflow-datasets numbers its files after the ending


@dataclass(frozen=True)
class Message:
    """One turn: role "system", "user" or "assistant", and what was said."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order. `where` is file and line, for errors."""

    id: str
    where: str
    messages: tuple[Message, ...]

    @property
    def question(self) -> str:
        """What the model is given: all that the assistant did not say."""
        return "\n\n".join(message.content for message in self.messages if message.role != "assistant")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(message.content for message in self.messages)


@dataclass(frozen=True)
class Pair:
    """An instruction, what it is applied to (may be empty), and the response."""

    id: str
    where: str
    instruction: str
    input: str
    response: str

    @property
    def question(self) -> str:
        """What the model is given: the instruction, a blank line, the input."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.instruction, self.input, self.response)


@dataclass(frozen=True)
class Passage:
    """Plain text for continued pre-training."""

    id: str
    where: str
    text: str

    @property
    def question(self) -> str:
        """The text itself."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


Record = Conversation | Pair | Passage


def find_files(paths: Paths, *, besides: tuple[str, ...] = ()) -> list[Path]:
    """The files that the paths stand for; a folder of tensorflow-datasets stays a folder.

    besides  endings that a file named by itself may have as well, in any case; in folders they are passed over

    Raises FileNotFoundError for a path that does not exist (the nearest name beside it is offered), ValueError for a
    file of an unknown ending, a folder without any file of a known one, and for no path at all.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ValueError("data: got no files, expected at least one file or folder; name the training data.")
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found += [path] if _is_tfds(path) else _inside(path)
        elif not path.exists():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            near = difflib.get_close_matches(path.name, beside, n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "correct the path."
            raise FileNotFoundError(f"{path}: no such file or folder, expected training data; {hint}")
        elif _ending(path) is None and path.suffix.lower() not in besides:
            raise ValueError(
                f"{path}: got a {path.suffix or 'nameless'} file, expected one of {', '.join((*ENDINGS, *besides))}; "
                "write the data as JSON lines."
            )
        else:
            found.append(path)
    return found


def read(paths: Paths, *, split: str = "train", exams: bool = False) -> Iterator[Record]:
    """Read the records of files and folders in order, holding one (of Parquet: a few) at a time.

    split  which part of a tensorflow-datasets folder is read
    exams  rows that training refuses, but which have choices, are read as plain text: all text in any of their fields

    Raises what `find_files` raises; ValueError naming file, line and field for a malformed row, and for a file or a
    data set without any record.
    """
    to_record = _record_or_exam if exams else _record
    for file in find_files(paths):
        empty = True
        for place, row in _rows(file, split):
            empty = False
            yield to_record(row, file, place)
        if empty:
            raise ValueError(f"{file}: got no records, expected at least one; leave the file out, or fill it.")


def _ending(path: Path) -> str | None:
    if _SHARD.search(path.name):
        return ".array_record"
    return path.suffix if path.suffix in ENDINGS else None


def _is_tfds(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def _inside(folder: Path) -> list[Path]:
    visible = [p for p in sorted(folder.rglob("*")) if not any(n.startswith(".") for n in p.relative_to(folder).parts)]
    sets = [p for p in visible if p.is_dir() and _is_tfds(p)]
    files = [p for p in visible if p.is_file() and _ending(p) and not set(sets) & set(p.parents)]
    if not files and not sets:
        names = ", ".join(p.name for p in visible[:8]) or "nothing"
        raise ValueError(
            f"{folder}: found {names}, expected files ending in {', '.join(ENDINGS)}; name another folder."
        )
    return sorted([*files, *sets])


def _rows(file: Path, split: str) -> Iterator[tuple[str, Any]]:
    """Place ("line 1" or "record 1") and content of each row."""
    if file.is_dir():
        yield from _tfds_rows(file, split)
        return
    match _ending(file):
        case ".txt":
            text = _decode(file, file.read_bytes())
            if text.strip():
                yield "record 1", {"text": text}
        case ".parquet":
            yield from _parquet_rows(file)
        case ".array_record":
            yield from _array_record_rows(file)
        case _:
            yield from _json_rows(file)


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with open(file, "rb") as lines:
        is_list = lines.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        lines.seek(0)
        if is_list and file.suffix == ".json":
            try:
                rows = json.loads(_decode(file, lines.read()))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {error.lineno}: not JSON ({error.msg}); expected one list.") from None
            yield from ((f"record {number}", row) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(_decode(file, line, number))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{file}, line {number}: not JSON ({error.msg}, column {error.colno}); write one object a line."
                ) from None


def _decode(file: Path, raw: bytes, number: int | None = None) -> str:
    try:
        return raw.decode("utf-8-sig" if number in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        where = str(file) if number is None else f"{file}, line {number}"
        raise ValueError(f"{where}: got bytes that are not UTF-8 ({error.reason}); save the file as UTF-8.") from None


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"record {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file}: not a Parquet file ({error}); write or download it again.") from error


def _array_record_rows(file: Path) -> Iterator[tuple[str, Any]]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        source = ArrayRecordDataSource([str(file)])
        count = len(source)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{file}: not an ArrayRecord file ({error}); write or download it again.") from error
    for index in range(count):
        try:
            row = json.loads(source[index])
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(
                f"{file}, record {index + 1}: got bytes that are not JSON, expected one object a record; name the "
                "folder with dataset_info.json when tensorflow-datasets wrote it."
            ) from None
        yield f"record {index + 1}", row


def _tfds_rows(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits:
        raise ValueError(
            f"{folder}: got the split {split!r}, expected one of {', '.join(builder.info.splits) or 'none'}; "
            "name the split to train on."
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{folder}: got {builder.info.file_format.value} files, which only TensorFlow reads, expected "
            'array_record; prepare the set again with file_format="array_record".'
        )
    source = builder.as_data_source(split)
    for index in range(len(source)):
        yield f"record {index + 1}", {name: _plain(value) for name, value in source[index].items()}


def _plain(value: Any) -> Any:
    """A value of tensorflow-datasets as JSON would have it; a sequence of dicts arrives as a dict of sequences."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        columns = {name: _plain(part) for name, part in value.items()}
        if columns and all(isinstance(part, list) for part in columns.values()):
            return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
        return columns
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _record(row: Any, file: Path, place: str) -> Record:
    where = f"{file}, {place}"
    if not isinstance(row, dict):
        raise ValueError(f"{where}: got a JSON {type(row).__name__}, expected an object with the fields {_FORMS}.")
    name = _name(row, file, place)
    pairs = [pair for pair in _PAIRS if set(pair) <= row.keys()]
    if "messages" in row:
        return Conversation(name, where, _messages(row["messages"], where))
    if len(pairs) > 1:
        fields = " and ".join("/".join(pair) for pair in pairs)
        raise ValueError(f"{where}: got the fields {fields}, expected one pair; remove the fields that do not count.")
    if pairs:
        asked, answered = pairs[0]
        takes_input = asked == "instruction"
        near = difflib.get_close_matches("input", row.keys() - {asked, answered}, n=1, cutoff=0.8)
        if takes_input and near and near[0] != "input":
            raise ValueError(f"{where}: {near[0]}: unknown field; did you mean input? Rename or remove it.")
        further = _text(row, "input", where, optional=True) if takes_input else ""
        return Pair(name, where, _text(row, asked, where), further, _text(row, answered, where))
    if "text" in row:
        return Passage(name, where, _text(row, "text", where))
    near = [(key, n) for key in row for n in difflib.get_close_matches(str(key), _KNOWN, n=1) if n != key]
    hint = f"did you mean {near[0][1]} by {near[0][0]}?" if near else "rename the fields."
    got = ", ".join(map(str, row)) or "none"
    raise ValueError(f"{where}: got the fields {got}, expected {_FORMS}; {hint}")


def _record_or_exam(row: Any, file: Path, place: str) -> Record:
    try:
        return _record(row, file, place)
    except ValueError:
        if not isinstance(row, dict) or not any(isinstance(row.get(name), list | dict) for name in _CHOICES):
            raise
        return Passage(_name(row, file, place), f"{file}, {place}", "\n".join(_texts(row)))


def _name(row: Mapping[str, Any], file: Path, place: str) -> str:
    name = row.get("id")
    return str(name) if isinstance(name, str | int) and name != "" else f"{file.name}:{place.split()[1]}"


def _texts(value: object) -> Iterator[str]:
    """All text in lists and objects, in order."""
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()  # half of a character is none
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _text(row: Mapping[str, Any], field: str, where: str, optional: bool = False) -> str:
    value = row.get(field)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field}: got {_shown(value)}, expected text; correct or remove the record.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {field}: got half of a character ({value[error.start]!r}), expected text that UTF-8 can write; "
            "correct or remove the record."
        ) from None
    return value


def _messages(rows: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{where}: messages: got {_shown(rows)}, expected a list of at least one message with role and content; "
            "correct or remove the record."
        )
    messages = []
    for number, row in enumerate(rows, 1):
        at = f"{where}: messages: message {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{at}: got {_shown(row)}, expected an object with role and content.")
        if further := sorted(key for key, value in row.items() if key not in ("role", "content") and value is not None):
            raise ValueError(f"{at}: got the fields {', '.join(further)}, expected role and content; remove them.")
        if row.get("role") not in ROLES:
            raise ValueError(f"{at}: role: got {_shown(row.get('role'))}, expected one of {', '.join(ROLES)}.")
        messages.append(Message(row["role"], _text(row, "content", at)))
    return tuple(messages)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 80 else text[:77] + "…"
