"""The page of an evaluation of a detector or a regression on ECGs, from the dict that stands in results.json.

Of each target first the verdict (how well, on how many, at which threshold and where that was chosen), then figures,
subgroups with the small ones marked, calibration, what a trivial model gets, and last how to repeat it. Every number
stands with its interval or with the reason why it has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import agreement, curves, drawing, pages
from medjax.report.forest import Group, forest_figure

Number = Mapping[str, Any]
Target = Mapping[str, Any]

_FOLD_ABOVE = 3  # targets whose details are shown unfolded
_KINDS = {
    "binary": ("counts", "prevalence", "discrimination", "operating_points", "calibration", "abstention", "curves"),
    "regression": ("counts", "errors", "agreement", "by_decade", "gap", "points"),
    "ordinal": ("counts", "classes", "errors", "confusion"),
}
_CALIBRATION = (
    ("brier", "Brier score"),
    ("log_loss", "log loss"),
    ("ece_mass", "calibration error, bins of equal counts"),
    ("ece_width", "calibration error, bins of equal width"),
    ("slope", "calibration slope (1 is best)"),
    ("intercept", "calibration intercept (0 is best)"),
)


def detector_report(results: Mapping[str, Any]) -> str:
    """Return the HTML page.

    results  what results.json of an evaluation of an ECG model holds: "protocol", "targets", "macro", "notes", "date"

    Raises ValueError when there is no target, or one is of an unknown kind or lacks a field the page is made of.
    """
    targets = _checked(results)
    protocol = results.get("protocol", {})
    values = {
        "model": protocol.get("model", {}).get("name", "unnamed model"),
        "date": drawing.date(results.get("date")),
        "facts": [(name, value) for name, value in _facts(protocol) if value],
        "notes": [*results.get("notes", ()), *_warnings(protocol)],
        "targets": [_shown(target) for target in targets],
        "overview": _overview(targets, results.get("macro")),
        "axis": drawing.axis("0.5", "0.75", "1"),
        "fold": len(targets) > _FOLD_ABOVE,
        "data": list(pages.flat(protocol.get("data", {}), shown=pages.compact)) if protocol.get("data") else [],
        "record": list(pages.flat(_rest(results, protocol), shown=pages.compact)),
        "command": protocol.get("command", ""),
    }
    return pages.render("detector.html", values)


def proportion(number: Number | None) -> Markup:
    """A share in % above its interval; "–" above the reason where there is none."""
    return _stacked(number, lambda value: f"{100 * value:.1f}", "\u00a0%")


def figure_of(number: Number | None, digits: int = 3, sign: str = "") -> Markup:
    """A number above its interval; sign "+" shows that of positive numbers."""
    return _stacked(number, lambda value: f"{value:{sign}.{digits}f}", "")


def _stacked(number: Number | None, written: Any, unit: str) -> Markup:
    if number is None or number.get("value") is None:
        return Markup("–<small>{}</small>").format((number or {}).get("reason", ""))
    low, high = number.get("low"), number.get("high")
    shown = Markup("<b>{}{}</b>").format(_minus(written(number["value"])), unit)
    if low is None or high is None:
        return shown + Markup("<small>{}</small>").format(number.get("reason") or "no interval")
    return shown + Markup("<small>{}</small>").format(_minus(f"{written(low)} – {written(high)}"))


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _checked(results: Mapping[str, Any]) -> Sequence[Target]:
    targets = results.get("targets") or ()
    if not targets:
        raise ValueError(
            f"results: got the keys {', '.join(results) or 'none'}, expected 'targets' with at least one; give the "
            "content of a results.json that medjax.eval wrote for an ECG model."
        )
    for number, target in enumerate(targets):
        kind = target.get("kind")
        if kind not in _KINDS:
            raise ValueError(
                f"results: targets[{number}].kind: got {kind!r}, expected one of {', '.join(_KINDS)}; write this page "
                "with the version of medjax that evaluated."
            )
        if missing := [key for key in ("name", *_KINDS[kind]) if key not in target]:
            raise ValueError(
                f"results: targets[{number}]: got no {', '.join(missing)}, expected {', '.join(_KINDS[kind])}; run the "
                "evaluation again to write a complete results.json."
            )
    return targets


def _shown(target: Target) -> dict[str, Any]:
    parts = {"binary": _binary, "regression": _regression, "ordinal": _ordinal}[target["kind"]](target)
    return {
        **{"name": target["name"], "kind": target["kind"], "cautions": list(dict.fromkeys(_cautions(target)))},
        **{"figures": [], "tables": [], "confusion": None, "forest": "", **parts},
    }


def _binary(target: Target) -> dict[str, Any]:
    counts, found, drawn = target["counts"], target["discrimination"], target["curves"]
    points, decision = target["operating_points"], target["operating_points"][0]
    threshold = decision["threshold"]
    prevalence = target["prevalence"].get("value")
    groups = target.get("subgroups", ())
    conformal = target.get("conformal")
    return {
        "headline": ("AUROC", figure_of(found["auroc"])),
        "sentence": f"{counts['positive']:,} of {counts['records']:,} records of {counts['patients']:,} patients are "
        f"positive ({drawing.percent(prevalence)})"
        + (f"; {counts['unknown']:,} more have no label." if counts.get("unknown") else "."),
        "decision": f"Decision: positive from a probability of {_threshold(threshold)} on, "
        f"chosen on {decision['origin']}.",
        "numbers": [
            ("Sensitivity", proportion(decision["sensitivity"])),
            ("Specificity", proportion(decision["specificity"])),
            ("Positive predictive value", proportion(decision["ppv"])),
            ("Negative predictive value", proportion(decision["npv"])),
            ("Called positive", proportion(decision["flagged"])),
            ("AUPRC", figure_of(found["auprc"])),
        ],
        "counts": decision["confusion"],
        "figures": [
            curves.roc_figure(drawn["roc"], found["auroc"], points),
            curves.precision_recall_figure(drawn["precision_recall"], found["auprc"], prevalence, points),
            curves.reliability_figure(
                drawn["reliability"]["calibrated"],
                drawn["reliability"]["raw"] if target["calibration"]["method"] != "none" else (),
            ),
            curves.histogram_figure(drawn["histogram"], threshold),
            curves.decision_figure(drawn["decision"], threshold),
            curves.risk_coverage_figure(target["abstention"]["curve"], target["abstention"]["aurc"]),
        ],
        "forest": forest_figure(_groups(groups, "auroc"), found["auroc"], "AUROC", limits=(0, 1)) if groups else "",
        "tables": [
            table
            for table in (
                _subgroups(
                    groups, (("sensitivity", proportion), ("specificity", proportion), ("prevalence", proportion))
                ),
                _baselines(target.get("baselines", ()), "auroc", "AUROC"),
                _points(points[1:]),
                _fixed(target.get("at_fixed", ())),
                _predictive(target.get("predictive_values", ())),
                _calibration(target["calibration"]),
                _conformal(conformal) if conformal else None,
            )
            if table
        ],
    }


def _regression(target: Target) -> dict[str, Any]:
    counts, errors, unit, name = target["counts"], target["errors"], target.get("unit", ""), target["name"]
    gap, groups = target["gap"], target.get("subgroups", ())
    whole = counts["records"]
    drawn = len(target["points"]["true"])
    correction = gap.get("correction")
    rows = [("as predicted", gap["raw"])] + ([("corrected", gap["corrected"])] if gap.get("corrected") else [])
    note = f"Source: {gap['source']}." if gap.get("source") else ""
    if correction:
        note = (
            f"Corrected for regression to the mean by predicted = {correction['slope']:.3g} × true + "
            f"{correction['intercept']:.3g}, fitted on {correction['origin']}. {note}"
        )
    return {
        "headline": (f"Mean absolute error, {unit}", figure_of(errors["mae"], 2)),
        "sentence": f"{whole:,} records of {counts['patients']:,} patients"
        + (f"; {counts['unknown']:,} more have no value." if counts.get("unknown") else ".")
        + (f" The figures draw {drawn:,} of them." if drawn < whole else ""),
        "decision": f"Telling everybody the mean of the training set errs by "
        f"{curves.with_interval(errors['mae_of_mean'], 2)} {unit}.",
        "numbers": [
            ("R²", figure_of(errors["r2"])),
            ("Correlation", figure_of(errors["r"])),
            ("Root mean squared error", figure_of(errors["rmse"], 2)),
            ("Bias (predicted − true)", figure_of(errors["bias"], 2, "+")),
            ("Slope of predicted on true", figure_of(errors["slope"])),
        ],
        "figures": [
            agreement.predicted_figure(target["points"], errors, name, unit),
            agreement.agreement_figure(target["agreement"], name, unit),
            agreement.decade_figure(target["by_decade"], unit),
        ],
        "forest": forest_figure(_groups(groups, "mae"), errors["mae"], f"Error, {unit},") if groups else "",
        "tables": [
            table
            for table in (
                {
                    "title": f"Gap of predicted and true {name}",
                    "columns": ["", f"Mean, {unit}", f"SD, {unit}", f"Correlation with {name}"],
                    "rows": [
                        [
                            label,
                            figure_of(values["mean"], 2, "+"),
                            figure_of(values["sd"], 2),
                            figure_of(values["correlation_with_age"], 2, "+"),
                        ]
                        for label, values in rows
                    ],
                    "note": note,
                },
                {
                    "title": f"By decade of {name}",
                    "columns": ["", "Records", "Bias", "Mean absolute error"],
                    "rows": [
                        [
                            f"{decade['from']:g} – {decade['to']:g}{_mark(decade)}",
                            f"{decade['records']:,}",
                            figure_of(decade["bias"], 1, "+"),
                            figure_of(decade["mae"], 1),
                        ]
                        for decade in target["by_decade"]
                    ],
                    "note": _SMALL if any(decade["small"] for decade in target["by_decade"]) else "",
                },
                _subgroups(groups, (("mae", _two), ("bias", lambda n: figure_of(n, 2, "+")))),
                _baselines(target.get("baselines", ()), "mae", "Mean absolute error", digits=2),
            )
            if table
        ],
    }


def _ordinal(target: Target) -> dict[str, Any]:
    counts, errors, groups = target["counts"], target["errors"], target.get("subgroups", ())
    most = max((max(row, default=0) for row in target["confusion"]), default=0) or 1
    return {
        "headline": ("Weighted kappa (quadratic)", figure_of(errors["weighted_kappa"])),
        "sentence": f"{counts['records']:,} records of {counts['patients']:,} patients: "
        + ", ".join(f"{count:,} {name}" for name, count in counts.get("classes", {}).items())
        + (f"; {counts['unknown']:,} more have no label." if counts.get("unknown") else "."),
        "decision": "",
        "numbers": [
            ("Accuracy", proportion(errors["accuracy"])),
            ("Mean absolute error, classes", figure_of(errors["mae"])),
            ("Linear kappa", figure_of(errors["linear_kappa"])),
        ],
        "confusion": {
            "classes": target["classes"],
            "rows": [[(count, round(60 * count / most)) for count in row] for row in target["confusion"]],
        },
        "forest": forest_figure(_groups(groups, "mae"), errors["mae"], "Error, classes,") if groups else "",
        "tables": [table] if (table := _subgroups(groups, (("mae", _two),))) else [],
    }


_SMALL = "* too few to rest on: read with care."
_LABELS = {"mae": "Mean absolute error", "auroc": "AUROC"}


def _two(number: Number | None) -> Markup:
    return figure_of(number, 2)


def _mark(group: Mapping[str, Any]) -> str:
    return " *" if group.get("small") else ""


def _groups(groups: Sequence[Mapping[str, Any]], metric: str) -> list[Group]:
    return [Group(g["by"], g["value"], g["records"], bool(g.get("small")), g[metric]) for g in groups]


def _subgroups(groups: Sequence[Mapping[str, Any]], metrics: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """Rows of one cell are headings: what the rows below them are grouped by."""
    if not groups:
        return None
    positive = any("positive" in group for group in groups)
    rows: list[list[Any]] = []
    for number, group in enumerate(groups):
        if number == 0 or groups[number - 1]["by"] != group["by"]:
            rows.append([group["by"]])
        counts = [f"{group['records']:,}", *([f"{group.get('positive', 0):,}"] if positive else [])]
        cells = [shown(group.get(metric)) for metric, shown in metrics]
        rows.append([f"{group['value']}{_mark(group)}", *counts, *cells])
    return {
        "title": "Subgroups",
        "columns": [
            *("", "Records", *(["Positive"] if positive else [])),
            *(_LABELS.get(metric, metric.capitalize()) for metric, _ in metrics),
        ],
        "rows": rows,
        "note": _SMALL if any(group.get("small") for group in groups) else "",
    }


def _baselines(
    baselines: Sequence[Mapping[str, Any]], metric: str, label: str, digits: int = 3
) -> dict[str, Any] | None:
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
        "note": "Cross-validated regressions without the ECG. Where one comes near the model, the score may rest on who "
        "was recorded where, and not on the heart.",
    }


def _points(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not points:
        return None
    keys = ("sensitivity", "specificity", "ppv", "npv", "flagged")
    return {
        "title": "Other thresholds",
        "columns": ["", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "Called positive"],
        "rows": [
            [
                f"{point['name']} ({point['origin']})",
                _threshold(point["threshold"]),
                *(proportion(point[k]) for k in keys),
            ]
            for point in points
        ],
        "note": "",
    }


def _fixed(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
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


def _predictive(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
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


def _calibration(calibration: Mapping[str, Any]) -> dict[str, Any]:
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


def _conformal(conformal: Mapping[str, Any]) -> dict[str, Any]:
    return {
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
        + " A set of both answers leaves the record to a human.",
    }


def _overview(targets: Sequence[Target], macro: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row a binary target where there are several, and their mean."""
    binary = [target for target in targets if target["kind"] == "binary"]
    if len(binary) < 2:
        return []
    rows = [
        {
            "name": target["name"],
            "number": targets.index(target) + 1,
            "records": f"{target['counts']['records']:,}",
            "positive": f"{target['counts']['positive']:,}",
            **{key: target["discrimination"][key] for key in ("auroc", "auprc")},
        }
        for target in binary
    ]
    if macro:
        rows.append({**{"name": "mean over targets", "number": None, "records": "", "positive": ""}, **macro})
    return [
        {**row, "auroc": figure_of(row["auroc"]), "auprc": figure_of(row["auprc"]), "plot": _auroc_plot(row["auroc"])}
        for row in rows
    ]


