"""What the sets of a run are graded by first: its value, interval and chance, each on the scale of its unit.

  accuracy                    share of the questions, 0 to 100 %
  kappa, pearson, spearman    -1 to 1, 0 by chance
  F1                          0 to 1
  bleu, chrf                  0 to 100
  mae                         0 to 5, lower is better

Entries are those of medjax.evaluations in a results.json: `headline` names the figures, of a set with several kinds of
questions one for each kind; figures other than accuracy stand under `metrics`. A set whose right answers nobody knows
has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.outcomes import UNREAD, accuracy_items

ACCURACY = "accuracy"
_WORDS = {"f1": "F1", "bleu": "BLEU", "chrf": "chrF", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}
_NEEDED = ("id", "task", "language", "protocol", "scores")


@dataclass(frozen=True)
class Scale:
    """An axis from low to high; percent: a share, which is shown in per cent."""

    low: float
    high: float
    percent: bool = False

    @property
    def span(self) -> float:
        return self.high - self.low

    @property
    def digits(self) -> int:
        """Digits after the point: a thousandth of the scale, or about that."""
        return 1 if self.percent or self.span > 20 else 2 if self.span > 2 else 3

    def place(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        return (value - self.low) / self.span

    def shown(self, value: float | None) -> str:
        if self.percent:
            return drawing.percent(value)
        return "–" if value is None else _minus(f"{value:.{self.digits}f}")

    def interval(self, low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return "–"
        factor = 100 if self.percent else 1
        return drawing.between(*(f"{factor * end:.{self.digits}f}" for end in (low, high)))

    def ticks(self) -> list[str]:
        """What stands at 0, 1/4, 1/2, 3/4 and 1 of the axis."""
        values = [self.low + part * self.span / 4 for part in range(5)]
        return [f"{value:.0%}".replace("%", " %") if self.percent else _minus(f"{value:g}") for value in values]

    def axis(self) -> Markup:
        """Labels of the axis of a table."""
        return drawing.axis("0", "50", "100 %") if self.percent else drawing.axis(*self.ticks()[::2])


SHARE = Scale(0, 1, percent=True)


@dataclass(frozen=True)
class Headline:
    """One figure of an evaluation; None where undefined.

    unread      counts of report.outcomes.UNREAD: answers that could not be read, and items that were not sent
    not_graded  why there is no value, where no item reached the model
    no_interval says that there is none, and why, where there is a value
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    items: int
    unread: Mapping[str, int]
    scale: Scale
    higher_is_better: bool = True
    not_graded: str = ""
    no_interval: str = ""

    @property
    def label(self) -> str:
        return metric_label(self.name)

    @property
    def explained(self) -> str:
        """With a remark where the lower value is the better one."""
        return self.label if self.higher_is_better else f"{self.label} (lower is better)"

    @property
    def shown(self) -> str:
        return self.missing if self.value is None else self.scale.shown(self.value)

    @property
    def missing(self) -> str:
        """What stands in place of a value that is not there."""
        return "not graded" if self.not_graded else "undefined"

    @property
    def interval(self) -> str:
        return self.scale.interval(self.low, self.high)

    @property
    def beside(self) -> str:
        """What stands beside the value: its interval, or why that or the value is missing."""
        if self.low is not None:
            return self.interval
        return self.not_graded or self.no_interval

    @property
    def by_chance(self) -> str:
        return self.scale.shown(self.chance)

    @property
    def said(self) -> str:
        """Value and interval for readers who do not see them drawn."""
        if self.low is None or self.high is None:
            return (": " if self.not_graded else ", ").join(filter(None, (self.shown, self.beside)))
        return f"{self.shown}, 95 % interval {self.scale.shown(self.low)} to {self.scale.shown(self.high)}"

    @property
    def places(self) -> tuple[float | None, float | None, float | None]:
        """Where value and interval stand on the scale, from 0 to 1."""
        value, low, high = (None if end is None else self.scale.place(end) for end in (self.value, self.low, self.high))
        return value, low, high

    def plot(self) -> Markup:
        """On an axis that fills the width it is given."""
        if self.chance is None:
            return drawing.marks(self.places, None, self.said)
        label = f"{self.said}, {self.by_chance} by guessing"
        return drawing.marks(self.places, self.scale.place(self.chance), label)


