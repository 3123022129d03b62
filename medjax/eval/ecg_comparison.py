"""Two models of ECGs on the same records: paired differences from two finished runs.

Records are matched by name and waveform, so the runs may have evaluated different parts; what only one of them holds is
left out and counted. AUROCs are compared by DeLong's paired test, clustered by patient, and every figure by a bootstrap
in which both models see the same resamples of patients.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.eval.ecg_scores import plain
from medjax.eval.graded import read_results
from medjax.statistics import agreement, delong, discrimination, reliability, thresholds
from medjax.statistics.bootstrap import Floats, PatientBootstrap, difference, weighted_mean, weighted_ratio
from medjax.store.runs import named

_TEST = "DeLong, paired, clustered by patient"


def is_ecg_run(path: str | Path) -> bool:
    """Whether a folder holds the results of an ECG model; False also where it holds nothing readable."""
    try:
        return str(json.loads((named(path) / "results.json").read_text("utf-8")).get("kind", "")).startswith("ecg")
    except (OSError, ValueError, AttributeError):
        return False


def compare_ecg_runs(first: str | Path, second: str | Path, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Compare two run folders on every target that both have.

    returns  kind, first, second (the folders), records, patients, left_out (records that one of them alone holds), and
             targets: name, kind, metric, records, first, second, difference (second minus first), p_value, test and
             bootstrap, the differences of further figures

    Raises FileNotFoundError for a folder without results, and ValueError where nothing can be compared.
    """
    paths = [named(first), named(second)]
    kinds = [_kinds(path) for path in paths]
    samples = [_samples(path) for path in paths]
    shared = [name for name in kinds[0] if kinds[1].get(name) == kinds[0][name]]
    if not shared:
        raise ValueError(
            f"compare: {paths[0]} predicts {', '.join(kinds[0])}, {paths[1]} predicts {', '.join(kinds[1])}: got no "
            "target of one name and kind in both; compare runs of models with the same target."
        )
    both = [key for key in samples[0] if key in samples[1]]
    if not both:
        raise ValueError(
            f"compare: got no record that both {paths[0]} and {paths[1]} evaluated; evaluate both on the same data and "
            "split."
        )
    rows = [[run[key] for key in both] for run in samples]
    targets = [_target(name, kinds[0][name], rows, resamples, seed) for name in shared]
    found: dict[str, Any] = plain(
        {
            "kind": "ecg_comparison",
            "first": str(paths[0]),
            "second": str(paths[1]),
            "records": len(both),
            "patients": len({row["patient"] for row in rows[0]}),
            "left_out": len(set(samples[0]) ^ set(samples[1])),
            "targets": targets,
        }
    )
    return found


def _target(name: str, kind: str, rows: list[list[dict[str, Any]]], resamples: int, seed: int) -> dict[str, Any]:
    for one, other in zip(*rows, strict=True):
        if one["labels"][name] != other["labels"][name]:
            raise ValueError(
                f"compare: record {one['id']}: got {name}={one['labels'][name]} in one run and "
                f"{other['labels'][name]} in the other, expected the same label; evaluate both on the same data."
            )
    chosen = [i for i, row in enumerate(rows[0]) if row["labels"][name] is not None]
    if not chosen:
        raise ValueError(f"compare: target {name}: got no record with a label that both runs evaluated.")
    outputs = [[run[i]["outputs"][name] for i in chosen] for run in rows]
    true = np.array([rows[0][i]["labels"][name] for i in chosen])
    bootstrap = PatientBootstrap([rows[0][i]["patient"] for i in chosen], resamples=resamples, seed=seed)
    compared = _detectors(true, outputs, bootstrap) if kind == "binary" else _numbers(true, outputs, bootstrap)
    return {"name": name, "kind": kind, "records": len(chosen), **compared}


def _detectors(true: Floats, outputs: list[list[dict[str, Any]]], bootstrap: PatientBootstrap) -> dict[str, Any]:
    y = true > 0.5
    first, second = (np.array([output["raw"][0] for output in run]) for run in outputs)
    p = [np.array([output["probability"] for output in run]) for run in outputs]
    called = [np.array([output["positive"] for output in run], bool) for run in outputs]
    test = delong.compare(y, first, second, bootstrap.numbers)
    gaps = {
        "brier": difference(reliability.brier(y, p[1]), reliability.brier(y, p[0])),
        "sensitivity": difference(*(weighted_ratio(y & run, y) for run in called[::-1])),
        "specificity": difference(*(weighted_ratio(~y & ~run, ~y) for run in called[::-1])),
        "balanced_accuracy": difference(*(thresholds.balanced_accuracy(y, run) for run in called[::-1])),
    }
    return {
        "metric": "auroc",
        "first": test.first,
        "second": test.second,
        "difference": test.difference,
        "p_value": test.p_value,
        "test": _TEST,
        "bootstrap": {**discrimination.paired_difference(y, first, second, bootstrap), **bootstrap.estimates(gaps)},
    }


def _numbers(true: Floats, outputs: list[list[dict[str, Any]]], bootstrap: PatientBootstrap) -> dict[str, Any]:
    values = [np.array([output["value"] for output in run]) for run in outputs]
    errors = [weighted_mean(np.abs(run - true)) for run in values]
    found = bootstrap.estimates({"first": errors[0], "second": errors[1], "difference": difference(*errors[::-1])})
    more = [agreement.error_statistics(true, run) for run in values]
    gaps = {name: difference(more[1][name], more[0][name]) for name in ("rmse", "r2", "r", "bias")}
    return {
        "metric": "mae",
        **found,
        "p_value": None,
        "test": "bootstrap by patient, paired",
        "bootstrap": bootstrap.estimates(gaps),
    }


def _kinds(path: Path) -> dict[str, str]:
    """Target -> kind."""
    return read_results(path, lambda found: {t["name"]: t["kind"] for t in found["targets"]}, of="ECGs")


def _samples(path: Path) -> Mapping[tuple[str, str], dict[str, Any]]:
    """(id, waveform) -> line of samples.jsonl, of the records that were judged."""
    file = path / "samples.jsonl"
    found = {}
    try:
        lines = file.read_text("utf-8").split("\n")
    except OSError:
        raise FileNotFoundError(f"{file}: no such file; it stands beside results.json, copy both.") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            sample = json.loads(line)
            key = sample["id"], sample["waveform"]
            if not sample["refused"]:
                found[key] = {name: sample[name] for name in ("id", "patient", "labels", "outputs")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: {type(error).__name__}: {error}; expected what medjax.eval writes; run the "
                "evaluation again."
            ) from None
    return found
