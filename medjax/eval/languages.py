"""English and Japanese side by side: the same questions of a set in two languages, paired by id."""

from collections.abc import Sequence
from typing import Any

from medjax.eval.comparison import compare
from medjax.eval.samples import Finished
from medjax.eval.settings import EvalSettings


def languages_compared(finished: Sequence[Finished], settings: EvalSettings) -> list[dict[str, Any]]:
    """One entry for each set, protocol and variant that was asked in two languages; the language asked first is first.

    returns  task, protocol, variant; first and second, the languages; what `compare` returns, second minus first;
             both and neither: items right in both and in none; left_out: items asked in one language only
    """
    runs: dict[tuple[str, str, str], list[Finished]] = {}
    for run in finished:
        e = run.evaluation
        runs.setdefault((e.task.name, e.protocol.id, e.variant), []).append(run)
    found = []
    for (task, protocol, variant), pair in runs.items():
        if len(pair) != 2:
            continue
        verdicts = [
            {item.id: answer.verdict for item, answer in zip(run.evaluation.items, run.answers, strict=True)}
            for run in pair
        ]
        shared = [item for item in verdicts[0] if item in verdicts[1]]
        if not shared:
            continue
        first, second = ([(by_id[item].correct, by_id[item].points) for item in shared] for by_id in verdicts)
        both = sum(one and other for (one, _), (other, _) in zip(first, second, strict=True))
        compared = compare(first, second, resamples=settings.resamples, seed=settings.seed)
        neither = len(shared) - both - compared["only_first"] - compared["only_second"]
        found.append(
            {
                **{"task": task, "protocol": protocol, **({"variant": variant} if variant else {})},
                **{"first": pair[0].evaluation.task.language, "second": pair[1].evaluation.task.language},
                **compared,
                **{"both": both, "neither": neither, "left_out": len(set(verdicts[0]) ^ set(verdicts[1]))},
            }
        )
    return found
