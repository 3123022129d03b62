"""Two models on the same items, drawn: the paired difference of their accuracies on an axis around zero.

  ├─────────┆──●──────┤     ● second minus first, percentage points   ── 95 % interval   ┆ no difference

Entries are those of medjax.comparisons in a results.json. One axis serves all of them: the smallest of ±5, ±10, ±20,
±50 and ±100 points that holds every interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import drawing

_LIMITS = (0.05, 0.1, 0.2, 0.5, 1.0)
_ROW, _HEAD = 42, 44  # pixels of the figure

Comparisons = Sequence[Mapping[str, Any]]


def rows(comparisons: Comparisons) -> list[dict[str, Any]]:
    """The rows of the page's table."""
    limit = _limit(comparisons)
    return [
        {
            **{
                key: entry[key]
                for key in ("protocol", "first_accuracy", "second_accuracy", "only_first", "only_second")
            },
            "name": called(entry),
            "count": entry["items"],
            "difference": _points(entry["accuracy_difference"]),
            "interval": _interval(entry),
            "p": f"{entry['p_value']:.2g}",
            "plot": _plot(entry, limit),
        }
        for entry in comparisons
    ]


def axis(comparisons: Comparisons) -> Markup:
    """The labels of the table's axis."""
    limit = _limit(comparisons)
    return drawing.axis(_points(-limit, 0), "0", _points(limit, 0))


def names(comparisons: Comparisons) -> list[str]:
    """What the rows of the figure are called."""
    return [drawing.cut_to(called(entry), 32) for entry in comparisons]


def figure(comparisons: Comparisons, left: float, right: float, top: float) -> tuple[list[Markup], int]:
    """Marks of a block of the figure, and its height in pixels; nothing and 0 without comparisons.

    left, right  ends of the axis; top of the block, pixels
    """
    if not comparisons:
        return [], 0
    limit = _limit(comparisons)
    begin, bottom = top + _HEAD, top + _HEAD + _ROW * len(comparisons)
    marks = [drawing.text(24, top + 22, "adapter minus base, percentage points, same questions", 12, drawing.MUTED)]
    for share in (-1, -0.5, 0, 0.5, 1):
        x = drawing.position((share + 1) / 2, left, right)
        marks.append(
            drawing.line(x, begin, x, bottom, drawing.MUTED if share == 0 else drawing.RULE, dashed=share == 0)
        )
        marks.append(
            drawing.text(
                x, bottom + 17, _points(share * limit, 1 if limit < 0.1 else 0), 12, drawing.MUTED, anchor="middle"
            )
        )
    for row, (entry, name) in enumerate(zip(comparisons, names(comparisons), strict=True)):
        y = begin + _ROW * (row + 0.5)
        bounds = (entry["accuracy_difference"], *entry["accuracy_difference_interval"])
        value, low, high = (drawing.position(_share(bound, limit), left, right) for bound in bounds)
        marks += [
            drawing.text(24, y - 3, name, 14, drawing.INK, weight=600),
            drawing.text(24, y + 13, entry["protocol"], 12, drawing.MUTED),
            drawing.line(low, y, high, y, drawing.ACCENT, width=3),
            drawing.line(low, y - 5, low, y + 5, drawing.ACCENT, width=1.5),
            drawing.line(high, y - 5, high, y + 5, drawing.ACCENT, width=1.5),
            Markup('<circle cx="{:.2f}" cy="{:g}" r="5" fill="{}"/>').format(value, y, drawing.ACCENT),
            drawing.text(right + 84, y - 3, _points(bounds[0]), 14, drawing.INK, weight=600, anchor="end"),
            drawing.text(right + 94, y - 3, _interval(entry), 12, drawing.MUTED),
        ]
    return marks, _HEAD + _ROW * len(comparisons) + 32


def called(entry: Mapping[str, Any]) -> str:
    """Set and language, as tables name a comparison."""
    return f"{entry['task']} · {entry['language']}"


def _plot(entry: Mapping[str, Any], limit: float) -> Markup:
    low, high = entry["accuracy_difference_interval"]
    value = entry["accuracy_difference"]
    label = f"{_points(value)} percentage points, 95 % interval {_points(low)} to {_points(high)}"
    return drawing.marks((_share(value, limit), _share(low, limit), _share(high, limit)), 0.5, label)


def _limit(comparisons: Comparisons) -> float:
    most = max((abs(bound) for entry in comparisons for bound in entry["accuracy_difference_interval"]), default=0)
    return next(limit for limit in _LIMITS if most <= limit)


def _share(difference: float, limit: float) -> float:
    """Where a difference stands on the axis, from 0 to 1."""
    return (difference / limit + 1) / 2


def _interval(entry: Mapping[str, Any]) -> str:
    return " – ".join(_points(bound) for bound in entry["accuracy_difference_interval"])


def _points(share: float, digits: int = 1) -> str:
    text = f"{100 * share:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else text.lstrip("+-")
