"""From outputs and labels to figures: the entry of each target in results.json, every number with its interval.

A target is judged on the records whose label is known. The decision is that of the checkpoint, whose threshold,
calibration and sets were chosen on validation data; nothing here chooses anything that is then judged on the same
records, except where the entry says so ("at_fixed", which describes the curve).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medjax.eval.ecg_columns import Columns
from medjax.models.predictor import Target
from medjax.statistics import (
    agreement,
    baselines,
    calibration,
    decision,
    delong,
    discrimination,
    ordinal,
    reliability,
    subgroups,
    thresholds,
)
from medjax.statistics.agreement import GapCorrection
from medjax.statistics.bootstrap import Estimate, Floats, PatientBootstrap, difference, weighted_mean
from medjax.statistics.detector import DetectorRule
from medjax.statistics.discrimination import Ranking, one_class, spread
from medjax.statistics.proportions import predictive_values, share
from medjax.statistics.thresholds import Threshold

GAP_SOURCE = "de Lange and Cole 2020; Beheshti et al. 2019"
_POINTS = 2_000  # of a scatter plot
_CURVE = 500
_FOLLOWS = 0.25  # a flatter line than this leaves, once taken out, little but the true value itself
_FIXED = (0.9, 0.95)
_COVERAGES = np.arange(1, 21) / 20
_RATES = np.linspace(0, 1, 101)
_EDGES = np.linspace(0, 1, 21)
_BELOW = "below 0.5: these columns tell nothing, and cross-validation of a few records pushes such figures down"
_HERE = "this data (describes the curve; not a threshold to use)"


@dataclass(frozen=True)
class Judged:
    """The records that are judged.

    columns    what is known of them
    patients   [records] names
    labels     of `report.subgroups`
    """

    columns: Columns
    patients: NDArray[np.str_]
    labels: tuple[str, ...]
    prevalences: tuple[float, ...]
    resamples: int
    seed: int

    def bootstrap(self, known: NDArray[np.bool_]) -> PatientBootstrap:
        return PatientBootstrap(self.patients[known], resamples=self.resamples, seed=self.seed)


def untrained_rule() -> DetectorRule:
    """What a checkpoint without a rule stands for: the sigmoid, and one half."""
    reason = "the checkpoint stores none"
    return DetectorRule(
        calibration.Calibration("none", 1.0, 0.0, reason=reason),
        Threshold(0.5, "given", reason=reason),
        None,
    )


def binary(target: Target, labels: Floats, logits: Floats, rule: DetectorRule, judged: Judged) -> dict[str, Any]:
    """The entry of a yes-or-no target.

    labels, logits  [records]; a label NaN is unknown
    rule            of the checkpoint
    """
    known = ~np.isnan(labels)
    y, z = labels[known] > 0.5, logits[known]
    bootstrap = judged.bootstrap(known)
    patients, p = bootstrap.numbers, rule.probability(z)
    called = rule.decide(z)
    point = {
        "name": "checkpoint",
        "origin": rule.threshold.story,
        "threshold": rule.threshold.value,
        **thresholds.operating_point(y, called, bootstrap, patients),
    }
    areas = discrimination.areas(y, z, bootstrap)
    groups = {by: column[known] for by, column in judged.columns.groups(target.name, judged.labels).items()}
    return {
        "name": target.name,
        "kind": "binary",
        "counts": {
            "records": len(y),
            "patients": bootstrap.patients,
            "positive": int(y.sum()),
            "negative": int((~y).sum()),
            "unknown": int((~known).sum()),
        },
        "prevalence": share(y, None, patients),
        "discrimination": {
            "auroc": delong.interval(y, z, patients),
            "auroc_bootstrap": areas["auroc"],
            "auprc": areas["auprc"],
        },
        "operating_points": [point],
        "at_fixed": _at_fixed(y, p, bootstrap),
        "predictive_values": [_predictive(point, prevalence) for prevalence in judged.prevalences],
        "calibration": _calibration(y, z, p, rule, bootstrap),
        "conformal": _conformal(y, z, rule, patients),
        "abstention": _abstention(y, p, called, rule, bootstrap),
        "curves": _curves(y, z, p, rule, bootstrap),
        "subgroups": subgroups.of_detector(y, z, called, patients, groups),
        "baselines": [
            _binary_baseline(name, columns, y, z, known, patients, judged.seed)
            for name, columns in judged.columns.trivial(target.name).items()
        ],
    }


def regression(
    target: Target, true: Floats, predicted: Floats, correction: GapCorrection | None, judged: Judged
) -> dict[str, Any]:
    """The entry of a number such as age.

    true, predicted  [records] in the target's unit; true NaN is unknown
    correction       of the checkpoint, for regression to the mean
    """
    known = ~np.isnan(true)
    x, y = true[known], predicted[known]
    bootstrap = judged.bootstrap(known)
    patients = bootstrap.numbers
    usable = correction is not None and not correction.reason
    corrected = correction.apply(y, x) if correction is not None and usable else None
    groups = {by: column[known] for by, column in judged.columns.groups(target.name, judged.labels).items()}
    shown = np.asarray(spread(len(x), _POINTS))
    mean = target.mean or 0.0
    return {
        "name": target.name,
        "kind": "regression",
        "unit": target.unit,
        "counts": {"records": len(x), "patients": bootstrap.patients, "unknown": int((~known).sum())},
        "distribution": {
            "mean": float(x.mean()),
            "sd": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
            "min": float(x.min()),
            "max": float(x.max()),
        },
        "errors": {
            **agreement.errors(x, y, bootstrap),
            "mae_of_mean": bootstrap.estimate(weighted_mean(np.abs(x - mean))),
        },
        "agreement": {
            **agreement.bland_altman(x, y, bootstrap),
            "points": {"mean": ((x + y) / 2)[shown], "difference": (y - x)[shown]},
        },
        "by_decade": agreement.by_decade(x, y, bootstrap),
        "gap": {
            "raw": agreement.gap(x, y, bootstrap),
            "corrected": None
            if correction is None or corrected is None
            else _corrected_gap(x, corrected, correction, bootstrap),
            "correction": correction.to_json() if correction is not None and usable else None,
            "source": GAP_SOURCE,
        },
        "points": {
            "true": x[shown],
            "predicted": y[shown],
            "corrected": None if corrected is None else corrected[shown],
        },
        "subgroups": subgroups.of_regression(x, y, patients, groups, resamples=judged.resamples, seed=judged.seed),
        "baselines": [
            _number_baseline(name, columns, x, y, known, bootstrap, judged.seed)
            for name, columns in judged.columns.trivial(target.name).items()
        ],
    }


def ordered(target: Target, true: Floats, predicted: Floats, judged: Judged) -> dict[str, Any]:
    """The entry of ordered classes; true, predicted [records] are numbers of classes, true NaN is unknown."""
    known = ~np.isnan(true)
    x, y = true[known].astype(np.int64), predicted[known].astype(np.int64)
    bootstrap, count = judged.bootstrap(known), len(target.classes)
    groups = {by: column[known] for by, column in judged.columns.groups(target.name, judged.labels).items()}
    return {
        "name": target.name,
        "kind": "ordinal",
        "classes": list(target.classes),
        "counts": {
            "records": len(x),
            "patients": bootstrap.patients,
            "unknown": int((~known).sum()),
            "classes": {name: int((x == number).sum()) for number, name in enumerate(target.classes)},
        },
        "errors": ordinal.errors(x, y, count, bootstrap),
        "confusion": ordinal.confusion(x, y, count),
        "subgroups": subgroups.of_regression(
            x, y, bootstrap.numbers, groups, resamples=judged.resamples, seed=judged.seed
        ),
    }


def macro(
    entries: Sequence[Mapping[str, Any]], labels: Mapping[str, Floats], logits: Mapping[str, Floats], judged: Judged
):
    """Means of AUROC and AUPRC over the yes-or-no targets, None where there are not two."""
    names = [entry["name"] for entry in entries if entry["kind"] == "binary"]
    if len(names) < 2:
        return None
    bootstrap = judged.bootstrap(np.ones(len(judged.patients), bool))
    found = discrimination.macro_areas(
        {name: labels[name] for name in names}, {name: logits[name] for name in names}, bootstrap
    )
    return {
        "auroc": found["auroc"],
        "auprc": found["auprc"],
        "targets": found["classes"],
        "left_out": found["left_out"],
    }


def plain(value: Any) -> Any:
    """The same as JSON values: estimates as objects, arrays as lists, NaN as null."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _at_fixed(y: NDArray[np.bool_], p: Floats, bootstrap: PatientBootstrap) -> list[dict[str, Any]]:
    ranking, rows = Ranking(y, p), []
    for fixed, gives in (("specificity", "sensitivity"), ("sensitivity", "specificity")):
        for at in _FIXED:
            found = thresholds.choose(y, p, fixed, at, origin=_HERE)
            statistic = ranking.sensitivity_at(at) if fixed == "specificity" else ranking.specificity_at(at)
            reason = one_class(y)
            result = Estimate(None, reason=reason) if reason else bootstrap.estimate(statistic)
            value = None if found.reason else found.value
            rows.append(
                {"fixed": fixed, "at": at, "gives": gives, "result": result, "threshold": value, "origin": _HERE}
            )
    return rows


