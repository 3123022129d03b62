"""Two models on the same items, drawn: the paired difference of what they are graded by on an axis around zero.

  ├─────────┆──●──────┤     ● second minus first   ── 95 % interval   ┆ no difference

Entries are those of medjax.comparisons in a results.json: accuracies, in percentage points, and of sets that are graded
by something else their `metrics`, on the scale of each (report.headlines). One axis serves all rows of a scale: the
smallest of ±5, ±10, ±20, ±50 and ±100 % of it that holds every interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.headlines import SHARE, Scale, by_scale, metric_label, no_interval, scale_of

_LIMITS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the scale
_ROW, _HEAD, _FOOT = 42, 44, 32  # pixels of the figure

Comparisons = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Difference:
    """Second minus first; label: what they are graded by; value and interval are None where undefined.

    remark  what is said where there is no interval
    """

    name: str
    protocol: str
    label: str
    value: float | None
    interval: tuple[float, float] | None
    scale: Scale
    remark: str = ""

    @property
    def shown(self) -> str:
        return "–" if self.value is None else _signed(self.value, self.scale)

    @property
    def between(self) -> str:
        return drawing.between(*(_signed(end, self.scale) for end in self.interval)) if self.interval else ""

    def places(self, limit: float) -> tuple[float | None, float | None, float | None]:
        """Where value and interval stand on an axis from -limit to limit, from 0 to 1."""
        ends = (self.value, *(self.interval or (None, None)))
        value, low, high = (None if end is None else (end / limit + 1) / 2 for end in ends)
        return value, low, high

    def plot(self, limit: float) -> Markup:
        label = f"{self.shown} percentage points" if self.scale.percent else f"{self.label} {self.shown}"
        if self.interval:
            label += f", 95 % interval {self.between.replace('–', 'to')}"
        return drawing.marks(self.places(limit), 0.5, label)


def rows(comparisons: Comparisons) -> list[dict[str, Any]]:
    """The rows of the page's table of right and wrong answers."""
    found = [_accuracy(entry) for entry in comparisons]
    limit = _limit(found)
    return [
        {
            **{
                key: entry[key]
                for key in ("protocol", "first_accuracy", "second_accuracy", "only_first", "only_second")
            },
            **{"name": each.name, "difference": each.shown, "interval": each.between, "plot": each.plot(limit)},
            **{"count": entry["items"], "p": f"{entry['p_value']:.2g}"},
        }
        for entry, each in zip(comparisons, found, strict=True)
    ]


def axis(comparisons: Comparisons) -> Markup:
    """The labels of that table's axis."""
    return _axis(SHARE, _limit([_accuracy(entry) for entry in comparisons]))


def answered(comparisons: Comparisons) -> Comparisons:
    """Those of which right and wrong answers are a test."""
    return [entry for entry in comparisons if entry.get("has_answers", True)]


def graded(comparisons: Comparisons) -> list[dict[str, Any]]:
    """The rows of the page's table of other figures than accuracy, a group for each scale, with its axis."""
    found = [(_metric(entry, metric), metric) for entry in comparisons for metric in entry.get("metrics", ())]
    groups = []
    for scale, members in by_scale(each for each, _ in found):
        limit = _limit(members)
        groups.append({"axis": _axis(scale, limit), "rows": [_row(e, m, limit) for e, m in found if e.scale == scale]})
    return groups


def names(comparisons: Comparisons) -> list[str]:
    """What the rows of the figure are called."""
    return [drawing.cut_to(each.name, 32) for each in _all(comparisons)]


def figure(comparisons: Comparisons, left: float, right: float, top: float) -> tuple[list[Markup], int]:
    """Marks of the blocks of the figure, one a scale, and their height in pixels; nothing and 0 without comparisons.

    left, right  ends of the axis; top of the blocks, pixels
    """
    marks: list[Markup] = []
    height = 0
    for scale, found in by_scale(_all(comparisons)):
        marks += _block(scale, found, left, right, top + height)
        height += _HEAD + _ROW * len(found) + _FOOT
    return marks, height


def called(entry: Mapping[str, Any]) -> str:
    """Set and language, as tables name a comparison."""
    return f"{entry['task']} · {entry['language']}"


