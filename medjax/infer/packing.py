"""From requests to packed rows: share every common prefix, then fill fixed rows with what is left.

The requests of a task are token sequences that begin alike: all with the few-shot prompt, those of one question with
the whole question. The plan takes this apart in three steps:

  1. what all sequences begin with is the task's prefix; it runs once and its keys and values stay on the device
  2. sequences that share much more than the prefix (the choices of a question, the questions about one patient) form
     a unit; units are packed into rows best-fit, longest first, so that rows are full rather than padded
  3. within a row the sequences are a trie in depth-first order: a shared token stands once (see nn.attention)

    prompt | 問題 …? a: … | answer one          row:   問題 …? a: …  answer one  answer two  問題 …
    prompt | 問題 …? a: … | answer two          ends:  (both answers) (itself)   (itself)

A continuation's last token is never run: its probability comes from the logits one token earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MIN_ROW = 128  # tokens; every row length is a multiple of it (nn.attention.BLOCK)
_MANY_ROWS = 16  # from here on a half-filled last row does not matter
_UNIT_SHARE = 32  # tokens beyond the prefix from which on sequences are run as one tree


@dataclass(frozen=True)
class Request:
    """Score `continuation` after `context`: token ids, neither empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self):
        if not self.context or not self.continuation:
            raise ValueError(
                f"request: got {len(self.context)} context and {len(self.continuation)} continuation tokens, expected "
                "at least one of each; begin an empty context with the model's BOS token."
            )