def _auroc_plot(auroc: Number) -> Markup:
    """AUROC on an axis of 0.5 to 1; what is worse than chance stands at its start."""
    if auroc.get("value") is None:
        return Markup("")
    low = auroc["value"] if auroc.get("low") is None else auroc["low"]
    high = auroc["value"] if auroc.get("high") is None else auroc["high"]
    value, low, high = (min(max(2 * at - 1, 0.0), 1.0) for at in (auroc["value"], low, high))
    return drawing.marks((value, low, high), 0.0, f"AUROC {curves.with_interval(auroc)}")


def _threshold(threshold: float) -> str:
    return drawing.percent(threshold) if threshold >= 0.001 else f"{100 * threshold:.2g}\u00a0%"


def _cautions(value: Any) -> Iterator[str]:
    """What stands beside full numbers: why they are to be read with care."""
    if isinstance(value, Mapping):
        if value.get("value") is not None and value.get("low") is not None and value.get("reason"):
            yield value["reason"]
        for key, inner in value.items():
            if key not in ("curves", "points"):
                yield from _cautions(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _cautions(inner)


def _warnings(protocol: Mapping[str, Any]) -> Iterator[str]:
    data = protocol.get("data", {})
    leaks = data.get("leaks") or {}
    if leaks.get("patients") or leaks.get("waveforms"):
        yield (
            f"{leaks['patients']:,} patients and {leaks['waveforms']:,} recordings were in the training data as well, "
            "which was allowed: the score is too good."
        )
    if data.get("split") in ("train", "all"):
        yield f"Evaluated on {data['split']}: records that trained the model may be among them."


def _facts(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, model = protocol.get("data", {}), protocol.get("model", {})
    chosen, resampled = data.get("chosen", {}), protocol.get("bootstrap", {})
    yield "Data", ", ".join(data.get("folders", ()))
    yield "Split", str(data.get("split", ""))
    yield "Records", f"{chosen['records']:,}" if "records" in chosen else ""
    yield "Patients", f"{chosen['patients']:,}" if "patients" in chosen else ""
    yield "Parameters", drawing.magnitude(model["parameters"]) if model.get("parameters") else ""
    level = resampled.get("level")
    yield "Intervals", f"{100 * level:g} %, resampled by {resampled.get('unit', 'record')}" if level else ""


def _rest(results: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown nowhere else."""
    known = ("protocol", "targets", "macro", "notes", "date")
    rest = {key: value for key, value in protocol.items() if key not in ("data", "command")}
    return rest | {key: value for key, value in results.items() if key not in known}
