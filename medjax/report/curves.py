"""Figures of a detector, from the curves and numbers that stand in the results of an evaluation.

Each takes plain numbers (report.detector says which part of results.json) and returns SVG on white, 400 pixels wide.
Intervals are bands or whiskers; chance, "treat all" and the diagonal of perfect calibration are dashed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.report import drawing
from medjax.report.plane import Plane, as_percent, padded, plain

_SIDES = 0.55  # opacity of the histogram's bars

Number = Mapping[str, Any]


def with_interval(number: Number, digits: int = 3) -> str:
    """An estimate and its interval, as 0.912 (0.884–0.935) or −5.04 (−7.00 to −3.07); "–" where it is not defined."""
    if number.get("value") is None:
        return "–"
    low, high = number.get("low"), number.get("high")
    shown = f"{number['value']:.{digits}f}"
    if low is not None and high is not None:
        shown += f" ({drawing.between(f'{low:.{digits}f}', f'{high:.{digits}f}', '–')})"
    return shown.replace("-", "−")


def roc_figure(curve: Mapping[str, Sequence[float]], auroc: Number, points: Sequence[Mapping[str, Any]] = ()) -> str:
    """Sensitivity over false alarms, with its band and the operating points.

    curve   fpr, tpr, low, high
    points  name, sensitivity and specificity as numbers; the first one is the decision of the model
    """
    plane = _square(
        "ROC curve",
        f"Sensitivity against false alarms, AUROC {with_interval(auroc)}",
        *("false alarms, % of the negative (1 − specificity)", "sensitivity, %"),
    )
    plane.explain("line", "accent", f"AUROC {with_interval(auroc)}")
    plane.explain("dashed", "muted", "chance")
    plane.curve((0, 1), (0, 1), "muted", width=1.2, dashed=True)
    plane.band(curve["fpr"], curve["low"], curve["high"], "accent")
    plane.curve(curve["fpr"], curve["tpr"], "accent")
    for number, point in enumerate(points):
        sensitivity, specificity = point["sensitivity"], point["specificity"]
        if sensitivity.get("value") is None or specificity.get("value") is None:
            continue
        at = 1 - specificity["value"]
        if sensitivity.get("low") is not None:
            plane.span(at, sensitivity["low"], sensitivity["high"], "held")
        if number == 0:
            plane.explain("dot", "held", "operating point")
        plane.dot(at, sensitivity["value"], "held", radius=4.5)
    return plane.svg()


def precision_recall_figure(
    curve: Mapping[str, Sequence[float]],
    auprc: Number,
    prevalence: float | None,
    points: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Precision over recall; a model without skill stays at the prevalence.

    curve  recall, precision
    """
    plane = _square(
        "Precision and recall",
        f"Positive predictive value against sensitivity, AUPRC {with_interval(auprc)}",
        *("recall (sensitivity), %", "precision (positive predictive value), %"),
    )
    plane.explain("line", "accent", f"AUPRC {with_interval(auprc)}")
    if prevalence is not None:
        plane.explain("dashed", "muted", f"prevalence {drawing.percent(prevalence)}")
        plane.curve((0, 1), (prevalence, prevalence), "muted", width=1.2, dashed=True)
    plane.curve(curve["recall"], curve["precision"], "accent")
    for number, point in enumerate(points):
        if point["sensitivity"].get("value") is None or point["ppv"].get("value") is None:
            continue
        if number == 0:
            plane.explain("dot", "held", "operating point")
        plane.dot(point["sensitivity"]["value"], point["ppv"]["value"], "held", radius=4.5)
    return plane.svg()


def reliability_figure(
    bins: Sequence[Mapping[str, float]],
    raw: Sequence[Mapping[str, float]] = (),
    *,
    title: str = "Reliability",
    axes: tuple[str, str] = ("predicted probability, %", "observed share, %; bars: records"),
    records: str = "records",
) -> str:
    """What share was positive among those told about the same probability, with counts below.

    bins, raw      mean_predicted, observed, low, high, records; raw: before calibration
    axes, records  how the two axes are called, and what is counted
    """
    ends = [entry[key] for entry in bins for key in ("mean_predicted", "high")]
    ends += [entry[key] for entry in raw for key in ("mean_predicted", "observed")]
    # a rare finding fills a corner of the square only
    limit = next(limit for limit in (0.1, 0.2, 0.5, 1.0) if max(ends, default=1.0) <= limit or limit == 1.0)
    plane = _square(
        title,
        f"{axes[1].partition(';')[0]}, against {axes[0]}, with 95 % intervals",
        *axes,
        limit,
    )
    plane.explain("dot", "accent", "calibrated" if raw else "observed, 95 % interval")
    if raw:
        plane.explain("dot", "light", "as the network gave it")
    plane.explain("dashed", "muted", "perfect")
    most = max((entry["records"] for entry in bins), default=1)
    for entry in bins:
        at = entry["mean_predicted"]
        plane.bar(
            at - 0.012 * limit, at + 0.012 * limit, 0, 0.14 * limit * entry["records"] / most, "muted", opacity=0.3
        )
    plane.curve((0, 1), (0, 1), "muted", width=1.2, dashed=True)
    for entry in raw:
        plane.dot(entry["mean_predicted"], entry["observed"], "light", radius=3.5)
    for entry in bins:
        plane.span(entry["mean_predicted"], entry["low"], entry["high"], "accent")
        plane.dot(entry["mean_predicted"], entry["observed"], "accent")
    if bins:
        fewest = min(entry["records"] for entry in bins)
        each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
        # above the axes, where no bar and no interval is
        plane.note(limit, limit, f"{each} {records} a point", "muted", dy=-4)
    return plane.svg()


