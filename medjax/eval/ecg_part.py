"""Which records of the data are evaluated: the part that the checkpoint's rule says, without what training has seen.

The rule divides patients by a hash, so it finds the same test patients in data that have grown since. RUN/seen.json,
which training writes beside its model, holds hashes of the patients and recordings that it, and the run it started
from, have seen; a record found there is a leak whatever the rule says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule, target_values
from medjax.data.ecg.seen import FILE, Seen
from medjax.data.ecg.splits import patient_keys
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.models.predictor import Target
from medjax.store.encoders import encoder_folder
from medjax.store.json_file import read_json
from medjax.store.model_folder import RECORD

_SHOWN = 3


@dataclass(frozen=True)
class Part:
    """The records that are evaluated, and how they came to be these.

    places    [records] in the data set, rising
    patients  [records] names
    notes     sentences for the reader
    """

    dataset: EcgDataset
    places: NDArray[np.int64]
    patients: NDArray[np.str_]
    left_out: dict[str, int]
    leaks: dict[str, Any]
    rule: Mapping[str, Any] | None
    notes: list[str]


def model_record(settings: EcgEvalSettings) -> tuple[Path, dict[str, Any]]:
    """The model folder and its medjax.json. Raises ValueError where there is no predictor of ECGs."""
    name = settings.model.name
    if not name:
        raise ValueError("model.name: got no model, expected the folder of a training run on ECGs; give --model RUN.")
    folder = encoder_folder(name)
    if folder is None:
        raise FileNotFoundError(
            f"model.name: {name}: got no model of ECGs there, expected the folder of a training run with objective "
            "classify or regress, or the folder named model in it."
        )
    record = read_json(folder / RECORD)
    if record["kind"] != "ecg_predictor":
        raise ValueError(
            f"model.name: {name}: got a masked autoencoder, which predicts nothing, expected a detector or regression; "
            f"train one from it: python -m medjax.train --objective classify --start {name}."
        )
    return folder, record


def choose_part(settings: EcgEvalSettings, folder: Path, record: Mapping[str, Any]) -> Part:
    """Open the data and choose.

    folder, record  of `model_record`

    Raises ValueError or FileNotFoundError: no data, no rule, no record left, or records that training has seen.
    """
    d, facts = settings.data, record["facts"]
    training = facts.get("training", {})
    if not d.folders:
        folders = _trained_on(folder.parent)
        trained = f" (the model was trained on {', '.join(folders)})" if folders else ""
        raise ValueError(f"data.folders: got no folder, expected one that medjax.ingest wrote{trained}; give --data.")
    dataset = open_datasets(d.folders)
    notes: list[str] = []
    same = training.get("digest") == dataset.digest
    rule = facts.get("split")
    every = {"all": np.arange(len(dataset))}
    places = (every if d.split == "all" else _divided(settings, dataset, rule, same))[d.split]
    if d.split in ("train", "validation"):
        notes.append(f"These are {d.split} records, which the training has used: the figures are too good.")
    if not same and d.split != "all":
        notes.append(
            f"The data are not those of the training; of them only the {d.split} part by its rule is evaluated. "
            "--split all takes all."
        )
    patients = patient_keys(dataset.index).astype(str)
    left_out: dict[str, int] = {}
    places, leaks = _without_leaks(settings, folder, dataset, patients, places, left_out, notes, same)
    if d.limit is not None and d.limit < len(places):
        left_out["beyond the limit"] = len(places) - d.limit
        places = places[: d.limit]
    if not len(places):
        raise ValueError(
            f"data: got {len(dataset):,} records and none of them in the part {d.split}, expected at least one; take "
            "another --split, or give more data."
        )
    unnamed = int((dataset.index["patient"][places] == "").sum())
    if unnamed:
        notes.append(f"{unnamed:,} records name no patient; each counts as a patient of its own, which is not proved.")
    return Part(dataset, places, patients[places], left_out, leaks, rule, notes)


def _divided(
    settings: EcgEvalSettings, dataset: EcgDataset, rule: Mapping[str, Any] | None, same: bool
) -> dict[str, NDArray[np.int64]]:
    split, name = settings.data.split, settings.model.name
    if rule is None:
        raise ValueError(
            f"data.split: got {split}, but {name} records no rule that divides patients; expected one from training; "
            "evaluate data of its own with --split all."
        )
    divided = SplitRule.from_json(rule)
    if divided.folds and not same:
        raise ValueError(
            f"data.split: got {split}, which in cross-validation belongs to the data of the training, and other data; "
            "expected the same folders with unchanged records; evaluate other data with --split all."
        )
    return divided.divide(dataset.index)


def _trained_on(run: Path) -> list[str]:
    """The folders of a training run's data, as its results tell them; the model itself does not."""
    try:
        return [str(name) for name in read_json(run / "results.json")["data"]["folders"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _without_leaks(
    settings: EcgEvalSettings,
    folder: Path,
    dataset: EcgDataset,
    patients: NDArray[np.str_],
    places: NDArray[np.int64],
    left_out: dict[str, int],
    notes: list[str],
    same: bool,
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The places that may be evaluated and what was found; settles data.leaks.

    same  whether these are the data of the training
    """
    policy = settings.data.leaks
    if settings.data.split in ("train", "validation"):
        return places, {"patients": 0, "waveforms": 0, "allowed": True, "checked": False}
    seen = Seen.read(folder.parent)
    if seen is None:
        return places, _unchecked(settings, folder, notes, same)
    if not same or len(dataset.folders) > 1:
        notes.append(
            "Records that training has seen are found by patient and by exact copies; altered copies of a recording "
            "are found only where both were ingested together."
        )
    by_patient, by_recording = seen.find(dataset.index, places)
    leaking = by_patient | by_recording
    found = {
        "patients": len(set(patients[places][by_patient])),
        "waveforms": len(set(dataset.index["recording"][places][by_recording])),
        "allowed": policy == "allow",
        "checked": True,
    }
    if not leaking.any() or policy == "allow":
        return places, found
    if policy == "drop":
        left_out["patient or recording was seen in training"] = int(leaking.sum())
        return places[~leaking], found
    some = ", ".join(str(dataset.index["id"][place]) for place in places[leaking][:_SHOWN])
    raise ValueError(
        f"data: got {int(leaking.sum()):,} of {len(places):,} records whose patient or recording the training has seen "
        f"({some}{', …' if leaking.sum() > _SHOWN else ''}), expected none, or the score is flattered; leave them out "
        "(--leaks drop), keep them and say so in the report (--leaks allow), or correct the patients' identifiers."
    )


def _unchecked(settings: EcgEvalSettings, folder: Path, notes: list[str], same: bool) -> dict[str, Any]:
    """What is said of leaks that nobody can look for. Raises ValueError where that was not allowed."""
    certain = same and settings.data.split == "all"
    what = "these are the data of the training, all of them" if certain else "what training has seen cannot be known"
    if settings.data.leaks != "allow":
        raise ValueError(
            f"data: got no {FILE} in {folder.parent}, so {what}; expected the file that training writes there. Copy it "
            "beside the model folder, or evaluate without a search for leaks and say so in the report (--leaks allow)."
        )
    notes.append(f"{FILE} of the training run is not beside the model: no search for leaks was made.")
    if certain:
        notes.append("These are all of the records that the training has used: the figures are too good.")
    return {"patients": 0, "waveforms": 0, "allowed": True, "checked": False}


def known_labels(part: Part, targets: Sequence[Target]) -> dict[str, NDArray[np.float64]]:
    """Target -> its labels [records], NaN where not known, of the targets that some evaluated record has a label of.

    Adds a note for each of the others. Raises ValueError where no target has any label, and for a label that is none of
    a target's classes, as when another hospital codes a column of the same name in another way.
    """
    found = {}
    for target in targets:
        try:
            values = target_values(part.dataset.index, target.name)[part.places]
        except ValueError:  # no such column
            values = np.full(len(part.places), np.nan)
        if np.isnan(values).all():
            part.notes.append(f"{target.name} is not evaluated: no record here has a label of that name.")
            continue
        if target.kind != "regression":
            _check_classes(part, target, values)
        found[target.name] = values
    if not found:
        raise ValueError(
            f"data: got no label of {', '.join(target.name for target in targets)} among the {len(part.places):,} "
            "records to evaluate, expected some; ingest the data with --labels that name one. Its labels: "
            f"{', '.join(part.dataset.labels) or 'none'}."
        )
    return found


def _check_classes(part: Part, target: Target, values: NDArray[np.float64]) -> None:
    names = target.classes or ("no", "yes")
    wrong = np.flatnonzero(~np.isnan(values) & ~np.isin(values, np.arange(len(names))))
    if len(wrong):
        some = part.dataset.index["id"][part.places[wrong[0]]]
        expected = f"{', '.join(map(str, range(len(names) - 1)))} or {len(names) - 1} ({'/'.join(names)})"
        raise ValueError(
            f"data: {target.name}: got {values[wrong[0]]:g} in record {some} ({len(wrong):,} such records), expected "
            f"{expected} as in training; ingest the data with labels of that coding."
        )
