"""From what the model said to results.json and samples.jsonl.

Both files can be read by tools made for lm-evaluation-harness output: the same key is used where the meaning is the
same (results, n-samples, config, doc_id, resps, doc_hash, …). What that layout has no place for stands under "medjax":
the scores of an exam (points, required section, prohibited picks, verdict, intervals) and the protocol record.
Layout after EleutherAI/lm-evaluation-harness@4e7e0d4.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.data.text.tokenizer import Tokenizer
from medjax.eval.answers import parse_kasai, parse_strict
from medjax.eval.comparison import compare
from medjax.eval.gestalt import extract, judge_gestalt
from medjax.eval.protocols import Prompt, Protocol, normalised, pick
from medjax.eval.record import sha256_text
from medjax.eval.scoring import Prediction, Verdict, aggregate, judge, judge_kasai
from medjax.eval.settings import EvalSettings
from medjax.infer.generator import Generation
from medjax.infer.language_model import LanguageModel
from medjax.infer.scorer import Score, Work

# lm-evaluation-harness's names of the normalisations; it has none for per-token
_LM_EVAL = {"sum": "acc", "character": "acc_norm", "byte": "acc_bytes", "token": "acc_per_token"}


@dataclass(frozen=True)
class Evaluation:
    """One task under one protocol: what is asked, in item order.

    unasked  how many items the protocol leaves out
    variant  "base" or "adapter" in a run that grades both, else ""
    """

    task: LoadedTask
    protocol: Protocol
    items: tuple[Item, ...]
    prompts: tuple[Prompt, ...]
    unasked: int
    variant: str = ""

    @property
    def id(self) -> str:
        ending = "_adapter" if self.variant == "adapter" else ""
        return f"{self.task.name}_{self.task.language}_{self.protocol.id}{ending}"

    @cached_property
    def prompt_digest(self) -> str:
        """sha256 over every prompt and continuation."""
        return sha256_text(json.dumps([[p.text, *p.continuations] for p in self.prompts], ensure_ascii=False))


@dataclass(frozen=True)
class Answer:
    """What was read from one item's output and how it was judged.

    picked    letters or number, None when nothing could be read
    text      what the model wrote ("" when choices were scored)
    truncated  cut off at the limit of new tokens
    metrics   name -> 0 or 1, by lm-evaluation-harness's names
    resps, filtered  the output in lm-evaluation-harness's form
    """

    picked: tuple[str, ...] | None
    text: str
    verdict: Verdict
    metrics: dict[str, float]
    resps: list[Any] = field(repr=False)
    filtered: list[Any] = field(repr=False)
    truncated: bool = False


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


def read_answers(evaluation: Evaluation, outputs: Sequence[Any]) -> list[Answer]:
    """Judge outputs (a list of Score or a Generation for each item) by the evaluation's protocol."""
    read = _read_generation if evaluation.protocol.generates else _read_scores
    rows = zip(evaluation.items, evaluation.prompts, outputs, strict=True)
    return [read(evaluation, item, prompt, output) for item, prompt, output in rows]


def _read_scores(evaluation: Evaluation, item: Item, prompt: Prompt, scores: list[Score]) -> Answer:
    # of an item without choices, where nothing can be scored
    verdict = replace(judge(item, Prediction(item.id, None)), unparsed=False, asked=False)
    metrics = dict.fromkeys(_LM_EVAL.values(), float(verdict.correct))
    picked: tuple[str, ...] | None = None
    if scores:
        texts = [text.removeprefix(" ") for text in prompt.continuations]
        values = normalised([s.logprob for s in scores], texts, [len(s.token_logprobs) for s in scores])
        for kind, numbers in values.items():
            letters = pick(numbers, item.letters, item.num_answers)
            found = judge(item, Prediction(item.id, letters))
            metrics[_LM_EVAL[kind]] = float(found.correct)
            if kind == evaluation.protocol.settings.normalise:
                verdict, picked = found, letters
    pairs = [[repr(score.logprob), str(score.greedy)] for score in scores]
    return Answer(picked, "", verdict, metrics, [[pair] for pair in pairs], pairs)


