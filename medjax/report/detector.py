"""The page of an evaluation of a detector or a regression on ECGs, from the dict that stands in results.json.

Of each target first the verdict (how well, on how many, at which threshold and where that was chosen), then figures,
subgroups with the small ones marked, calibration, what a trivial model gets, and last how to repeat it. Every number
stands with its interval or with the reason why it has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import agreement, curves, drawing, pages
from medjax.report import detector_tables as tables

Number = Mapping[str, Any]
Target = Mapping[str, Any]

_FOLD_ABOVE = 3  # targets whose details are shown unfolded
_KINDS = {
    "binary": ("counts", "prevalence", "discrimination", "operating_points", "calibration", "abstention", "curves"),
    "regression": ("counts", "errors", "agreement", "by_decade", "gap", "points"),
    "ordinal": ("counts", "classes", "errors", "confusion"),
}


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
    parts["tables"] = [table for table in parts.get("tables", ()) if table]
    return {
        **{"name": target["name"], "kind": target["kind"], "cautions": list(dict.fromkeys(_cautions(target)))},
        **{"figures": [], "confusion": None, **parts},
    }


def _binary(target: Target) -> dict[str, Any]:
    counts, found, drawn = target["counts"], target["discrimination"], target["curves"]
    points, decision = target["operating_points"], target["operating_points"][0]
    threshold = decision["threshold"]
    prevalence = target["prevalence"].get("value")
    return {
        "headline": ("AUROC", tables.figure_of(found["auroc"])),
        "sentence": f"{counts['positive']:,} of {counts['records']:,} records of {counts['patients']:,} patients are "
        f"positive ({drawing.percent(prevalence)})"
        + (f"; {counts['unknown']:,} more have no label." if counts.get("unknown") else "."),
        "decision": f"Decision: positive from a probability of {tables.threshold(threshold)} on, "
        f"chosen on {decision['origin']}.",
        "numbers": [
            ("Sensitivity", tables.proportion(decision["sensitivity"])),
            ("Specificity", tables.proportion(decision["specificity"])),
            ("Positive predictive value", tables.proportion(decision["ppv"])),
            ("Negative predictive value", tables.proportion(decision["npv"])),
            ("Called positive", tables.proportion(decision["flagged"])),
            ("AUPRC", tables.figure_of(found["auprc"])),
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
        "subgroups": tables.subgroups(
            target.get("subgroups", ()),
            ("auroc", "AUROC", found["auroc"]),
            [(key, tables.proportion) for key in ("sensitivity", "specificity", "prevalence")],
            limits=(0, 1),
        ),
        "tables": [
            tables.baselines(target.get("baselines", ()), "auroc", "AUROC"),
            tables.calibration_errors(target["calibration"]),
            tables.predictive_values(target.get("predictive_values", ())),
            tables.at_fixed(target.get("at_fixed", ())),
            tables.other_thresholds(points[1:]),
            tables.conformal_sets(target["conformal"]) if target.get("conformal") else None,
        ],
    }


def _regression(target: Target) -> dict[str, Any]:
    counts, errors, unit, name = target["counts"], target["errors"], target.get("unit", ""), target["name"]
    whole, shown = counts["records"], len(target["points"]["true"])
    return {
        "headline": (f"Mean absolute error, {unit}", tables.figure_of(errors["mae"], 2)),
        "sentence": f"{whole:,} records of {counts['patients']:,} patients"
        + (f"; {counts['unknown']:,} more have no value." if counts.get("unknown") else ".")
        + (f" The figures draw {shown:,} of them." if shown < whole else ""),
        "decision": f"Telling everybody the mean of the training set errs by "
        f"{curves.with_interval(errors['mae_of_mean'], 2)} {unit}.",
        "numbers": [
            ("R²", tables.figure_of(errors["r2"])),
            ("Correlation", tables.figure_of(errors["r"])),
            ("Root mean squared error", tables.figure_of(errors["rmse"], 2)),
            ("Bias (predicted − true)", tables.figure_of(errors["bias"], 2, "+")),
            ("Slope of predicted on true", tables.figure_of(errors["slope"])),
        ],
        "figures": [
            agreement.predicted_figure(target["points"], errors, name, unit),
            agreement.agreement_figure(target["agreement"], name, unit),
            agreement.decade_figure(target["by_decade"], unit),
        ],
        "subgroups": tables.subgroups(
            target.get("subgroups", ()),
            ("mae", f"Error, {unit},", errors["mae"]),
            [("mae", tables.two_digits), ("bias", lambda bias: tables.figure_of(bias, 2, "+"))],
        ),
        "tables": [
            tables.baselines(target.get("baselines", ()), "mae", "Mean absolute error", digits=2),
            tables.age_gap(target["gap"], name, unit),
            tables.by_decade(target["by_decade"], name),
        ],
    }


def _ordinal(target: Target) -> dict[str, Any]:
    counts, errors = target["counts"], target["errors"]
    most = max((max(row, default=0) for row in target["confusion"]), default=0) or 1
    return {
        "headline": ("Weighted kappa (quadratic)", tables.figure_of(errors["weighted_kappa"])),
        "sentence": f"{counts['records']:,} records of {counts['patients']:,} patients: "
        + ", ".join(f"{count:,} {name}" for name, count in counts.get("classes", {}).items())
        + (f"; {counts['unknown']:,} more have no label." if counts.get("unknown") else "."),
        "decision": "",
        "numbers": [
            ("Accuracy", tables.proportion(errors["accuracy"])),
            ("Mean absolute error, classes", tables.figure_of(errors["mae"])),
            ("Linear kappa", tables.figure_of(errors["linear_kappa"])),
        ],
        "confusion": {
            "classes": target["classes"],
            "rows": [[(count, round(60 * count / most)) for count in row] for row in target["confusion"]],
        },
        "subgroups": tables.subgroups(
            target.get("subgroups", ()), ("mae", "Error, classes,", errors["mae"]), [("mae", tables.two_digits)]
        ),
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
        {
            **row,
            "auroc": tables.figure_of(row["auroc"]),
            "auprc": tables.figure_of(row["auprc"]),
            "plot": _auroc_plot(row["auroc"]),
        }
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


def _cautions(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """What stands beside full numbers: which number it is, and why it is to be read with care."""
    if isinstance(value, Mapping):
        if value.get("value") is not None and value.get("low") is not None and value.get("reason"):
            yield f"{', '.join(path)}: {value['reason']}"
        for key, inner in value.items():
            if key not in ("curves", "points"):
                yield from _cautions(inner, (*path, str(key).replace("_", " ")))
    elif isinstance(value, list | tuple):
        for inner in value:
            named = inner.get("name", inner.get("value", "")) if isinstance(inner, Mapping) else ""
            yield from _cautions(inner, (*path, named) if isinstance(named, str) and named else path)


def _warnings(protocol: Mapping[str, Any]) -> Iterator[str]:
    data = protocol.get("data", {})
    leaks = data.get("leaks") or {}
    if leaks.get("patients") or leaks.get("waveforms"):
        fate = "which was allowed: the score is too good." if leaks.get("allowed") else "and were left out."
        yield (
            f"{leaks['patients']:,} patients and {leaks['waveforms']:,} recordings were in the training data as well, "
            f"{fate}"
        )
    if data.get("split") == "train" or (data.get("split") == "all" and not leaks.get("checked")):
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
