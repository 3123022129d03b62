"""The job of making a detector or a regressor of ECGs: settings -> data, targets, encoder, loss, decision rules.

The encoder is new or comes from a masked autoencoder, whose preprocessing and patches come with it. When training is
over, calibration, thresholds, conformal sets and the correction of the age gap are chosen on the validation patients
and stored beside the weights; the test patients are left to medjax.eval.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medjax.data.batches import local_rows, to_global
from medjax.data.ecg import seen
from medjax.data.ecg.batches import EcgHeldOut
from medjax.data.ecg.signal import Preprocessing
from medjax.data.ecg.splits import patient_keys
from medjax.models import predictor
from medjax.models.ecg_mae import MaeConfig
from medjax.models.predictor import PredictorConfig
from medjax.nn.patches import valid_tokens
from medjax.parallel.distributed import barrier, is_main
from medjax.statistics import delong
from medjax.statistics.agreement import fit_gap_correction
from medjax.statistics.detector import fit_detector
from medjax.store.encoders import encoder_folder, load_encoder, save_encoder
from medjax.store.json_file import read_json
from medjax.store.model_folder import RECORD
from medjax.store.provenance import versions
from medjax.train.ecg_data import EcgData, ecg_data, threads
from medjax.train.ecg_program import (
    encoder_config,
    encoder_settings,
    fresh_variables,
    model_input,
    predictor_model,
    predictor_program,
)
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.ecg_targets import target_facts, targets_of, told_targets
from medjax.train.flops import vit_flops
from medjax.train.job import Job, Progress, Work
from medjax.train.program import StepProgram
from medjax.train.state import Tree


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
        settings = _resolved(settings, start)
        say(f"start: the encoder and the preprocessing of {settings.finetune.start}")
        if not (start.folder.parent / seen.FILE).is_file():
            say(f"start: no {seen.FILE} beside the model, so nobody will know the patients that pre-training saw")
        vit = replace(start.config.vit, drop_path=settings.encoder.drop_path)
    else:
        vit = encoder_config(settings)
    if settings.finetune.trained == "probe" and not start:
        raise ValueError(
            "finetune.trained: got probe with finetune.start=scratch, expected a run to start from, as a head on an "
            "encoder that nobody trained learns little; give --start, or train full."
        )
    data = ecg_data(settings, say, start.folder.parent if start else None)
    config = PredictorConfig(vit, targets_of(settings, data), settings.finetune.pooling)
    for line in told_targets(config.targets, data):
        say(line)
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
        name=f"ecg-{_plain('-'.join(settings.data.targets[:3]))}-{kind}-{Path(settings.data.folders[0]).name}",
        unit="records",
        counted="labels",
        program=program,
        load=partial(_variables, settings, program, config, start),
        train=train,
        held_out=data.held_out(settings, settings.data.held_out_most),
        work=lambda batch: Work(len(batch.seeds), len(batch.seeds), flops * len(batch.seeds)),
        identity=identity,
        export=partial(_export, settings, config, data, program, identity),
        settings=settings,
        threads=threads(settings),
        records={
            "steps": steps,
            "data": {
                **data.facts(),
                "targets": target_facts(config.targets, data),
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


def _resolved(settings: EcgTrainSettings, start: _Start) -> EcgTrainSettings:
    """The settings with the preprocessing and the shape of the encoder that is started from.

    Raises ValueError where somebody asked for something else.
    """
    resolved = replace(
        settings, signal=start.preprocessing, encoder=encoder_settings(start.config.vit, settings.encoder)
    )
    wrong = []
    for section in ("signal", "encoder"):
        own, new, usual = (getattr(each, section) for each in (settings, resolved, EcgTrainSettings()))
        for name in (item.name for item in fields(own)):
            given, there = getattr(own, name), getattr(new, name)
            if given != there and given != getattr(usual, name):
                wrong.append(f"{section}.{name}={given} where it has {there}")
    if wrong:
        raise ValueError(
            f"finetune.start: got {settings.finetune.start} and {'; '.join(wrong)}, expected nothing else than it was "
            "trained with; leave these keys out, or pre-train with them."
        )
    return resolved


def _start_digest(start: _Start | None) -> str | None:
    if start is None:
        return None
    from medjax.store.adapters import files_digest
    from medjax.store.model_folder import model_files

    return files_digest(model_files(start.folder))


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
    program: StepProgram,
    settings: EcgTrainSettings,
    config: PredictorConfig,
    variables: Tree,
    held_out: EcgHeldOut,
    leads: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the records of held-out batches as medjax.infer will compute them, whatever the dtype of training.

    That is in float32, from these leads alone, averaged over the windows that hold a whole patch.

    leads    that training saw
    returns  places [records] in the data set of those that can be judged, outputs [records, width] float64; on every
             process
    """
    model = predictor_model(settings, config, program.mesh, program.rules, "float32")
    whole = NamedSharding(program.mesh, PartitionSpec())
    like = program.held_out_batch
    taken = np.array([lead in leads for lead in settings.signal.leads])[:, None]

    @partial(jax.jit, out_shardings=whole)
    def run(variables, batch):
        made = model.apply(variables, *model_input(settings, batch, training=False))
        return made, valid_tokens(batch.valid, config.vit.patch).any(-1)

    rows = local_rows(like)
    found, judged = [], []
    with jax.default_matmul_precision("highest"):
        for number in range(len(held_out)):
            host = held_out.batch_at(number, rows)
            host = host._replace(signal=host.signal * taken, valid=host.valid & taken)
            outputs, there = run(variables, to_global(host, like, first_row=rows.start))
            found.append(np.asarray(outputs, np.float64))
            judged.append(np.asarray(there))
    use = np.concatenate(judged)[: held_out.filled]
    every = np.concatenate(found)[: held_out.filled][use]
    places, record = np.unique(held_out.places[use], return_inverse=True)
    sums = np.zeros((len(places), every.shape[1]))
    np.add.at(sums, record, every)
    return places, sums / np.bincount(record, minlength=len(places))[:, None]


