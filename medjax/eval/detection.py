"""One evaluation of an ECG model, from settings to a run folder.

model record -> open data -> the part that the checkpoint's rule says -> records that training has seen -> load model ->
predictions, journalled -> figures -> results.json, samples.jsonl, report.html

What can be refused without the model is refused before it is loaded. Nothing is chosen on the evaluated records: the
threshold, the calibration and the sets are those of the checkpoint.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medjax.config import to_toml
from medjax.data.ecg.seen import hash_of
from medjax.eval import ecg_scores
from medjax.eval.ecg_columns import Columns
from medjax.eval.ecg_part import Part, choose_part, known_labels, model_record
from medjax.eval.ecg_scores import Judged
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.report.detector import detector_report
from medjax.report.progress import ProgressBar
from medjax.store.provenance import command, versions
from medjax.store.runs import Journal, RunFolder, named, shortened

_TOGETHER = 256  # records between two entries of the journal


def evaluate_ecg(
    settings: EcgEvalSettings, *, say: Callable[[str], None] = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Evaluate a detector or a regression on ECGs and write a run folder; returns what results.json holds.

    say       called with one line for the user at a time
    progress  show a progress bar on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    start = time.time()
    folder, record = model_record(settings)
    part = choose_part(settings, folder, record)
    place = _folder(settings, folder)
    RunFolder.check(place)
    from medjax.infer.ecg import EcgModel

    model = EcgModel.load(folder.absolute(), mesh=settings.engine.mesh)
    labels = known_labels(part, model.config.targets)
    say(f"{settings.data.split}: {len(part.places):,} records of {len(set(part.patients)):,} patients")
    with RunFolder.open(place, _identity(settings, model, part)) as run:
        if run.note:
            say(run.note)
        say(f"writing to {run.path}")
        run.write_text("config.toml", to_toml(settings))
        began = time.time()
        with ProgressBar(progress, settings.data.split) as bar:
            predictions, reused = _predictions(model, part, run.journal("predictions"), settings, bar)
        seconds = time.time() - began
        say("computing figures and their intervals")
        done = len(part.places) - reused
        record_of_run = {
            "folder": str(run.path),
            "command": command(settings, "medjax.eval"),
            "versions": _versions(),
            "devices": _devices(model),
            "records_per_s": round(done / seconds, 2) if done and seconds else None,
        }
        results = _results(settings, record, folder, part, labels, model, predictions, record_of_run)
        results["protocol"]["wall_seconds"] = round(time.time() - start, 2)
        run.write_text("samples.jsonl", "".join(_sample_lines(part, labels, predictions)))
        run.write_text("report.html", detector_report(results))
        run.write_json("results.json", results)
    return results


def _identity(settings: EcgEvalSettings, model: Any, part: Part) -> dict[str, Any]:
    """Everything that decides a result to the last bit; a difference starts a new run."""
    return {
        "model": model.digest,
        "data": {
            "digest": part.dataset.digest,
            "split": settings.data.split,
            "records": hashlib.sha256(part.places.astype("<i8").tobytes()).hexdigest(),
            "leaks": settings.data.leaks,
        },
        "report": {
            "prevalences": list(settings.report.prevalences),
            "subgroups": list(settings.report.subgroups),
        },
        "engine": {"batch_size": settings.engine.batch_size, "devices": _devices(model)},
        "seed": settings.seed,
        "resamples": settings.resamples,
        "versions": _versions(),
    }


def _predictions(
    model: Any, part: Part, journal: Journal, settings: EcgEvalSettings, bar: ProgressBar
) -> tuple[list[dict[str, Any]], int]:
    """A prediction a record, as JSON, in order, and how many the journal already held."""
    known = {entry["i"]: entry["prediction"] for entry in journal.read(("i", "prediction"))}
    reused, total = len(known), len(part.places)
    bar.reach(reused, total)
    waiting = [i for i in range(total) if i not in known]
    for first in range(0, len(waiting), _TOGETHER):
        rows = waiting[first : first + _TOGETHER]
        found = model.predict(part.dataset.read(part.places[rows]), batch_size=settings.engine.batch_size)
        new = {row: prediction.to_json() for row, prediction in zip(rows, found, strict=True)}
        journal.append([{"i": row, "prediction": prediction} for row, prediction in new.items()])
        known |= new
        bar.reach(len(known), total)
    return [known[i] for i in range(total)], reused


def _results(
    settings: EcgEvalSettings,
    record: Mapping[str, Any],
    folder: Path,
    part: Part,
    labels: Mapping[str, NDArray[np.float64]],
    model: Any,
    predictions: list[dict[str, Any]],
    record_of_run: dict[str, Any],
) -> dict[str, Any]:
    answered = np.array([not prediction["refused"] for prediction in predictions])
    reasons = Counter(p["refused"] for p in predictions if p["refused"])
    if not answered.any():
        raise ValueError(f"data: got no record that the model can judge: {next(iter(reasons))}")
    places, kept = part.places[answered], [p for p in predictions if not p["refused"]]
    judged = Judged(
        Columns(part.dataset, places),
        part.patients[answered],
        settings.report.subgroups,
        settings.report.prevalences,
        settings.resamples,
        settings.seed,
    )
    labels = {name: column[answered] for name, column in labels.items()}
    entries, logits = [], {}
    notes = list(part.notes)
    for target in [target for target in model.config.targets if target.name in labels]:
        true = labels[target.name]
        if np.isnan(true).all():
            notes.append(f"{target.name} is not evaluated: the model can judge no record with a label.")
            continue
        outputs = [prediction["outputs"][target.name] for prediction in kept]
        if target.kind == "binary":
            rule = model.reading.detectors.get(target.name) or ecg_scores.untrained_rule()
            logits[target.name] = np.array([o["raw"][0] for o in outputs])
            entries.append(ecg_scores.binary(target, true, logits[target.name], rule, judged))
            notes += [
                f"{target.name}: {what}: {reason}."
                for what, reason in (("calibration", rule.calibration.reason), ("threshold", rule.threshold.reason))
                if reason
            ]
        else:
            values = np.array([o["value"] for o in outputs])
            if target.kind == "regression":
                correction = model.reading.gaps.get(target.name)
                entries.append(ecg_scores.regression(target, true, values, correction, judged))
            else:
                entries.append(ecg_scores.ordered(target, true, values, judged))
    if not entries:
        raise ValueError(
            f"data: {' '.join(notes).rstrip('.')}, expected a target that can be evaluated; give data with labels."
        )
    left_out = {**part.left_out, **reasons}
    protocol = {
        **record_of_run,
        "model": _model_facts(settings, record, folder, model),
        "data": {
            "folders": list(settings.data.folders),
            "digest": part.dataset.digest,
            "records": len(part.dataset),
            "split": settings.data.split,
            "split_rule": part.rule,
            "chosen": {
                "records": len(places),
                "patients": len(set(judged.patients)),
                "without_patient": int((part.dataset.index["patient"][places] == "").sum()),
            },
            "left_out": [{"reason": reason, "records": count} for reason, count in left_out.items()],
            "leaks": part.leaks,
        },
        "bootstrap": {"unit": "patient", "resamples": settings.resamples, "level": 0.95, "seed": settings.seed},
    }
    macro = ecg_scores.macro(entries, labels, logits, judged)
    whole = {
        "kind": "ecg_predictor",
        "date": time.time(),
        "protocol": protocol,
        "targets": entries,
        "macro": macro,
        "notes": notes,
    }
    found: dict[str, Any] = ecg_scores.plain(whole)
    return found


def _sample_lines(
    part: Part, labels: Mapping[str, NDArray[np.float64]], predictions: list[dict[str, Any]]
) -> list[str]:
    """Lines of samples.jsonl: one object a record, in the order of the data set; patients by hash, for `compare`."""
    index = part.dataset.index
    lines = []
    for row, (place, prediction) in enumerate(zip(part.places, predictions, strict=True)):
        known = {name: None if np.isnan(column[row]) else float(column[row]) for name, column in labels.items()}
        sample = {
            "id": str(index["id"][place]),
            "patient": hash_of(str(part.patients[row])),
            "waveform": str(index["waveform"][place]),
            "labels": known,
            **{key: value for key, value in prediction.items() if key != "id"},
        }
        lines.append(json.dumps(ecg_scores.plain(sample), ensure_ascii=False, allow_nan=False) + "\n")
    return lines


def _model_facts(settings: EcgEvalSettings, record: Mapping[str, Any], folder: Path, model: Any) -> dict[str, Any]:
    import jax

    facts = record["facts"]
    return {
        "name": settings.model.name,
        "folder": str(folder),
        "digest": model.digest,
        "kind": record["kind"],
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(model.params)),
        "targets": [target.name for target in model.config.targets],
        "encoder": record["config"]["vit"],
        "preprocessing": facts["preprocessing"],
        "provenance": {key: facts[key] for key in ("training", "start", "versions") if facts.get(key) is not None},
    }


def _devices(model: Any) -> str:
    import jax

    devices = sorted(next(iter(jax.tree.leaves(model.params))).devices(), key=lambda device: device.id)
    return f"{len(devices)} x {devices[0].device_kind}"


def _versions() -> dict[str, str]:
    found = versions("scipy")
    for package in ("scikit-learn",):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # needed for the trivial classifiers only
            continue
    return found


def _folder(settings: EcgEvalSettings, model: Path) -> Path:
    if settings.out:
        return named(settings.out)
    run = model.parent if model.name == "model" else model
    data = "-".join(Path(folder).name for folder in settings.data.folders)
    return named(Path("runs") / "eval" / (settings.name or shortened(f"{run.name}-{data}-{settings.data.split}")))
