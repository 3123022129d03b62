"""samples.jsonl: one object an item, with everything that was asked and answered.

Keys that lm-evaluation-harness knows have its meaning and its hashes (doc, arguments, resps, doc_hash, …; layout after
EleutherAI/lm-evaluation-harness@4e7e0d4). "asks" holds what an item was asked, one entry for each time.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medjax.data.qa import Item
from medjax.eval.asking import Ask, Evaluation
from medjax.eval.reading import Answer, Reply
from medjax.eval.record import sha256_text
from medjax.infer.scorer import Work


@dataclass(frozen=True)
class Finished:
    """An evaluation with its answers (one an item) and what it took.

    reused   items whose output an earlier, interrupted run had left in the journal
    seconds  of this run
    """

    evaluation: Evaluation
    answers: list[Answer]
    work: Work
    reused: int
    seconds: float


def sample_lines(finished: Sequence[Finished]) -> Iterator[str]:
    """Lines of samples.jsonl: one object an item, evaluations one after the other, items in task order."""
    for run in finished:
        for number in range(len(run.answers)):
            yield json.dumps(_sample(run, number), ensure_ascii=False, allow_nan=False) + "\n"


def _sample(run: Finished, number: int) -> dict[str, Any]:
    evaluation, answer = run.evaluation, run.answers[number]
    item, asks = evaluation.items[number], [evaluation.asks[i] for i in evaluation.by_item[number]]
    doc, target = shown_doc(item), ",".join(item.answer)
    arguments = [entry for ask in asks for entry in _arguments(evaluation, ask)]
    agreement = {} if answer.agreement is None else {"agreement": answer.agreement}
    return {
        "task": evaluation.id,
        **({"variant": evaluation.variant} if evaluation.variant else {}),
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {f"gen_args_{i}": entry for i, entry in enumerate(arguments)},
        "resps": answer.resps,
        "filtered_resps": answer.filtered,
        "filter": "none",
        "metrics": list(answer.metrics),
        "doc_hash": doc_hash(doc),
        "prompt_hash": sha256_text(asks[0].prompt.text),
        "target_hash": sha256_text(target),
        **answer.metrics,
        "picked": list(answer.picked) if answer.picked is not None else None,
        "correct": answer.verdict.correct,
        "points": answer.verdict.points,
        "prohibited": answer.verdict.prohibited,
        "unparsed": answer.verdict.outcome == "unparsed",
        "asked": answer.verdict.asked,
        "truncated": answer.truncated,
        "outcome": answer.verdict.outcome,
        **agreement,
        **({} if item.human_accuracy is None else {"human_accuracy": item.human_accuracy}),
        "asks": [_asked(ask, reply) for ask, reply in zip(asks, answer.replies, strict=True)],
    }


def _asked(ask: Ask, reply: Reply) -> dict[str, Any]:
    """What one ask showed and got; parsed in the letters of the item."""
    return {
        "order": list(ask.order),
        "sample": ask.sample,
        "template": ask.template,
        "prompt_hash": sha256_text(ask.prompt.text),
        "output": reply.text if ask.prompt.continuations == () else [float(pair[0]) for pair in reply.filtered],
        "parsed": list(reply.picked) if reply.picked is not None else None,
        "correct": reply.verdict.correct,
        "truncated": reply.truncated,
        **({"forced": True} if reply.forced else {}),
        **({} if reply.probability is None else {"probability": reply.probability}),
    }


def _arguments(evaluation: Evaluation, ask: Ask) -> Iterator[dict[str, Any]]:
    protocol, prompt = evaluation.protocol, ask.prompt
    if not protocol.generates:
        for continuation in prompt.continuations:
            yield {"arg_0": prompt.text, "arg_1": continuation}
        return
    settings = protocol.settings
    stop, room = protocol.stop(prompt.is_chat), evaluation.max_new_tokens
    if protocol.reasons:
        stop, room = protocol.reasoning_stop(prompt.is_chat), settings.think_tokens
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature else {}
    options = {"until": list(stop), "max_gen_toks": room, "do_sample": bool(drawn), **drawn}
    yield {"arg_0": prompt.text, "arg_1": options}


def shown_doc(item: Item) -> dict[str, Any]:
    doc = {"id": item.id, "question": item.question, "choices": list(item.choices), "answer": list(item.answer)}
    extra = {
        "context": item.context,
        "points": item.points,
        "section": item.section,
        "category": item.category,
        "exam": item.exam,
        "kind": "" if item.kind in ("choice", "number") else item.kind,
        "prohibited": list(item.prohibited),
        "needs_image": item.needs_image,
    }
    return doc | {key: value for key, value in extra.items() if value or key == "points"}  # a withdrawn item has 0


def doc_hash(doc: dict[str, Any]) -> str:
    return sha256_text(json.dumps(doc, indent=2, ensure_ascii=False))
