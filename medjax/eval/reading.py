"""From outputs to answers: what the protocol reads in each output, and the one answer an item gets from all of them.

  one ask                       its reading is the answer
  several templates or samples  the most frequent reading (medjax.eval.voting)
  every shift of the choices    right if right under all of them; of several asks of a shift the most frequent reading

Readings are in the letters of the item, whatever order the choices were shown in. An item of which one prompt is longer
than the model's context is too long: none of its prompts is sent, and it is worth nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medjax.data.qa import Item
from medjax.eval.answers import parse_answer, parse_kasai, without_thoughts
from medjax.eval.asking import Ask, Evaluation
from medjax.eval.gestalt import extract, judge_gestalt
from medjax.eval.metrics import item_metrics
from medjax.eval.protocols import Protocol, normalised, pick, probability_of_best
from medjax.eval.rotation import original
from medjax.eval.scoring import Prediction, Verdict, judge, judge_kasai
from medjax.eval.voting import vote
from medjax.infer.generator import TOO_LONG, Generation
from medjax.infer.scorer import Score

# lm-evaluation-harness's names of the normalisations; it has none for per-token
LM_EVAL = {"sum": "acc", "character": "acc_norm", "byte": "acc_bytes", "token": "acc_per_token"}


@dataclass(frozen=True)
class ForcedGeneration(Generation):
    """A generation whose answer was forced: text is reasoning, cue and answer; finish is that of the answer."""


@dataclass(frozen=True)
class Reply:
    """What was read from one output, in the letters of the item, and how it was judged.

    picked     letters or number, None when nothing could be read
    text       what the model wrote ("" when choices were scored)
    metrics    name -> 0 or 1, by lm-evaluation-harness's names
    resps, filtered  the output in lm-evaluation-harness's form
    truncated  ended at the limit of new tokens
    forced     reasoning ended without an answer, so that one was asked for
    probability  of the picked choice among the choices, from the scores it was picked by; None where none is scored
               or several are picked
    """

    picked: tuple[str, ...] | None
    text: str
    verdict: Verdict
    metrics: dict[str, float]
    resps: list[Any] = field(repr=False)
    filtered: list[Any] = field(repr=False)
    truncated: bool = False
    forced: bool = False
    probability: float | None = None


@dataclass(frozen=True)
class Answer(Reply):
    """The answer of an item.

    replies    one an ask
    shifts     one a shift of the choices: the reply that counts there
    agreement  share of the replies that say what the answer says (mean over shifts); None for a single one
    """

    replies: tuple[Reply, ...] = ()
    shifts: tuple[Reply, ...] = ()
    agreement: float | None = None


def headline(protocol: Protocol) -> str:
    """The metric that says whether an item is right."""
    if not protocol.generates:
        return LM_EVAL[protocol.settings.normalise]
    return "gestalt" if protocol.name == "gestalt" else "exact_match"


def read_answers(evaluation: Evaluation, outputs: Sequence[Any]) -> list[Answer]:
    """Judge outputs (for each ask a list of Score or a Generation; TOO_LONG) by the evaluation's protocol."""
    read = _read_generation if evaluation.protocol.generates else _read_scores
    replies = [
        _too_long(evaluation, evaluation.items[ask.item])
        if output == TOO_LONG
        else _in_order(evaluation, ask, read(evaluation, ask, output))
        for ask, output in zip(evaluation.asks, outputs, strict=True)
    ]
    return [_answer(evaluation, numbers, replies) for numbers in evaluation.by_item]


def _answer(evaluation: Evaluation, numbers: Sequence[int], every: Sequence[Reply]) -> Answer:
    replies = tuple(every[number] for number in numbers)
    if len(evaluation.asks) == len(evaluation.items):
        return Answer(**vars(replies[0]), replies=replies, shifts=replies)
    item = evaluation.items[evaluation.asks[numbers[0]].item]
    by_shift: dict[tuple[int, ...], list[Reply]] = {}
    for number, reply in zip(numbers, replies, strict=True):
        by_shift.setdefault(evaluation.asks[number].order, []).append(reply)
    elected = [vote([_ballot(item, reply) for reply in part]) for part in by_shift.values()]
    shifts = tuple(part[winner] for part, (winner, _) in zip(by_shift.values(), elected, strict=True))
    agreement = sum(share for _, share in elected) / len(elected) if len(shifts) < len(replies) else None
    # what is shown of a rotated item: its most frequent reading
    shown = shifts[vote([_ballot(item, reply) for reply in shifts])[0]]
    name = headline(evaluation.protocol)
    metrics = {key: value for key, value in shown.metrics.items() if key == name or key in _further(evaluation)}
    unread = all(reply.picked is None for reply in replies)
    # nothing could be read: cut off where any of them was
    truncated = any(reply.truncated for reply in replies) if unread else shown.truncated
    verdict = replace(shown.verdict, truncated=truncated)
    if evaluation.protocol.settings.rotate:
        right = [reply.verdict.correct for reply in shifts]
        verdict = replace(
            verdict,
            correct=all(right),
            points=item.points if all(right) else 0,
            prohibited=any(reply.verdict.prohibited for reply in shifts),
            unparsed=unread and verdict.unparsed,
        )
        metrics |= {name: float(all(right)), f"{name}_mean": sum(right) / len(right)}
    responses = [response for reply in replies for response in reply.resps]
    return Answer(
        **vars(replace(shown, verdict=verdict, metrics=metrics, resps=responses, truncated=truncated)),
        replies=replies,
        shifts=shifts,
        agreement=agreement,
    )


