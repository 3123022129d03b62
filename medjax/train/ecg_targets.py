"""What the labels of an ECG run say of its targets: numbers, yes or no, ordered classes, and what these are called."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.ecg.record import SEXES
from medjax.models.predictor import Target
from medjax.train.ecg_data import EcgData
from medjax.train.ecg_settings import EcgTrainSettings

_MOST_CLASSES = 10


def targets_of(settings: EcgTrainSettings, data: EcgData) -> tuple[Target, ...]:
    """What the labels say of each target: classes, and their balance, mean and sd among the training patients.

    Raises ValueError for labels that are no classes, for a class that training would not see, and for names that are
    not those of the classes.
    """
    assert data.targets is not None
    found = []
    for column, name in enumerate(settings.data.targets):
        values = {part: data.targets[at, column] for part, at in data.sets.items()}
        known = {part: each[~np.isnan(each)] for part, each in values.items()}
        if not len(known["train"]):
            raise ValueError(
                f"data.targets: {name}: got no training record with a value, expected some; see data.folders and the "
                "labels."
            )
        names = settings.finetune.class_names.get(name, ())
        if not names and name == "sex" and name not in data.dataset.labels:
            names = SEXES
        if settings.objective == "regress":
            found.append(_number(settings, name, known["train"]))
        else:
            found.append(_classes(settings, name, known, names))
    return tuple(found)


def _number(settings: EcgTrainSettings, name: str, known: np.ndarray) -> Target:
    if name in settings.finetune.class_names:
        raise ValueError(f"finetune.classes: got names for {name}, a number, expected none; leave them out.")
    if known.min() == known.max():
        raise ValueError(
            f"data.targets: {name}: got {known[0]:g} in all {len(known)} training records, expected a spread."
        )
    unit = "years" if name == "age" else ""
    return Target(name, "regression", mean=float(known.mean()), sd=float(known.std()), unit=unit)


def _classes(settings: EcgTrainSettings, name: str, known: Mapping[str, np.ndarray], names: tuple[str, ...]) -> Target:
    """known: values of the records of each set, which validation and evaluation must be able to use as well."""
    train, where = known["train"], f"data.targets: {name}"
    classes, trained = np.unique(np.concatenate(list(known.values()))), np.unique(train)
    if not np.array_equal(classes, classes.round()) or classes.min() < 0 or classes.max() >= _MOST_CLASSES:
        raise ValueError(
            f"{where}: got {len(classes)} values from {classes.min():g} to {classes.max():g}, expected classes "
            f"numbered from 0, {_MOST_CLASSES} at most; use --objective regress for a number."
        )
    for part, values in known.items():
        new = np.setdiff1d(values, trained)
        if len(new):
            raise ValueError(
                f"{where}: got {new[0]:g} in {int((values == new[0]).sum())} {part} records and in none of the "
                f"{len(train)} training records, expected classes that training sees; correct the labels, leave these "
                "out of them, or take another data.split_seed."
            )
    if len(trained) < 2:
        expected = "both 0 and 1" if trained[0] < 2 else "at least two classes"
        raise ValueError(
            f"{where}: got {trained[0]:g} in all {len(train)} training records, expected {expected}; nothing can be "
            "learned from one class."
        )
    count = int(trained.max()) + 1
    if names and len(names) != count:
        raise ValueError(
            f"finetune.classes: got {len(names)} names for {name} ({'/'.join(names)}), expected {count}, as its values "
            f"go from 0 to {count - 1}."
        )
    if count > 2:
        return Target(name, "ordinal", classes=names or tuple(str(number) for number in range(count)))
    weights = (1.0, float((train == 0).sum() / (train == 1).sum())) if settings.finetune.balance else ()
    return Target(name, "binary", classes=names, class_weights=weights)


def told_targets(targets: Sequence[Target], data: EcgData) -> Iterator[str]:
    """One line a target: what it was taken for, and how the training records divide."""
    assert data.targets is not None
    for column, target in enumerate(targets):
        values = data.targets[data.sets["train"], column]
        known = values[~np.isnan(values)]
        if target.kind == "regression":
            yield f"target {target.name}: a number, {known.mean():.4g} (SD {known.std():.3g}) in {len(known):,} records"
            continue
        found = np.unique(known, return_counts=True)
        what = "yes or no" if target.kind == "binary" else f"{len(target.classes)} ordered classes"
        counts = ", ".join(f"{value:g}: {count:,}" for value, count in zip(*found, strict=True))
        yield f"target {target.name}: {what}; training records of {counts}"


def target_facts(targets: Sequence[Target], data: EcgData) -> dict[str, Any]:
    """Counts of known records and their mean, the share of positives, in each set, for the report."""
    assert data.targets is not None
    facts: dict[str, Any] = {}
    for column, target in enumerate(targets):
        facts[target.name] = {"kind": target.kind}
        for name, at in data.sets.items():
            values = data.targets[at, column]
            known = values[~np.isnan(values)]
            facts[target.name][name] = {
                "records": len(known),
                "mean": round(float(known.mean()), 4) if len(known) else None,
            }
    return facts
