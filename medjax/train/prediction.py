"""The job of making a detector or a regressor of ECGs: settings -> data, targets, encoder, loss, decision rules.

The encoder is new or comes from a masked autoencoder, whose preprocessing and patches come with it. When training is
over, calibration, thresholds, conformal sets and the correction of the age gap are chosen on the validation patients
and stored beside the weights; the test patients are left to medjax.eval.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medjax.data.batches import local_rows, to_global
from medjax.data.ecg.batches import EcgHeldOut
from medjax.data.ecg.signal import Preprocessing
from medjax.data.ecg.splits import patient_keys
from medjax.models import predictor
from medjax.models.ecg_mae import MaeConfig
from medjax.models.predictor import PredictorConfig, Target
from medjax.parallel.distributed import barrier, is_main
from medjax.statistics.agreement import fit_gap_correction
from medjax.statistics.detector import fit_detector
from medjax.store.encoders import encoder_folder, load_encoder, save_encoder
from medjax.store.json_file import read_json
from medjax.store.model_folder import RECORD
from medjax.store.provenance import versions
from medjax.train.ecg_data import SEEN, EcgData, ecg_data, write_seen
from medjax.train.ecg_program import encoder_config, fresh_variables, model_input, predictor_model, predictor_program
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.flops import vit_flops
from medjax.train.job import Job, Progress, Work
from medjax.train.program import StepProgram
from medjax.train.state import Tree

_MOST_CLASSES = 10


@dataclass(frozen=True)
class _Start:
    """A masked autoencoder to start from, looked at but not read."""

    folder: Path
    config: MaeConfig
    preprocessing: Preprocessing


def prediction_job(settings: EcgTrainSettings, say: Callable[[str], None]) -> Job:
    """Prepare everything that a run needs.

    say  called with one line for the user at a time

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    start = _start(settings)
    if start:
        settings = replace(settings, signal=start.preprocessing)
        say(f"start: the encoder and the preprocessing of {settings.finetune.start}")
        if not (start.folder.parent / SEEN).is_file():
            say(f"start: no {SEEN} beside the model, so medjax.eval will not know the patients that pre-training saw")
        vit = replace(start.config.vit, drop_path=settings.encoder.drop_path)
    else:
        vit = encoder_config(settings)
    if settings.finetune.trained == "probe" and not start:
        raise ValueError(
            "finetune.trained: got probe with finetune.start=scratch, expected a run to start from, as a head on an "
            "encoder that nobody trained learns little; give --start, or train full."
        )
    data = ecg_data(settings, say)
    config = PredictorConfig(vit, _targets(settings, data), settings.finetune.pooling)
    train = data.batches(settings)
    steps = settings.train.steps or train.steps(settings.train.epochs)
    say(f"{train.rows_per_epoch:,} records an epoch, {steps:,} steps of {settings.train.batch_size}")
    program = predictor_program(settings, config, steps)
    tokens = len(settings.signal.leads) * settings.signal.samples // vit.patch[0]
    flops = vit_flops(vit, tokens) * (3 if settings.finetune.trained == "full" else 1)
    identity = {
        "objective": settings.objective,
        "model": config.to_dict(),
        "preprocessing": settings.signal.to_json(),
        "start": _start_digest(start),
    }
    kind = f"{settings.finetune.trained}-{'scratch' if not start else 'pretrained'}"
    return Job(
        name=f"ecg-{'-'.join(settings.data.targets[:3])}-{kind}-{Path(settings.data.folders[0]).name}",
        unit="records",
        counted="labels",
        program=program,
        load=partial(_variables, settings, program, config, start),
        train=train,
        held_out=data.held_out(settings, settings.data.held_out_most),
        work=lambda batch: Work(len(batch.seeds), len(batch.seeds), flops * len(batch.seeds)),
        identity=identity,
        export=partial(_export, settings, config, data, program, start, identity),
        records={
            "steps": steps,
            "data": {
                **data.facts(),
                "targets": _target_facts(settings, config, data),
                "rows_per_epoch": train.rows_per_epoch,
                "fill": 1.0,
            },
            "model": {
                "name": f"ECG predictor of {', '.join(settings.data.targets)}",
                "trained": "all" if settings.finetune.trained == "full" else "the head",
                **vit.to_dict(),
            },
        },
    )


