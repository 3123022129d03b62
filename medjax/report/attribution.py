"""An attribution on paper: how much each stretch of a lead speaks for or against what a model says.

Weights are drawn in steps, so that the legend can be read off: blank up to 0.2, then four shades, the last from 0.8.
What raises the output is vermillion with a line above, what lowers it blue with a line below: the two stay apart for
the colour-blind (Okabe and Ito, Color Universal Design, 2008) and in grey print.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medjax.report import drawing
from medjax.report.sheet import Area, Label, Mark, Stroke, polylines, rectangle

STEPS = 5
RAISES, LOWERS = "#d55e00", "#0072b2"
FORMS = ("bands", "trace")
_EDGE = 0.8  # mm, of the line that shows the sign


@dataclass(frozen=True)
class Attribution:
    """Weights of stretches of time in each lead.

    weights         [leads, stretches] in [-1, 1], NaN where there is none; stretch 0 starts with the record
    seconds         of a stretch: 1 / sampling rate for a weight a sample, samples of a patch / sampling rate for a
                    weight a token
    form            "bands": the background of each stretch is shaded; "trace": the trace is underlaid
    raises, lowers  what positive and negative weights mean

    Raises ValueError for other shapes, weights outside [-1, 1], no length and other forms.
    """

    weights: NDArray[np.floating]
    seconds: float
    form: str = "bands"
    raises: str = "raises the probability"
    lowers: str = "lowers it"

    def __post_init__(self) -> None:
        most = float(np.nanmax(np.abs(self.weights), initial=0.0))
        if self.weights.ndim != 2 or not most <= 1 + 1e-6:
            raise ValueError(
                f"Attribution.weights: got shape {self.weights.shape} with values up to {most:.4g}, expected "
                "[leads, stretches] in [-1, 1]; divide by the largest magnitude."
            )
        if not self.seconds > 0:
            raise ValueError(f"Attribution.seconds: got {self.seconds:g}, expected more than 0 s a stretch.")
        if self.form not in FORMS:
            raise ValueError(
                f"Attribution.form: got {self.form!r}, expected one of {', '.join(FORMS)}; choose one of them."
            )

    @property
    def signed(self) -> bool:
        return bool((np.nan_to_num(self.weights) < 0).any())


@dataclass(frozen=True)
class Place:
    """Where a strip of a lead stands: row and trace in mm of the sheet, and the seconds of the record it shows."""

    top: float
    bottom: float
    start_s: float
    stop_s: float
    mm_a_second: float
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def levels(weights: NDArray[np.floating]) -> NDArray[np.int64]:
    """Weights as steps of colour, -4 to 4; 0 is left blank."""
    known = np.nan_to_num(weights)
    return (np.sign(known) * np.minimum(np.floor(np.abs(known) * STEPS + 1e-9), STEPS - 1)).astype(np.int64)


def drawn(attribution: Attribution, lead: int, place: Place) -> Iterator[Mark]:
    """Marks below the trace of one strip; neighbouring stretches of the same step are drawn as one.

    lead  row of the weights
    """
    steps = levels(attribution.weights[lead])
    changes = np.flatnonzero(np.diff(steps)) + 1
    left = place.x[0] if len(place.x) else 0.0
    for begin, end in zip([0, *changes], [*changes, len(steps)], strict=True):
        start = max(begin * attribution.seconds, place.start_s)
        stop = min(end * attribution.seconds, place.stop_s)
        if steps[begin] == 0 or stop <= start:
            continue
        x = left + (start - place.start_s) * place.mm_a_second
        width = (stop - start) * place.mm_a_second
        if attribution.form == "bands":
            box = (x, place.top + 0.4, width, place.bottom - place.top - 0.8)
            yield from _band(int(steps[begin]), *box, signed=attribution.signed)
            continue
        inside = (place.x >= x - 1e-6) & (place.x <= x + width + 1e-6)
        if lines := tuple(polylines(place.x[inside], place.y[inside])):
            # twice as wide where it raises: the sign without the colour
            width_mm = 2.6 if steps[begin] > 0 else 1.3
            yield Stroke(lines, _colour(int(steps[begin])), width_mm, _opacity(int(steps[begin])), kind="weight")


def legend(attribution: Attribution, right: float, top: float) -> Iterator[Mark]:
    """Swatches from what lowers to what raises; right edge and top in mm."""
    steps = range(-(STEPS - 1) if attribution.signed else 0, STEPS)
    width, height = 5.0, 3.6
    # of a letter of DejaVu Sans bold at this size, the widest font to fall back on
    x = right - 2.15 * len(attribution.raises) - 2 - width * len(steps)
    if attribution.signed:
        yield Label(x - 2, top + 2.8, attribution.lowers, 3.2, LOWERS, bold=True, anchor="end")
    for number, step in enumerate(steps):
        left = x + width * number
        if step == 0:
            corners = rectangle(left, top, width, height)
            yield Stroke(((*corners, corners[0]),), drawing.RULE, 0.15)
        elif attribution.form == "bands":
            yield from _band(step, left, top, width, height, signed=attribution.signed)
        else:
            thick = 2.6 if step > 0 else 1.3
            yield Area(rectangle(left, top + (height - thick) / 2, width, thick), _colour(step), _opacity(step))
    yield Label(x + width * len(steps) + 2, top + 2.8, attribution.raises, 3.2, RAISES, bold=True)


def _band(step: int, x: float, y: float, width: float, height: float, *, signed: bool) -> Iterator[Area]:
    yield Area(rectangle(x, y, width, height), _colour(step), _opacity(step), kind="weight")
    if not signed:
        return
    edge = y if step > 0 else y + height - _EDGE
    yield Area(rectangle(x, edge, width, _EDGE), _colour(step), min(1.0, _opacity(step) + 0.4), kind="sign")


def _colour(step: int) -> str:
    return RAISES if step > 0 else LOWERS


def _opacity(step: int) -> float:
    return 0.08 + 0.11 * abs(step)
