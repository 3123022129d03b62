"""Figures of a regression such as the age read off an ECG: predicted and true, their difference, bias by decade.

Each returns SVG on white, 400 pixels wide. Differences are predicted minus true throughout.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.report.curves import Number, with_interval
from medjax.report.plane import Plane, padded


def predicted_figure(points: Mapping[str, Any], errors: Mapping[str, Number], name: str, unit: str) -> str:
    """Predicted over true values, the line of equality and the line that fits.

    points  true, predicted
    errors  mae, bias and slope (of predicted on true) as numbers, of the whole set where the points are a part
    """
    true, predicted = points["true"], points["predicted"]
    limits = padded([*true, *predicted])
    plane = Plane(
        f"Predicted and true {name}",
        f"Mean absolute error {with_interval(errors['mae'], 2)} {unit}",
        *(f"true {name}, {unit}", f"predicted {name}, {unit}"),
        *(limits, limits),
        square=True,
    )
    plane.explain("dashed", "muted", "equal")
    plane.curve(limits, limits, "muted", width=1.2, dashed=True)
    faint = 0.7 if len(true) < 200 else 0.35
    for at, found in zip(true, predicted, strict=True):
        plane.dot(at, found, "accent", radius=2.5 if len(true) < 400 else 1.8, opacity=faint)
    slope = errors.get("slope", {}).get("value")
    if slope is not None and len(true):
        x, y = sum(true) / len(true), sum(predicted) / len(predicted)
        ends = (min(true), max(true))
        plane.explain("line", "held", f"fit, slope {slope:.2f}")
        plane.curve(ends, [y + slope * (end - x) for end in ends], "held", width=1.8)
    return plane.svg()


def agreement_figure(agreement: Mapping[str, Any], name: str, unit: str) -> str:
    """Difference over mean of predicted and true, with bias and limits of agreement and their intervals.

    agreement  bias, lower_limit, upper_limit as numbers; points: mean, difference

    Source: Bland and Altman, Lancet 327 (1986) 307.
    """
    means, differences = agreement["points"]["mean"], agreement["points"]["difference"]
    levels = [agreement[key] for key in ("upper_limit", "bias", "lower_limit")]
    bounds = [level[end] for level in levels for end in ("value", "low", "high") if level.get(end) is not None]
    plane = Plane(
        "Bland–Altman",
        f"Bias {with_interval(agreement['bias'], 2)} {unit}, limits of agreement "
        f"{with_interval(agreement['lower_limit'], 1)} to {with_interval(agreement['upper_limit'], 1)} {unit}",
        *(f"mean of predicted and true {name}, {unit}", f"predicted − true, {unit}"),
        *(padded(means), padded([*differences, *bounds])),
    )
    plane.explain("line", "held", "bias")
    plane.explain("dashed", "held", "95 % of the differences")
    for at, difference in zip(means, differences, strict=True):
        plane.dot(at, difference, "accent", radius=2.5 if len(means) < 400 else 1.8, opacity=0.5)
    plane.curve(plane.x_range, (0, 0), "muted", width=1.2)
    for level, dashed in zip(levels, (True, False, True), strict=True):
        if level.get("value") is None:
            continue
        if level.get("low") is not None:
            plane.bar(*plane.x_range, level["low"], level["high"], "held", opacity=0.14)
        plane.curve(plane.x_range, (level["value"],) * 2, "held", width=1.8, dashed=dashed)
        plane.note(plane.x_range[1], level["value"], f"{level['value']:+.1f}".replace("-", "−"), "held", dx=-2, dy=-5)
    return plane.svg()


def decade_figure(decades: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Bias by decade with its interval; small groups hollow.

    decades  from, to, records, small, bias as a number
    """
    shown = [decade for decade in decades if decade["bias"].get("value") is not None]
    ends = [
        decade["bias"][end]
        for decade in shown
        for end in ("value", "low", "high")
        if decade["bias"].get(end) is not None
    ]
    first, last = min((d["from"] for d in decades), default=0), max((d["to"] for d in decades), default=1)
    plane = Plane(
        "Bias by decade",
        "Mean difference of predicted and true by decade of the true value, with 95 % intervals",
        *(f"true value, {unit}", f"predicted − true, {unit}"),
        *((float(first), float(last)), padded([*ends, 0.0], 0.12)),
    )
    plane.explain("dot", "accent", "mean, 95 % interval")
    if any(decade["small"] for decade in shown):
        plane.explain("dot", "light", "few records")
    plane.curve(plane.x_range, (0, 0), "muted", width=1.2)
    for decade in shown:
        middle, bias = (decade["from"] + decade["to"]) / 2, decade["bias"]
        kind = "light" if decade["small"] else "accent"
        if bias.get("low") is not None:
            plane.span(middle, bias["low"], bias["high"], kind)
        plane.dot(middle, bias["value"], kind)
        plane.note(middle, plane.y_range[0], f"{decade['records']:,}", "muted", dx=-9, dy=-6)
    return plane.svg()
