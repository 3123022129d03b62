"""The recordings of an ECG run: opened, divided by patient, checked for leaks, and made into batches."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.ecg.batches import EcgBatches, EcgHeldOut
from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule, fraction_of, target_values
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.seen import Seen
from medjax.data.ecg.splits import drop_leaks, patient_keys, refuse_leaks
from medjax.train.ecg_settings import EcgTrainSettings

_MOST_THREADS = 32


@dataclass(frozen=True)
class EcgData:
    """A divided data set.

    sets     places of the records of train, validation and test
    targets  [records, targets] float64, NaN where not known; None: the run has none
    before   whom the run that is started from has seen
    """

    dataset: EcgDataset
    rule: SplitRule
    sets: Mapping[str, np.ndarray]
    targets: np.ndarray | None
    before: Seen = Seen()

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

    def seen(self) -> Seen:
        """Whom this run, and the one that it starts from, has seen; the test patients are not among them."""
        at = np.concatenate([self.sets["train"], self.sets["validation"]])
        return Seen.of(self.dataset.index, at) | self.before

    def leads(self, settings: EcgTrainSettings) -> tuple[str, ...]:
        """The leads of the preprocessing that some training record has."""
        there = self.dataset.index["usable"][self.sets["train"]].any(0)
        return tuple(lead for lead in settings.signal.leads if there[LEADS.index(lead)])

    def facts(self) -> dict[str, Any]:
        """What a run tells of the data that it saw; of these the digest alone goes into its model."""
        patients = patient_keys(self.dataset.index)
        sizes = {name: {"records": len(at), "patients": len(set(patients[at]))} for name, at in self.sets.items()}
        return {"digest": self.dataset.digest, "folders": [str(f) for f in self.dataset.folders], "sets": sizes}


def ecg_data(settings: EcgTrainSettings, say: Callable[[str], None], start: Path | None = None) -> EcgData:
    """Open and divide the data of a run.

    start  the run that this one starts from, with its seen.json

    Raises ValueError or FileNotFoundError that say what to do: no folder, an unknown target, nothing left to train on,
    a patient or recording in two sets, or in the test set and seen by `start`.
    """
    d = settings.data
    if not d.folders:
        raise ValueError(
            "data.folders: got no folder, expected one that `python -m medjax.ingest ecg --out` wrote; give --data."
        )
    dataset = open_datasets(d.folders)
    index = dataset.index
    strata = (d.strata or next(iter(d.targets), "")) if d.folds else ""
    rule = SplitRule(d.split_seed, d.validation, d.test, d.folds, d.fold, strata)
    sets = _with_leads(settings, dataset, rule.divide(index), say)
    targets = None
    if settings.objective != "mae":
        targets = np.stack([target_values(index, name) for name in d.targets], axis=1)
        sets = {name: at[~np.isnan(targets[at]).all(1)] for name, at in sets.items()}
        sets["train"] = fraction_of(index, sets["train"], d.label_fraction, d.split_seed)
    if len(d.folders) > 1:
        say("data: exact copies of a recording are found across folders, altered ones only within each of them")
    sets = _without_leaks(settings, dataset, sets, say)
    before = (Seen.read(start) if start else None) or Seen()
    sets["test"] = _without_seen(settings, dataset, sets["test"], before, say)
    if not len(sets["train"]):
        raise ValueError(
            f"data: got {len(index['id']):,} records and none of them to train on, expected at least one; see "
            "data.targets, data.validation, data.test, data.label_fraction and signal.leads."
        )
    patients = patient_keys(index)
    for name, at in sets.items():
        say(f"{name}: {len(at):,} records of {len(set(patients[at])):,} patients")
    unnamed = int(np.sum(np.asarray(index["patient"]) == ""))
    if unnamed:
        say(f"data: {unnamed:,} records name no patient; each counts as a patient of its own, which cannot be proved")
    return EcgData(dataset, rule, sets, targets, before)


def threads(settings: EcgTrainSettings) -> int:
    """How many threads make batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.data.threads or min(cores, _MOST_THREADS)


def _with_leads(
    settings: EcgTrainSettings, dataset: EcgDataset, sets: Mapping[str, np.ndarray], say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """The sets without records that have none of the leads of the preprocessing, of which nothing could be said."""
    wanted = [LEADS.index(lead) for lead in settings.signal.leads]
    there = dataset.index["usable"][:, wanted].any(1)
    kept = {name: at[there[at]] for name, at in sets.items()}
    if missing := sum(len(at) for at in sets.values()) - sum(len(at) for at in kept.values()):
        say(f"data: {missing:,} records left out, which have none of the leads {' '.join(settings.signal.leads)}")
    return kept


def _without_leaks(
    settings: EcgTrainSettings, dataset: EcgDataset, sets: Mapping[str, np.ndarray], say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """The sets without what is in two of them; settles data.leaks."""
    if settings.data.leaks == "refuse":
        refuse_leaks(dataset.index, sets)
        return dict(sets)
    kept, leaking = drop_leaks(dataset.index, sets)
    if leaking and settings.data.leaks == "drop":
        say(f"data: {leaking:,} training and validation records left out, whose patient or recording is elsewhere")
    elif leaking:
        say(f"data: {leaking:,} training and validation records, whose patient or recording is elsewhere, are kept")
    return dict(sets) if settings.data.leaks == "allow" else kept


def _without_seen(
    settings: EcgTrainSettings, dataset: EcgDataset, test: np.ndarray, before: Seen, say: Callable[[str], None]
) -> np.ndarray:
    """The test records without those that the run to start from has seen; settles data.leaks."""
    by_patient, by_recording = before.find(dataset.index, test)
    seen = by_patient | by_recording
    count = f"{int(seen.sum()):,} of {len(test):,} test records"
    if not seen.any():
        return test
    if settings.data.leaks == "refuse":
        raise ValueError(
            f"finetune.start: got a run that has seen the patient or recording of {count}, expected none, or the "
            "evaluation is flattered; divide as it did (data.split_seed, validation, test, folds and fold), leave "
            "these out of the test set (--data.leaks drop), or keep them (--data.leaks allow; medjax.eval will stop)."
        )
    if settings.data.leaks == "drop":
        say(f"data: {count} left out, which {settings.finetune.start} has seen; medjax.eval needs --leaks drop")
        return test[~seen]
    say(f"data: {count} were seen by {settings.finetune.start}, which flatters a later evaluation")
    return test