def _read_generation(evaluation: Evaluation, item: Item, prompt: Prompt, output: Generation) -> Answer:
    name, text = evaluation.protocol.name, output.text
    picked: tuple[str, ...] | None
    if name == "gestalt":
        found = judge_gestalt(item, extract(text, ""))
        picked = tuple(sorted(found.letters))
        clean = judge(item, Prediction(item.id, picked))
        verdict = Verdict(found.gestalt, item.points if found.gestalt else 0, clean.prohibited, unparsed=False)
        metrics = {"exact_match": float(found.exact), "gestalt": float(found.gestalt)}
        filtered = extract(text, "")
    elif name == "kasai":
        # completion models' answers are stripped by the authors' script, chat models' are not
        filtered = parse_kasai(text if prompt.is_chat else text.strip())
        verdict = judge_kasai(item, filtered)
        pieces = [piece.strip() for piece in filtered.split(",")]
        picked = None if verdict.unparsed else tuple(pieces if item.ordered else sorted(pieces))
        metrics = {"exact_match": float(verdict.correct)}
    else:
        picked = parse_strict(text, item)
        verdict = judge(item, Prediction(item.id, picked, text))
        filtered = ",".join(picked) if picked else "[unparsed]"
        metrics = {"exact_match": float(verdict.correct)}
    return Answer(picked, text, verdict, metrics, [[text]], [filtered], truncated=output.finish == "length")


def sample_lines(finished: Sequence[Finished]) -> Iterator[str]:
    """Lines of samples.jsonl: one object an item, evaluations one after the other, items in task order."""
    for run in finished:
        for number in range(len(run.answers)):
            yield json.dumps(_sample(run, number), ensure_ascii=False, allow_nan=False) + "\n"


def _sample(run: Finished, number: int) -> dict[str, Any]:
    evaluation, answer = run.evaluation, run.answers[number]
    item, prompt = evaluation.items[number], evaluation.prompts[number]
    doc, target = _doc(item), ",".join(item.answer)
    return {
        "task": evaluation.id,
        **({"variant": evaluation.variant} if evaluation.variant else {}),
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {f"gen_args_{i}": args for i, args in enumerate(_arguments(evaluation.protocol, prompt))},
        "resps": answer.resps,
        "filtered_resps": answer.filtered,
        "filter": "none",
        "metrics": list(answer.metrics),
        "doc_hash": _doc_hash(doc),
        "prompt_hash": sha256_text(prompt.text),
        "target_hash": sha256_text(target),
        **answer.metrics,
        "picked": list(answer.picked) if answer.picked is not None else None,
        "correct": answer.verdict.correct,
        "points": answer.verdict.points,
        "prohibited": answer.verdict.prohibited,
        "unparsed": answer.verdict.unparsed,
        "asked": answer.verdict.asked,
        "truncated": answer.truncated,
    }


