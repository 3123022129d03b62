"""From asks to outputs: token ids, which of them fit the model's context, and the engine's work, journalled.

An output is a Generation, or for choice-logprob a list of Score (one a continuation). It is TOO_LONG for every ask of
an item of which one prompt, with the room its answer needs, is longer than the context: that item is not sent at all.

Reasoning (protocol cot) may take a second step: where its budget ends, or the model stops, and no answer can be read,
the reasoning so far is continued by a cue ("答え:") and an answer. Thoughts that are still open are closed before it.

A shard asks its part as the whole run would: what all prompts share, and which continuations are scored in one batch,
is decided over all of them, so that every number is the same to the last bit. Generations are split by item,
continuations by batch of packed rows, which all take the same time.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medjax.data.exams import wording
from medjax.eval.answers import open_thought, parse_answer
from medjax.eval.asking import Ask, Evaluation, seed_of
from medjax.eval.reading import ForcedGeneration
from medjax.eval.settings import EvalSettings
from medjax.eval.shards import Shard
from medjax.infer.generator import TOO_LONG, Generation, Generator
from medjax.infer.language_model import LanguageModel
from medjax.infer.packing import Request
from medjax.infer.programs import Programs
from medjax.infer.sampling import Sampling
from medjax.infer.scorer import Score, Scorer, Work
from medjax.report.progress import ProgressBar
from medjax.store.runs import Journal

_ELSEWHERE = Score((), False)  # of a request that another shard scores
_TAG_REACH = 20  # characters at the end of a prompt in which a chat template opens thoughts


@dataclass(frozen=True)
class Questions:
    """An evaluation in tokens, ready to run.

    tokens  sha256 of all token ids
    call    gives a model's outputs, one an ask, what they took, and how many items the journal already had; of a
            shard only those of its part mean something
    """

    tokens: str
    call: Callable[[Programs, Journal, ProgressBar, Shard], tuple[list[Any], Work, int]]


def questions(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> Questions:
    return (_generation if evaluation.protocol.generates else _scoring)(evaluation, model, settings)


def _generation(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> Questions:
    protocol, encode = evaluation.protocol, model.tokenizer.encode
    prompts = [
        tuple(encode(ask.prompt.text, bos=False if ask.prompt.is_chat else None, special=ask.prompt.special))
        for ask in evaluation.asks
    ]
    room = evaluation.max_new_tokens
    if protocol.reasons:
        room += protocol.settings.think_tokens + len(encode(_cue(evaluation, "reasoning"), bos=False))
    sent = _fitting(evaluation, [len(prompt) + room for prompt in prompts], model)

    def run(programs: Programs, journal: Journal, bar: ProgressBar, shard: Shard) -> tuple[list[Any], Work, int]:
        writing = _Writing(evaluation, model, settings, programs, journal, bar, shard, sent)
        found: list[Any] = [TOO_LONG] * len(prompts)
        if protocol.reasons:
            is_chat = any(ask.prompt.is_chat for ask in evaluation.asks)
            limit, stop = protocol.settings.think_tokens, protocol.reasoning_stop(is_chat)
            reasoned = writing.step({i: prompts[i] for i in sent}, limit, stop, forced=False)
            more = {i: _continued(evaluation, model, evaluation.asks[i], text) for i, text in reasoned.items()}
            writing.settle(i for i, (_, ids) in more.items() if not ids)
            forced = writing.answers({i: ids for i, (_, ids) in more.items() if ids}, forced=True)
            written: dict[int, Generation] = {
                i: _joined(text, more[i][0], forced[i]) if i in forced else text for i, text in reasoned.items()
            }
        else:
            written = writing.answers({i: prompts[i] for i in sent}, forced=False)
        for i, generation in written.items():
            found[i] = generation
        return found, writing.generator.work, writing.reused

    return Questions(_ids_digest(prompts), run)


class _Writing:
    """What one model writes for an evaluation, journalled.

    sent    asks that fit the context
    reused  items whose first step the journal already had
    """

    def __init__(
        self,
        evaluation: Evaluation,
        model: LanguageModel,
        settings: EvalSettings,
        programs: Programs,
        journal: Journal,
        bar: ProgressBar,
        shard: Shard,
        sent: Sequence[int],
    ):
        engine, protocol = settings.engine, evaluation.protocol
        self.generator = Generator(
            programs,
            model.tokenizer,
            batch_size=engine.batch_size,
            row_tokens=engine.row_tokens,
            int8_cache=settings.model.kv_cache == "int8",
        )
        self._evaluation, self._journal, self._bar, self._seed = evaluation, journal, bar, settings.seed
        fitting = set(sent)
        items = enumerate(evaluation.by_item)
        self._own = [numbers for item, numbers in items if shard.has(item) and fitting.issuperset(numbers)]
        self._mine = {number for numbers in self._own for number in numbers}
        self._known: dict[bool, dict[int, Generation]] = {False: {}, True: {}}
        for e in journal.read(("i", "tokens", "text", "finish")):
            # a line of an answer that was forced says so
            self._known[e.get("forced", False)][e["i"]] = Generation(tuple(e["tokens"]), e["text"], e["finish"])
        # what reasoning is of the work on an ask, as far as an answer has to be forced after it
        self._reasoning = 0.0
        if protocol.reasons:
            think = protocol.settings.think_tokens
            self._reasoning = think / (think + evaluation.max_new_tokens)
        self._done = set(self._known[False])
        self._settled = set(self._known[True] if protocol.reasons else self._done)
        self.reused = sum(self._done.issuperset(numbers) for numbers in self._own)
        bar.begin(self._finished(), len(self._own))

    def answers(self, prompts: Mapping[int, tuple[int, ...]], *, forced: bool) -> dict[int, Generation]:
        """Generations of answers by number of the ask; forced: after reasoning that had none."""
        protocol, asks = self._evaluation.protocol, self._evaluation.asks
        stop = protocol.stop(is_chat=any(ask.prompt.is_chat for ask in asks))
        return self.step(prompts, self._evaluation.max_new_tokens, stop, forced=forced)

    def step(
        self, prompts: Mapping[int, tuple[int, ...]], limit: int, stop: tuple[str, ...], *, forced: bool
    ) -> dict[int, Generation]:
        """Generations by number of the ask, of at most `limit` new tokens: of the prompts that are this shard's."""
        if not prompts:
            return {}
        numbers, known = list(prompts), self._known[forced]
        mark = {"forced": True} if forced else {}
        done = {i: known[number] for i, number in enumerate(numbers) if number in known}
        # known or not, they take part in what all prompts share
        done |= {i: TOO_LONG for i, number in enumerate(numbers) if number not in self._mine}

        def keep(new: dict[int, Generation]) -> None:
            self._journal.append([{"i": numbers[i], **asdict(found), **mark} for i, found in new.items()])
            self._done.update(numbers[i] for i in new)
            if forced or not self._reasoning:
                self.settle(numbers[i] for i in new)
            self._bar.reach(self._finished(), len(self._own))

        found = self.generator.generate(
            list(prompts.values()),
            max_new_tokens=limit,
            stop=stop,
            done=done,
            on_generations=keep,
            **self._sampling(numbers),
        )
        return {number: one for number, one in zip(numbers, found, strict=True) if number in self._mine}

    def _sampling(self, numbers: Sequence[int]) -> dict[str, Any]:
        """How the engine draws, by name of its argument; nothing where it takes the most probable token."""
        settings = self._evaluation.protocol.settings
        if not settings.temperature:
            return {}
        drawn = []
        for ask in (self._evaluation.asks[number] for number in numbers):
            seed = seed_of(self._seed, self._evaluation.items[ask.item].id, ask.sample)
            drawn.append(Sampling(temperature=settings.temperature, top_p=settings.top_p, seed=seed))
        return {"sampling": drawn}

    def settle(self, numbers: Iterable[int]) -> None:
        """Nothing more is asked in these asks."""
        self._settled.update(numbers)

    def _finished(self) -> int:
        """How many items the work that is done amounts to."""
        settled, reasoned = len(self._settled & self._mine), len((self._done - self._settled) & self._mine)
        share = (settled + self._reasoning * reasoned) / max(1, len(self._mine))
        return int(len(self._own) * share + 1e-9)


