"""Generation: batched greedy decoding with a key-value cache.

Prompts run as packed rows (infer.packing), their shared prefix once for all; then sequences of similar length decode
together, several tokens a dispatch, until every one has met an end-of-sequence token, a stop string or its limit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from medjax.data.text.tokenizer import Tokenizer
from medjax.infer.packing import Plan, Row, plan
from medjax.infer.programs import Programs
from medjax.infer.scorer import Work
from medjax.nn.attention import Prefix

DECODE_STEPS = 8  # tokens of every sequence between two looks at stop strings
_CACHE_STEP = 128  # cache lengths are multiples of it: few shapes


@dataclass(frozen=True)
class Generation:
    """Token ids without the end token, their text up to the stop string, and why it ended: "stop" or "length"."""

    tokens: tuple[int, ...]
    text: str
    finish: str


class Generator:
    """Decodes prompts greedily with one model.

    batch_size  sequences that decode together
    row_tokens  tokens of a packed row of prompts
    """

    def __init__(self, programs: Programs, tokenizer: Tokenizer, *, batch_size: int = 64, row_tokens: int = 2048):
        self.programs = programs
        self.tokenizer = tokenizer
        self.batch_size = slots(batch_size, programs.data_shards)
        self.row_tokens = row_tokens
        self.work = Work()

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        done: Mapping[int, Generation] | None = None,
        on_generations: Callable[[dict[int, Generation]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """Continue every prompt.

        prompts         token ids, none empty
        stop            texts that end a continuation, cut off; looked for after its first visible character
        done            generations already known by prompt index; batches known as a whole are not run again
        on_generations  called with those of each finished batch
        on_text         called with a prompt's index and its text so far, each time some tokens are there; the last
                        characters may be unfinished

        Raises ValueError when a prompt and its new tokens are longer than the model's context.
        """
        results = dict(done or {})
        limit = self.programs.config.max_length
        for i, prompt in enumerate(prompts):
            if not prompt or len(prompt) + max_new_tokens > limit:
                raise ValueError(
                    f"prompt {i}: got {len(prompt)} tokens and {max_new_tokens} new ones, expected at least one and at "
                    f"most the model's context of {limit}; use fewer examples or a lower limit of new tokens."
                )
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        shared = plan(prompts, row_tokens=self.row_tokens).prefix
        own = [prompt[len(shared) :] for prompt in prompts]
        # what is left has no prefix to split off
        packed = [
            plan([own[i] for i in b], row_tokens=self.row_tokens, min_prefix=limit, shorten=len(batches) == 1)
            for b in batches
        ]
        room = cache_room(max(map(len, own), default=0) + max_new_tokens)
        prefix = None
        for batch, rows in zip(batches, packed, strict=True):
            if all(i in results for i in batch):
                continue
            prefix = prefix or self.programs.prefix(shared, self.row_tokens)
            tell = partial(_tell, on_text, batch) if on_text else None
            found = self._run([own[i] for i in batch], rows, room, len(shared), prefix, max_new_tokens, stop, tell)
            new = dict(zip(batch, found, strict=True))
            results.update(new)
            if on_generations:
                on_generations(new)
        made = sum(len(generation.tokens) for generation in results.values())
        self.work += Work(
            tokens_requested=sum(map(len, prompts)) + made,
            tokens_computed=len(shared) + sum(rows.tokens for rows in packed) + made,
        )
        return [results[i] for i in range(len(prompts))]

    def _run(
        self, own, packed: Plan, room: int, shared: int, prefix: Prefix | None, max_new, stop, tell
    ) -> list[Generation]:
        """One batch: own are the prompts without the prefix, packed their rows."""
        b, p = self.batch_size, self.programs
        cache = p.empty_cache(b, room)
        first = np.zeros(b, np.int32)
        for length, rows in packed.rows.items():
            for start in range(0, len(rows), p.data_shards):
                part = [_shifted(row, shared) for row in rows[start : start + p.data_shards]]
                cache, tokens = p.prefill(part, length, prefix, cache)
                chosen = np.asarray(tokens)
                for row in part:
                    first[row.sequences] = chosen[row.sequences]
        if (first < 0).any():
            raise ValueError(
                "the model gives logits that are not finite, expected numbers: the checkpoint is broken, or needs "
                "float32."
            )
        lengths = np.ones(b, np.int32)
        lengths[: len(own)] = [len(tokens) for tokens in own]
        return self._decode(len(own), first, lengths, cache, prefix, max_new, stop, tell)

    def _decode(self, count, first, lengths, cache, prefix, max_new, stop, tell) -> list[Generation]:
        ends = set(self.tokenizer.eos_ids)
        outputs: list[list[int]] = [[int(token)] for token in first[:count]]
        finished: list[Generation | None] = [self._finish(ids, ends, stop, max_new) for ids in outputs]
        tokens, position = self.programs.put(first), self.programs.put(lengths)
        while any(generation is None for generation in finished):
            cache, tokens, position, new = self.programs.decode(tokens, position, cache, prefix, DECODE_STEPS)
            new = np.asarray(jax.device_get(new))
            for i in range(count):
                if finished[i] is None:
                    outputs[i] += new[i].tolist()
                    finished[i] = self._finish(outputs[i], ends, stop, max_new)
                    if tell:
                        generation = finished[i]
                        tell(i, generation.text if generation else self.tokenizer.decode(outputs[i]))
        return [generation for generation in finished if generation is not None]

    def _finish(self, ids: list[int], ends: set[int], stop: Sequence[str], max_new: int) -> Generation | None:
        """The generation if it is over, else None."""
        kept = next((i for i, token in enumerate(ids) if token in ends), None)
        reason = "stop" if kept is not None and kept < max_new else "length"
        body = ids[: min(len(ids) if kept is None else kept, max_new)]
        text = self.tokenizer.decode(body)
        if stop:
            visible = len(text) - len(text.lstrip())
            cuts = [at for at in (text.find(mark, visible) for mark in stop) if at >= 0]
            if cuts:
                return Generation(tuple(body), text[: min(cuts)], "stop")
        if kept is None and len(ids) < max_new:
            return None
        return Generation(tuple(body), text, reason)


def slots(batch_size: int, data_shards: int) -> int:
    """Sequences of the cache: the batch size, rounded up to a multiple of the data shards."""
    return -(-batch_size // data_shards) * data_shards


def cache_room(tokens: int) -> int:
    """Tokens of a sequence in the cache when the longest, without the prefix, has so many, its new ones included."""
    return -(-tokens // _CACHE_STEP) * _CACHE_STEP


def _tell(on_text: Callable[[int, str], None], batch: Sequence[int], slot: int, text: str) -> None:
    on_text(batch[slot], text)


def _shifted(row: Row, shared: int) -> Row:
    """A row that was packed without its prefix, with the positions it has after it."""
    return replace(row, positions=[position + shared for position in row.positions])