def results_json(
    finished: Sequence[Finished], settings: EvalSettings, model: LanguageModel, record: dict[str, Any]
) -> dict[str, Any]:
    """The content of results.json; record is the protocol record that stands under "medjax"."""
    asked_as_chat = any(prompt.is_chat for run in finished for prompt in run.evaluation.prompts)
    chat = model.chat.source if model.chat and asked_as_chat else None  # gestalt leaves it out
    tokenizer = model.tokenizer
    summaries = {run.evaluation.id: _summary(run, settings) for run in finished}
    by_id = {run.evaluation.id: run for run in finished}
    versions = record["versions"]
    compared = {"comparisons": _comparisons(finished, settings)} if any(r.evaluation.variant for r in finished) else {}
    return {
        "results": {name: _lm_eval_metrics(by_id[name]) for name in by_id},
        "group_subtasks": {name: [] for name in by_id},
        "configs": {name: _task_config(run, settings) for name, run in by_id.items()},
        "versions": {name: versions["medjax"] for name in by_id},
        "n-shot": {name: settings.protocol.num_fewshot for name in by_id},
        "higher_is_better": {name: dict.fromkeys(run.answers[0].metrics, True) for name, run in by_id.items()},
        "n-samples": {
            name: {"original": len(run.evaluation.task.items), "effective": len(run.answers)}
            for name, run in by_id.items()
        },
        "config": {
            "model": "medjax",
            "model_args": _model_args(settings, model),
            "model_num_parameters": record["model"]["parameters"],
            "model_dtype": settings.model.dtype,
            "model_revision": settings.model.revision,
            "model_sha": model.digest,
            "batch_size": settings.engine.batch_size,
            "device": record["devices"],
            "limit": settings.task.limit,
            "bootstrap_iters": settings.resamples,
            "random_seed": settings.seed,
            "fewshot_seed": settings.seed,
        },
        "date": time.time(),
        "lm_eval_version": None,
        "tokenizer_pad_token": _token(tokenizer, tokenizer.pad_id),
        "tokenizer_eos_token": _token(tokenizer, next(iter(tokenizer.eos_ids), None)),
        "tokenizer_bos_token": _token(tokenizer, tokenizer.bos_id),
        "max_length": model.decoder.config.max_length,
        "task_hashes": {name: _task_hash(run) for name, run in by_id.items()},
        "model_source": "medjax",
        "model_name": model.name,
        "model_name_sanitized": model.name.replace("/", "__"),
        "fewshot_as_multiturn": asked_as_chat,
        "chat_template": chat,
        "chat_template_sha": sha256_text(chat) if chat else None,
        "total_evaluation_time_seconds": str(record["wall_seconds"]),
        "medjax": {
            **record,
            "evaluations": list(summaries.values()),
            **compared,
            "examples": _examples(finished),
        },
    }


