"""A prediction as medjax.infer gives it, on a made-up record: twelve leads of bumps at the places of P, QRS and T."""

import numpy as np


def signal(seconds=10.0, rate=500, leads=12):
    """[leads, samples] mV: QRS of (lead + 1) / 10 mV each second from 0.5 s on, P and T beside it."""
    time = np.arange(round(seconds * rate)) / rate
    beat = (time % 1.0) - 0.5
    shape = np.exp(-((beat / 0.012) ** 2)) + 0.12 * np.exp(-(((beat + 0.16) / 0.025) ** 2))
    shape += 0.25 * np.exp(-(((beat - 0.28) / 0.05) ** 2))
    return np.stack([(lead + 1) / 10 * shape for lead in range(leads)])


def explanation(passed=True, seed=0, tokens=20):
    generator = np.random.default_rng(seed)
    weights = np.clip(generator.normal(0, 0.3, (12, tokens)), -1, 1)
    weights[:, ::4] = 0.0
    shares = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    random = 0.81 - 0.4 * shares + generator.normal(0, 0.02, (40, 7)) * (shares > 0)
    ordered = 0.2 + 0.61 * np.exp(-shares * 12) if passed else random.mean(0)
    correlations = [0.8, 0.45, 0.2, 0.1] if passed else [0.95, 0.9, 0.8, 0.75]
    return {
        **{"method": "integrated gradients", "weights": weights, "seconds": 10 / tokens, "form": "bands"},
        **{"gap": 0.0021, "explained": 1.93},
        "deletion": {
            **{"shares": shares, "ordered": ordered, "random": random, "area": 0.31 if passed else 0.001},
            **{"low": 0.28 if passed else -0.03, "high": 0.34, "passed": passed},
        },
        "randomisation": {
            **{"stages": ("head", "layers 7 to 12", "layers 1 to 6", "embedding"), "correlations": correlations},
            "passed": passed,
        },
        "verdict": "Both checks passed: taking away what is marked moves the output sooner."
        if passed
        else "Do not rest on this map: taking away what is marked moves the output no sooner than at random.",
    }


def binary(passed=True, explained=True, **more):
    return {
        **{"name": "LVSD", "kind": "binary", "probability": {"value": 0.81, "low": 0.69, "high": 0.89}},
        **{"threshold": 0.16, "threshold_origin": "validation: Youden", "decision": True},
        **{"set": ["positive"], "confidence": 0.9, "explanation": explanation(passed) if explained else None},
        **more,
    }


def age(**more):
    return {
        **{"name": "age", "kind": "regression", "unit": "years", "value": {"value": 71.4, "low": 58.0, "high": 84.8}},
        **{"true": 63.0, "corrected": 69.0, "explanation": None},
        **more,
    }


def prediction(*found, **more):
    status = ["measured"] * 12
    status[8], status[3] = "missing", "derived"
    values = signal()
    values[8] = np.nan
    return {
        **{"date": 1763755980.2, "command": "python -m medjax.infer a.xml --model runs/train/lvsd"},
        **{"model": {"name": "runs/train/lvsd", "digest": "12" * 32}, "versions": {"medjax": "0.1.0"}},
        "evaluated": "On the test set of training AUROC 0.91 (0.88–0.94) on 2,000 records, 12 % of them positive.",
        "record": {
            **{"id": "1234", "source": "a.xml", "format": "GE MUSE XML", "age_years": 63.0, "sex": "female"},
            **{"patient": "p1", "device": "MAC 5500", "time": "2024-03-02T10:15:00", "sampling_rate_hz": 500.0},
            **{"status": status, "signal": values, "notes": ["50 Hz mains seen; a notch was applied."]},
            **{"heart_rate_bpm": 60.0, "filters": "0.5 to 40 Hz"},
        },
        "predictions": list(found) or [binary(), age()],
        **more,
    }
