"""Generation: decoding with a key-value cache whose slots are filled again as sequences end (continuous batching).

What all prompts share runs once; the rest of them, longest first, as packed rows (infer.packing) into free slots. Then
all slots decode together, several tokens a dispatch, until every sequence has met an end-of-sequence token, a stop
string or its limit. Slots that became free wait until a fair part of them is, so that their prompts fill a row. Where
prompts differ in length, slots come in groups with room for a part of them each (infer.slots).

A sequence depends on its prompt and its sampling alone, not on the slot that it got or on its neighbours.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from medjax.data.text.tokenizer import Tokenizer
from medjax.infer.decoding import Decoding
from medjax.infer.packing import MIN_ROW, Row, plan
from medjax.infer.programs import Programs
from medjax.infer.sampling import GREEDY, Draws, Sampling, draws
from medjax.infer.scorer import Work
from medjax.infer.slots import Waiting, rooms, slots, slots_for
from medjax.nn.attention import Prefix

DECODE_STEPS = 8  # tokens of every sequence between two looks at stop strings
_REFILL = 4  # slots are filled again when one in so many is free


@dataclass(frozen=True)
class Generation:
    """Token ids without the end token, up to the one that completes a stop string; their text before it; why it ended.

    finish  "stop": an end token or a stop string; "length": the limit of new tokens; "too_long": the prompt and its
            limit do not fit the model's context, nothing was written
    """

    tokens: tuple[int, ...]
    text: str
    finish: str


TOO_LONG = Generation((), "", "too_long")


@dataclass
class _Sequence:
    """A prompt that has a slot: which one it is, and its new tokens."""

    index: int
    made: list[int] = field(default_factory=list)


class Generator:
    """Continues prompts with one model.

    batch_size  sequences that decode together
    row_tokens  tokens of a packed row of prompts
    int8_cache  whether keys and values are kept in int8, a quarter of float32; texts may then differ
    """

    def __init__(
        self,
        programs: Programs,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        row_tokens: int = 2048,
        int8_cache: bool = False,
    ):
        self.programs = programs
        self.decoding = Decoding(programs)
        self.tokenizer = tokenizer
        self.batch_size = slots(batch_size, self.decoding.slot_shards)
        self.row_tokens = row_tokens
        self.int8_cache = int8_cache
        self.work = Work()

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        done: Mapping[int, Generation] | None = None,
        on_generations: Callable[[dict[int, Generation]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """Continue every prompt.

        prompts         token ids, none empty
        stop            texts that end a continuation, cut off; looked for after its first visible character
        sampling        of all prompts, or one each
        done            generations already known by prompt index, which are not run again
        on_generations  called with those that have just finished
        on_text         called with a prompt's index and its text so far, each time some tokens are there; the last
                        characters may be unfinished

        Raises ValueError for a prompt without tokens, and when the model gives logits that are not finite.
        """
        how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(how) != len(prompts):
            raise ValueError(f"sampling: got {len(how)} for {len(prompts)} prompts, expected one each; or give one.")
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(
                f"prompt {empty[0]}: got no token, expected one or more; begin an empty prompt with the BOS token."
            )
        limit = self.programs.config.max_length - max_new_tokens
        job = _Job(self, [len(prompt) <= limit for prompt in prompts], prompts, how, max_new_tokens, tuple(stop))
        job.tell, job.text = on_generations, on_text
        results = job.run(dict(done or {}))
        made = sum(len(generation.tokens) for generation in results.values())
        self.work += Work(
            tokens_requested=sum(len(prompt) for i, prompt in enumerate(prompts) if job.fits[i]) + made,
            tokens_computed=job.prompt_tokens + made,
        )
        return [results[i] for i in range(len(prompts))]


@dataclass
class _Job:
    """One call of Generator.generate.

    fits    whether each prompt fits the context
    tell, text  the caller's on_generations and on_text
    """

    of: Generator
    fits: list[bool]
    prompts: Sequence[tuple[int, ...]]
    how: list[Sampling]
    max_new: int
    stop: tuple[str, ...]
    tell: Callable[[dict[int, Generation]], None] | None = None
    text: Callable[[int, str], None] | None = None

    def __post_init__(self) -> None:
        fitting = [prompt for prompt, fits in zip(self.prompts, self.fits, strict=True) if fits]
        self.shared = plan(fitting, row_tokens=self.of.row_tokens).prefix
        self.own = [
            prompt[len(self.shared) :] if fits else () for prompt, fits in zip(self.prompts, self.fits, strict=True)
        ]
        self.ends = set(self.of.tokenizer.eos_ids)
        self.draws = any(one.draws for one in self.how)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prefix and of every prompt that differs, at the least: what the prompts take."""
        return len(self.shared) + sum(map(len, set(self.own)))

    def run(self, results: dict[int, Generation]) -> dict[int, Generation]:
        """Every generation by index, those that are known included."""
        new = {i: TOO_LONG for i, fits in enumerate(self.fits) if not fits and i not in results}
        self._finish(results, new)
        order = sorted((i for i in range(len(self.prompts)) if i not in results), key=lambda i: (-len(self.own[i]), i))
        if not order:
            return results
        generator, decoding = self.of, self.of.decoding
        count = slots_for(len(order), generator.batch_size, decoding.slot_shards)
        room = rooms([len(self.own[i]) + self.max_new for i in order], count, decoding.slot_shards)
        groups = [decoding.group(slot, count, len(room))[0] for slot in range(count)]
        prefix = generator.programs.prefix(self.shared, generator.row_tokens)
        cache, waiting = decoding.empty_cache(count, room, generator.int8_cache), Waiting(order, len(room))
        held: list[_Sequence | None] = [None] * count
        rest = max(room)
        tokens, lengths = np.zeros(count, np.int32), np.full(count, rest, np.int32)
        while waiting or any(held):
            free = [slot for slot, sequence in enumerate(held) if sequence is None]
            takeable = waiting.takeable([sum(groups[slot] == group for slot in free) for group in range(len(room))])
            enough = takeable in (len(waiting), len(free)) or takeable >= max(1, count // _REFILL // len(room))
            if takeable and (enough or len(free) == count):
                taken = {slot: found for slot in free if (found := waiting.take(groups[slot])) is not None}
                cache = self._admit(taken, held, tokens, lengths, cache, prefix)
            else:
                how = self._draws(held)
                arrays = generator.programs.put(tokens), generator.programs.put(lengths)
                cache, _, _, made = decoding.decode(*arrays, cache, prefix, DECODE_STEPS, how)
                made = np.asarray(jax.device_get(made))
                for slot, sequence in enumerate(held):
                    if sequence:
                        sequence.made += made[slot].tolist()
                        tokens[slot] = made[slot, -1]
                        lengths[slot] += DECODE_STEPS
            self._finish(results, self._ended(held, lengths, rest))
        return results

    def _admit(self, taken: dict[int, int], held, tokens, lengths, cache, prefix: Prefix | None):
        """Run the prompts of slots -> prompts into the cache; returns the cache."""
        generator, decoding = self.of, self.of.decoding
        order = list(taken)
        own = [self.own[taken[slot]] for slot in order]
        total = sum(map(len, set(own))) // generator.programs.data_shards
        size = MIN_ROW
        while size < min(total, generator.row_tokens):
            size *= 2
        # what is left has no prefix to split off
        packed = plan(own, row_tokens=min(size, generator.row_tokens), min_prefix=1 << 30, shorten=False)
        for slot in order:
            held[slot] = _Sequence(taken[slot])
        for length, rows in packed.rows.items():
            shards = generator.programs.data_shards
            for start in range(0, len(rows), shards):
                part = [_placed(row, order, len(self.shared)) for row in rows[start : start + shards]]
                cache, chosen = decoding.prefill(part, length, prefix, cache, len(held), self._draws(held))
                first = np.asarray(chosen)
                for slot in (slot for row in part for slot in row.sequences):
                    held[slot].made.append(int(first[slot]))
                    tokens[slot], lengths[slot] = first[slot], len(self.own[taken[slot]])
        return cache

    def _draws(self, held: Sequence[_Sequence | None]) -> Draws | None:
        if not self.draws:
            return None
        made = [len(sequence.made) if sequence else 0 for sequence in held]
        return draws([self.how[sequence.index] if sequence else GREEDY for sequence in held], made)

    def _ended(self, held: list[_Sequence | None], lengths: np.ndarray, rest: int) -> dict[int, Generation]:
        """Sequences that are over, whose slots become free."""
        new = {}
        for slot, sequence in enumerate(held):
            if sequence is None:
                continue
            if min(sequence.made[-DECODE_STEPS:]) < 0:
                raise ValueError(
                    "the model gives logits that are not finite, expected numbers: the checkpoint is broken, or needs "
                    "float32."
                )
            over = finished(self.of.tokenizer, sequence.made, self.ends, self.stop, self.max_new)
            if over:
                new[sequence.index] = over
                held[slot] = None
                lengths[slot] = rest
            if self.text:
                self.text(sequence.index, over.text if over else self.of.tokenizer.decode(sequence.made))
        return new

    def _finish(self, results: dict[int, Generation], new: dict[int, Generation]) -> None:
        results.update(new)
        if new and self.tell:
            self.tell(new)


def finished(
    tokenizer: Tokenizer, ids: list[int], ends: set[int], stop: Sequence[str], max_new: int
) -> Generation | None:
    """The generation of these new tokens if it is over, else None."""
    kept = next((i for i, token in enumerate(ids) if token in ends), None)
    reason = "stop" if kept is not None and kept < max_new else "length"
    body = ids[: min(len(ids) if kept is None else kept, max_new)]
    over = kept is not None or len(ids) >= max_new
    if not stop and not over:
        return None
    text = tokenizer.decode(body)
    if _cut(text, stop) is not None:
        # the fewest tokens that hold it: what was decoded with them, before anybody looked, is not part of the answer
        count = 1 + bisect_left(
            range(1, len(body)), True, key=lambda n: _cut(tokenizer.decode(body[:n]), stop) is not None
        )
        text = tokenizer.decode(body[:count])
        return Generation(tuple(body[:count]), text[: _cut(text, stop)], "stop")
    return Generation(tuple(body), text, reason) if over else None


def _cut(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string after the first visible character begins."""
    visible = len(text) - len(text.lstrip())
    return min((at for at in (text.find(mark, visible) for mark in stop) if at >= 0), default=None)


def _placed(row: Row, slots: Sequence[int], shared: int) -> Row:
    """A packed row whose sequences are slots, with the positions that its tokens have after the prefix."""
    return replace(
        row,
        positions=[position + shared for position in row.positions],
        sequences=[slots[i] for i in row.sequences],
    )
