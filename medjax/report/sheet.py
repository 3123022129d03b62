"""A sheet of paper in millimetres: laid out once, written as SVG, PDF or PNG with the same lengths in each.

SVG is written here, in units of 0.01 mm: its view box is a hundred times its size. PDF and PNG are drawn by matplotlib
on a figure of the sheet's size, where a unit of the axes is 1 mm: a PDF point is 25.4 / 72 mm, and a PNG at 254 dots an
inch has 10 pixels a millimetre and says so in its pHYs chunk. Nothing depends on the time or the machine, so the same
sheet gives the same bytes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medjax.report import drawing

UNITS_PER_MM = 100  # of the SVG
DOTS_PER_INCH = 254.0  # of the PNG: 10 pixels a millimetre, so that grid lines fall on pixels
_FAMILIES = ("Noto Sans", "DejaVu Sans", "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic")
_POINTS_PER_MM = 72 / 25.4
_TOLERANCE, _DOT = 0.01, 0.25  # mm

Point = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """Lines through points, all of one colour and width; mm from the left and the top of the sheet."""

    lines: tuple[tuple[Point, ...], ...]
    colour: str
    width: float
    opacity: float = 1.0
    dashed: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Area:
    """A filled polygon; mm from the left and the top of the sheet."""

    corners: tuple[Point, ...]
    colour: str
    opacity: float = 1.0
    kind: str = ""


@dataclass(frozen=True)
class Label:
    """A line of text; x, y and size in mm, y of the base line; a halo of paper keeps it legible on lines."""

    x: float
    y: float
    text: str
    size: float
    colour: str = drawing.INK
    bold: bool = False
    anchor: str = "start"
    halo: bool = False


Mark = Stroke | Area | Label


@dataclass(frozen=True)
class Sheet:
    """Marks on white paper, the first at the bottom.

    title, description  what it shows, for readers who do not see it
    """

    width_mm: float
    height_mm: float
    title: str
    description: str
    marks: tuple[Mark, ...]

    def svg(self) -> str:
        """Return the sheet as SVG: width and height in mm, coordinates in 0.01 mm."""
        parts = [
            Markup(
                '<svg xmlns="http://www.w3.org/2000/svg" class="sheet" width="{:g}mm" height="{:g}mm" '
                'viewBox="0 0 {} {}" font-family="{}" role="img">\n<title>{}</title>\n<desc>{}</desc>\n'
                '<path fill="#ffffff" d="M0 0h{}v{}H0z"/>'
            ).format(
                *(self.width_mm, self.height_mm, *self._units(), drawing.FONT, self.title, self.description),
                *self._units(),
            ),
            *(_svg(mark) for mark in self.marks),
        ]
        return Markup("\n").join([*parts, Markup("</svg>\n")])

    def pdf(self) -> bytes:
        """Return a PDF of one page of the sheet's size. Needs matplotlib (pip install 'medjax[ecg]')."""
        # no date: the same sheet gives the same bytes
        return self._painted("pdf", {"Title": self.title, "Creator": "medjax", "Producer": None, "CreationDate": None})

    def png(self, dots_per_inch: float = DOTS_PER_INCH) -> bytes:
        """Return a PNG that carries its resolution. Needs matplotlib (pip install 'medjax[ecg]')."""
        return self._painted("png", {"Title": self.title, "Software": None}, dots_per_inch)

    def save(self, path: str | Path) -> Path:
        """Write the sheet in the format of the path's suffix: .svg, .pdf or .png.

        Raises ValueError for another suffix.
        """
        path = Path(path)
        writers = {".svg": lambda: self.svg().encode(), ".pdf": self.pdf, ".png": self.png}
        if path.suffix.lower() not in writers:
            raise ValueError(f"{path}: got the suffix {path.suffix!r}, expected .svg, .pdf or .png; rename the file.")
        path.write_bytes(writers[path.suffix.lower()]())
        return path

    def _units(self) -> tuple[int, int]:
        return round(self.width_mm * UNITS_PER_MM), round(self.height_mm * UNITS_PER_MM)

    def _painted(self, form: str, metadata: dict[str, Any], dots_per_inch: float = DOTS_PER_INCH) -> bytes:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_pdf import FigureCanvasPdf
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager

        known = {font.name for font in fontManager.ttflist}
        families = [family for family in _FAMILIES if family in known]
        # a hair more than the size, as 297 mm at 254 dots an inch must not be cut down to 2969 pixels
        size = ((self.width_mm + 1e-6) / 25.4, (self.height_mm + 1e-6) / 25.4)
        with rc_context({"path.simplify": False, "pdf.fonttype": 42, "font.family": families or ["sans-serif"]}):
            figure = Figure(figsize=size, facecolor="white")
            canvas = (FigureCanvasPdf if form == "pdf" else FigureCanvasAgg)(figure)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set_xlim(0, self.width_mm)
            axes.set_ylim(self.height_mm, 0)
            for order, mark in enumerate(self.marks):
                _paint(axes, mark, order)
            file = io.BytesIO()
            canvas.print_figure(file, format=form, dpi=dots_per_inch, metadata=metadata)
        return file.getvalue()