def _block(scale: Scale, found: Sequence[_Difference], left: float, right: float, top: float) -> list[Markup]:
    limit = _limit(found)
    begin, bottom = top + _HEAD, top + _HEAD + _ROW * len(found)
    by = list(dict.fromkeys(each.label for each in found))
    unit = "percentage points" if scale.percent else ", ".join(by)
    marks = [drawing.text(24, top + 22, f"adapter minus base, {unit}, same questions", 12, drawing.MUTED)]
    for share in (-1, -0.5, 0, 0.5, 1):
        x = drawing.position((share + 1) / 2, left, right)
        colour = drawing.MUTED if share == 0 else drawing.RULE
        marks.append(drawing.line(x, begin, x, bottom, colour, dashed=share == 0))
        marks.append(
            drawing.text(x, bottom + 17, _tick(share * limit, limit, scale), 12, drawing.MUTED, anchor="middle")
        )
    for row, each in enumerate(found):
        y = begin + _ROW * (row + 0.5)
        remark = f"{each.label} · {each.protocol}" if len(by) > 1 else each.protocol
        marks += [
            drawing.text(24, y - 3, drawing.cut_to(each.name, 32), 14, drawing.INK, weight=600),
            drawing.text(24, y + 13, drawing.cut_to(remark, 40), 12, drawing.MUTED),
            *drawing.row_marks(each.places(limit), y, left, right),
            drawing.text(right + 84, y - 3, each.shown, 14, drawing.INK, weight=600, anchor="end"),
            # the reason of no interval has no room here; the page says it
            drawing.text(right + 94, y - 3, each.between or each.remark.partition(":")[0], 12, drawing.MUTED),
        ]
    return marks


def _all(comparisons: Comparisons) -> list[_Difference]:
    """What the figure shows of them: right and wrong where they are a test and there is no other figure."""
    found = []
    for entry in comparisons:
        if metrics := entry.get("metrics"):
            found += [_metric(entry, metric) for metric in metrics]
        elif entry.get("has_answers", True):
            found.append(_accuracy(entry))
    return found


def _accuracy(entry: Mapping[str, Any]) -> _Difference:
    low, high = entry["accuracy_difference_interval"]
    return _Difference(called(entry), entry["protocol"], "accuracy", entry["accuracy_difference"], (low, high), SHARE)


def _metric(entry: Mapping[str, Any], metric: Mapping[str, Any]) -> _Difference:
    ends = metric["difference_interval"]
    return _Difference(
        *(called(entry), entry["protocol"], _label(metric), metric["difference"]),
        (ends[0], ends[1]) if ends else None,
        scale_of(metric["metric"], metric["bounds"]),
        no_interval(metric, "difference"),
    )


def _label(metric: Mapping[str, Any]) -> str:
    name = metric_label(metric["metric"])
    return name if metric["higher_is_better"] else f"{name} (lower is better)"


def _row(each: _Difference, metric: Mapping[str, Any], limit: float) -> dict[str, Any]:
    return {
        **{"name": each.name, "protocol": each.protocol, "by": each.label, "count": metric["items"]},
        **{key: each.scale.shown(metric[key]) for key in ("first", "second")},
        **{"difference": each.shown, "interval": each.between or each.remark, "plot": each.plot(limit)},
        "p": "–" if metric["p_value"] is None else f"{metric['p_value']:.2g}",
    }


def _limit(found: Sequence[_Difference]) -> float:
    """The end of the axis, on the scale of the rows."""
    span = found[0].scale.span if found else 1.0
    most = max((abs(end) for each in found for end in (each.interval or (each.value or 0,))), default=0)
    return next(limit * span for limit in _LIMITS if most <= limit * span or limit == _LIMITS[-1])


def _axis(scale: Scale, limit: float) -> Markup:
    return drawing.axis(*(_tick(end, limit, scale) for end in (-limit, 0, limit)))


def _tick(value: float, limit: float, scale: Scale) -> str:
    if scale.percent:
        return _signed(value, scale, 1 if limit < 0.1 and 0 < abs(value) < limit else 0)
    return f"{value:+g}".replace("-", "\u2212") if value else "0"


def _signed(value: float, scale: Scale, digits: int | None = None) -> str:
    text = f"{100 * value if scale.percent else value:+.{scale.digits if digits is None else digits}f}"
    return text.replace("-", "\u2212") if float(text) else text.lstrip("+-")
