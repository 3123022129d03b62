"""Records -> token documents no longer than the window, with an account of what was cut and dropped.

A `Document` is tokens, and for each token whether it is a target of the loss. The first token is never one: nothing
stands before it.

Segments of a rendered record are encoded as the model will meet them: the tokens of the prompt are exactly those of
encode(prompt), whatever follows, since that is what generation starts from. The response's tokens are the rest of
encode(prompt + response) where that begins with the prompt's, else those of the response alone.

What is longer than the window:

  truncate  keeps the start
  split     pieces of a window each; a piece begins with the last token of the one before, which does not count again,
            so that every token is predicted exactly once       [a b c d e f g], window 4 -> [a b c d] [d e f g]
  drop      leaves the record out

A document without any counted token teaches nothing and is dropped. `Report` counts all of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from medjax.data.text.records import Passage, Record
from medjax.data.text.templates import Rendered, Template
from medjax.data.text.tokenizer import Tokenizer

LONG = ("truncate", "split", "drop")
COUNTED = ("responses", "all")
_SHOWN = 3  # ids named in a report
_NO_RESPONSE = "no response"
_CUT_RESPONSE = "no response left"


@dataclass(frozen=True, eq=False)
class Document:
    """One sequence that attention does not leave.

    tokens   [n] int32
    counted  [n] bool: whether token i is a target of the loss; never the first
    id       the record's, with " piece k" where it was split
    """

    tokens: np.ndarray
    counted: np.ndarray
    id: str


class Documents(Protocol):
    """Documents that can be asked for one by one; only their lengths need to be in memory.

    lengths  [documents] int32, tokens of each
    counts   [documents] int32, counted tokens of each
    """

    lengths: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


class DocumentList:
    """Documents held in memory."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = list(documents)
        self.lengths = np.array([len(d.tokens) for d in self._documents], np.int32)
        self.counts = np.array([d.counted.sum() for d in self._documents], np.int32)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]


@dataclass(frozen=True)
class Cut:
    """What becomes of records: the options of `tokenise`.

    window      tokens that a document has at most, at least 2
    long        what becomes of a longer pair or conversation: one of LONG
    long_text   the same for plain text
    counted     "responses", or "all": prompts count as well
    """

    window: int
    long: str = "truncate"
    long_text: str = "split"
    counted: str = "responses"

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"window: got {self.window}, expected at least 2 tokens, one to predict the other from.")
        for name, known in (("long", LONG), ("long_text", LONG), ("counted", COUNTED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}.")


@dataclass
class Tally:
    """How many records something happened to, and the ids of the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(name)

    def __str__(self) -> str:
        return ", ".join([*self.first, *(["…"] if self.count > len(self.first) else [])])


@dataclass
class Report:
    """What came of the records.

    records    read
    documents  made
    tokens, counted   of all documents
    truncated, split  records cut, and records that became several documents
    lost       tokens that truncation took away
    dropped    reason -> records left out
    longest    tokens of the longest record, before any cut
    """

    window: int
    records: int = 0
    documents: int = 0
    tokens: int = 0
    counted: int = 0
    truncated: Tally = field(default_factory=Tally)
    split: Tally = field(default_factory=Tally)
    lost: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    longest: int = 0

    def drop(self, reason: str, name: str) -> None:
        self.dropped.setdefault(reason, Tally()).add(name)

    def __str__(self) -> str:
        parts = [f"{self.documents:,} documents, {self.tokens:,} tokens ({self.counted:,} counted)"]
        if self.truncated.count:
            parts.append(
                f"{self.truncated.count:,} truncated to {self.window:,}, {self.lost:,} tokens lost ({self.truncated})"
            )
        if self.split.count:
            parts.append(f"{self.split.count:,} split ({self.split})")
        parts += [f"{tally.count:,} dropped: {reason} ({tally})" for reason, tally in self.dropped.items()]
        return "; ".join([*parts, f"longest {self.longest:,}"])


def encode(rendered: Rendered, tokenizer: Tokenizer, *, counted: str = "responses") -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] int32 of a rendered record, and which of them count [n] bool."""
    is_chat = rendered.is_chat
    bos = False if is_chat else None
    text = ""
    ids: list[int] = []
    counts: list[bool] = []
    known = 0  # how many of the ids, at their end, are those of `text`
    for number, segment in enumerate(rendered.segments):
        text += segment.text
        together = tokenizer.encode(text, bos=bos, special=is_chat)
        if together[:known] == ids[len(ids) - known :]:
            new = together[known:]
        else:
            new = tokenizer._ids(segment.text, special=is_chat, prefix=number == 0)
        ids += new
        counts += [segment.counted] * len(new)
        known += len(new)
        if is_chat:
            # nothing merges across a special token, so what stands before the last one need not be encoded again
            last = max(map(text.rfind, tokenizer.special_texts), default=-1)
            tail = text[last:] if last > 0 else ""
            tail_ids = tokenizer.encode(tail, bos=False, special=True)
            if tail_ids and ids[-len(tail_ids) :] == tail_ids:
                text, known = tail, len(tail_ids)
    if rendered.ends and tokenizer.eos_ids:
        ids.append(tokenizer.eos_ids[0])
        counts.append(rendered.segments[-1].counted)
    tokens = np.array(ids, np.int32)
    mask = np.ones(len(ids), bool) if counted == "all" else np.array(counts, bool)
    mask[:1] = False
    return tokens, mask


def tokenise(
    records: Iterable[Record], template: Template, tokenizer: Tokenizer, cut: Cut, report: Report
) -> Iterator[Document]:
    """The documents of records, in order; `report` is filled as they are taken.

    Raises what `Template.render` raises, with the record's file and line.
    """
    for record in records:
        tokens, counted = encode(template.render(record), tokenizer, counted=cut.counted)
        report.records += 1
        report.longest = max(report.longest, len(tokens))
        for document in _fit(Document(tokens, counted, record.id), record, cut, report):
            report.documents += 1
            report.tokens += len(document.tokens)
            report.counted += int(document.counted.sum())
            yield document


def _fit(document: Document, record: Record, cut: Cut, report: Report) -> Sequence[Document]:
    """The document cut to the window: none, one, or its pieces."""
    length = len(document.tokens)
    if not document.counted.any():
        report.drop(_NO_RESPONSE, document.id)
        return ()
    if length <= cut.window:
        return (document,)
    long = cut.long_text if isinstance(record, Passage) else cut.long
    if long == "drop":
        report.drop(f"longer than {cut.window:,}", document.id)
        return ()
    if long == "truncate":
        kept = Document(document.tokens[: cut.window], document.counted[: cut.window], document.id)
        if not kept.counted.any():
            report.drop(_CUT_RESPONSE, document.id)
            return ()
        report.truncated.add(document.id)
        report.lost += length - cut.window
        return (kept,)
    report.split.add(document.id)
    pieces = []
    for number, start in enumerate(range(0, length - 1, cut.window - 1), 1):
        counted = document.counted[start : start + cut.window].copy()
        counted[0] = False
        if counted.any():
            tokens = document.tokens[start : start + cut.window]
            pieces.append(Document(tokens, counted, f"{document.id} piece {number}"))
    return pieces