def rectangle(x: float, y: float, width: float, height: float) -> tuple[Point, ...]:
    """Corners of a rectangle by its left upper one."""
    return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def straightened(values: Sequence[float], tolerance: float) -> list[int]:
    """Return the indices of the points through which straight lines pass all evenly spaced values within a tolerance.

    The first and the last point are kept, and no value lies further than the tolerance above or below the line that
    replaces it, so peaks stay. From each kept point the lines that pass all values so far form a cone; the line is
    drawn to the last point inside it.
    """
    kept, start = [0] if len(values) else [], 0
    while start < len(values) - 1:
        low, high, end = float("-inf"), float("inf"), start + 1
        for index in range(start + 1, len(values)):
            run, rise = index - start, values[index] - values[start]
            if low <= rise / run <= high:
                end = index
            low, high = max(low, (rise - tolerance) / run), min(high, (rise + tolerance) / run)
            if low > high:
                break
        kept.append(end)
        start = end
    return kept


def polylines(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[Point, ...]]:
    """Yield the measured stretches of an evenly sampled trace as lines, thinned to 0.01 mm; NaN is a gap.

    x, y  [samples] mm. A single sample between gaps becomes a dot.
    """
    finite = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2):
        stretch = y[begin:end].tolist()
        points = [(float(x[begin + i]), stretch[i]) for i in straightened(stretch, _TOLERANCE)]
        yield tuple(points) if len(points) > 1 else (points[0], (points[0][0] + _DOT, points[0][1]))


def _svg(mark: Mark) -> Markup:
    if isinstance(mark, Label):
        halo = Markup(' stroke="#ffffff" stroke-width="{:.0f}" paint-order="stroke"').format(0.3 * mark.size * 100)
        return Markup(
            '<text x="{}" y="{}" font-size="{}" fill="{}" font-weight="{}" text-anchor="{}"{}>{}</text>'
        ).format(
            *(*_rounded((mark.x, mark.y)), round(mark.size * UNITS_PER_MM), mark.colour, 600 if mark.bold else 400),
            *(mark.anchor, halo if mark.halo else "", mark.text),
        )
    kind = Markup(' class="{}"').format(mark.kind) if mark.kind else ""
    if isinstance(mark, Area):
        opacity = Markup(' fill-opacity="{:g}"').format(mark.opacity) if mark.opacity < 1 else ""
        return Markup('<path{} fill="{}"{} d="{}z"/>').format(kind, mark.colour, opacity, "".join(_path(mark.corners)))
    opacity = Markup(' stroke-opacity="{:g}"').format(mark.opacity) if mark.opacity < 1 else ""
    dash = Markup(' stroke-dasharray="100 100"') if mark.dashed else ""
    return Markup('<path{} fill="none" stroke="{}" stroke-width="{:g}"{}{} stroke-linejoin="round" d="{}"/>').format(
        kind, mark.colour, mark.width * UNITS_PER_MM, opacity, dash, "".join("".join(_path(p)) for p in mark.lines)
    )


def _rounded(point: Point) -> tuple[int, int]:
    return round(point[0] * UNITS_PER_MM), round(point[1] * UNITS_PER_MM)


def _path(points: Sequence[Point]) -> Iterator[str]:
    """Commands of a path through points: steps between whole units, so that rounding does not add up."""
    x, y = _rounded(points[0])
    yield f"M{x} {y}"
    letter = ""
    for point in points[1:]:
        to_x, to_y = _rounded(point)
        step = f"{to_x - x} {to_y - y}" if to_y >= y else f"{to_x - x}{to_y - y}"
        if to_y == y:
            letter = yield from _command("h", f"{to_x - x}", letter)
        elif to_x == x:
            letter = yield from _command("v", f"{to_y - y}", letter)
        else:
            letter = yield from _command("l", step, letter)
        x, y = to_x, to_y


def _command(letter: str, numbers: str, before: str) -> Any:
    yield numbers if letter == before and numbers.startswith("-") else (" " if letter == before else letter) + numbers
    return letter


def _paint(axes: Any, mark: Mark, order: int) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Polygon
    from matplotlib.patheffects import withStroke

    if isinstance(mark, Label):
        text = axes.text(
            *(mark.x, mark.y, mark.text.replace("$", r"\$")),
            fontsize=mark.size * _POINTS_PER_MM,
            color=mark.colour,
            fontweight="bold" if mark.bold else "normal",
            ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
            va="baseline",
            zorder=order,
        )
        if mark.halo:
            text.set_path_effects([withStroke(linewidth=0.3 * mark.size * _POINTS_PER_MM, foreground="white")])
    elif isinstance(mark, Area):
        axes.add_patch(Polygon(mark.corners, facecolor=mark.colour, alpha=mark.opacity, linewidth=0, zorder=order))
    else:
        lines = LineCollection(
            list(mark.lines),
            colors=mark.colour,
            linewidths=mark.width * _POINTS_PER_MM,
            alpha=mark.opacity,
            linestyles=(0, (1 / mark.width, 1 / mark.width)) if mark.dashed else "solid",
            capstyle="butt",
            joinstyle="round",
            zorder=order,
        )
        axes.add_collection(lines, autolim=False)
