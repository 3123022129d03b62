"""Two checks of an attribution, drawn: what happens when the marked is taken away, or the weights are shuffled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.report.plane import BAND, Plane, area, as_percent, curve, dot, grid_line, opening, padded, plain, text

_ALIKE = 0.5  # rank correlation from which two maps count as the same


def deletion_figure(check: Mapping[str, Any], output: str, *, share: bool = True) -> str:
    """The output as ever more is taken away, by the map's order and by random orders.

    check   shares [k], ordered [k], random [orders, k]
    output  what is counted upwards, such as "probability"
    share   the output is a share and written in %
    """
    shares, ordered = np.asarray(check["shares"], float), np.asarray(check["ordered"], float)
    random = np.asarray(check["random"], float)
    low, high = np.quantile(random, [0.025, 0.975], axis=0)
    limits = padded([*ordered, *low, *high], 0.08)
    plane = Plane(
        "Taking away what is marked",
        f"{output} as tokens are taken away, most attributed first and in {len(random)} random orders",
        *("share of the ECG taken away, %", f"{output}, %" if share else output),
        *((0.0, float(shares[-1])), (max(0.0, limits[0]), min(1.0, limits[1])) if share else limits),
        *(as_percent, as_percent if share else plain),
    )
    plane.explain("line", "held", "marked most, first")
    plane.explain("area", "muted", "random orders, 95 %", opacity=BAND)
    plane.band(list(shares), list(low), list(high), "muted")
    plane.curve(list(shares), list(random.mean(0)), "muted", width=1.4, dashed=True)
    plane.curve(list(shares), list(ordered), "held")
    for at, value in zip(shares, ordered, strict=True):
        plane.dot(float(at), float(value), "held", radius=3)
    return plane.svg()


def randomisation_figure(check: Mapping[str, Any]) -> str:
    """Rank correlation of the map with those of ever more shuffled weights; where the bars stay high it is not read.

    check  stages, correlations (of the maps as they are drawn)
    """
    stages: Sequence[str] = check["stages"]
    values = [float(value) for value in check["correlations"]]
    left, right, top, row = 150.0, 340.0, 84.0, 30.0
    bottom = top + row * len(stages)

    def x(value: float) -> float:
        return left + (right - left) * min(max(value, 0.0), 1.0)

    parts = [
        opening(
            400, bottom + 46, "Shuffling the weights", "Likeness of the map to those of a model of shuffled weights"
        ),
        text(16, 22, "Shuffling the weights", 14, "ink", weight=600),
        text(16, 44, "likeness to the map of a shuffled model", 12, "muted"),
        area([(16, 53), (34, 53), (34, 63), (16, 63)], "bad", 0.12),
        text(40, 62, "too alike at the end: the map ignores what was learnt", 12, "muted"),
        area([(x(_ALIKE), top), (right, top), (right, bottom), (x(_ALIKE), bottom)], "bad", 0.12),
    ]
    for tick in (0, 0.5, 1):
        parts += [
            grid_line(x(tick), top, x(tick), bottom),
            text(x(tick), bottom + 17, plain(tick), 12, "muted", anchor="middle"),
        ]
    axis = "rank correlation of the maps, without its sign"
    parts.append(text((left + right) / 2, bottom + 36, axis, 12, "muted", anchor="middle"))
    for number, (stage, value) in enumerate(zip(stages, values, strict=True)):
        y = top + row * (number + 0.5)
        kind = "bad" if number == len(stages) - 1 and abs(value) >= _ALIKE else "accent"
        parts += [
            text(left - 10, y + 4, f"{'' if number == 0 else '+ '}{stage}", 12, "ink", anchor="end"),
            curve([(left, y), (x(abs(value)), y)], kind, 5),
            dot(x(abs(value)), y, kind),
            text(right + 10, y + 4, f"{abs(value):.2f}", 12, "muted"),
        ]
    return Markup("\n").join([*parts, Markup("</svg>\n")])