def _predictive(point: Mapping[str, Any], prevalence: float) -> dict[str, Any]:
    ppv, npv = predictive_values(point["sensitivity"], point["specificity"], prevalence)
    return {"prevalence": prevalence, "ppv": ppv, "npv": npv, "nns": 1 / ppv.value if ppv.value else None}


def _calibration(
    y: NDArray[np.bool_], z: Floats, p: Floats, rule: DetectorRule, bootstrap: PatientBootstrap
) -> dict[str, Any]:
    fitted = rule.calibration
    raw = reliability.summary(y, calibration.sigmoid(z), bootstrap)
    return {
        "method": fitted.method,
        "slope": fitted.slope,
        "intercept": fitted.intercept,
        "origin": fitted.origin,
        "reason": fitted.reason,
        "raw": raw,
        "calibrated": raw if fitted.method == "none" else reliability.summary(y, p, bootstrap),
    }


def _conformal(y: NDArray[np.bool_], z: Floats, rule: DetectorRule, patients: NDArray) -> dict[str, Any] | None:
    sets = rule.conformal
    if sets is None:
        return None
    levels = []
    for confidence in sets.confidences:
        inside = sets.apply(rule.probability(z), confidence)
        holds = inside[np.arange(len(y)), y.astype(int)]
        sizes = inside.sum(1)
        levels.append(
            {
                "confidence": confidence,
                "coverage": share(holds, None, patients),
                "coverage_positive": share(holds, y, patients, nothing="no record is positive"),
                "coverage_negative": share(holds, ~y, patients, nothing="no record is negative"),
                "sets": {
                    "empty": int((sizes == 0).sum()),
                    "negative": int((inside[:, 0] & ~inside[:, 1]).sum()),
                    "positive": int((inside[:, 1] & ~inside[:, 0]).sum()),
                    "both": int((sizes == 2).sum()),
                },
                "singletons": share(sizes == 1, None, patients),
                "error_of_singletons": share(~holds, sizes == 1, patients, nothing="no set holds a single answer"),
            }
        )
    return {"class_conditional": sets.class_conditional, "origin": sets.origin, "levels": levels}


