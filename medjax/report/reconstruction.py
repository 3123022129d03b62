"""What a masked autoencoder makes of an ECG: the original, the patches it did not see, and what it puts in their place.

Two columns of leads on one scale; masked stretches are shaded, and the reconstruction is drawn there only, since what
the encoder saw is not asked for.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from medjax.report.plane import Point, area, curve, grid_line, opening, text

_COLUMN, _ROW, _TOP, _LEFT = 400, 62, 66, 16  # pixels
_PIXELS = 384 - _LEFT  # of a lead


def reconstruction_figure(
    original: ArrayLike,
    reconstruction: ArrayLike,
    masked: ArrayLike,
    leads: Sequence[str],
    sampling_rate_hz: float,
    *,
    unit: str = "mV",
    columns: int = 2,
    title: str = "Masked patches and their reconstruction",
) -> str:
    """Return SVG on white, 400 pixels a column; one column can be read on a phone.

    original        [leads, samples], NaN where not measured
    reconstruction  [leads, samples], of which masked patches are drawn
    masked          [leads, patches] bool; samples must be a multiple of patches

    Raises ValueError when the shapes do not fit.
    """
    true, made = np.asarray(original, np.float64), np.asarray(reconstruction, np.float64)
    hidden = np.asarray(masked, bool)
    if (
        true.shape != made.shape
        or len(true) != len(leads)
        or len(hidden) != len(leads)
        or true.shape[1] % hidden.shape[1]
    ):
        raise ValueError(
            f"reconstruction_figure: got original {true.shape}, reconstruction {made.shape}, masked {hidden.shape} and "
            f"{len(leads)} leads, expected [leads, samples] twice and [leads, patches] dividing them; cut the record."
        )
    patch = true.shape[1] // hidden.shape[1]
    known = true[np.isfinite(true)]
    # rare spikes are cut at the edge of the row, as one scale serves all leads
    low, high = (float(np.quantile(known, share)) for share in (0.0005, 0.9995)) if known.size else (0.0, 1.0)
    limits = (min(low, 0.0), max(high, 0.0, low + 1e-9))
    rows = -(-len(leads) // columns)
    error = float(np.nanmean((made - true)[np.repeat(hidden, patch, axis=1)] ** 2)) if hidden.any() else 0.0
    seconds = true.shape[1] / sampling_rate_hz
    parts = [
        opening(
            _COLUMN * columns,
            _TOP + _ROW * rows + 28,
            title,
            f"{hidden.mean():.0%} of {hidden.size} patches masked, mean squared error there {error:.3g}",
        ),
        text(_LEFT, 22, title, 14, "ink", weight=600),
        text(
            _LEFT,
            42,
            f"{hidden.mean():.0%} of {hidden.size} patches masked; error² there {error:.3g} {unit}²",
            12,
            "muted",
        ),
        curve([(_LEFT, 54), (_LEFT + 18, 54)], "muted", 1.2),
        text(_LEFT + 24, 58, "original", 12, "muted"),
        area([(_LEFT + 92, 49), (_LEFT + 110, 49), (_LEFT + 110, 60), (_LEFT + 92, 60)], "light", 0.35),
        text(_LEFT + 116, 58, "masked", 12, "muted"),
        curve([(_LEFT + 180, 54), (_LEFT + 198, 54)], "held", 1.6),
        text(_LEFT + 204, 58, "reconstruction", 12, "muted"),
    ]
    for number, lead in enumerate(leads):
        left = _LEFT + _COLUMN * (number // rows)
        top = _TOP + _ROW * (number % rows) + 2
        parts += _lead(lead, true[number], made[number], hidden[number], left, top, limits)
    for column in range(columns):
        left, y = _LEFT + _COLUMN * column, _TOP + _ROW * rows
        for second in range(0, int(seconds) + 1, 1 if seconds < 4 else 2):
            x = left + _PIXELS * second / seconds
            anchor = "end" if x > left + _PIXELS - 12 else "middle" if second else "start"
            parts.append(text(x, y + 16, f"{second} s" if second else "0", 12, "muted", anchor=anchor))
    return Markup("\n").join([*parts, Markup("</svg>\n")])


def _lead(
    lead: str,
    true: NDArray[np.float64],
    made: NDArray[np.float64],
    hidden: NDArray[np.bool_],
    left: float,
    top: float,
    limits: tuple[float, float],
) -> list[Markup]:
    patch, step = len(true) // len(hidden), _PIXELS / len(true)
    bottom, scale = top + _ROW - 4, (_ROW - 4) / (limits[1] - limits[0])
    zero = bottom + scale * limits[0]
    parts = [grid_line(left, zero, left + _PIXELS, zero)]
    for begin, end in _runs(hidden):
        x0, x1 = left + begin * patch * step, left + end * patch * step
        parts.append(area([(x0, top), (x1, top), (x1, bottom), (x0, bottom)], "light", 0.35))

    def points(values: NDArray[np.float64], begin: int, end: int) -> list[Point]:
        return [(left + i * step, min(max(zero - scale * float(values[i]), top), bottom)) for i in range(begin, end)]

    for begin, end in _runs(np.isfinite(true)):
        parts.append(curve(_few(points(true, begin, end)), "muted", 1))
    for begin, end in _runs(hidden):
        parts.append(curve(_few(points(np.nan_to_num(made), begin * patch, end * patch)), "held", 1.5))
    parts.append(text(left + 2, top + 11, lead, 12, "ink", weight=600, halo=True))
    return parts


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _few(points: list[Point]) -> list[Point]:
    """Lowest and highest of each pixel, in order: the same curve on a screen."""
    kept: list[Point] = []
    start = 0
    for index in range(1, len(points) + 1):
        if index == len(points) or int(points[index][0]) != int(points[start][0]):
            stretch = points[start:index]
            ends = {stretch[0], stretch[-1], min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            kept += sorted(ends)
            start = index
    return kept