def decision_figure(curve: Mapping[str, Sequence[float]], threshold: float | None = None) -> str:
    """Net benefit over the threshold: what acting on the model gains against acting on all or none.

    curve      threshold, model, all, and low and high of the model's
    threshold  of the decision, marked

    Source: Vickers and Elkin, Medical Decision Making 26 (2006) 565.
    """
    low, high = padded([*curve["model"], *curve.get("high", ()), 0.0])
    low = max(low, -max(high, 0.05))  # far below nothing it does not matter how far
    last = max(curve["threshold"], default=1.0)
    plane = Plane(
        "Decision curve",
        "Net benefit of acting on the model, on everybody and on nobody, against the threshold probability",
        *("threshold probability, %", "net benefit, true positives per 100 records"),
        x_range=(0.0, last or 1.0),
        y_range=(low, high),
        x_shown=as_percent,
        y_shown=as_percent,
    )
    plane.explain("line", "accent", "model")
    plane.explain("dashed", "muted", "act on all")
    plane.explain("line", "muted", "on none")
    shown = [(at, gain) for at, gain in zip(curve["threshold"], curve["all"], strict=True) if gain >= low]
    plane.curve([at for at, _ in shown], [gain for _, gain in shown], "muted", width=1.4, dashed=True)
    plane.curve((0, last), (0, 0), "muted", width=1.2)
    if curve.get("low"):
        plane.band(curve["threshold"], curve["low"], curve["high"], "accent")
    plane.curve(curve["threshold"], curve["model"], "accent")
    if threshold is not None and threshold <= last:
        plane.explain("dashed", "held", "threshold")
        plane.curve((threshold, threshold), (low, high), "held", width=1.2, dashed=True)
    return plane.svg()


def risk_coverage_figure(curve: Mapping[str, Sequence[float]], aurc: Number) -> str:
    """Share of wrong decisions among those the model is surest of.

    curve  coverage, risk, low, high
    """
    most = max([*curve["risk"], *curve.get("high", ())], default=0.0)
    plane = Plane(
        "Leaving the unsure to a human",
        f"Error of the decisions that are kept against the share that is kept; area {with_interval(aurc)}",
        *("share decided, the surest first, %", "wrong among the decided, %"),
        x_range=(0.0, 1.0),
        y_range=(0.0, max(0.02, min(1.0, 1.1 * most))),
        x_shown=as_percent,
        y_shown=as_percent,
    )
    plane.explain("line", "accent", f"area {with_interval(aurc)}")
    if curve.get("low"):
        plane.band(curve["coverage"], curve["low"], curve["high"], "accent")
    plane.curve(curve["coverage"], curve["risk"], "accent")
    if len(curve["risk"]):
        plane.explain("dashed", "muted", f"all decided: {drawing.percent(curve['risk'][-1])}")
        plane.curve((0, 1), (curve["risk"][-1],) * 2, "muted", width=1.2, dashed=True)
    return plane.svg()


def histogram_figure(bins: Mapping[str, Sequence[float]], threshold: float | None = None) -> str:
    """Probabilities of the positive above the axis and of the negative below, each in shares of their own.

    bins  edges, positive, negative (counts)
    """
    sides = {name: [count / max(1, sum(bins[name])) for count in bins[name]] for name in ("positive", "negative")}
    most = 1.05 * max([*sides["positive"], *sides["negative"], 1e-9])
    plane = Plane(
        "Predicted probabilities",
        "Histogram of the probability of positive records, above, and of negative ones, below",
        *("predicted probability, %", "share of the class, %"),
        x_range=(float(bins["edges"][0]), float(bins["edges"][-1])),
        y_range=(-most, most),
        x_shown=as_percent,
        y_shown=lambda share: plain(abs(100 * share)),
    )
    plane.explain("bar", "held", f"positive ({int(sum(bins['positive'])):,})", opacity=_SIDES)
    plane.explain("bar", "accent", f"negative ({int(sum(bins['negative'])):,})", opacity=_SIDES)
    for name, sign, kind in (("positive", 1, "held"), ("negative", -1, "accent")):
        for begin, end, share in zip(bins["edges"], bins["edges"][1:], sides[name], strict=False):
            if share:
                plane.bar(begin, end, 0, sign * share, kind, opacity=_SIDES)
    plane.curve(plane.x_range, (0, 0), "muted", width=1.2)
    if threshold is not None:
        plane.explain("dashed", "ink", "threshold")
        plane.curve((threshold, threshold), (-most, most), "ink", width=1.2, dashed=True)
    return plane.svg()


def _square(title: str, description: str, across: str, upwards: str, limit: float = 1.0) -> Plane:
    """Axes of two shares."""
    return Plane(title, description, across, upwards, (0.0, limit), (0.0, limit), as_percent, as_percent, square=True)
