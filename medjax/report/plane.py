"""A figure of one pair of axes, 400 pixels wide so that it can be read on a phone, as SVG on white.

  title
  what is counted upwards       ── curve   ▒ interval   ● point      legend, in as many rows as it takes
  1 ┤
    │      axes with round ticks
  0 ┼──────┬──────┬
    0             1
      what is counted to the right

Marks carry classes, and a page overrides their light colours to follow the reader's colour scheme. Curves differ in
dashes or shape as well as in colour. Nothing depends on the time, so the same numbers give the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.table import display_width

MOST_POINTS = 1200  # of a curve; longer ones keep the lowest and highest of each stretch
FILLS = {
    **{"ink": drawing.INK, "muted": drawing.MUTED, "rule": drawing.RULE, "accent": drawing.ACCENT},
    **{"light": "#9cc7d6", "held": "#c2570c", "bad": "#b3261e"},
}
BAND = 0.16  # opacity of the interval about a curve
LETTER = 7.2  # pixels, the mean width at size 12 in the widest font to fall back on
_HALO = Markup(' stroke="#ffffff" stroke-width="4" stroke-linejoin="round" paint-order="stroke"')  # over the curves

Point = tuple[float, float]


def text(
    x: float,
    y: float,
    words: str,
    size: int,
    kind: str,
    *,
    weight: int = 400,
    anchor: str = "start",
    halo: bool = False,
) -> Markup:
    return Markup(
        '<text class="{}" x="{:.1f}" y="{:.1f}" font-size="{}" fill="{}" font-weight="{}" text-anchor="{}"{}>{}</text>'
    ).format(kind, x, y, size, FILLS[kind], weight, anchor, _HALO if halo else "", words)


def grid_line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
        x1, y1, x2, y2, FILLS["rule"]
    )


def curve(points: Sequence[Point], kind: str, width: float, *, dashed: bool = False) -> Markup:
    if len(points) < 2:
        return Markup("")
    path = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = Markup(' stroke-dasharray="2 4"') if dashed else ""
    return Markup(
        '<path class="{} curve" d="{}" fill="none" stroke="{}" stroke-width="{:g}" stroke-linejoin="round"{}/>'
    ).format(kind, path, FILLS[kind], width, dash)


def area(points: Sequence[Point], kind: str, opacity: float) -> Markup:
    path = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z"
    return Markup('<path class="{} area" d="{}" fill="{}" fill-opacity="{:g}"/>').format(
        kind, path, FILLS[kind], opacity
    )


def dot(x: float, y: float, kind: str, radius: float = 4, opacity: float = 1.0) -> Markup:
    faint = Markup(' fill-opacity="{:g}"').format(opacity) if opacity < 1 else ""
    return Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="{:g}" fill="{}"{}/>').format(
        kind, x, y, radius, FILLS[kind], faint
    )


def opening(width: float, height: float, title: str, description: str = "", top: float = 0) -> Markup:
    """The root element with its title, on a background."""
    described = Markup("\n<desc>{}</desc>").format(description) if description else Markup("")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="figure" width="{0:g}" height="{1:g}" '
        'viewBox="0 {2:g} {0:g} {1:g}" font-family="{3}" role="img">\n<title>{4}</title>{5}\n'
        '<rect class="back" y="{2:g}" width="{0:g}" height="{1:g}" fill="#ffffff"/>'
    ).format(width, height, top, drawing.FONT, title, described)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover a range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points that draw the same curve: first, lowest and highest of each stretch, in order."""
    if len(points) <= MOST_POINTS:
        return list(points)
    length = math.ceil(len(points) / (MOST_POINTS // 2))
    kept = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def plain(value: float) -> str:
    """A number of an axis, with a minus sign rather than a hyphen."""
    return f"{value:.4g}".replace("-", "\u2212")


def as_percent(value: float) -> str:
    """A share of an axis as a percentage without its sign."""
    return plain(100 * value)


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """A range a little wider than some values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = share * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


@dataclass
class Plane:
    """Marks between two axes; add to it from the bottom up, then take `svg`.

    title, description  what it shows, the second for readers who do not see it
    across, upwards     names of the axes with their units
    x_range, y_range    lowest and highest number of each axis
    x_shown, y_shown    how numbers of an axis are written
    square              both axes of equal length
    """

    title: str
    description: str
    across: str
    upwards: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_shown: Callable[[float], str] = plain
    y_shown: Callable[[float], str] = plain
    square: bool = False
    marks: list[Markup] = field(default_factory=list)
    entries: list[tuple[str, str, str, float]] = field(default_factory=list)

    width, left, right, head = 400, 46, 384, 64

    @property
    def top(self) -> float:
        return self.head + 18 * len(self._rows())

    @property
    def bottom(self) -> float:
        return self.top + (self.right - self.left if self.square else 230)

    def x(self, value: float) -> float:
        """Pixels from the left; numbers beyond the axis stand at its end."""
        low, high = self.x_range
        return self.left + (self.right - self.left) * min(max((value - low) / (high - low), 0.0), 1.0)

    def y(self, value: float) -> float:
        """Pixels above the axis as a negative number, as the height of the legend is not known yet."""
        low, high = self.y_range
        return -(self.right - self.left if self.square else 230) * min(max((value - low) / (high - low), 0.0), 1.0)

    def explain(self, mark: str, kind: str, label: str, *, opacity: float = 1.0) -> None:
        """Add to the legend; mark: "line", "dashed", "dot", "area" or "bar"; opacity: as what it explains is drawn."""
        self.entries.append((mark, kind, label, opacity))

    def curve(
        self, xs: Sequence[float], ys: Sequence[float], kind: str, *, width: float = 2, dashed: bool = False
    ) -> None:
        points = [(self.x(a), self.y(b)) for a, b in zip(xs, ys, strict=True)]
        self.marks.append(curve(thinned(points), kind, width, dashed=dashed))

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], kind: str) -> None:
        if len(xs) > 1:
            above = thinned([(self.x(a), self.y(b)) for a, b in zip(xs, highs, strict=True)])
            below = thinned([(self.x(a), self.y(b)) for a, b in zip(xs, lows, strict=True)])
            self.marks.append(area([*above, *reversed(below)], kind, BAND))

    def dot(self, x: float, y: float, kind: str, *, radius: float = 4, opacity: float = 1.0) -> None:
        self.marks.append(dot(self.x(x), self.y(y), kind, radius, opacity))

    def span(self, x: float, low: float, high: float, kind: str, *, width: float = 1.5) -> None:
        """A vertical interval with caps."""
        at = self.x(x)
        for points in (
            [(at, self.y(low)), (at, self.y(high))],
            *([(at - 3, self.y(end)), (at + 3, self.y(end))] for end in (low, high)),
        ):
            self.marks.append(curve(points, kind, width))

    def bar(self, begin: float, end: float, low: float, high: float, kind: str, *, opacity: float = 0.5) -> None:
        x0, x1, y0, y1 = self.x(begin), self.x(end), self.y(low), self.y(high)
        self.marks.append(area([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], kind, opacity))

    def note(self, x: float, y: float, words: str, kind: str, *, dx: float = 0, dy: float = 0) -> None:
        """Words beside a point, on the side where there is room."""
        at, length = self.x(x), LETTER * display_width(words)
        flip = at + dx + length > self.right
        self.marks.append(
            text(
                at - dx if flip else at + dx,
                self.y(y) + dy,
                words,
                12,
                kind,
                anchor="end" if flip else "start",
                halo=True,
            )
        )

    def svg(self) -> str:
        top, bottom = self.top, self.bottom
        parts = [
            opening(self.width, bottom + 46, self.title, self.description),
            text(self.left - 30, 22, drawing.cut_to(self.title, 46), 14, "ink", weight=600),
            text(self.left - 30, 44, drawing.cut_to(self.upwards, 52), 12, "muted"),
            *self._legend(),
        ]
        for tick in ticks(*self.y_range, 5):
            y = bottom + self.y(tick)
            parts += [
                grid_line(self.left, y, self.right, y),
                text(self.left - 7, y + 4, self.y_shown(tick), 12, "muted", anchor="end"),
            ]
        for tick in ticks(*self.x_range, 5):
            x = self.x(tick)
            parts += [
                grid_line(x, top, x, bottom),
                text(x, bottom + 17, self.x_shown(tick), 12, "muted", anchor="middle"),
            ]
        middle = (self.left + self.right) / 2
        parts += [
            text(middle, bottom + 36, drawing.cut_to(self.across, 50), 12, "muted", anchor="middle"),
            Markup('<g transform="translate(0 {:g})">').format(bottom),
            *self.marks,
            Markup("</g>\n</svg>\n"),
        ]
        return Markup("\n").join(parts)

    def _rows(self) -> list[list[tuple[str, str, str, float]]]:
        """The legend cut into rows that fit the width."""
        rows: list[list[tuple[str, str, str, float]]] = []
        used = math.inf
        for entry in self.entries:
            length = 34 + LETTER * display_width(entry[2])
            if used + length > self.right - self.left + 40:
                rows.append([])
                used = 0
            rows[-1].append(entry)
            used += length
        return rows

    def _legend(self) -> list[Markup]:
        parts = []
        for number, row in enumerate(self._rows()):
            x, y = float(self.left - 30), self.head + 18 * number
            for mark, kind, label, opacity in row:
                parts.append(
                    dot(x + 9, y - 4, kind, opacity=opacity)
                    if mark == "dot"
                    else area([(x, y - 9), (x + 18, y - 9), (x + 18, y + 1), (x, y + 1)], kind, opacity)
                    if mark in ("area", "bar")
                    else curve([(x, y - 4), (x + 18, y - 4)], kind, 2, dashed=mark == "dashed")
                )
                parts.append(text(x + 24, y, label, 12, "muted"))
                x += 34 + LETTER * display_width(label)
        return parts