def _continued(
    evaluation: Evaluation, model: LanguageModel, ask: Ask, reasoned: Generation
) -> tuple[str, tuple[int, ...]]:
    """The reasoning with the cue that forces an answer, and the prompt that ends in it.

    No prompt where an answer was written, or where nothing fits any more.
    """
    is_chat = ask.prompt.is_chat
    # a chat template may open the thoughts itself
    opened = open_thought(ask.prompt.text[-_TAG_REACH:]) if is_chat else ""
    text = f"<{opened}>{reasoned.text}" if opened else reasoned.text
    if parse_answer(text, evaluation.shown(ask), reasoned=True) is not None:
        return "", ()
    # the budget may end within a character
    so_far = reasoned.text.rstrip("\ufffd") + _cue(evaluation, open_thought(text))
    context, (more,) = model.tokenizer.encode_pairs(
        ask.prompt.text, [so_far], bos=False if is_chat else None, special=ask.prompt.special
    )
    ids = (*context, *more)
    # a text may take more tokens than it was written with
    fits = len(ids) + evaluation.max_new_tokens <= model.decoder.config.max_length
    return so_far, ids if fits else ()


def _cue(evaluation: Evaluation, thought: str) -> str:
    closing = f"\n</{thought}>" if thought else ""
    return f"{closing}\n{wording.answer_cue(evaluation.task.language)}"