def _start(settings: EcgTrainSettings) -> _Start | None:
    name = settings.finetune.start
    if name == "scratch":
        return None
    folder = encoder_folder(name)
    record = read_json(folder / RECORD) if folder else {}
    if folder is None or record["kind"] != "ecg_mae":
        raise ValueError(
            f"finetune.start: got {name}, where there is {record.get('kind', 'no encoder of ECGs')}, expected a masked "
            "autoencoder; name the folder of a run with objective mae, or scratch."
        )
    where = str(folder / RECORD)
    return _Start(
        folder,
        MaeConfig.from_dict(record["config"], where),
        Preprocessing.from_json(record["facts"]["preprocessing"]),
    )


def _start_digest(start: _Start | None) -> str | None:
    if start is None:
        return None
    from medjax.store.adapters import files_digest
    from medjax.store.model_folder import model_files

    return files_digest(model_files(start.folder))


def _targets(settings: EcgTrainSettings, data: EcgData) -> tuple[Target, ...]:
    """What the labels of the training patients say of each target.

    Raises ValueError for labels that are no classes, and for a class or a spread that training would not see.
    """
    assert data.targets is not None
    return tuple(
        _target(settings, name, data.targets[data.sets["train"], column])
        for column, name in enumerate(settings.data.targets)
    )


def _target(settings: EcgTrainSettings, name: str, values: np.ndarray) -> Target:
    known = values[~np.isnan(values)]
    where = f"data.targets: {name}"
    if not len(known):
        raise ValueError(f"{where}: got no training record with a value, expected some; see data.folders and labels.")
    if settings.objective == "regress":
        if known.min() == known.max():
            raise ValueError(f"{where}: got {known[0]:g} in all {len(known)} training records, expected a spread.")
        unit = "years" if name == "age" else ""
        return Target(name, "regression", mean=float(known.mean()), sd=float(known.std()), unit=unit)
    classes = np.unique(known)
    if not np.array_equal(classes, classes.round()) or classes.min() < 0 or classes.max() >= _MOST_CLASSES:
        raise ValueError(
            f"{where}: got {len(classes)} values from {classes.min():g} to {classes.max():g}, expected classes "
            f"numbered from 0, {_MOST_CLASSES} at most; use --objective regress for a number."
        )
    if len(classes) < 2:
        expected = "both 0 and 1" if classes[0] < 2 else "at least two classes"
        raise ValueError(
            f"{where}: got {classes[0]:g} in all {len(known)} training records, expected {expected}; nothing can be "
            "learned from one class."
        )
    if classes.max() > 1:
        names = tuple(str(number) for number in range(int(classes.max()) + 1))
        return Target(name, "ordinal", classes=names)
    weights = (1.0, float((known == 0).sum() / (known == 1).sum())) if settings.finetune.balance else ()
    return Target(name, "binary", class_weights=weights)


def _target_facts(settings: EcgTrainSettings, config: PredictorConfig, data: EcgData) -> dict[str, Any]:
    """Counts of known and positive records in each set, for the report."""
    assert data.targets is not None
    facts: dict[str, Any] = {}
    for column, target in enumerate(config.targets):
        facts[target.name] = {"kind": target.kind}
        for name, at in data.sets.items():
            values = data.targets[at, column]
            known = values[~np.isnan(values)]
            facts[target.name][name] = {
                "records": len(known),
                "mean": round(float(known.mean()), 4) if len(known) else None,
            }
    return facts