def _ballot(item: Item, reply: Reply) -> Hashable | None:
    """Equal for replies that say the same of an item, None for one that could not be read."""
    if reply.picked is None:
        return None
    said: Hashable = reply.picked
    if item.kind == "entities":
        said = frozenset(reply.picked)
    elif item.kind == "similarity":
        said = float(reply.picked[0])
    # kasai reads "a, c" and "a,c" alike and judges them differently
    return said, reply.verdict.correct


def _further(evaluation: Evaluation) -> tuple[str, ...]:
    """Metrics of the task that an item has, besides whether it is right."""
    return tuple(name for name in evaluation.task.metrics if name != "accuracy")


def _too_long(evaluation: Evaluation, item: Item) -> Reply:
    verdict = Verdict(correct=False, points=0, prohibited=False, unparsed=False, too_long=True)
    names = ["exact_match", "gestalt"] if evaluation.protocol.name == "gestalt" else ["exact_match"]
    metrics = dict.fromkeys(names if evaluation.protocol.generates else LM_EVAL.values(), 0.0)
    if evaluation.protocol.name in ("strict", "cot"):
        metrics |= item_metrics(_further(evaluation), item, None)
    return Reply(None, "", verdict, metrics, resps=[], filtered=[])


def _in_order(evaluation: Evaluation, ask: Ask, reply: Reply) -> Reply:
    """The reply in the letters of the item; points, right and prohibited do not depend on them."""
    item = evaluation.items[ask.item]
    if not reply.picked or list(ask.order) == sorted(ask.order):
        return reply
    return replace(reply, picked=original(reply.picked, ask.order, item.ordered))


def _read_scores(evaluation: Evaluation, ask: Ask, scores: list[Score]) -> Reply:
    item = evaluation.shown(ask)
    # of an item without choices, where nothing can be scored
    verdict = replace(judge(item, Prediction(item.id, None)), unparsed=False, asked=False)
    metrics = dict.fromkeys(LM_EVAL.values(), float(verdict.correct))
    picked: tuple[str, ...] | None = None
    probability = None
    if scores:
        texts = [text.removeprefix(" ") for text in ask.prompt.continuations]
        values = normalised([s.logprob for s in scores], texts, [len(s.token_logprobs) for s in scores])
        for kind, numbers in values.items():
            letters = pick(numbers, item.letters, item.num_answers)
            found = judge(item, Prediction(item.id, letters))
            metrics[LM_EVAL[kind]] = float(found.correct)
            if kind == evaluation.protocol.settings.normalise:
                verdict, picked = found, letters
                probability = probability_of_best(numbers) if len(letters) == 1 else None
    pairs = [[repr(score.logprob), str(score.greedy)] for score in scores]
    return Reply(picked, "", verdict, metrics, [[pair] for pair in pairs], pairs, probability=probability)


def _read_generation(evaluation: Evaluation, ask: Ask, output: Generation) -> Reply:
    item, name = evaluation.shown(ask), evaluation.protocol.name
    text = without_thoughts(output.text)
    truncated = output.finish == "length"
    picked: tuple[str, ...] | None
    if name == "gestalt":
        found = judge_gestalt(item, extract(text))
        picked = tuple(sorted(found.letters))
        clean = judge(item, Prediction(item.id, picked))
        verdict = Verdict(found.gestalt, item.points if found.gestalt else 0, clean.prohibited, unparsed=False)
        metrics = {"exact_match": float(found.exact), "gestalt": float(found.gestalt)}
        filtered = extract(text)
    elif name == "kasai":
        # completion models' answers are stripped by the authors' script, chat models' are not
        filtered = parse_kasai(text if ask.prompt.is_chat else text.strip())
        verdict = judge_kasai(item, filtered)
        pieces = [piece.strip() for piece in filtered.split(",")]
        picked = None if verdict.unparsed else tuple(pieces if item.ordered else sorted(pieces))
        metrics = {"exact_match": float(verdict.correct)}
    else:
        picked = parse_answer(text, item, reasoned=evaluation.protocol.reasons)
        verdict = judge(item, Prediction(item.id, picked))
        unread = "[cut off]" if truncated else "[unparsed]"
        filtered = unread if picked is None else ",".join(picked)
        metrics = {"exact_match": float(verdict.correct)} | item_metrics(_further(evaluation), item, picked)
    return Reply(
        *(picked, output.text, replace(verdict, truncated=truncated), metrics, [[output.text]], [filtered]),
        truncated=truncated,
        forced=isinstance(output, ForcedGeneration),
    )
