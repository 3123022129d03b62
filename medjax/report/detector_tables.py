"""Tables of an evaluation page: rows of cells, each with its interval or the reason why it has none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.forest import Group, forest_figure

Number = Mapping[str, Any]
Table = dict[str, Any]

SMALL = "* too few to rest on: read with care."
_LABELS = {"mae": "Mean absolute error", "auroc": "AUROC"}


def two_digits(number: Number | None) -> Markup:
    return figure_of(number, 2)


def mark(group: Mapping[str, Any]) -> str:
    return " *" if group.get("small") else ""


_CALIBRATION = (
    ("brier", "Brier score"),
    ("log_loss", "log loss"),
    ("ece_mass", "calibration error, bins of equal counts"),
    ("ece_width", "calibration error, bins of equal width"),
    ("slope", "calibration slope (1 is best)"),
    ("intercept", "calibration intercept (0 is best)"),
)


def proportion(number: Number | None) -> Markup:
    """A share in % above its interval; "–" above the reason where there is none."""
    return _stacked(number, lambda value: f"{100 * value:.1f}", "\u00a0%")


def figure_of(number: Number | None, digits: int = 3, sign: str = "") -> Markup:
    """A number above its interval; sign "+" shows that of positive numbers."""
    return _stacked(number, lambda value: f"{value:{sign}.{digits}f}", "")


def _stacked(number: Number | None, written: Any, unit: str) -> Markup:
    if number is None or number.get("value") is None:
        return Markup('–<small class="why">{}</small>').format((number or {}).get("reason", ""))
    low, high = number.get("low"), number.get("high")
    shown = Markup("<b>{}{}</b>").format(_minus(written(number["value"])), unit)
    if low is None or high is None:
        return shown + Markup('<small class="why">{}</small>').format(number.get("reason") or "no interval")
    return shown + Markup("<small>{}</small>").format(drawing.between(written(low), written(high)))


def _minus(text: str) -> str:
    return text.replace("-", "−")


def threshold(probability: float) -> str:
    return drawing.percent(probability) if probability >= 0.001 else f"{100 * probability:.2g}\u00a0%"


def subgroups(
    groups: Sequence[Mapping[str, Any]],
    metric: tuple[str, str, Number],
    columns: Sequence[tuple[str, Callable[[Number | None], Markup]]],
    *,
    limits: tuple[float, float] | None = None,
) -> Table | None:
    """A forest plot of one number and a table of others; rows of one cell say what those below are grouped by.

    metric   key, name and the number of everybody
    columns  keys of the table and how they are written
    """
    if not groups:
        return None
    key, name, overall = metric
    members = [Group(g["by"], g["value"], g["records"], bool(g.get("small")), g[key]) for g in groups]
    positive = any("positive" in group for group in groups)
    rows: list[list[Any]] = []
    for number, group in enumerate(groups):
        if number == 0 or groups[number - 1]["by"] != group["by"]:
            rows.append([group["by"]])
        counts = [f"{group['records']:,}", *([f"{group.get('positive', 0):,}"] if positive else [])]
        cells = [shown(group.get(metric)) for metric, shown in columns]
        rows.append([f"{group['value']}{mark(group)}", *counts, *cells])
    return {
        "title": "Subgroups",
        "figure": forest_figure(members, overall, name, limits=limits),
        "columns": [
            *("", "Records", *(["Positive"] if positive else [])),
            *(_LABELS.get(metric, metric.capitalize()) for metric, _ in columns),
        ],
        "rows": rows,
        "note": SMALL if any(group.get("small") for group in groups) else "",
    }


def baselines(baselines: Sequence[Mapping[str, Any]], metric: str, label: str, digits: int = 3) -> Table | None:
    if not baselines:
        return None
    return {
        "title": "What a trivial model gets",
        "columns": ["Knows only", label, "Model minus trivial"],
        "rows": [
            [
                entry["name"],
                figure_of(entry.get(metric), digits),
                figure_of(
                    entry["difference"] if entry.get("difference") else {"reason": entry.get("reason", "")}, digits, "+"
                ),
            ]
            for entry in baselines
        ],
        "note": "Cross-validated regressions without the ECG. Where one comes near the model, the score may rest on "
        "who was recorded where, and not on the heart.",
    }


def other_thresholds(points: Sequence[Mapping[str, Any]]) -> Table | None:
    if not points:
        return None
    keys = ("sensitivity", "specificity", "ppv", "npv", "flagged")
    return {
        "broad": True,
        "title": "Other thresholds",
        "columns": ["", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "Called positive"],
        "rows": [
            [
                f"{point['name']} ({point['origin']})",
                threshold(point["threshold"]),
                *(proportion(point[k]) for k in keys),
            ]
            for point in points
        ],
        "note": "",
    }


def at_fixed(entries: Sequence[Mapping[str, Any]]) -> Table | None:
    if not entries:
        return None
    return {
        "title": "At a fixed sensitivity or specificity",
        "columns": ["Held at", "Gives"],
        "rows": [
            [
                f"{entry['fixed']} {drawing.percent(entry['at'])}",
                Markup("{} {}").format(entry["gives"], proportion(entry["result"])),
            ]
            for entry in entries
        ],
        "note": "Thresholds found on these very data: they describe the curve and are not to be used.",
    }


def predictive_values(entries: Sequence[Mapping[str, Any]]) -> Table | None:
    if not entries:
        return None
    return {
        "title": "Where it would be used",
        "columns": ["Prevalence", "PPV", "NPV", "Called positive for each true one"],
        "rows": [
            [
                drawing.percent(entry["prevalence"]),
                proportion(entry["ppv"]),
                proportion(entry["npv"]),
                "–" if entry.get("nns") is None else f"{entry['nns']:.1f}",
            ]
            for entry in entries
        ],
        "note": "Predictive values at other prevalences, were sensitivity and specificity the same there.",
    }


def calibration_errors(calibration: Mapping[str, Any]) -> Table:
    fitted = calibration["method"] != "none"
    columns = ["raw", "calibrated"] if fitted else ["raw"]
    return {
        "title": "Calibration",
        "columns": ["", "As the network gave it", *(["Calibrated"] if fitted else [])],
        "rows": [
            [label, *(figure_of(calibration[column].get(key)) for column in columns)]
            for key, label in _CALIBRATION
            if key in calibration["raw"]
        ],
        "note": f"Method: {calibration['method']}"
        + (f", fitted on {calibration['origin']}." if fitted and calibration.get("origin") else "."),
    }


def conformal_sets(conformal: Mapping[str, Any]) -> Table:
    return {
        "broad": True,
        "title": "Conformal sets",
        "columns": [
            *("Confidence", "Holds the truth", "… of the positive", "… of the negative"),
            *("One answer", "Wrong among these", "Both / none"),
        ],
        "rows": [
            [
                drawing.percent(level["confidence"]),
                *(proportion(level[key]) for key in ("coverage", "coverage_positive", "coverage_negative")),
                *(proportion(level[key]) for key in ("singletons", "error_of_singletons")),
                f"{level['sets']['both']:,} / {level['sets']['empty']:,}",
            ]
            for level in conformal["levels"]
        ],
        "note": f"Sets from {conformal['origin']}"
        + (", for each class by itself." if conformal.get("class_conditional") else ".")
        + " A set of both answers leaves the record to a human. Calibration and the exported checkpoint were chosen on "
        "the same validation patients, so the stated confidence holds approximately.",
    }


def age_gap(gap: Mapping[str, Any], name: str, unit: str) -> Table:
    rows = [("as predicted", gap["raw"]), *([("corrected", gap["corrected"])] if gap.get("corrected") else [])]
    note = f"Source: {gap['source']}." if gap.get("source") else ""
    if correction := gap.get("correction"):
        note = (
            f"Corrected for regression to the mean by predicted = {correction['slope']:.3g} × true + "
            f"{correction['intercept']:.3g}, fitted on {correction['origin']}. {note}"
        )
    return {
        "title": f"Gap of predicted and true {name}",
        "columns": ["", f"Mean, {unit}", f"SD, {unit}", f"Correlation with {name}"],
        "rows": [
            [
                *(label, figure_of(found["mean"], 2, "+"), figure_of(found["sd"], 2)),
                figure_of(found["correlation_with_age"], 2, "+"),
            ]
            for label, found in rows
        ],
        "note": note,
    }


def by_decade(decades: Sequence[Mapping[str, Any]], name: str) -> Table | None:
    if not decades:
        return None
    return {
        "title": f"By decade of {name}",
        "columns": ["", "Records", "Bias", "Mean absolute error"],
        "rows": [
            [
                *(f"{decade['from']:g} – {decade['to']:g}{mark(decade)}", f"{decade['records']:,}"),
                *(figure_of(decade["bias"], 1, "+"), figure_of(decade["mae"], 1)),
            ]
            for decade in decades
        ],
        "note": SMALL if any(decade["small"] for decade in decades) else "",
    }
