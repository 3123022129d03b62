"""Two models on the same items by what a set is graded by besides accuracy: kappa, F1, correlation, BLEU.

Such a figure belongs to all items together. Both models' are computed again on every resample of the items, the same
for both, and so is their difference: that removes the difficulty of the items from it, as pairing does elsewhere.

A set is compared by its headline alone, the first of its metrics (of a set with several kinds of items, the first for
each kind): every further figure of the same answers would be one more test of the same thing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.qa import Item
from medjax.eval.metrics import CONSTANT, METRICS, SAME, SINGLE, UNDEFINED, Items, Metric, Reading, Readings
from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.paired import bootstrap_p

_ACCURACY = "accuracy"
_ENDS = (0.025, 0.975)


def headline_names(names: Iterable[str], items: Iterable[Item]) -> list[str]:
    """The first metric of each kind of item that there is; items without a reference have none.

    names  of a set's metrics, the headline first. Raises ValueError for an unknown one.
    """
    left = list(items)
    found = []
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metric: got {name!r}, expected one of {', '.join(METRICS)}; grade the set again.")
        rest = [item for item in left if not METRICS[name].takes(item)]
        if len(rest) < len(left):
            found.append(name)
        left = rest
    return found


def headlines(names: Iterable[str], items: Items) -> list[Metric]:
    """The headlines of a set but accuracy, which eval.comparison compares by right and wrong."""
    return [METRICS[name] for name in headline_names(names, items) if name != _ACCURACY]


def has_answers(answers: Iterable[tuple[str, Sequence[str]]], metrics: Sequence[Any]) -> bool:
    """Whether right and wrong are a test: of a set without another figure they are all there is.

    answers  kind and gold answer of each item
    metrics  the other figures
    """
    known = [kind for kind, answer in answers if kind != "text" or answer]
    return any(kind in METRICS[_ACCURACY].kinds for kind in known) or bool(known and not metrics)


def metric_differences(
    metrics: Sequence[Metric],
    items: Items,
    first: Readings,
    second: Readings,
    *,
    resamples: int,
    seed: int,
    second_items: Items | None = None,
) -> list[dict[str, Any]]:
    """What the second reads better than the first by each metric, as plain numbers ready for JSON.

    first, second  what was read of the answers to the same items, in their order
    second_items   as the second was asked them, in another language; None: the same
    returns        of each metric that takes any of the items: metric, items; first, second and difference, second minus
                   first; difference_interval, the paired 95 % bootstrap interval; p_value (statistics.paired.
                   bootstrap_p); no_interval: why there is none, else ""; left_out, resamples on which one of them is
                   not defined; bounds, of the metric; higher_is_better. None where undefined: a correlation with a
                   constant, the interval of a single item or of items that give the same difference however they are
                   drawn. Of a difference of 0 the p-value is 1 then
    """
    sides = (items, items if second_items is None else second_items)
    found = []
    for metric in metrics:
        taken = [n for n, pair in enumerate(zip(*sides, strict=True)) if all(metric.takes(item) for item in pair)]
        if taken:
            chosen = [[side[number] for number in taken] for side in sides]
            readings = [[run[number] for number in taken] for run in (first, second)]
            found.append(_difference(metric, chosen, readings, resamples, seed))
    return found


def gains(metrics: Sequence[Metric], items: Items, first: Readings, second: Readings) -> Iterator[float | None]:
    """By how much the second is better on each item, where a metric has a value of single items; else None."""
    for item, *readings in zip(items, first, second, strict=True):
        metric = next((metric for metric in metrics if metric.takes(item)), None)
        if metric is None or metric.item_value is None:
            yield None
        else:
            values = [metric.item_value(item, reading) for reading in readings]
            yield (values[1] - values[0]) * (1 if metric.higher_is_better else -1)


def item_of(doc: Mapping[str, Any]) -> Item:
    """The item that a line of samples.jsonl shows, as far as these metrics look at it."""
    return Item(doc["id"], doc["question"], tuple(doc.get("choices", ())), tuple(doc["answer"]), kind=doc.get("kind"))


def reading_of(picked: Sequence[str] | None) -> Reading:
    """What was read, as samples.jsonl says it."""
    return None if picked is None else tuple(picked)


def _difference(
    metric: Metric, items: Sequence[Items], readings: Sequence[Readings], resamples: int, seed: int
) -> dict[str, Any]:
    first, second = (metric.statistic(*side) for side in zip(items, readings, strict=True))
    count = len(items[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.ones((1, count))
        values = [float(statistic(whole)[0]) for statistic in (first, second)]
    is_defined = all(map(math.isfinite, values))
    difference = values[1] - values[0]
    interval: list[float] | None = None
    p_value: float | None = None
    left_out = 0
    reason = UNDEFINED
    if is_defined and count == 1:
        reason = SINGLE
    elif is_defined:
        bootstrap = PatientBootstrap(range(count), resamples=resamples, seed=seed)
        drawn = bootstrap.draws(lambda weights: second(weights) - first(weights))
        left_out = int((~np.isfinite(drawn)).sum())
        drawn = drawn[np.isfinite(drawn)]
        span = metric.bounds[1] - metric.bounds[0]
        if len(drawn) and np.ptp(np.append(drawn, difference)) <= SAME * span:
            # every resample tells the same, so nothing is known of how far new items would lie
            reason = CONSTANT
            p_value = 1.0 if abs(difference) <= SAME * span else None
        elif len(drawn):
            interval, reason = [float(end) for end in np.quantile(drawn, _ENDS)], ""
            p_value = bootstrap_p(drawn)
    return {
        "metric": metric.name,
        "items": count,
        **{
            name: value if math.isfinite(value) else None
            for name, value in zip(("first", "second"), values, strict=True)
        },
        "difference": difference if is_defined else None,
        "difference_interval": interval,
        "p_value": p_value,
        "no_interval": reason,
        "left_out": left_out,
        "bounds": list(metric.bounds),
        "higher_is_better": metric.higher_is_better,
    }
