"""The job of pre-training a masked autoencoder on unlabelled ECGs: settings -> data, model, loss."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from medjax.models import ecg_mae
from medjax.parallel.distributed import barrier, is_main
from medjax.parallel.sharding import shardings
from medjax.store.encoders import save_encoder
from medjax.store.provenance import versions
from medjax.train.ecg_data import EcgData, ecg_data, write_seen
from medjax.train.ecg_program import mae_config, mae_program
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.flops import vit_flops
from medjax.train.job import Job, Progress, Work
from medjax.train.program import StepProgram
from medjax.train.state import Tree


def mae_job(settings: EcgTrainSettings, say: Callable[[str], None]) -> Job:
    """Prepare everything that a run needs.

    say  called with one line for the user at a time

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    config = mae_config(settings)
    mae_program(settings, 10**9)  # whatever does not fit is refused before the data is read
    data = ecg_data(settings, say)
    train = data.batches(settings)
    steps = settings.train.steps or train.steps(settings.train.epochs)
    say(f"{train.rows_per_epoch:,} records an epoch, {steps:,} steps of {settings.train.batch_size}")
    program = mae_program(settings, steps)
    tokens = len(settings.signal.leads) * settings.signal.samples // settings.encoder.patch
    shown = tokens - round(tokens * config.masked)
    flops = 3 * (vit_flops(config.vit, shown) + vit_flops(config.decoder_vit, tokens))
    identity = {"objective": "mae", "model": config.to_dict(), "preprocessing": settings.signal.to_json()}
    return Job(
        name=f"ecg-mae-{settings.encoder.size}-{Path(settings.data.folders[0]).name}",
        unit="records",
        counted="patches",
        program=program,
        load=partial(_initialised, program, config, settings.train.seed),
        train=train,
        held_out=data.held_out(settings, settings.data.held_out_most),
        work=lambda batch: Work(len(batch.seeds), len(batch.seeds), flops * len(batch.seeds)),
        identity=identity,
        export=partial(_export, settings, data, identity),
        records={
            "steps": steps,
            "data": {**data.facts(), "rows_per_epoch": train.rows_per_epoch, "fill": 1.0},
            "model": {"name": f"ECG MAE {settings.encoder.size}", "trained": "all", **config.vit.to_dict()},
        },
    )


def _initialised(program: StepProgram, config: ecg_mae.MaeConfig, seed: int, progress: Progress) -> Tree:
    places = shardings(program.variables, program.mesh, program.rules)
    variables = jax.jit(partial(ecg_mae.init_variables, config), out_shardings=places)(jax.random.key(seed))
    progress(1, 1)
    return variables


def _export(
    settings: EcgTrainSettings, data: EcgData, identity: Mapping[str, Any], folder: Path, variables: Tree
) -> str:
    """Write RUN/model and RUN/seen.json; returns the command to go on with."""
    place = folder / "model"
    if is_main():
        shutil.rmtree(place, ignore_errors=True)
    barrier("model folder")
    facts = {
        "preprocessing": identity["preprocessing"],
        "split": data.rule.to_json(),
        "training": data.facts(),
        "versions": versions("optax"),
    }
    save_encoder(place, "ecg_mae", identity["model"], variables["params"], facts)
    write_seen(folder, data)
    folders = ",".join(settings.data.folders)
    return f"python -m medjax.train --objective classify --start {folder} --data {folders} --targets LABEL"