def _variables(
    settings: EcgTrainSettings,
    program: StepProgram,
    config: PredictorConfig,
    start: _Start | None,
    progress: Progress,
) -> Tree:
    """New parameters in place; those of the encoder from the run to start from."""
    variables = fresh_variables(settings, predictor.init_variables, config, program)
    if start is None:
        progress(1, 1)
        return variables
    loaded = load_encoder(start.folder, program.mesh, program.rules, progress=progress)
    return {"params": variables["params"] | {"encoder": loaded.params["encoder"]}}


def predict(
    program: StepProgram, settings: EcgTrainSettings, config: PredictorConfig, variables: Tree, held_out: EcgHeldOut
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the records of held-out batches, averaged over each record's windows.

    returns  places [records] in the data set, outputs [records, width] float64; on every process
    """
    model = predictor_model(settings, config, program.mesh, program.rules)
    whole = NamedSharding(program.mesh, PartitionSpec())
    like = program.held_out_batch

    def outputs(variables, batch):
        return model.apply(variables, *model_input(settings, batch, training=False))

    with jax.default_matmul_precision(program.precision):
        run = jax.jit(outputs, out_shardings=whole)
    rows = local_rows(like)
    found = []
    for number in range(len(held_out)):
        batch = to_global(held_out.batch_at(number, rows), like, first_row=rows.start)
        found.append(np.asarray(run(variables, batch), np.float64))
    every = np.concatenate(found)[: held_out.filled]
    places, record = np.unique(held_out.places, return_inverse=True)
    sums = np.zeros((len(places), every.shape[1]))
    np.add.at(sums, record, every)
    return places, sums / np.bincount(record)[:, None]


def _export(
    settings: EcgTrainSettings,
    config: PredictorConfig,
    data: EcgData,
    program: StepProgram,
    start: _Start | None,
    identity: Mapping[str, Any],
    folder: Path,
    variables: Tree,
) -> str:
    """Write RUN/model with its decision rules, and RUN/seen.json; returns the command to go on with."""
    rules: dict[str, Any] = {}
    held_out = data.held_out(settings)
    if held_out:
        places, outputs = predict(program, settings, config, variables, held_out)
        rules = decision_rules(settings, config, data, places, outputs)
    place = folder / "model"
    if is_main():
        shutil.rmtree(place, ignore_errors=True)
    barrier("model folder")
    facts = {
        "preprocessing": identity["preprocessing"],
        "rules": rules,
        "split": data.rule.to_json(),
        "training": data.facts(),
        "start": identity["start"],
        "versions": versions("optax"),
    }
    save_encoder(place, "ecg_predictor", identity["model"], variables["params"], facts)
    write_seen(folder, data, start.folder.parent if start else None)
    return f"python -m medjax.eval --model {folder} --data {','.join(settings.data.folders)}"


def decision_rules(
    settings: EcgTrainSettings, config: PredictorConfig, data: EcgData, places: np.ndarray, outputs: np.ndarray
) -> dict[str, Any]:
    """Target -> its rule as JSON (statistics.detector, statistics.agreement), chosen on these validation records.

    places [records] in the data set, outputs [records, width]. A target whose kind needs no rule has none.
    """
    assert data.targets is not None
    patients = patient_keys(data.dataset.index)[places]
    rules: dict[str, Any] = {}
    for column, target in enumerate(config.targets):
        values = data.targets[places, column]
        known = ~np.isnan(values)
        own = outputs[known][:, config.columns[target.name]][:, 0]
        if target.kind == "binary":
            rule: Any = fit_detector(
                values[known], own, patients[known], threshold="sensitivity", at=settings.finetune.sensitivity
            )
        elif target.kind == "regression" and known.sum() > 0:
            rule = fit_gap_correction(values[known], own * (target.sd or 1.0) + (target.mean or 0.0))
        else:
            continue
        rules[target.name] = rule.to_json()
    return rules