def _joined(reasoned: Generation, so_far: str, answer: Generation) -> ForcedGeneration:
    return ForcedGeneration(reasoned.tokens + answer.tokens, so_far + answer.text, answer.finish)


def _scoring(evaluation: Evaluation, model: LanguageModel, settings: EvalSettings) -> Questions:
    pairs = [_pair(model, ask) for ask in evaluation.asks]
    lengths = [len(context) + max(map(len, more), default=0) for context, more in pairs]
    sent = _fitting(evaluation, lengths, model)
    requests: list[Request] = []
    owners: list[int] = []  # which ask a request belongs to
    for number in sent:
        context, continuations = pairs[number]
        requests += [Request(tuple(context), tuple(continuation)) for continuation in continuations]
        owners += [number] * len(continuations)
    asks = evaluation.asks

    def run(programs: Programs, journal: Journal, bar: ProgressBar, shard: Shard) -> tuple[list[Any], Work, int]:
        scorer = Scorer(programs, row_tokens=settings.engine.row_tokens)
        elsewhere: set[int] = set()
        if shard.count > 1 and requests:
            for number, batch in enumerate(scorer.together(requests)):
                elsewhere.update(() if shard.has(number) else batch)
        partly = {asks[owners[i]].item for i in range(len(requests)) if i not in elsewhere}
        items = len(partly) if shard.count > 1 else len(evaluation.items)
        entries = journal.read(("i", "token_logprobs", "greedy"))
        known = {e["i"]: Score(tuple(e["token_logprobs"]), e["greedy"]) for e in entries}
        waiting = set(range(len(requests))) - set(known) - elsewhere

        def finished() -> int:
            return items - len({asks[owners[i]].item for i in waiting})

        def keep(new: dict[int, Score]) -> None:
            journal.append([{"i": i, **asdict(score)} for i, score in new.items()])
            waiting.difference_update(new)
            bar.reach(finished(), items)

        reused = finished() if known else 0
        bar.begin(reused, items)
        found: list[Any] = [TOO_LONG] * len(asks)
        for number in sent:
            found[number] = []
        done = known | dict.fromkeys(elsewhere, _ELSEWHERE)
        scores = scorer.score(requests, done=done, on_scores=keep) if requests else []
        for owner, score in zip(owners, scores, strict=True):
            found[owner].append(score)
        return found, scorer.work, reused

    every = (ids for context, more in pairs for continuation in more for ids in (context, continuation))
    return Questions(_ids_digest(every), run)


def _pair(model: LanguageModel, ask: Ask) -> tuple[list[int], list[list[int]]]:
    """Ids of an ask's context and continuations; none of an item that asks for a number."""
    prompt = ask.prompt
    if not prompt.continuations:
        return [], []
    bos = False if prompt.is_chat else None
    return model.tokenizer.encode_pairs(prompt.text, prompt.continuations, bos=bos, special=prompt.special)


def _fitting(evaluation: Evaluation, lengths: Sequence[int], model: LanguageModel) -> list[int]:
    """Numbers of the asks of all items that fit the model's context with every one of their asks.

    lengths  tokens of each ask, its answer included
    """
    limit = model.decoder.config.max_length
    return [i for asks in evaluation.by_item if all(lengths[i] <= limit for i in asks) for i in asks]


def _ids_digest(sequences: Iterable[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray([len(ids), *ids], "<i4").tobytes())
    return digest.hexdigest()
