"""From answers to results.json.

It can be read by tools made for lm-evaluation-harness output: the same key is used where the meaning is the same
(results, n-samples, config, …). What that layout has no place for stands under "medjax": the scores of an exam (points,
required section, prohibited picks, verdict, intervals), what repeated asks say, and the protocol record.
Layout after EleutherAI/lm-evaluation-harness@4e7e0d4.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from medjax.data.text.tokenizer import Tokenizer
from medjax.eval.certainty import certainty
from medjax.eval.comparison import compare
from medjax.eval.languages import languages_compared
from medjax.eval.metric_differences import has_answers, headline_names, headlines, metric_differences
from medjax.eval.metrics import METRICS, grade
from medjax.eval.reading import LM_EVAL
from medjax.eval.record import sha256_text
from medjax.eval.repeats import repeats
from medjax.eval.samples import Finished, doc_hash, shown_doc
from medjax.eval.scoring import aggregate, chance, in_accuracy, not_graded
from medjax.eval.settings import EvalSettings
from medjax.infer.language_model import LanguageModel
from medjax.statistics.intervals import share_interval


def results_json(
    finished: Sequence[Finished], settings: EvalSettings, model: LanguageModel, record: dict[str, Any]
) -> dict[str, Any]:
    """The content of results.json; record is the protocol record that stands under "medjax"."""
    asked_as_chat = any(ask.prompt.is_chat for run in finished for ask in run.evaluation.asks)
    chat = model.chat.source if model.chat and asked_as_chat else None  # gestalt leaves it out
    tokenizer = model.tokenizer
    summaries = {run.evaluation.id: _summary(run, settings) for run in finished}
    by_id = {run.evaluation.id: run for run in finished}
    versions = record["versions"]
    paired = languages_compared([run for run in finished if _is_graded(run)], settings)
    compared = {"comparisons": _comparisons(finished, settings)} if any(r.evaluation.variant for r in finished) else {}
    return {
        "results": {name: _lm_eval_metrics(by_id[name], summaries[name]) for name in by_id},
        "group_subtasks": {name: [] for name in by_id},
        "configs": {name: _task_config(run, summaries[name], settings) for name, run in by_id.items()},
        "versions": {name: versions["medjax"] for name in by_id},
        "n-shot": {name: settings.protocol.num_fewshot for name in by_id},
        "higher_is_better": {
            name: {
                metric: metric not in METRICS or METRICS[metric].higher_is_better
                for metric in _names(run, summaries[name])
            }
            for name, run in by_id.items()
        },
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
            **({"languages": paired} if paired else {}),
            "examples": _examples(finished),
        },
    }


def _summary(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    """One entry of medjax.evaluations."""
    e = run.evaluation
    verdicts = [answer.verdict for answer in run.answers]
    reason = not_graded(verdicts)
    summary = {
        "id": e.id,
        "task": e.task.name,
        "language": e.task.language,
        "protocol": e.protocol.id,
        **({"variant": e.variant} if e.variant else {}),
        "n_items": len(e.items),
        "limit": settings.task.limit,
        "truncated": sum(answer.truncated for answer in run.answers),
        "headline": headline_names(e.task.metrics, e.items),
        "scores": aggregate(
            *(e.task, e.items, verdicts),
            rotated=e.protocol.settings.rotate,
            resamples=settings.resamples,
            seed=settings.seed,
        ),
        **({"metrics": graded} if (graded := _graded(run, settings)) else {}),
        **({} if reason else repeats(run, settings) | certainty(run, settings)),
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
    if not e.protocol.generates and len(e.asks) == len(e.items) and not reason:
        kinds = {kind: [answer.metrics[name] for answer in run.answers] for kind, name in LM_EVAL.items()}
        summary["normalised"] = {kind: sum(values) / len(values) for kind, values in kinds.items()}
    return summary


def _graded(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    """What the set is graded by, the headline first (medjax.eval.metrics.grade); {} where that is accuracy alone.

    Accuracy is that of the scores. Counts of answers that are unparsed, cut off and too long stand beside each figure;
    where none of its items reached the model it has no value, and not_graded says why. A text that no reference is
    known for is not graded, only written down.
    """
    e = run.evaluation
    if e.task.metrics == ("accuracy",):
        return {}
    readings = [answer.picked for answer in run.answers]
    graded = grade(e.task.metrics, e.items, readings, resamples=settings.resamples, seed=settings.seed)
    pairs = list(zip(e.items, (answer.verdict for answer in run.answers), strict=True))
    for name, found in graded.items():
        taken = [(item, verdict) for item, verdict in pairs if METRICS[name].takes(item)]
        outcomes = Counter(verdict.outcome for _, verdict in taken)
        found |= {outcome: outcomes[outcome] for outcome in ("unparsed", "cut_off", "too_long")}
        if reason := not_graded(verdict for _, verdict in taken):
            found |= {"value": None, "interval": None, "not_graded": reason}
        elif name == "accuracy":
            # by the protocol's verdict: an answer may be wrong by its form (kasai) or under another shift
            right = [verdict.correct for _, verdict in taken]
            share = share_interval(right)
            guesses = [chance(item, rotated=e.protocol.settings.rotate) for item, _ in taken]
            found |= {"value": share.estimate, "interval": [share.low, share.high]}
            found["chance"] = math.fsum(guesses) / len(guesses)
    return graded


def _comparisons(finished: Sequence[Finished], settings: EvalSettings) -> list[dict[str, Any]]:
    """One entry a task and protocol: the adapter against its base on the same items, by answers and by headline.

    Where none of the items reached the models there is nothing to compare.
    Each holds what `compare` returns; metrics, what `metric_differences` returns; and has_answers, whether right and
    wrong are a test.
    """
    found = []
    for base, adapter in zip(finished[::2], finished[1::2], strict=True):
        if not _is_graded(base):
            continue
        e = base.evaluation
        first, second = ([(a.verdict.correct, a.verdict.points) for a in run.answers] for run in (base, adapter))
        readings = [[answer.picked for answer in run.answers] for run in (base, adapter)]
        known = [(str(item.kind), item.answer) for item in e.items]
        metrics = metric_differences(
            *(headlines(e.task.metrics, e.items), e.items, readings[0], readings[1]),
            resamples=settings.resamples,
            seed=settings.seed,
        )
        found.append(
            {
                **{"task": e.task.name, "language": e.task.language, "protocol": e.protocol.id},
                **{"first": e.id, "second": adapter.evaluation.id},
                **compare(first, second, in_accuracy(known), resamples=settings.resamples, seed=settings.seed),
                "has_answers": has_answers(known, metrics),
                "metrics": metrics,
            }
        )
    return found


def _is_graded(run: Finished) -> bool:
    return not not_graded(answer.verdict for answer in run.answers)


def _names(run: Finished, summary: dict[str, Any]) -> list[str]:
    """Metrics that some item has, and those of the set alone."""
    of_items = [name for answer in run.answers for name in answer.metrics]
    return list(dict.fromkeys([*of_items, *_of_set(summary)]))


def _of_set(summary: dict[str, Any]) -> dict[str, float]:
    """What the set is graded by, as far as it is defined; accuracy goes by the harness's names of it."""
    graded = {name: found["value"] for name, found in summary.get("metrics", {}).items() if name != "accuracy"}
    return {name: value for name, value in graded.items() if value is not None}


