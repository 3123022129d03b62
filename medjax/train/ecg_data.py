"""The recordings of an ECG run: opened, divided by patient, checked for leaks, and made into batches."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.batches import EcgBatches, EcgHeldOut
from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule, fraction_of, target_values
from medjax.data.ecg.splits import drop_leaks, patient_keys, refuse_leaks
from medjax.parallel.distributed import is_main
from medjax.train.ecg_settings import EcgTrainSettings

SEEN = "seen.json"
_SHOWN = 16  # hex digits that stand for a patient or a recording


@dataclass(frozen=True)
class EcgData:
    """A divided data set.

    sets     places of the records of train, validation and test
    targets  [records, targets] float64, NaN where not known; None: the run has none
    """

    dataset: EcgDataset
    rule: SplitRule
    sets: Mapping[str, np.ndarray]
    targets: np.ndarray | None

    def batches(self, settings: EcgTrainSettings) -> EcgBatches:
        return EcgBatches(
            self.dataset,
            self.sets["train"],
            settings.signal,
            rows=settings.train.batch_size,
            seed=settings.train.seed,
            targets=self.targets,
        )

    def held_out(self, settings: EcgTrainSettings, most: int | None = None) -> EcgHeldOut | None:
        """Windows of the validation records, of `most` of them; None where there are none."""
        chosen = self.sets["validation"]
        if most is not None and len(chosen) > most:
            chosen = chosen[np.linspace(0, len(chosen) - 1, most).round().astype(int)]
        if not len(chosen):
            return None
        rows = settings.train.batch_size // settings.train.accumulation  # as many at one time as a step has
        return EcgHeldOut(self.dataset, chosen, settings.signal, rows=rows, targets=self.targets)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint tells of the data that it saw."""
        patients = patient_keys(self.dataset.index)
        sizes = {name: {"records": len(at), "patients": len(set(patients[at]))} for name, at in self.sets.items()}
        return {"digest": self.dataset.digest, "folders": [str(f) for f in self.dataset.folders], "sets": sizes}


def ecg_data(settings: EcgTrainSettings, say: Callable[[str], None]) -> EcgData:
    """Open and divide the data of a run.

    Raises ValueError or FileNotFoundError that say what to do: no folder, an unknown target, nothing left to train on,
    a patient or recording in two sets.
    """
    d = settings.data
    if not d.folders:
        raise ValueError(
            "data.folders: got no folder, expected one that `python -m medjax.ingest ecg --out` wrote; give --data."
        )
    dataset = open_datasets(d.folders)
    index = dataset.index
    strata = d.targets[0] if d.folds and d.targets else ""
    rule = SplitRule(d.split_seed, d.validation, d.test, d.folds, d.fold, strata)
    sets = rule.divide(index)
    targets = None
    if settings.objective != "mae":
        targets = np.stack([target_values(index, name) for name in d.targets], axis=1)
        sets = {name: at[~np.isnan(targets[at]).all(1)] for name, at in sets.items()}
        sets["train"] = fraction_of(index, sets["train"], d.label_fraction, d.split_seed)
    if d.leaks == "drop":
        sets, dropped = drop_leaks(index, sets)
        if dropped:
            say(f"data: {dropped:,} training and validation records left out, whose patient or recording is elsewhere")
    else:
        refuse_leaks(index, sets)
    if not len(sets["train"]):
        raise ValueError(
            f"data: got {len(index['id']):,} records and none of them to train on, expected at least one; see "
            "data.targets, data.validation, data.test and data.label_fraction."
        )
    patients = patient_keys(index)
    for name, at in sets.items():
        say(f"{name}: {len(at):,} records of {len(set(patients[at])):,} patients")
    unnamed = int(np.sum(np.asarray(index["patient"]) == ""))
    if unnamed:
        say(f"data: {unnamed:,} records name no patient; each counts as a patient of its own, which cannot be proved")
    return EcgData(dataset, rule, sets, targets)


def write_seen(run: Path, data: EcgData, start: Path | None = None) -> None:
    """Write RUN/seen.json: hashes of the patients and recordings that this run, and the one it started from, saw.

    medjax.eval looks there for leaks. It lies outside RUN/model, as a model may be given away and patients' numbers can
    be guessed from their hashes.

    start  the folder that holds the model that was started from, and its seen.json
    """
    if not is_main():
        return
    index = data.dataset.index
    at = np.concatenate([data.sets["train"], data.sets["validation"]])
    seen = {"patients": _hashes(patient_keys(index)[at]), "recordings": _hashes(np.asarray(index["recording"])[at])}
    before = start / SEEN if start else None
    if before and before.is_file():
        for name, values in json.loads(before.read_text("utf-8")).items():
            seen[name] = sorted({*seen[name], *values})
    (run / SEEN).write_text(json.dumps(seen) + "\n", "utf-8")


def _hashes(names: Sequence[str] | np.ndarray) -> list[str]:
    return sorted({hashlib.sha256(str(name).encode()).hexdigest()[:_SHOWN] for name in names})
