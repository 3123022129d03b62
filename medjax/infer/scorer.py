"""Scores: the log-probability of a continuation given a context, for many requests at once.

What can be shared is run once (packing), logits exist only where a score needs them, and results equal the plain,
one-request-at-a-time computation, whatever the batch, the order or the bucket.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medjax.infer.packing import Plan, Request, Row, plan
from medjax.infer.programs import READ_CHUNK, Programs


@dataclass(frozen=True)
class Score:
    """Natural-log probabilities of a continuation's tokens, and whether greedy decoding would have produced them."""

    token_logprobs: tuple[float, ...]
    greedy: bool

    @property
    def logprob(self) -> float:
        """Sum over tokens."""
        return float(np.sum(np.asarray(self.token_logprobs, np.float64)))


@dataclass(frozen=True)
class Work:
    """What a run of the engine computed: counts of tokens and floating-point operations.

    tokens_requested  sum of context and continuation tokens over the requests, as if nothing was shared
    tokens_computed   tokens that went through the model
    tokens_padded     slots of rows that held none
    flops             2 x multiply-adds of the layers' matmuls, attention over visible keys, and read vocabulary rows
    """

    tokens_requested: int = 0
    tokens_computed: int = 0
    tokens_padded: int = 0
    flops: float = 0.0

    @property
    def tokens_saved(self) -> int:
        return self.tokens_requested - self.tokens_computed

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


class Scorer:
    """Scores requests with one model.

    programs    of the model
    row_tokens  tokens of a packed row, a multiple of 128: more fill the device better, fewer start sooner
    """

    def __init__(self, programs: Programs, *, row_tokens: int = 2048):
        self.programs = programs
        self.row_tokens = row_tokens
        self.work = Work()

    def score(
        self,
        requests: Sequence[Request],
        *,
        done: Mapping[int, Score] | None = None,
        on_scores: Callable[[dict[int, Score]], None] | None = None,
    ) -> list[Score]:
        """Score all requests, in their order.

        done       scores already known by request index: rows whose requests are all known are not run again, and the
                   rest are packed as if nothing was known, so that a resumed run gives the same bits
        on_scores  called with the scores of each finished batch of rows, to keep or to show

        Raises ValueError when a request is longer than the model's context.
        """
        results: dict[int, Score] = dict(done or {})
        self._check(requests)
        packed = self._packed(requests)
        self.work += self._planned_work(requests, packed)
        pending, prefix = None, None
        for batch, length in self._batches(packed, results):
            prefix = prefix or self.programs.prefix(packed.prefix, self.row_tokens)
            reads = [_reads(row, requests, len(packed.prefix)) for row in batch]
            arrays = stack_reads(reads, length, self.programs.data_shards)
            running = (batch, self.programs.score(batch, length, prefix, arrays))
            if pending:  # collect the batch before, while this one runs
                self._collect(pending, requests, results, on_scores)
            pending = running
        if pending:
            self._collect(pending, requests, results, on_scores)
        return [results[i] for i in range(len(requests))]

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that `score` runs together, one list a batch of rows: each once."""
        packed = self._packed(requests)
        return [[i for row in batch for i in row.sequences] for batch, _ in self._batches(packed, {})]

    def _packed(self, requests: Sequence[Request]) -> Plan:
        return plan(
            [r.context + r.continuation[:-1] for r in requests],
            row_tokens=self.row_tokens,
            keep=[len(r.continuation) for r in requests],
        )

    def _check(self, requests: Sequence[Request]) -> None:
        config = self.programs.config
        for i, request in enumerate(requests):
            total = len(request.context) + len(request.continuation)
            if total - 1 > config.max_length:  # the last token is never run
                raise ValueError(
                    f"request {i}: got {total} tokens, the model's context is {config.max_length}; "
                    "use fewer examples or a shorter question."
                )

    def _batches(self, packed: Plan, results: Mapping[int, Score]):
        count = self.programs.data_shards
        for length, rows in packed.rows.items():
            for start in range(0, len(rows), count):
                batch = rows[start : start + count]
                if not all(i in results for row in batch for i in row.sequences):
                    yield batch, length

    def _collect(self, running, requests, results, on_scores) -> None:
        batch, outputs = running
        logprobs, greedy = (np.asarray(x) for x in outputs)
        new: dict[int, Score] = {}
        for b, row in enumerate(batch):
            start = 0
            for i in row.sequences:
                stop = start + len(requests[i].continuation)
                if not np.isfinite(logprobs[b, start:stop]).all():
                    raise ValueError(
                        f"request {i}: got log-probabilities that are not finite, expected numbers: the checkpoint is "
                        "broken, or needs float32."
                    )
                new[i] = Score(tuple(map(float, logprobs[b, start:stop])), bool(greedy[b, start:stop].all()))
                start = stop
        results.update(new)
        if on_scores:
            on_scores(new)

    def _planned_work(self, requests: Sequence[Request], packed: Plan) -> Work:
        c, count = self.programs.config, self.programs.data_shards
        shared = len(packed.prefix)
        slots = visible = reads = 0
        for length, rows in packed.rows.items():
            slots += -(-len(rows) // count) * count * length
            for row in rows:
                visible += sum(position + 1 for position in row.positions)
                reads += len({row.places[s][-k] for s, k in _tails(row, requests)})
        tokens = packed.tokens
        visible += shared * (shared + 1) // 2
        flops = 2.0 * c.matmul_params * tokens + 4.0 * c.layers * c.heads * c.head_dim * visible
        return Work(
            tokens_requested=sum(len(r.context) + len(r.continuation) for r in requests),
            tokens_computed=tokens,
            tokens_padded=slots - (tokens - shared),
            flops=flops + 2.0 * reads * c.vocab_size * c.embed,
        )


@dataclass
class Read:
    """Where logits are read in a row: places; per target token the index of its place."""

    places: list[int]
    entry: list[int]
    target: list[int]


def _tails(row: Row, requests: Sequence[Request]):
    """(sequence's number in the row, k) for each place k tokens before a sequence's end where logits are read."""
    for s, i in enumerate(row.sequences):
        for k in range(len(requests[i].continuation), 0, -1):
            yield s, k


def _reads(row: Row, requests: Sequence[Request], shared: int) -> Read:
    """Where a row's logits are needed: distinct places, and per continuation token its place and target."""
    index: dict[int, int] = {}
    read = Read([], [], [])
    for s, k in _tails(row, requests):
        place = row.places[s][-k]
        if place not in index:
            index[place] = len(read.places)
            read.places.append(place)
        read.entry.append(index[place])
        read.target.append(requests[row.sequences[s]].continuation[-k])
    return read


def stack_reads(reads: Sequence[Read], length: int, count: int) -> dict[str, np.ndarray]:
    """Fixed shapes: as many places as the row has tokens, entries in powers of two above that."""
    entries = length
    while entries < max(len(read.entry) for read in reads):
        entries *= 2
    arrays = {
        "places": np.zeros((count, length), np.int32),
        "entry": np.zeros((count, entries), np.int32),
        "target": np.zeros((count, entries), np.int32),
    }
    for b, read in enumerate(reads):
        for name, array in arrays.items():
            values = getattr(read, name)
            array[b, : len(values)] = values
    chunks = -(-max(len(read.places) for read in reads) // READ_CHUNK)
    return {**arrays, "chunks": np.asarray(chunks, np.int32)}