def _summary(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    """One entry of medjax.evaluations."""
    e = run.evaluation
    verdicts = [answer.verdict for answer in run.answers]
    summary = {
        "id": e.id,
        "task": e.task.name,
        "language": e.task.language,
        "protocol": e.protocol.id,
        **({"variant": e.variant} if e.variant else {}),
        "n_items": len(e.items),
        "limit": settings.task.limit,
        "truncated": sum(answer.truncated for answer in run.answers),
        "truncated_unparsed": sum(answer.truncated and answer.verdict.unparsed for answer in run.answers),
        "scores": aggregate(e.task, e.items, verdicts, resamples=settings.resamples, seed=settings.seed),
        "data": {
            "digest": e.task.digest,
            "files": e.task.files,
            "unpinned": list(e.task.unpinned),
            "note": e.task.note,
            "dropped": e.task.dropped,
            "left_out_by_protocol": e.unasked,
        },
        "prompt_digest": e.prompt_digest,
        "work": {
            "tokens_requested": run.work.tokens_requested,
            "tokens_computed": run.work.tokens_computed,
            "tokens_saved": run.work.tokens_saved,
            "items_reused": run.reused,
            "wall_seconds": round(run.seconds, 2),
            "items_per_second": round((len(e.items) - run.reused) / max(run.seconds, 1e-9), 2),
        },
    }
    if not e.protocol.generates:
        kinds = {kind: [answer.metrics[name] for answer in run.answers] for kind, name in _LM_EVAL.items()}
        summary["normalised"] = {kind: sum(values) / len(values) for kind, values in kinds.items()}
    return summary


def _comparisons(finished: Sequence[Finished], settings: EvalSettings) -> list[dict[str, Any]]:
    """One entry a task and protocol: the adapter against its base on the same items."""
    found = []
    for base, adapter in zip(finished[::2], finished[1::2], strict=True):
        e = base.evaluation
        first, second = ([(a.verdict.correct, a.verdict.points) for a in run.answers] for run in (base, adapter))
        found.append(
            {
                **{"task": e.task.name, "language": e.task.language, "protocol": e.protocol.id},
                **{"first": e.id, "second": adapter.evaluation.id},
                **compare(first, second, resamples=settings.resamples, seed=settings.seed),
            }
        )
    return found


def _lm_eval_metrics(run: Finished) -> dict[str, Any]:
    """Means and closed-form standard errors under "metric,filter" keys."""
    metrics: dict[str, Any] = {"alias": run.evaluation.id, "sample_len": len(run.answers)}
    for name in run.answers[0].metrics:
        values = [answer.metrics[name] for answer in run.answers]
        mean = sum(values) / len(values)
        metrics[f"{name},none"] = mean
        variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        metrics[f"{name}_stderr,none"] = math.sqrt(variance / len(values)) if len(values) > 1 else "N/A"
    return metrics


def _model_args(settings: EvalSettings, model: LanguageModel) -> str:
    m = settings.model
    args = {"name": model.name, "adapter": m.adapter, "dtype": m.dtype, "quantisation": m.quantisation}
    given = [f"{key}={value}" for key, value in args.items() if value is not None]
    return ",".join([*given, f"mesh={settings.engine.mesh}"])


def _token(tokenizer: Tokenizer, token_id: int | None) -> list[str | None]:
    """A special token as text and number."""
    return [None if token_id is None else tokenizer.token_text(token_id), str(token_id)]


def _task_config(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    e = run.evaluation
    return {
        "task": e.id,
        "dataset_path": e.task.name,
        "dataset_name": e.task.language,
        "output_type": "generate_until" if e.protocol.generates else "multiple_choice",
        "num_fewshot": settings.protocol.num_fewshot,
        "metric_list": [{"metric": name} for name in run.answers[0].metrics],
        "metadata": {"protocol": e.protocol.id, "data_sha256": e.task.digest, "prompt_sha256": e.prompt_digest},
    }


def _arguments(protocol: Protocol, prompt: Prompt) -> Iterator[dict[str, Any]]:
    if not protocol.generates:
        for continuation in prompt.continuations:
            yield {"arg_0": prompt.text, "arg_1": continuation}
        return
    until = list(protocol.stop(prompt.is_chat))
    yield {"arg_0": prompt.text, "arg_1": {"until": until, "max_gen_toks": protocol.max_new_tokens, "do_sample": False}}


def _doc(item: Item) -> dict[str, Any]:
    doc = {"id": item.id, "question": item.question, "choices": list(item.choices), "answer": list(item.answer)}
    extra = {
        "context": item.context,
        "points": item.points,
        "section": item.section,
        "category": item.category,
        "exam": item.exam,
        "prohibited": list(item.prohibited),
        "needs_image": item.needs_image,
    }
    return doc | {key: value for key, value in extra.items() if value}


def _doc_hash(doc: dict[str, Any]) -> str:
    return sha256_text(json.dumps(doc, indent=2, ensure_ascii=False))


def _task_hash(run: Finished) -> str:
    digest = hashlib.sha256()
    for item, prompt in zip(run.evaluation.items, run.evaluation.prompts, strict=True):
        hashes = _doc_hash(_doc(item)) + sha256_text(prompt.text) + sha256_text(",".join(item.answer))
        digest.update(hashes.encode())
    return digest.hexdigest()


def _examples(finished: Sequence[Finished], each: int = 4, most: int = 12) -> list[dict[str, Any]]:
    """A few items of every evaluation for the report: spread over the set, not chosen by outcome."""
    found = []
    for run in finished:
        step = max(1, len(run.answers) // each)
        for number in list(range(0, len(run.answers), step))[:each]:
            answer, item = run.answers[number], run.evaluation.items[number]
            found.append(
                {
                    "evaluation": run.evaluation.id,
                    "item": _doc(item),
                    "picked": list(answer.picked) if answer.picked is not None else None,
                    "text": answer.text,
                    "correct": answer.verdict.correct,
                    "asked": answer.verdict.asked,
                }
            )
    return found[:most]
