"""What a set is graded by: accuracy, agreement beyond chance, F1, correlation, translation; one registry, METRICS.

A `Reading` is what was read of an output, in the form of `Item.answer`: letters, entities, one number text or one text;
None where nothing could be read. A metric takes the items of its kinds only, and an unreadable answer is never better
than a wrong one:

  accuracy        choice, number  share of right answers (medjax.eval.scoring.judge)
  kappa           choice      Cohen's kappa; several letters are a label of their own; unparsed is one, too
  kappa_linear    choice      weighted by the distance of grades a, b, c ...; unparsed is as far as the farthest
  f1_macro        choice      mean F1 of the labels that are gold somewhere
  entity_partial_f1, entity_exact_f1
                  entities    means over items (medjax.eval.entities)
  pearson, spearman, mae
                  similarity  an answer that is unparsed, or beyond 0 to 5, counts as that end of the scale which is
                              farther from the gold
  bleu, chrf      text        of the corpus (medjax.eval.translation); items without a reference are left out

and these, for comparison with published tables only:

  entity_partial_f1_published  entities  JMED-LLM's partial F1, which may reach 2; mean over items
  entity_first_line_f1         text      JMedBench's F1 of entities on one line; mean over items
  grade_pearson                choice    JMedBench's: of the grades 0, 1, 2 ... of the letters; unparsed as above
  bleu_sentences               text      JMedBench's: mean BLEU of the sentences

`grade` gives values with 95 % intervals, and chance levels where guessing has one. An answer that an item accepts
beside its gold one counts as the gold label in kappa and F1. Accuracy has Wilson's interval, all else the bootstrap's
over items; where every resample gives the same, the bootstrap knows nothing of further items, and there is none.

Sources: Cohen, Educational and Psychological Measurement 20 (1960) 37-46; weights: Cohen, Psychological Bulletin 70
(1968) 213-220.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from medjax.data.gold import shown
from medjax.data.qa import NUMBER, SIMILARITY, Item
from medjax.eval import entities, translation
from medjax.eval.scoring import ACCURACY_KINDS, Prediction, chance, judge
from medjax.statistics.agreement import error_statistics
from medjax.statistics.bootstrap import Floats, PatientBootstrap, Statistic, weighted_mean
from medjax.statistics.intervals import RESAMPLES, share_interval

Reading: TypeAlias = tuple[str, ...] | None
Items: TypeAlias = Sequence[Item]
Readings: TypeAlias = Sequence[Reading]

SAME = 1e-12  # of a metric's range: values that only rounding tells apart
# why there is no interval
UNDEFINED, SINGLE, CONSTANT = "not defined on these items", "a single item", "the same on every resample"


@dataclass(frozen=True)
class Metric:
    """A way to grade.

    kinds       of items it takes
    bounds      lowest and highest value
    statistic   items, readings -> value as a function of weights [resamples, items], NaN where undefined
    item_value  value of one item, or None for what only a set has
    chance      items -> value that guessing gives, or None where there is no such level
    is_mean     the value of a set is the mean of its items' values
    """

    name: str
    kinds: tuple[str, ...]
    bounds: tuple[float, float]
    statistic: Callable[[Items, Readings], Statistic]
    item_value: Callable[[Item, Reading], float] | None = None
    chance: Callable[[Items], float] | None = None
    higher_is_better: bool = True
    is_mean: bool = True

    def takes(self, item: Item) -> bool:
        """Whether the metric grades an item: its kind, and for texts that there is a reference."""
        return item.kind in self.kinds and (item.kind != "text" or bool(item.answer))

    def per_item(self, item: Item, reading: Reading) -> dict[str, float]:
        """The value of one item under the metric's name; empty where it has none."""
        return {self.name: self.item_value(item, reading)} if self.item_value and self.takes(item) else {}


def check(names: Iterable[str], items: Items) -> None:
    """Make sure that items can be graded, before a model answers them for hours.

    Raises ValueError for an unknown name, an item that a metric cannot take, and a missing optional dependency.
    """
    for name in names:
        metric = _metric(name)
        if taken := [item for item in items if metric.takes(item)]:
            metric.statistic(taken, [None] * len(taken))