def checked_record(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of a results.json. Raises ValueError where a field is missing that a summary is made of."""
    record: Mapping[str, Any] = results.get("medjax") or {}
    if not record.get("evaluations"):
        raise ValueError(
            f"results: got the keys {', '.join(results) or 'none'}, expected 'medjax' with at least one entry under "
            "'evaluations'; give the content of a results.json written by medjax.eval"
        )
    for number, entry in enumerate(record["evaluations"]):
        if missing := [key for key in _NEEDED if key not in entry]:
            raise ValueError(
                f"results: medjax.evaluations[{number}]: got no {', '.join(missing)}, expected {', '.join(_NEEDED)}; "
                "run the evaluation again to write a complete results.json"
            )
    return record


def called(entry: Mapping[str, Any]) -> str:
    """Set, language and variant, as tables name an evaluation."""
    return " · ".join(entry[key] for key in ("task", "language", "variant") if entry.get(key))


def headlines(entry: Mapping[str, Any]) -> list[Headline]:
    """The figures that an evaluation is graded by; none where people have to judge."""
    scores, graded = entry["scores"], entry.get("metrics", {})
    names = entry.get("headline", ())
    if not names and scores.get("no_reference", 0) < scores["items"]:
        names = (ACCURACY,)
    return [_graded(name, graded[name]) if name in graded else accuracy(scores) for name in names]


class _Scaled(Protocol):
    @property
    def scale(self) -> Scale: ...


T = TypeVar("T", bound=_Scaled)


def by_scale(rows: Iterable[T]) -> list[tuple[Scale, list[T]]]:
    """Rows of one scale together, shares first, otherwise in the order in which they come."""
    groups: dict[Scale, list[T]] = {}
    for row in rows:
        groups.setdefault(row.scale, []).append(row)
    return sorted(groups.items(), key=lambda group: not group[0].percent)


def metric_label(name: str) -> str:
    """What people call a figure: entity_partial_f1 is "entity partial F1"."""
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def scale_of(name: str, bounds: Sequence[float]) -> Scale:
    """The scale of a figure with these bounds."""
    return SHARE if name == ACCURACY else Scale(bounds[0], bounds[1])


def _graded(name: str, found: Mapping[str, Any]) -> Headline:
    low, high = found["interval"] or (None, None)
    return Headline(
        *(name, found["value"], low, high, found["chance"], found["items"], _unread(found)),
        scale_of(name, found["bounds"]),
        found["higher_is_better"],
        found.get("not_graded", ""),
        no_interval(found),
    )


def no_interval(found: Mapping[str, Any], value: str = "value") -> str:
    """What stands in the place of an interval that cannot be had; nothing where the value itself is not defined.

    found  what eval.metrics.grade or, with value="difference", eval.metric_differences returns; old ones say no reason
    """
    reason = found.get("no_interval")
    return f"no interval: {reason}" if reason and found[value] is not None else ""


def accuracy(scores: Mapping[str, Any]) -> Headline:
    """Items right, of the scores of an evaluation or of one exam."""
    low, high = scores["accuracy_interval"] or (None, None)
    return Headline(
        *(ACCURACY, scores["accuracy"], low, high, scores["chance"]["accuracy"], accuracy_items(scores)),
        _unread(scores),
        SHARE,
        not_graded=scores.get("not_graded", ""),
    )


def _unread(found: Mapping[str, Any]) -> dict[str, int]:
    return {name: found.get(name, 0) for name in UNREAD}


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")
