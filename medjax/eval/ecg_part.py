"""Which records of the data are evaluated: the part that the checkpoint's rule says, without what training has seen.

The rule divides patients by a hash, so it finds the same test patients in data that have grown since. RUN/seen.json,
which training writes beside its model, holds hashes of the patients and recordings that it, and the run it started
from, have seen; a record found there is a leak whatever the rule says.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule, target_values
from medjax.data.ecg.splits import patient_keys
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.store.encoders import encoder_folder
from medjax.store.json_file import read_json
from medjax.store.model_folder import RECORD

_SEEN = "seen.json"
_SEEN_DIGITS = 16  # hex digits that stand for a patient or a recording there


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
        seen = ", ".join(training.get("folders", ()))
        trained = f" (the model was trained on {seen})" if seen else ""
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
    places, leaks = _without_leaks(settings, folder, dataset, patients, places, left_out, notes)
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


def _without_leaks(
    settings: EcgEvalSettings,
    folder: Path,
    dataset: EcgDataset,
    patients: NDArray[np.str_],
    places: NDArray[np.int64],
    left_out: dict[str, int],
    notes: list[str],
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The places that may be evaluated and what was found; settles data.leaks."""
    policy, file = settings.data.leaks, folder.parent / _SEEN
    if settings.data.split in ("train", "validation"):
        return places, {"patients": 0, "waveforms": 0, "allowed": True, "checked": False}
    if not file.is_file():
        notes.append(f"{_SEEN} of the training run is not beside the model: no search for leaks was made.")
        return places, {"patients": 0, "waveforms": 0, "allowed": False, "checked": False}
    seen = read_json(file)
    recordings = dataset.index["recording"]
    by_patient = _seen(patients[places], seen["patients"])
    # copies may stand under another number, and be found by either name
    by_recording = _seen(recordings[places], seen["recordings"])
    by_recording |= _seen(dataset.index["waveform"][places], seen["recordings"])
    leaking = by_patient | by_recording
    found = {
        "patients": len(set(patients[places][by_patient])),
        "waveforms": len(set(recordings[places][by_recording])),
        "allowed": policy == "allow",
        "checked": True,
    }
    if not leaking.any() or policy == "allow":
        return places, found
    if policy == "drop":
        left_out["patient or recording was seen in training"] = int(leaking.sum())
        return places[~leaking], found
    some = ", ".join(str(dataset.index["id"][place]) for place in places[leaking][:3])
    raise ValueError(
        f"data: got {int(leaking.sum()):,} of {len(places):,} records whose patient or recording the training has seen "
        f"({some}{', …' if leaking.sum() > 3 else ''}), expected none, or the score is flattered; leave them out "
        "(--leaks drop), keep them and say so in the report (--leaks allow), or correct the patients' identifiers."
    )


def _seen(names: NDArray[np.str_], hashes: list[str]) -> NDArray[np.bool_]:
    known = set(hashes)
    return np.array([hashlib.sha256(str(n).encode()).hexdigest()[:_SEEN_DIGITS] in known for n in names], bool)


def known_labels(part: Part, targets: list[str]) -> dict[str, NDArray[np.float64]]:
    """Target -> its labels [records], NaN where not known, of the targets that some evaluated record has a label of.

    Adds a note for each of the others. Raises ValueError where no target has any label.
    """
    found = {}
    for name in targets:
        try:
            values = target_values(part.dataset.index, name)[part.places]
        except ValueError:  # no such column
            values = np.full(len(part.places), np.nan)
        if np.isnan(values).all():
            part.notes.append(f"{name} is not evaluated: no record here has a label of that name.")
        else:
            found[name] = values
    if not found:
        raise ValueError(
            f"data: got no label of {', '.join(targets)} among the {len(part.places):,} records to evaluate, expected "
            "some; ingest the data with --labels that name one. Its labels: "
            f"{', '.join(part.dataset.labels) or 'none'}."
        )
    return found