@dataclass
class Row:
    """One packed row and what is read off it.

    tokens, positions, ends  [n] lists of int; positions count from the start of the prefix
    places                   per sequence of the row: index into the row of each of its tokens beyond the prefix
    sequences                which sequences of the plan these are
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """prefix: tokens common to all sequences; rows: by their length in the program, longest first."""

    prefix: tuple[int, ...]
    rows: dict[int, list[Row]]

    @property
    def tokens(self) -> int:
        """Tokens that the model runs, padding not counted."""
        return len(self.prefix) + sum(len(row.tokens) for rows in self.rows.values() for row in rows)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    limit = min(len(first), len(second))
    for i in range(limit):
        if first[i] != second[i]:
            return i
    return limit


def plan(
    sequences: Sequence[tuple[int, ...]],
    *,
    row_tokens: int,
    keep: Sequence[int] = (),
    min_prefix: int = 128,
    shorten: bool = True,
) -> Plan:
    """Pack token sequences into rows.

    sequences   what must be run, one a request; repeats cost nothing
    row_tokens  usual row length, a multiple of MIN_ROW; a longer sequence gets a row of the next power of two
    keep        per sequence: its last `keep` tokens must stand in the row itself, because something is read there
    min_prefix  a common beginning shorter than this stays in the rows: its keys would fill a small part of a block
    shorten     a job of few rows may get shorter ones, so that the last is not mostly padding
    """
    if row_tokens % MIN_ROW or row_tokens <= 0:
        raise ValueError(f"row_tokens: got {row_tokens}, expected a multiple of {MIN_ROW}.")
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    if not order:
        return Plan((), {})
    kept = keep or [1] * len(sequences)
    shared = common_length(sequences[order[0]], sequences[order[-1]])
    shared = min(shared, *(len(s) - k for s, k in zip(sequences, kept, strict=True)))
    units, again = _units([sequences[i] for i in order], shared, row_tokens), 0
    if shared < min_prefix or len(units) == 1:
        # what is common and worth sharing stands once in every row
        again, shared = shared if shared >= _UNIT_SHARE and len(units) > 1 else 0, 0
        units = _units([sequences[i] for i in order], again, row_tokens - again)
    usual = _shorter_row(units, row_tokens, again) if shorten else row_tokens
    laid_out = []
    for members in _best_fit(units, usual - again):
        indices = (order[m] for unit in members for m in range(*unit.members))
        laid_out.append(_lay_out(sequences, sorted(indices, key=lambda i: sequences[i]), shared))
    rows: dict[int, list[Row]] = {}
    for row in laid_out:
        size = usual
        while size < len(row.tokens):
            size *= 2
        rows.setdefault(size, []).append(row)
    return Plan(tuple(sequences[order[0]][:shared]), dict(sorted(rows.items(), reverse=True)))


@dataclass
class _Unit:
    members: tuple[int, int]  # range in sorted order
    size: int  # tokens beyond the prefix


def _units(ordered: list[tuple[int, ...]], shared: int, row_tokens: int) -> list[_Unit]:
    """Neighbours in sorted order that share enough, as long as they fit a row together."""
    units: list[_Unit] = []
    for i, sequence in enumerate(ordered):
        own = len(sequence) - shared
        if units:
            unit = units[-1]
            overlap = _worth_sharing(ordered[i - 1], sequence, shared)
            together = unit.size + own - overlap
            if (overlap and together <= row_tokens) or overlap == own:
                unit.members = (unit.members[0], i + 1)
                unit.size = together
                continue
        units.append(_Unit((i, i + 1), own))
    return units


def _worth_sharing(first: tuple[int, ...], second: tuple[int, ...], shared: int) -> int:
    """Tokens beyond the prefix that `second` takes over from `first`: all, or _UNIT_SHARE and more, else none.

    Sharing a first character or two would tie unrelated questions into one tree, and attention skips nothing inside a
    tree.
    """
    overlap = common_length(first, second) - shared
    return overlap if overlap >= min(_UNIT_SHARE, len(second) - shared) else 0


def _shorter_row(units: list[_Unit], row_tokens: int, again: int) -> int:
    """The shortest row length that needs no more rows; the usual one for a job of many rows.

    again  tokens that stand in every row beside its units
    """
    sizes = [unit.size for unit in units if unit.size <= row_tokens - again]
    count = -(-sum(sizes) // (row_tokens - again))
    if not 0 < count < _MANY_ROWS or len(sizes) < len(units):
        return row_tokens
    blocks = -(-(again + max(max(sizes), sum(sizes) // count)) // MIN_ROW)
    for number in range(blocks, row_tokens // MIN_ROW):
        # nn.attention takes the queries of 3 to 5 blocks at a time where that divides the row
        even = number < 3 or any(number % wide == 0 for wide in (3, 4, 5))
        if even and len(_best_fit(units, number * MIN_ROW - again)) <= count:
            return number * MIN_ROW
    return row_tokens


def _best_fit(units: list[_Unit], row_tokens: int) -> list[list[_Unit]]:
    """Best-fit decreasing: each unit goes where the least room is left."""
    bins: list[list[_Unit]] = []
    room: list[int] = []
    for unit in sorted(units, key=lambda u: (-u.size, u.members)):
        fitting = [i for i, left in enumerate(room) if left >= unit.size]
        if fitting:
            best = min(fitting, key=lambda i: room[i])
            bins[best].append(unit)
            room[best] -= unit.size
        else:
            bins.append([unit])
            room.append(row_tokens - unit.size)
    return bins


def _lay_out(sequences: Sequence[tuple[int, ...]], members: list[int], shared: int) -> Row:
    """The trie of the sorted sequences, depth first."""
    row = Row(sequences=members)
    path: list[int] = []  # row index of each token of the current sequence
    previous: tuple[int, ...] = ()
    for i in members:
        sequence = sequences[i]
        overlap = _worth_sharing(previous, sequence, shared) if path else 0
        for place in path[overlap:]:
            row.ends[place] = len(row.tokens)
        path = path[:overlap]
        for depth in range(overlap, len(sequence) - shared):
            path.append(len(row.tokens))
            row.tokens.append(sequence[shared + depth])
            row.positions.append(shared + depth)
            row.ends.append(0)
        row.places.append(list(path))
        previous = sequence
    for place in path:
        row.ends[place] = len(row.tokens)
    return row


def stack(rows: Sequence[Row], length: int, count: int) -> dict[str, np.ndarray]:
    """Rows -> arrays [count, length] int32: tokens, positions, ends. Padding sees itself only."""
    arrays = {
        "tokens": np.zeros((count, length), np.int32),
        "positions": np.zeros((count, length), np.int32),
        "ends": np.tile(np.arange(1, length + 1, dtype=np.int32), (count, 1)),
    }
    for i, row in enumerate(rows):
        for name, array in arrays.items():
            array[i, : len(row.tokens)] = getattr(row, name)
    return arrays
