"""What an evaluation of an ECG model prints: one table, cautions, where everything lies, and the next command."""

import shlex
from collections.abc import Mapping
from typing import Any

from medjax.report.table import text_table


def print_ecg_summary(results: Mapping[str, Any]) -> None:
    """Print the figures of a results.json that matter most."""
    protocol = results["protocol"]
    binary = [target for target in results["targets"] if target["kind"] == "binary"]
    others = [target for target in results["targets"] if target["kind"] != "binary"]
    print()
    if binary:
        print(text_table([_binary_row(target) for target in binary], _BINARY, align="lrrrrrr"))
        for target in binary:
            point = target["operating_points"][0]
            print(f"{target['name']}: positive from a probability of {point['threshold']:.3g} on ({point['origin']})")
    if others:
        print(text_table([_number_row(target) for target in others], _NUMBER, align="lrrrr"))
    for target in results["targets"]:
        for baseline in target.get("baselines", ()):
            print(f"{target['name']}: {_baseline(baseline, target)}")
    for note in results["notes"]:
        print(note)
    for entry in protocol["data"]["left_out"]:
        print(f"left out: {entry['records']:,} records ({entry['reason']})")
    leaks = protocol["data"]["leaks"]
    if leaks["patients"] or leaks["waveforms"]:
        print(
            f"{leaks['patients']:,} patients and {leaks['waveforms']:,} recordings were seen in training"
            + (": the figures are too good." if leaks["allowed"] else ", and left out.")
        )
    folder = shlex.quote(protocol["folder"])
    print()
    print(f"results  {protocol['folder']}/results.json  (every record: samples.jsonl, to look at: report.html)")
    print(f"next     python -m medjax.eval compare {folder} <the folder of another model on the same data>")


def print_ecg_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what `ecg_comparison.compare_ecg_runs` found."""
    print(f"first   {comparison['first']}\nsecond  {comparison['second']}\n")
    rows = [
        [
            target["name"],
            target["metric"],
            f"{target['records']:,}",
            *(_shown(target[key]) for key in ("first", "second")),
            _shown(target["difference"], sign="+"),
            "–" if target["p_value"] is None else f"{target['p_value']:.2g}",
        ]
        for target in comparison["targets"]
    ]
    header = ["target", "metric", "records", "first", "second", "difference (95 % interval)", "p"]
    print(text_table(rows, header, align="llrrrrr"))
    print("Difference: second minus first on the same records. AUROC: DeLong, paired, by patient; else bootstrap.")
    if comparison["left_out"]:
        print(f"{comparison['left_out']:,} records that only one run holds are left out.")


_BINARY = ["target", "records", "positive", "AUROC (95 % interval)", "AUPRC", "sensitivity", "specificity"]
_NUMBER = ["target", "records", "MAE (95 % interval)", "r or kappa", "bias"]


def _binary_row(target: Mapping[str, Any]) -> list[str]:
    counts, found, point = target["counts"], target["discrimination"], target["operating_points"][0]
    return [
        target["name"],
        f"{counts['records']:,}",
        f"{counts['positive']:,}",
        _shown(found["auroc"]),
        _shown(found["auprc"]),
        _shown(point["sensitivity"]),
        _shown(point["specificity"]),
    ]


def _number_row(target: Mapping[str, Any]) -> list[str]:
    errors = target["errors"]
    name = f"{target['name']} ({target['unit']})" if target.get("unit") else target["name"]
    return [
        name,
        f"{target['counts']['records']:,}",
        _shown(errors["mae"], digits=2),
        _shown(errors.get("r") or errors["weighted_kappa"]),
        _shown(errors["bias"], digits=2, sign="+") if "bias" in errors else "–",
    ]


def _baseline(baseline: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    metric = "auroc" if target["kind"] == "binary" else "mae"
    name = {"auroc": "AUROC", "mae": "MAE"}[metric]
    if baseline[metric]["value"] is None:
        return f"{baseline['name']} alone: no {name} ({baseline[metric]['reason']})"
    gap = _shown(baseline["difference"], sign="+")
    return f"{baseline['name']} alone: {name} {_shown(baseline[metric])}; model minus this: {gap}"


def _shown(number: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    if number["value"] is None:
        return "–"
    value = f"{number['value']:{sign}.{digits}f}"
    if number["low"] is None:
        return value
    return f"{value} ({number['low']:{sign}.{digits}f} to {number['high']:{sign}.{digits}f})"