def item_metrics(names: Iterable[str], item: Item, reading: Reading) -> dict[str, float]:
    """The values of one item, of those metrics that have one. Raises ValueError for an unknown name."""
    found: dict[str, float] = {}
    for name in names:
        found |= _metric(name).per_item(item, reading)
    return found


def grade(
    names: Iterable[str], items: Items, readings: Readings, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Every metric over the items it takes, ready for JSON.

    items, readings  one reading an item, in the same order
    returns name -> value, interval [low, high], no_interval (why there is none, else ""), items, unparsed, chance,
            bounds, higher_is_better; value, interval and chance are None where they are undefined (a correlation with
            a constant); a metric that takes none of the items is left out

    Raises ValueError for an unknown name, and where an optional dependency is missing.
    """
    if len(items) != len(readings):
        raise ValueError(f"grade: got {len(items)} items and {len(readings)} readings, expected one an item")
    found = {}
    for name in names:
        metric = _metric(name)
        taken, read = _taken(metric, items, readings)
        if not taken:
            continue
        bootstrap = PatientBootstrap(range(len(taken)), resamples=resamples, seed=seed)
        value, interval, reason = _estimate(metric, taken, read, bootstrap)
        found[name] = {
            "value": value,
            "interval": interval,
            "no_interval": reason,
            "items": len(taken),
            "unparsed": sum(reading is None for reading in read),
            "chance": metric.chance(taken) if metric.chance else None,
            "bounds": list(metric.bounds),
            "higher_is_better": metric.higher_is_better,
        }
    return found


def _estimate(
    metric: Metric, items: Items, readings: Readings, bootstrap: PatientBootstrap
) -> tuple[float | None, list[float] | None, str]:
    """Value, [low, high], and why there is none."""
    if metric.name == "accuracy":
        share = share_interval([_is_right(*pair) for pair in zip(items, readings, strict=True)])
        return share.estimate, [share.low, share.high], ""
    estimate = bootstrap.estimate(metric.statistic(items, readings))
    if estimate.value is None:
        return None, None, UNDEFINED
    if estimate.low is None or estimate.high is None:
        return estimate.value, None, SINGLE if len(items) == 1 else UNDEFINED
    if estimate.high - estimate.low > SAME * min(metric.bounds[1] - metric.bounds[0], 1):
        return estimate.value, [estimate.low, estimate.high], ""
    return estimate.value, None, CONSTANT


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"metric: got {name!r}, expected one of {', '.join(METRICS)}")
    return METRICS[name]


def _taken(metric: Metric, items: Items, readings: Readings) -> tuple[list[Item], list[Reading]]:
    pairs = [(item, reading) for item, reading in zip(items, readings, strict=True) if metric.takes(item)]
    return [item for item, _ in pairs], [reading for _, reading in pairs]


def _mean_of(value: Callable[[Item, Reading], float]) -> Callable[[Items, Readings], Statistic]:
    return lambda items, readings: weighted_mean([value(i, r) for i, r in zip(items, readings, strict=True)])


def _is_right(item: Item, reading: Reading) -> float:
    return float(judge(item, Prediction(item.id, reading)).correct)


def _labels(items: Items, readings: Readings) -> tuple[list[str], list[str]]:
    """Gold and predicted label of each item; "" is unparsed."""
    gold, picked = [], []
    for item, reading in zip(items, readings, strict=True):
        right = bool(_is_right(item, reading))
        letters = reading or ()
        gold.append(",".join(item.answer))
        picked.append(gold[-1] if right else ",".join(letters if item.ordered else sorted(set(letters))))
    return gold, picked


def _tables(gold: Sequence[str], picked: Sequence[str], labels: Sequence[str]) -> Callable[[Floats], Floats]:
    """weights [resamples, items] -> counts [resamples, gold labels, picked labels and last the unparsed]."""
    place = {label: number for number, label in enumerate(labels)}
    columns = len(labels) + 1
    cells = [place[one] * columns + place.get(two, len(labels)) for one, two in zip(gold, picked, strict=True)]
    member = np.zeros((len(cells), len(labels) * columns))
    member[np.arange(len(cells)), cells] = 1
    return lambda weights: (weights @ member).reshape(-1, len(labels), columns)


def _kappa(items: Items, readings: Readings) -> Statistic:
    gold, picked = _labels(items, readings)
    labels = sorted((set(gold) | set(picked)) - {""})
    distance = 1.0 - np.eye(len(labels), len(labels) + 1)
    return _weighted_kappa(_tables(gold, picked, labels), distance)


def _one_grade(name: str, items: Items) -> None:
    for item in items:
        if item.num_answers != 1:
            raise ValueError(f"{name}: item {item.id}: got the answer {shown(item.answer)}, expected one grade")


def _kappa_linear(items: Items, readings: Readings) -> Statistic:
    _one_grade("kappa_linear", items)
    gold, picked = _labels(items, readings)
    labels = max((item.letters for item in items), key=len)
    grades = np.arange(len(labels))
    farthest = np.full((len(labels), 1), len(labels) - 1)
    distance = np.hstack([np.abs(grades[:, None] - grades[None, :]), farthest])
    return _weighted_kappa(_tables(gold, picked, labels), distance)


def _weighted_kappa(tables: Callable[[Floats], Floats], distance: Floats) -> Statistic:
    """1 - disagreement / disagreement expected from the margins; NaN where none can be expected."""

    def statistic(weights: Floats) -> Floats:
        counts = tables(weights)
        expected = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :] / counts.sum((1, 2))[:, None, None]
        possible = (distance * expected).sum((1, 2))
        return 1 - (distance * counts).sum((1, 2)) / np.where(possible == 0, np.nan, possible)

    return statistic


def _f1_macro(items: Items, readings: Readings) -> Statistic:
    gold, picked = _labels(items, readings)
    tables = _tables(gold, picked, sorted(set(gold)))

    def statistic(weights: Floats) -> Floats:
        counts = tables(weights)
        asked, said = counts.sum(2), counts.sum(1)[:, :-1]
        hits = np.diagonal(counts, axis1=1, axis2=2)
        occurs = asked > 0  # a label may be missing in a resample
        f1 = 2 * hits / np.where(occurs, asked + said, 1)
        return np.where(occurs, f1, 0).sum(1) / occurs.sum(1)

    return statistic


def _similarities(items: Items, readings: Readings) -> tuple[Floats, Floats]:
    low, high = SIMILARITY
    gold = np.array([float(item.answer[0]) for item in items])
    said = [float(reading[0]) if reading and NUMBER.fullmatch(reading[0]) else math.nan for reading in readings]
    inside = np.array([low <= number <= high for number in said])
    return gold, np.where(inside, np.nan_to_num(said), np.where(gold - low < high - gold, high, low))


def _pearson(items: Items, readings: Readings) -> Statistic:
    return error_statistics(*_similarities(items, readings))["r"]


def _grade_pearson(items: Items, readings: Readings) -> Statistic:
    _one_grade("grade_pearson", items)
    gold = [item.letters.index(item.answer[0]) for item in items]
    said = []
    for item, place, reading in zip(items, gold, readings, strict=True):
        last = len(item.choices) - 1
        known = reading is not None and len(reading) == 1 and reading[0] in item.letters
        said.append(item.letters.index(reading[0]) if known and reading else last if 2 * place < last else 0)
    return error_statistics(np.array(gold, float), np.array(said, float))["r"]


def _spearman(items: Items, readings: Readings) -> Statistic:
    ranks = [_weighted_ranks(values) for values in _similarities(items, readings)]

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(1)
        one, two = (rank(weights) for rank in ranks)
        # the mean rank is (n + 1) / 2 whatever the ties
        one, two = (rank - (total[:, None] + 1) / 2 for rank in (one, two))
        spread = (weights * one**2).sum(1) * (weights * two**2).sum(1)
        return (weights * one * two).sum(1) / np.sqrt(np.where(spread > 0, spread, np.nan))

    return statistic


def _weighted_ranks(values: Floats) -> Callable[[Floats], Floats]:
    """weights -> mean rank of every item among all copies that the weights stand for."""
    different, place = np.unique(values, return_inverse=True)
    member = np.zeros((len(values), len(different)))
    member[np.arange(len(values)), place] = 1

    def ranks(weights: Floats) -> Floats:
        copies = weights @ member
        return (np.cumsum(copies, axis=1) - (copies - 1) / 2)[:, place]

    return ranks


def _absolute_error(item: Item, reading: Reading) -> float:
    gold, said = _similarities([item], [reading])
    return float(abs(gold - said)[0])


def _text(reading: Reading) -> str:
    return reading[0] if reading else ""


def _of_corpus(
    statistic: Callable[[Sequence[str], Sequence[str]], Statistic],
) -> Callable[[Items, Readings], Statistic]:
    return lambda items, readings: statistic([_text(r) for r in readings], [item.answer[0] for item in items])


def _zero(items: Items) -> float:
    return 0.0


def _mean_chance(items: Items) -> float:
    return math.fsum(map(chance, items)) / len(items)


def _partial(item: Item, reading: Reading) -> float:
    return entities.partial_f1(item.answer, reading) if reading is not None else 0.0


def _exact(item: Item, reading: Reading) -> float:
    return entities.exact_f1(item.answer, reading) if reading is not None else 0.0


def _published_partial(item: Item, reading: Reading) -> float:
    return entities.published_partial_f1(item.answer, reading or ())


def _first_line(item: Item, reading: Reading) -> float:
    return entities.first_line_f1(item.answer[0], _text(reading))


def _sentence_bleu(item: Item, reading: Reading) -> float:
    return translation.sentence_bleu(_text(reading), item.answer[0])


_CHOICE, _SIMILARITY, _ENTITIES, _TEXT = ("choice",), ("similarity",), ("entities",), ("text",)
_SHARE, _AGREEMENT, _PERCENT = (0.0, 1.0), (-1.0, 1.0), (0.0, 100.0)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", ACCURACY_KINDS, _SHARE, _mean_of(_is_right), _is_right, _mean_chance),
        Metric("kappa", _CHOICE, _AGREEMENT, _kappa, chance=_zero, is_mean=False),
        Metric("kappa_linear", _CHOICE, _AGREEMENT, _kappa_linear, chance=_zero, is_mean=False),
        Metric("f1_macro", _CHOICE, _SHARE, _f1_macro, is_mean=False),
        Metric("entity_partial_f1", _ENTITIES, _SHARE, _mean_of(_partial), _partial),
        Metric("entity_exact_f1", _ENTITIES, _SHARE, _mean_of(_exact), _exact),
        Metric("entity_partial_f1_published", _ENTITIES, (0.0, 2.0), _mean_of(_published_partial), _published_partial),
        Metric("entity_first_line_f1", _TEXT, _SHARE, _mean_of(_first_line), _first_line),
        Metric("grade_pearson", _CHOICE, _AGREEMENT, _grade_pearson, chance=_zero, is_mean=False),
        Metric("bleu_sentences", _TEXT, _PERCENT, _mean_of(_sentence_bleu), _sentence_bleu),
        Metric("pearson", _SIMILARITY, _AGREEMENT, _pearson, chance=_zero, is_mean=False),
        Metric("spearman", _SIMILARITY, _AGREEMENT, _spearman, chance=_zero, is_mean=False),
        Metric(
            *("mae", _SIMILARITY, (0.0, SIMILARITY[1] - SIMILARITY[0]), _mean_of(_absolute_error), _absolute_error),
            higher_is_better=False,
        ),
        Metric(
            *("bleu", _TEXT, _PERCENT, _of_corpus(translation.bleu_statistic)),
            item_value=_sentence_bleu,
            is_mean=False,
        ),
        Metric(
            *("chrf", _TEXT, _PERCENT, _of_corpus(translation.chrf_statistic)),
            item_value=lambda item, reading: translation.sentence_chrf(_text(reading), item.answer[0]),
            is_mean=False,
        ),
    )
}