def _export(
    settings: EcgTrainSettings,
    config: PredictorConfig,
    data: EcgData,
    program: StepProgram,
    identity: Mapping[str, Any],
    folder: Path,
    variables: Tree,
) -> str:
    """Write RUN/seen.json, and RUN/model with its decision rules; returns the command to go on with."""
    rules: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    worth: dict[str, Any] = {}
    held_out, leads = data.held_out(settings), data.leads(settings)
    if held_out:
        places, outputs = predict(program, settings, config, variables, held_out, leads)
        rules = decision_rules(settings, config, data, places, outputs)
        errors = prediction_errors(config, data, places, outputs)
        worth = validation_areas(config, data, places, outputs)
    place = folder / "model"
    if is_main():
        shutil.rmtree(place, ignore_errors=True)
        data.seen().write(folder)  # before the model: one whose leaks nobody could find must not be left behind
    barrier("model folder")
    facts = {
        "preprocessing": identity["preprocessing"],
        "leads": list(leads),
        "rules": rules,
        "errors": errors,
        "validation": worth,
        "split": data.rule.to_json(),
        "training": {"digest": data.dataset.digest},  # no path: a model may be given away
        "start": identity["start"],
        "versions": versions("optax"),
    }
    save_encoder(place, "ecg_predictor", identity["model"], variables["params"], facts)
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
                *(values[known], own, patients[known]),
                method=settings.finetune.calibration,
                threshold="sensitivity",
                at=settings.finetune.sensitivity,
            )
        elif target.kind == "regression" and known.sum() > 0:
            mean, sd = target.scale
            rule = fit_gap_correction(values[known], own * sd + mean)
        else:
            continue
        rules[target.name] = rule.to_json()
    return rules


def prediction_errors(
    config: PredictorConfig, data: EcgData, places: np.ndarray, outputs: np.ndarray
) -> dict[str, dict[str, float]]:
    """Target -> sd of predicted minus true value on these validation records, in its unit; regressions only.

    Arguments are those of decision_rules. A target with fewer than two known values has none.
    """
    assert data.targets is not None
    found = {}
    for column, target in enumerate(config.targets):
        values = data.targets[places, column]
        known = ~np.isnan(values)
        if target.kind != "regression" or known.sum() < 2:
            continue
        mean, sd = target.scale
        errors = outputs[known][:, config.columns[target.name]][:, 0] * sd + mean - values[known]
        found[target.name] = {"sd": float(errors.std(ddof=1)), "records": int(known.sum())}
    return found


def validation_areas(
    config: PredictorConfig, data: EcgData, places: np.ndarray, outputs: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Target -> AUROC on these validation records with DeLong's interval, and their number; detectors only.

    Arguments are those of decision_rules. The threshold was chosen on the same records, which an AUROC does not see.
    """
    assert data.targets is not None
    patients = patient_keys(data.dataset.index)[places]
    found = {}
    for column, target in enumerate(config.targets):
        values = data.targets[places, column]
        known = ~np.isnan(values)
        if target.kind == "binary":
            own = outputs[known][:, config.columns[target.name]][:, 0]
            area = delong.interval(values[known], own, patients[known]).to_json()
            found[target.name] = area | {"records": int(known.sum()), "positive": int(values[known].sum())}
    return found


def _plain(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^\w\-]+", "-", text)