def _abstention(
    y: NDArray[np.bool_], p: Floats, called: NDArray[np.bool_], rule: DetectorRule, bootstrap: PatientBootstrap
) -> dict[str, Any]:
    # how far the decision is from turning, on the scale on which the model adds up what it sees
    ends = np.clip(np.r_[p, rule.threshold.value], 1e-12, 1 - 1e-12)
    sure = np.abs(calibration.logit(ends[:-1]) - calibration.logit(ends[-1]))
    curve = decision.RiskCoverage.of(called != y, sure)
    risk, low, high = bootstrap.band(curve.risk_at(_COVERAGES))
    return {
        "aurc": bootstrap.estimate(curve.area),
        "excess": curve.excess(),
        "curve": {"coverage": _COVERAGES, "risk": risk, "low": low, "high": high},
    }


def _curves(
    y: NDArray[np.bool_], z: Floats, p: Floats, rule: DetectorRule, bootstrap: PatientBootstrap
) -> dict[str, Any]:
    ranking = Ranking(y, z)
    roc: dict[str, Any] = {"fpr": [], "tpr": [], "low": [], "high": []}
    precision_recall: dict[str, Any] = {"recall": [], "precision": []}
    if not one_class(y):
        tpr, low, high = bootstrap.band(ranking.sensitivity_on(_RATES))
        roc = {"fpr": _RATES, "tpr": tpr, "low": low, "high": high}
        recall, precision, _ = ranking.precision_recall()
        at = np.asarray(spread(len(recall), _CURVE))
        precision_recall = {"recall": recall[at], "precision": precision[at]}
    # where hardly anybody would draw the line nothing is to be learned
    cuts = np.arange(1, 51 if y.mean() < 0.25 else 91) / 100
    benefit, worst, best = bootstrap.band(decision.net_benefit(y, p, cuts))
    calibrated = reliability.reliability_curve(y, p, bootstrap.numbers)
    bare = rule.calibration.method == "none"
    raw = calibrated if bare else reliability.reliability_curve(y, calibration.sigmoid(z), bootstrap.numbers)
    return {
        "roc": roc,
        "precision_recall": precision_recall,
        "reliability": {"raw": raw, "calibrated": calibrated},
        "decision": {
            "threshold": cuts,
            "model": benefit,
            "low": worst,
            "high": best,
            "all": decision.net_benefit_of_all(y, cuts),
            "none": np.zeros(len(cuts)),
        },
        "histogram": {
            "edges": _EDGES,
            "positive": np.histogram(p[y], _EDGES)[0],
            "negative": np.histogram(p[~y], _EDGES)[0],
        },
    }


