"""Forest plot: an estimate and its interval in each subgroup, beside that of everybody.

AUROC                            everybody 0.91, dashed
age band
  40-49      n 120     ──●──         0.93 (0.88–0.97)
  90-99      n 4 *         ○         –
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.curves import Number, with_interval
from medjax.report.plane import curve, dot, grid_line, opening, plain, text, ticks

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 400, 176, 284, 24, 58  # pixels


@dataclass(frozen=True)
class Group:
    """A subgroup: what it is grouped by, which one it is, its records, and whether they are too few to rest on."""

    by: str
    value: str
    records: int
    small: bool
    estimate: Number


def forest_figure(
    groups: Sequence[Group], overall: Number, metric: str, *, limits: tuple[float, float] | None = None, digits: int = 2
) -> str:
    """Return SVG on white, 400 pixels wide.

    limits  the ends that the axis must not pass, such as (0, 1) for AUROC
    """
    low, high = _axis(groups, overall, limits)
    rows: list[str | Group] = []
    for group in groups:
        if not rows or (isinstance(rows[-1], Group) and rows[-1].by != group.by):
            rows.append(group.by)
        rows.append(group)
    bottom = _TOP + _ROW * len(rows)

    def x(value: float) -> float:
        return drawing.position(min(max((value - low) / (high - low), 0.0), 1.0), _LEFT, _RIGHT)

    shown = with_interval(overall, digits)
    parts = [
        opening(
            _WIDTH, bottom + (58 if any(g.small for g in groups) else 38), f"{metric} by subgroup", f"All: {shown}"
        ),
        text(16, 22, f"{metric} by subgroup", 14, "ink", weight=600),
        text(16, 44, f"dashed: everybody, {shown}", 12, "muted"),
    ]
    for tick in ticks(low, high, 3):
        parts.append(grid_line(x(tick), _TOP, x(tick), bottom))
        parts.append(text(x(tick), bottom + 17, plain(tick), 12, "muted", anchor="middle"))
    if overall.get("value") is not None:
        at = x(overall["value"])
        parts.append(curve([(at, _TOP), (at, bottom)], "muted", 1.2, dashed=True))
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + 16
        if isinstance(row, str):
            parts.append(text(16, y, drawing.cut_to(row, 24), 12, "ink", weight=600))
            continue
        parts += _marks(row, x, y - 4, (low, high))
        parts.append(text(24, y, drawing.cut_to(row.value, 13), 12, "ink"))
        parts.append(text(_LEFT - 14, y, f"{row.records:,}{' *' if row.small else ''}", 12, "muted", anchor="end"))
        parts.append(text(_RIGHT + 10, y, with_interval(row.estimate, digits), 11, "muted"))
    if any(group.small for group in groups):
        parts.append(
            text(16, bottom + 40, "number: records   * few of one class or in all: read with care", 12, "muted")
        )
    return Markup("\n").join([*parts, Markup("</svg>\n")])


def _marks(group: Group, x: Callable[[float], float], y: float, axis: tuple[float, float]) -> list[Markup]:
    value, low, high = (group.estimate.get(key) for key in ("value", "low", "high"))
    if value is None:
        return []
    kind, marks = ("light" if group.small else "accent"), []
    if low is not None and high is not None:
        marks.append(curve([(x(low), y), (x(high), y)], kind, 2))
        # an arrow in place of the cap where the interval leaves the axis
        for end, beyond, turn in ((low, low < axis[0], 1), (high, high > axis[1], -1)):
            tip = [(x(end) + 5 * turn, y - 4), (x(end), y), (x(end) + 5 * turn, y + 4)]
            marks.append(curve(tip if beyond else [(x(end), y - 4), (x(end), y + 4)], kind, 1.5))
    return [*marks, dot(x(value), y, kind)]


def _axis(groups: Sequence[Group], overall: Number, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Ends that hold all estimates and the intervals of groups that are not small."""
    numbers = [overall, *(group.estimate for group in groups)]
    ends = [n["value"] for n in numbers if n.get("value") is not None]
    sure = [overall, *(group.estimate for group in groups if not group.small)]
    ends += [n[key] for n in sure for key in ("low", "high") if n.get(key) is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.08 * (high - low) or 0.05
    low, high = low - margin, high + margin
    return (low, high) if limits is None else (max(low, limits[0]), min(high, limits[1]))
