"""Results of medjax.eval for a detector and an age regression, made from drawn scores by plain formulas."""

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def number(value, half=None, reason=""):
    bounds = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": bounds[0], "high": bounds[1], "method": "bootstrap by patient", "reason": reason}


def share(count, total):
    half = 1.96 * (count / total * (1 - count / total) / total) ** 0.5
    low, high = max(0.0, count / total - half), min(1.0, count / total + half)
    return {"value": count / total, "low": low, "high": high, "method": "Wilson", "reason": ""}


UNDEFINED = {
    "value": None,
    "low": None,
    "high": None,
    "method": "DeLong, logit",
    "reason": "all 4 records are negative",
}


def detector(records=2000, seed=0, name="LVSD"):
    generator = np.random.default_rng(seed)
    label = generator.random(records) < 0.12
    probability = 1 / (1 + np.exp(-(generator.normal(-2.6, 1.1, records) + 2.4 * label)))
    order = np.argsort(-probability)
    tpr = np.concatenate([[0], np.cumsum(label[order]) / label.sum()])
    fpr = np.concatenate([[0], np.cumsum(~label[order]) / (~label).sum()])
    auroc = float(np.trapezoid(tpr, fpr))
    at = np.linspace(0, 1, 101)
    band = np.interp(at, fpr, tpr)
    precision = np.cumsum(label[order]) / np.arange(1, records + 1)
    threshold = 0.16
    called = probability >= threshold
    tp, fp = int((called & label).sum()), int((called & ~label).sum())
    fn, tn = int(label.sum()) - tp, int((~label).sum()) - fp
    bins = []
    for part in np.array_split(np.argsort(probability), 10):
        observed = share(int(label[part].sum()), len(part))
        bins.append(
            {"mean_predicted": float(probability[part].mean()), "observed": observed["value"], "records": len(part)}
            | {key: observed[key] for key in ("low", "high")}
        )
    cuts = np.linspace(0.01, 0.5, 50)
    gain = [((probability >= c) & label).mean() - ((probability >= c) & ~label).mean() * c / (1 - c) for c in cuts]
    sure = np.argsort(-np.abs(probability - threshold))
    risk = np.cumsum((called != label)[sure]) / np.arange(1, records + 1)
    coverage = np.arange(1, records + 1) / records
    edges = np.linspace(0, 1, 21)
    counts = {
        key: np.histogram(probability[label == flag], edges)[0].tolist()
        for key, flag in (("positive", True), ("negative", False))
    }
    metrics = {"brier": number(0.071, 0.006), "log_loss": number(0.25, 0.02), "slope": number(0.98, 0.1)} | {
        "ece_width": number(0.012, 0.006),
        "ece_mass": number(0.011, 0.005),
        "intercept": number(-0.04, 0.15),
    }
    raw = metrics | {"brier": number(0.12, 0.01), "ece_mass": number(0.18, 0.01)}
    groups = [("age band", "18-39", 310, 9, True), ("age band", "40-59", 700, 61, False)]
    groups += [("age band", "60-79", 820, 130, False), ("age band", "80-120", 170, 40, False)]
    groups += [("sex", "female", 990, 105, False), ("sex", "male", 1006, 135, False), ("sex", "unknown", 4, 0, True)]
    groups += [("device", "GE MAC 5500", 1400, 170, False), ("device", "Fukuda FX-8322", 600, 70, False)]
    return {
        "name": name,
        "kind": "binary",
        "counts": {"records": records, "patients": records - 150, "positive": int(label.sum())}
        | {"negative": int((~label).sum()), "unknown": 37},
        "prevalence": share(int(label.sum()), records),
        "discrimination": {
            "auroc": number(auroc, 0.016) | {"method": "DeLong, logit"},
            "auroc_bootstrap": number(auroc, 0.017),
            "auprc": number(float((precision * label[order]).sum() / label.sum()), 0.05),
        },
        "operating_points": [
            {
                **{"name": "checkpoint", "origin": "validation: Youden", "threshold": threshold},
                "confusion": {"tp": tp, "fp": fp, "fn": fn, "tn": tn},
                **{"sensitivity": share(tp, tp + fn), "specificity": share(tn, tn + fp)},
                **{
                    "ppv": share(tp, tp + fp),
                    "npv": share(tn, tn + fn),
                    "f1": number(2 * tp / (2 * tp + fp + fn), 0.04),
                },
                **{"accuracy": share(tp + tn, records), "balanced_accuracy": number(0.8, 0.02)},
                "flagged": share(tp + fp, records),
            }
        ],
        "at_fixed": [
            {**{"fixed": "specificity", "at": 0.9, "gives": "sensitivity", "result": number(0.62, 0.06)}}
            | {"threshold": 0.2, "origin": "this data (describes the curve; not a threshold to use)"},
            {**{"fixed": "sensitivity", "at": 0.9, "gives": "specificity", "result": number(0.7, 0.05)}}
            | {"threshold": 0.1, "origin": "this data (describes the curve; not a threshold to use)"},
        ],
        "predictive_values": [
            {
                "prevalence": p,
                "ppv": number(9 * p / (9 * p + 2 * (1 - p)), 0.02),
                "npv": number(0.99, 0.004),
                "nns": 5.2,
            }
            for p in (0.01, 0.02, 0.05, 0.1)
        ],
        "calibration": {"method": "platt", "slope": 0.9, "intercept": -1.2, "origin": "validation, 512 records"}
        | {"raw": raw, "calibrated": metrics},
        "conformal": {
            **{"class_conditional": True, "origin": "validation, 512 records"},
            "levels": [
                {
                    **{"confidence": c, "coverage": number(c + 0.004, 0.01)},
                    **{"coverage_positive": number(c - 0.01, 0.04), "coverage_negative": number(c + 0.006, 0.01)},
                    "sets": {"empty": 0, "negative": 1200, "positive": 180, "both": 620},
                    **{"singletons": number(0.69, 0.02), "error_of_singletons": number(0.05, 0.01)},
                }
                for c in (0.8, 0.9, 0.95)
            ],
        },
        "abstention": {
            **{"aurc": number(float(risk.mean()), 0.01), "excess": 0.031},
            "curve": {
                **{"coverage": coverage[19::20].tolist(), "risk": risk[19::20].tolist()},
                **{"low": (risk[19::20] * 0.8).tolist(), "high": (risk[19::20] * 1.2).tolist()},
            },
        },
        "curves": {
            "roc": {
                **{"fpr": at.tolist(), "tpr": band.tolist()},
                **{"low": np.clip(band - 0.04, 0, 1).tolist(), "high": np.clip(band + 0.04, 0, 1).tolist()},
            },
            "precision_recall": {"recall": tpr[20::5].tolist(), "precision": precision[19::5].tolist()},
            "reliability": {
                "raw": [b | {"mean_predicted": b["mean_predicted"] ** 0.5} for b in bins],
                "calibrated": bins,
            },
            "decision": {
                **{"threshold": cuts.tolist(), "model": gain, "low": [g - 0.008 for g in gain]},
                **{"high": [g + 0.008 for g in gain], "none": [0.0] * 50},
                "all": [float(label.mean() - (~label).mean() * c / (1 - c)) for c in cuts],
            },
            "histogram": {"edges": edges.tolist(), **counts},
        },
        "subgroups": [
            {
                **{"by": by, "value": value, "records": n, "patients": n - 3, "positive": k, "small": small},
                "auroc": number(auroc + 0.005 * index - 0.03, 0.02 + 0.04 * small) if k else UNDEFINED,
                **{"sensitivity": share(int(k * 0.8), k) if k else UNDEFINED, "specificity": share(n * 4 // 5, n)},
                "prevalence": share(k, n),
            }
            for index, (by, value, n, k, small) in enumerate(groups)
        ],
        "baselines": [
            {"name": "source and device", "features": ["source", "device"], "auroc": number(0.53, 0.04)}
            | {"difference": number(auroc - 0.53, 0.04)},
            {"name": "age and sex", "features": ["age", "sex"], "auroc": number(0.68, 0.03)}
            | {"difference": number(auroc - 0.68, 0.035)},
        ],
    }


def regression(records=700, seed=1):
    generator = np.random.default_rng(seed)
    true = generator.uniform(20, 92, records)
    predicted = 55 + 0.7 * (true - 55) + generator.normal(0, 7, records)
    gap = predicted - true
    decades = [
        {
            **{"from": first, "to": first + 10, "records": int(inside.sum()), "patients": int(inside.sum())},
            "small": bool(inside.sum() < 20),
            "bias": number(float(gap[inside].mean()), 1.96 * float(gap[inside].std()) / inside.sum() ** 0.5),
            "mae": number(float(np.abs(gap[inside]).mean()), 0.8),
        }
        for first in range(20, 100, 10)
        if (inside := (true >= first) & (true < first + 10)).any()
    ]
    return {
        **{"name": "age", "kind": "regression", "unit": "years"},
        "counts": {"records": records, "patients": records, "unknown": 3},
        "distribution": {"mean": 55.0, "sd": 20.6, "min": 20.0, "max": 92.0},
        "errors": {
            **{"mae": number(float(np.abs(gap).mean()), 0.4), "rmse": number(float((gap**2).mean() ** 0.5), 0.5)},
            **{"r2": number(0.74, 0.03), "r": number(0.9, 0.02), "bias": number(float(gap.mean()), 0.6)},
            **{"slope": number(0.7, 0.02), "mae_of_mean": number(17.9, 0.7)},
        },
        "agreement": {
            **{"bias": number(float(gap.mean()), 0.6), "sd": number(float(gap.std()), 0.4)},
            **{"lower_limit": number(-18.0, 1.0), "upper_limit": number(18.4, 1.0)},
            "points": {"mean": ((true + predicted) / 2).tolist(), "difference": gap.tolist()},
        },
        "by_decade": decades,
        "gap": {
            "raw": {"mean": number(0.1, 0.6), "sd": number(9.2, 0.4), "correlation_with_age": number(-0.67, 0.04)},
            "corrected": {"mean": number(0.2, 0.7), "sd": number(9.9, 0.5), "correlation_with_age": number(0.01, 0.07)},
            "correction": {"slope": 0.7, "intercept": 16.5, "origin": "validation, 300 records"},
            "source": "de Lange and Cole 2020 / Beheshti et al. 2019",
        },
        "points": {"true": true.tolist(), "predicted": predicted.tolist(), "corrected": None},
        "subgroups": [
            {"by": "sex", "value": value, "records": n, "patients": n, "small": n < 20}
            | {"mae": number(7.0 + n / 1000, 0.5), "bias": number(n / 500, 0.6)}
            for value, n in (("female", 340), ("male", 352), ("unknown", 8))
        ],
        "baselines": [
            {"name": "heart rate", "features": ["rate"], "mae": number(16, 0.7), "difference": number(-8.2, 0.8)}
        ],
    }


def ordinal():
    return {
        **{"name": "NYHA", "kind": "ordinal", "classes": ["I", "II", "III"]},
        "counts": {"records": 60, "patients": 58, "unknown": 2, "classes": {"I": 30, "II": 20, "III": 10}},
        "errors": {"mae": number(0.4, 0.1), "weighted_kappa": number(0.61, 0.1)}
        | {"linear_kappa": number(0.55, 0.1), "accuracy": number(0.65, 0.12)},
        "confusion": [[22, 7, 1], [5, 12, 3], [1, 4, 5]],
        "subgroups": [
            {"by": "sex", "value": "male", "records": 60, "patients": 58, "small": False, "mae": number(0.4, 0.1)}
        ],
    }


def results(*targets, **more):
    return {
        **{"kind": "ecg_predictor", "date": 1763755980.2},
        "protocol": {
            **{"folder": "runs/eval/lvsd", "command": "python -m medjax.eval --model runs/train/lvsd --data ecgs"},
            **{"versions": {"medjax": "0.1.0", "jax": "0.10.2"}, "devices": "1 x cpu", "wall_seconds": 61.2},
            "records_per_s": 33.0,
            "model": {
                **{"name": "runs/train/lvsd", "folder": "runs/train/lvsd/model", "digest": "12" * 32},
                **{"kind": "ecg_predictor", "parameters": 21_600_000, "encoder": {"layers": 12, "embed": 384}},
                **{"preprocessing": {"sampling_rate_hz": 250, "high_pass_hz": 0.5}, "provenance": {"seed": 7}},
            },
            "data": {
                **{"folders": ["ecgs"], "digest": "ab" * 32, "records": 9000, "split": "test"},
                "split_rule": {"by": "patient", "seed": 0, "fractions": [0.7, 0.15, 0.15]},
                "chosen": {"records": 2037, "patients": 1880, "without_patient": 38},
                "left_out": [{"reason": "no usable lead", "records": 4}],
                "leaks": {"patients": 0, "waveforms": 0, "allowed": False},
            },
            "bootstrap": {"unit": "patient", "resamples": 2000, "level": 0.95, "seed": 0},
        },
        "targets": list(targets) or [detector()],
        "macro": None,
        "notes": ["38 records name no patient; each counts as its own patient."],
        **more,
    }