def _corrected_gap(
    x: Floats, corrected: Floats, correction: GapCorrection, bootstrap: PatientBootstrap
) -> dict[str, Estimate]:
    found = agreement.gap(x, corrected, bootstrap)
    if abs(correction.slope) >= _FOLLOWS:
        return found
    reason = (
        f"the slope is {correction.slope:.2g}: predictions hardly follow the true value, so this spread means little"
    )
    return {**found, "sd": replace(found["sd"], reason=reason)}


def _binary_baseline(
    name: str,
    columns: Mapping[str, NDArray],
    y: NDArray[np.bool_],
    z: Floats,
    known: NDArray[np.bool_],
    patients: NDArray,
    seed: int,
) -> dict[str, Any]:
    made = baselines.of_labels(name, {key: column[known] for key, column in columns.items()}, y, patients, seed=seed)
    entry: dict[str, Any] = {"name": name, "features": list(made.features)}
    if made.scores is None:
        return {**entry, "auroc": Estimate(None, reason=made.reason), "difference": None, "reason": made.reason}
    test = delong.compare(y, made.scores, z, patients)
    trivial = test.first
    if trivial.value is not None and trivial.value < 0.5:
        trivial = replace(trivial, reason="; ".join(filter(None, (trivial.reason, _BELOW))))
    return {**entry, "auroc": trivial, "difference": test.difference, "p_value": test.p_value}


def _number_baseline(
    name: str,
    columns: Mapping[str, NDArray],
    x: Floats,
    y: Floats,
    known: NDArray[np.bool_],
    bootstrap: PatientBootstrap,
    seed: int,
) -> dict[str, Any]:
    chosen = {key: column[known] for key, column in columns.items()}
    made = baselines.of_numbers(name, chosen, x, bootstrap.numbers, seed=seed)
    entry: dict[str, Any] = {"name": name, "features": list(made.features)}
    if made.scores is None:
        return {**entry, "mae": Estimate(None, reason=made.reason), "difference": None, "reason": made.reason}
    own, trivial = weighted_mean(np.abs(y - x)), weighted_mean(np.abs(made.scores - x))
    return {**entry, **bootstrap.estimates({"mae": trivial, "difference": difference(own, trivial)})}
