"""What the items found in training data move: scores of two parts of a set that have no item in common.

The parts are two samples, one of the items found and one of the others, so their difference is that of independent
scores. All items hold the others; how far their score lies above that of the others follows from the same two samples:
for a mean it is the share of the items found times the difference of the parts.

  score   without 40 of 100 found: 0.50    found: 0.80    difference +0.30    all: 0.62, which is +0.12
"""

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from medjax.data.qa import Item
from medjax.eval.metric_differences import reading_of
from medjax.eval.metrics import CONSTANT, METRICS, SAME, SINGLE, UNDEFINED, Metric
from medjax.eval.scoring import in_accuracy
from medjax.statistics import differences
from medjax.statistics.bootstrap import Floats, stratified_weights

Answered = Sequence[tuple[Item, Mapping[str, Any]]]
_ENDS = (0.025, 0.975)


def part_differences(
    without: Answered, matched: Answered, metrics: Sequence[str], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Differences of a run's scores on the items found and on the others, as plain numbers ready for JSON.

    without, matched  the other items and those found, each with its sample
    metrics           names of figures besides accuracy
    returns           an entry a figure, accuracy first: metric, items of both parts (without, matched), and value,
                      interval (95 %) and no_interval, why there is none, of matched_minus_without and of
                      all_minus_without. Intervals of accuracy are Newcombe's (statistics.differences), of other figures
                      from resamples of both parts, each of its size. Empty where a part is
    """
    if not without or not matched:
        return []
    found = [_accuracy(without, matched)]
    for name in metrics:
        metric = METRICS[name]
        parts = [[(item, sample) for item, sample in part if metric.takes(item)] for part in (without, matched)]
        if all(parts):
            found.append({"metric": name, "items": list(map(len, parts)), **_resampled(metric, parts, resamples, seed)})
    return found


def _accuracy(without: Answered, matched: Answered) -> dict[str, Any]:
    """Of the items that accuracy counts (scoring.in_accuracy); undefined where a part has none."""
    counted = in_accuracy((str(item.kind), item.answer) for item, _ in (*without, *matched))
    parts = list(compress(without, counted)), list(compress(matched, counted[len(without) :]))
    found: dict[str, Any] = {"metric": "accuracy", "items": list(map(len, parts))}
    if not all(parts):
        undefined = _entry(None, None, UNDEFINED)
        return found | {"matched_minus_without": undefined, "all_minus_without": undefined}
    first, second = ((sum(bool(sample["correct"]) for _, sample in part), len(part)) for part in parts)
    gap = differences.independent(first, second)
    share = second[1] / (first[1] + second[1])
    ends = [gap.low, gap.high]
    return found | {
        "matched_minus_without": _entry(gap.estimate, ends),
        "all_minus_without": _entry(share * gap.estimate, [share * end for end in ends]),
    }


def _resampled(metric: Metric, parts: Sequence[Answered], resamples: int, seed: int) -> dict[str, Any]:
    scores = [
        metric.statistic([item for item, _ in part], [reading_of(sample.get("picked")) for _, sample in part])
        for part in (*parts, [*parts[0], *parts[1]])
    ]

    def drawn(weights: Sequence[Floats]) -> Floats:
        """Scores without the items found, of them, and of all: [3, resamples]."""
        return np.stack([score(part) for score, part in zip(scores, (*weights, np.hstack(weights)), strict=True)])

    sizes = [len(part) for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        without, matched, whole = drawn([np.ones((1, size)) for size in sizes])[:, 0].tolist()
        rows = np.concatenate([drawn(w) for w in stratified_weights(sizes, resamples, seed)], axis=1)
    rows = rows[:, np.isfinite(rows).all(0)]
    span = metric.bounds[1] - metric.bounds[0]
    reason = ""
    if min(sizes) == 1:
        reason = SINGLE
    elif not rows.shape[1]:
        reason = UNDEFINED
    elif min(np.ptp(rows[:2], axis=1)) <= SAME * span:
        # a part that is always the same would pass for known without doubt
        reason = CONSTANT

    def entry(value: float, row: Floats) -> dict[str, Any]:
        if not math.isfinite(value):
            return _entry(None, None, UNDEFINED)
        return _entry(value, None if reason else np.quantile(row, _ENDS).tolist(), reason)

    return {
        "matched_minus_without": entry(matched - without, rows[1] - rows[0]),
        "all_minus_without": entry(whole - without, rows[2] - rows[0]),
    }


def _entry(value: float | None, interval: list[float] | None, reason: str = "") -> dict[str, Any]:
    return {"value": value, "interval": interval, "no_interval": reason}