def _lm_eval_metrics(run: Finished, summary: dict[str, Any]) -> dict[str, Any]:
    """Means and closed-form standard errors under "metric,filter" keys, and what only a set has, such as kappa."""
    metrics: dict[str, Any] = {"alias": run.evaluation.id, "sample_len": len(run.answers)}
    of_set = _of_set(summary)
    for name in _names(run, summary):
        graded = [answer for answer in run.answers if name in answer.metrics]
        values = [answer.metrics[name] for answer in graded]
        if not_graded(answer.verdict for answer in graded):
            metrics |= {f"{name},none": None, f"{name}_stderr,none": "N/A"}
            continue
        is_mean = name not in METRICS or METRICS[name].is_mean
        mean = sum(values) / len(values) if values else math.nan
        metrics[f"{name},none"] = of_set.get(name, mean)
        variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        error = math.sqrt(variance / len(values)) if is_mean and len(values) > 1 else "N/A"
        metrics[f"{name}_stderr,none"] = error
    return metrics


def _model_args(settings: EvalSettings, model: LanguageModel) -> str:
    m = settings.model
    args = {"name": model.name, "adapter": m.adapter, "dtype": m.dtype, "quantisation": m.quantisation}
    args |= {"kv_cache": m.kv_cache}
    given = [f"{key}={value}" for key, value in args.items() if value is not None]
    return ",".join([*given, f"mesh={settings.engine.mesh}"])


def _token(tokenizer: Tokenizer, token_id: int | None) -> list[str | None]:
    """A special token as text and number."""
    return [None if token_id is None else tokenizer.token_text(token_id), str(token_id)]


def _task_config(run: Finished, summary: dict[str, Any], settings: EvalSettings) -> dict[str, Any]:
    e = run.evaluation
    return {
        "task": e.id,
        "dataset_path": e.task.name,
        "dataset_name": e.task.language,
        "output_type": "generate_until" if e.protocol.generates else "multiple_choice",
        "num_fewshot": settings.protocol.num_fewshot,
        "metric_list": [{"metric": name} for name in _names(run, summary)],
        "metadata": {"protocol": e.protocol.id, "data_sha256": e.task.digest, "prompt_sha256": e.prompt_digest},
    }


def _task_hash(run: Finished) -> str:
    digest = hashlib.sha256()
    e = run.evaluation
    for item, asks in zip(e.items, e.by_item, strict=True):
        prompt = e.asks[asks[0]].prompt
        hashes = doc_hash(shown_doc(item)) + sha256_text(prompt.text) + sha256_text(",".join(item.answer))
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
                    "item": shown_doc(item),
                    "picked": list(answer.picked) if answer.picked is not None else None,
                    "text": answer.text,
                    "outcome": answer.verdict.outcome,
                }
            )
    return found[:most]
