"""English and Japanese side by side: the same questions of a set in two languages, paired by id.

A set is compared as two runs of it are (eval.comparison): by right and wrong, and by its headline where that is another
figure. The gold answers of lists and texts are those of each language.
"""

from collections.abc import Sequence
from typing import Any

from medjax.eval.comparison import compare
from medjax.eval.metric_differences import has_answers, headlines, metric_differences
from medjax.eval.samples import Finished
from medjax.eval.scoring import in_accuracy
from medjax.eval.settings import EvalSettings


def languages_compared(finished: Sequence[Finished], settings: EvalSettings) -> list[dict[str, Any]]:
    """One entry for each set, protocol and variant that was asked in two languages; the language asked first is first.

    returns  task, protocol, variant; first and second, the languages; what `compare` returns, second minus first;
             both and neither: items right in both and in none; left_out: items asked in one language only; metrics:
             what `metric_differences` returns of the headlines but accuracy; has_answers: whether right and wrong are a
             test
    """
    runs: dict[tuple[str, str, str], list[Finished]] = {}
    for run in finished:
        e = run.evaluation
        runs.setdefault((e.task.name, e.protocol.id, e.variant), []).append(run)
    found = []
    for (task, protocol, variant), pair in runs.items():
        if len(pair) != 2:
            continue
        answered = [
            {item.id: (item, answer) for item, answer in zip(run.evaluation.items, run.answers, strict=True)}
            for run in pair
        ]
        shared = [item for item in answered[0] if item in answered[1]]
        if not shared:
            continue
        items = [[by_id[item][0] for item in shared] for by_id in answered]
        answers = [[by_id[item][1] for item in shared] for by_id in answered]
        first, second = ([(a.verdict.correct, a.verdict.points) for a in side] for side in answers)
        known = [(str(item.kind), item.answer) for item in items[0]]
        counted = in_accuracy(known)
        both = sum(one and other for (one, _), (other, _), is_in in zip(first, second, counted, strict=True) if is_in)
        how = {"resamples": settings.resamples, "seed": settings.seed}
        compared = compare(first, second, counted, **how)
        neither = compared["items"] - both - compared["only_first"] - compared["only_second"]
        metrics = metric_differences(
            headlines(pair[0].evaluation.task.metrics, items[0]),
            items[0],
            [answer.picked for answer in answers[0]],
            [answer.picked for answer in answers[1]],
            **how,
            second_items=items[1],
        )
        found.append(
            {
                **{"task": task, "protocol": protocol, **({"variant": variant} if variant else {})},
                **{"first": pair[0].evaluation.task.language, "second": pair[1].evaluation.task.language},
                **compared,
                **{"both": both, "neither": neither, "left_out": len(set(answered[0]) ^ set(answered[1]))},
                **{
                    "metrics": metrics,
                    "has_answers": has_answers(known, metrics),
                },
            }
        )
    return found
