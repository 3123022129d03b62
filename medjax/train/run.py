"""One training run, from settings to a run folder: the story that `python -m medjax.train` tells.

join the other processes -> job (data, names, shapes) -> run folder -> weights -> state, fresh or from the newest
checkpoint -> compile -> held-out loss -> steps, logged and saved -> held-out loss -> adapter, figure, report

The batch of a step depends on the seed and the step alone, and a checkpoint holds all that a step changes: a run that
was killed at any moment goes on with the same command and takes the same steps, to the last bit on the same mesh.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.config import load, to_dict, to_toml
from medjax.data.batches import HeldOut, local_rows, to_global
from medjax.parallel import distributed
from medjax.report.progress import ProgressBar
from medjax.report.training import loss_figure, training_report
from medjax.store.checkpoints import Checkpoints
from medjax.store.provenance import command, versions
from medjax.store.runs import RunFolder, named, shortened
from medjax.train.ecg_settings import EcgTrainSettings, settings_class
from medjax.train.flops import peak_flops
from medjax.train.job import Job
from medjax.train.metrics import MetricsLog, Rates, WallTime, memory, read_log
from medjax.train.optimizer import schedule
from medjax.train.progress import TrainProgress
from medjax.train.settings import RunSettings, TrainSettings
from medjax.train.sinks import Sinks, open_sinks
from medjax.train.state import TrainState, Tree, count, init_state, join, split
from medjax.train.step import StepMetrics
from medjax.train.stopping import BadSteps, Preemption, Stopped

# what a run may change and still be the same run: sections, and keys of `train` and `data`
_FREE = ("mesh", "distributed", "checkpoint", "log", "compilation_cache", "out", "name")
_FREE_TRAIN = ("on_bad_step", "most_bad_steps")
_FREE_DATA = ("threads",)


def train(
    settings: RunSettings | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train a model and write a run folder; returns what results.json holds.

    settings  TrainSettings or EcgTrainSettings; or options by alias instead, such as
              train(model="smollm2-135m", data="notes.jsonl", steps=100) or train(objective="mae", data="ecgs")
    say       called with one line for the user at a time
    progress  show progress on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do, TrainingError when the training
    itself failed, Stopped when it was told to stop and can go on.
    """
    if settings is not None and options:
        raise ValueError(f"train: got settings and {', '.join(options)}, expected one or the other; put all in one.")
    if settings is None:
        given = {f"--{name.replace('_', '-')}": str(v) if isinstance(v, Path) else v for name, v in options.items()}
        settings = load(settings_class(options.get("objective")), overrides=given)
    distributed.start(settings.distributed)
    main = distributed.is_main()
    quiet = say if main else (lambda line: None)
    wall = WallTime()
    job = _job(settings, quiet)
    settings = job.settings or settings
    say(distributed.banner(job.program.mesh))  # every process, so that a missing one is seen
    _agree("settings and data", to_dict(settings) | {"distributed": None}, job.records)
    place = named(settings.out) if settings.out else named(Path("runs/train") / (settings.name or shortened(job.name)))
    folder = _open_folder(place, settings, job, quiet) if main else None
    distributed.barrier("run folder")
    try:
        return _Run(settings, job, place, folder, wall, quiet).through(progress and main)
    finally:
        if folder:
            folder.close()


def _job(settings: RunSettings, say: Callable[[str], None]) -> Job:
    if isinstance(settings, TrainSettings):
        from medjax.train.language import language_job

        return language_job(settings, say)
    assert isinstance(settings, EcgTrainSettings)
    if settings.objective == "mae":
        from medjax.train.mae import mae_job

        return mae_job(settings, say)
    from medjax.train.prediction import prediction_job

    return prediction_job(settings, say)


def _agree(what: str, *values: Any) -> None:
    """Raise ValueError unless every process has the same JSON values; else they would wait for each other for ever."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest()[:8]
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32).astype(np.int32))
    differ = [i for i, one in enumerate(found) if not np.array_equal(one, found[0])]
    if differ:
        raise ValueError(
            f"distributed: got other {what} in process {', '.join(map(str, differ))} than in process 0, expected the "
            "same in all; start the same command everywhere, with the same files and a run folder that all of them see."
        )


def _open_folder(place: Path, settings: RunSettings, job: Job, say: Callable[[str], None]) -> RunFolder:
    kept = {key: value for key, value in to_dict(settings).items() if key not in _FREE}
    for section, free in (("train", _FREE_TRAIN), ("data", _FREE_DATA)):
        kept[section] = {key: value for key, value in kept[section].items() if key not in free}
    identity = kept | {"identity": dict(job.identity), "documents": job.records["data"]["digest"]}
    folder = RunFolder.open(place, identity)
    if folder.note:
        say(folder.note)
    say(f"writing to {folder.path}")
    folder.write_text("config.toml", to_toml(settings))
    return folder


def _losses(lines: list[dict[str, Any]]) -> list[float]:
    """The finite losses of a log."""
    return [line["loss"] for line in lines if line.get("loss") is not None]


class _Run:
    """The run once everything is known: state, compiled programs, logs."""

    def __init__(
        self,
        settings: RunSettings,
        job: Job,
        place: Path,
        folder: RunFolder | None,
        wall: WallTime,
        say: Callable[[str], None],
    ):
        self.settings, self.job, self.place, self.folder, self.wall, self.say = settings, job, place, folder, wall, say
        self.main = folder is not None  # one process writes
        self.steps: int = job.records["steps"]
        self.rate = schedule(settings.optimizer, self.steps)
        self.rows = local_rows(job.program.batch)
        self.checkpoints = Checkpoints(
            place / "checkpoints",
            keep_last=settings.checkpoint.keep_last,
            keep_best=settings.checkpoint.keep_best,
            identity=job.identity,
        )
        self.held_out: tuple[int, float] | None = None  # step and loss of the last evaluation

    def through(self, progress: bool) -> dict[str, Any]:
        """Do the run; return its results."""
        start = self.checkpoints.latest() or 0
        _agree(f"newest checkpoint below {self.place}", start)
        self.sinks = self._sinks(start)  # before anything that takes long: a package may be missing
        self.log = MetricsLog(self.place, start or None) if self.main else None
        self.bad_steps = BadSteps(self.place, self.settings.train, self.job.train, start, self.main)
        seen = _losses(read_log(self.place / "held_out.jsonl")) if start else []
        self.lowest = min(seen, default=math.inf)
        state, frozen = self._state(start, progress)
        self.rates = Rates(self.wall, jax.device_count(), peak_flops(), self.job.unit)
        step = self._compiled()
        preemption = Preemption()
        try:
            with self.checkpoints, preemption, TrainProgress(self.steps, start, shown=progress) as bar:
                if not start:
                    self._evaluate(0, state, frozen, bar)
                state = self._loop(state, frozen, start, step, preemption, bar)
                variables = join(self._best(state).trainable, frozen)
        finally:
            self.sinks.close()
        after = self.job.export(self.place, variables)
        return self._results(self.folder, after) if self.folder else {}

    def _state(self, start: int, progress: bool) -> tuple[TrainState, Tree]:
        """Frozen weights in place, and the state: fresh, or that of the newest checkpoint on the current mesh."""
        job = self.job
        with ProgressBar(progress, "weights", "tensor") as bar:
            trainable, frozen = split(job.load(bar.reach), job.program.chosen)
        self.counts = {"trained": count(trainable), "frozen": count(frozen)}
        self.say(f"{self.counts['trained']:,} numbers are trained, {self.counts['frozen']:,} are frozen")
        if not start:
            return init_state(trainable, job.program.tx, job.program.state), frozen
        del trainable
        with self.wall.spent("restore"):
            state = self.checkpoints.restore(start, job.program.state)
        self.say(f"going on from the checkpoint of step {start}")
        return state, frozen

    def _compiled(self) -> Callable[..., tuple[TrainState, StepMetrics]]:
        program = self.job.program
        with self.wall.spent("compile"):
            began = time.monotonic()
            compiled = program.lower().compile()
            if self.job.held_out:
                self.evaluation = program.lower_evaluation().compile()
        self.compile_seconds = time.monotonic() - began
        found = compiled.memory_analysis()
        if found:
            held = (found.argument_size_in_bytes + found.temp_size_in_bytes) / 2**30
            self.say(f"compiled in {self.compile_seconds:.0f} s; a step needs {held:.2f} GiB on each device")
        return compiled

    def _loop(self, state, frozen, start: int, step, preemption: Preemption, bar: TrainProgress) -> TrainState:
        s = self.settings
        threads = self.job.threads
        batches = self.job.train.iterate(start, self.steps, rows=self.rows, threads=threads, ahead=threads)
        waiting: tuple[int, StepMetrics, Any] | None = None
        for number in range(start + 1, self.steps + 1):
            with self.wall.spent("data"):
                host = next(batches)
                batch = to_global(host, self.job.program.batch, first_row=self.rows.start)
            with self.wall.spent("step"):
                state, metrics = step(state, frozen, batch)
                # one step behind: the device works on this one while the last one's numbers are read
                if waiting:
                    self._finish(*waiting, bar)
                waiting = number, metrics, self.job.work(host)
                last = number == self.steps
                evaluates = self.job.held_out and (number % s.log.held_out_every == 0 or last)
                stops = preemption.asked(number)
                saves = number % s.checkpoint.every == 0 or last or stops
                if evaluates or saves or number % s.log.every == 0:
                    self._finish(*waiting, bar)
                    waiting = None
            if evaluates and self._evaluate(number, state, frozen, bar) and s.checkpoint.keep_best:
                saves = True  # the lowest so far
            if saves:
                self._save(number, state, bar, must=last or stops)
            if stops and not last:
                self.checkpoints.wait()
                raise Stopped(f"stopped after step {number} of {self.steps}, which is saved; the same command goes on.")
        return state

    def _held_out_batch(self, held_out: HeldOut, number: int) -> Any:
        like = self.job.program.held_out_batch
        rows = local_rows(like)
        return to_global(held_out.batch_at(number, rows), like, first_row=rows.start)

    def _finish(self, number: int, metrics: StepMetrics, work: Any, bar: TrainProgress) -> None:
        """Read the numbers of a step that was begun, log them, and see that they are sound."""
        metrics = jax.device_get(metrics)
        # the other processes' rows are like this one's
        everyone = self.settings.train.batch_size / (self.rows.stop - self.rows.start)
        self.rates.add(work.real * everyone, work.computed * everyone, work.flops * everyone)
        bar.reach(number)
        self.bad_steps.check(number, metrics, bar.say)
        if number % self.settings.log.every and number != self.steps:
            return
        means = {name: float(value) for name, value in metrics.means.items()}
        values = means | {
            "grad_norm": float(metrics.grad_norm),
            "learning_rate": float(self.rate(number - 1 - self.bad_steps.count)),
            "epoch": number / self.job.train.steps_per_epoch,
            f"counted_{self.job.counted}": float(metrics.counted),
            "skipped_steps": self.bad_steps.count,
            "goodput": self.wall.goodput,
            **self.rates.read(),
            **memory(),
        }
        if self.log:
            try:
                bar.show(number, self.log.write(number, values))
            except OSError as error:  # a full disk costs a line, not the run
                bar.say(f"step {number} could not be logged: {error}")
        self.sinks.log(number, values)

    def _evaluate(self, number: int, state: TrainState, frozen: Tree, bar: TrainProgress) -> bool:
        """The held-out loss, without dropout; returns whether it is the lowest so far."""
        held_out = self.job.held_out
        if not held_out:
            return False
        with self.wall.spent("evaluate"):
            sums: dict[str, float] = {}
            for i in range(len(held_out)):
                found = self.evaluation(state.trainable, frozen, self._held_out_batch(held_out, i))
                for name, value in jax.device_get(found).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        counted = max(sums.pop("counted"), 1.0)
        values = {name: value / counted for name, value in sums.items()} | {f"counted_{self.job.counted}": counted}
        self.held_out = number, values["loss"]
        if self.log:
            self.log.held_out(number, values)
        bar.say(f"held-out loss after step {number}: {values['loss']:.4f} ({int(counted):,} {self.job.counted})")
        self.sinks.log(number, values, group="held_out")
        is_lowest, self.lowest = values["loss"] < self.lowest, min(self.lowest, values["loss"])
        return is_lowest

    def _save(self, number: int, state: TrainState, bar: TrainProgress, *, must: bool) -> None:
        metric = self.held_out[1] if self.held_out and self.held_out[0] == number else None
        meta = {"step": number, "held_out_loss": metric}
        with self.wall.spent("save"):
            try:
                self.checkpoints.wait()
            except OSError as error:  # of the save before, in the background; this one may succeed
                bar.say(f"training goes on without a checkpoint: {error}")
            try:
                self.checkpoints.save(number, state, meta, metric)
                if must:
                    self.checkpoints.wait()
            except OSError as error:
                if must:
                    raise
                bar.say(f"training goes on without a checkpoint: {error}")

    def _best(self, state: TrainState) -> TrainState:
        """The state of the lowest held-out loss, where it is kept and not the last one."""
        self.checkpoints.wait()
        best = self.checkpoints.best() if self.settings.checkpoint.keep_best else None
        if best is None or best == self.steps:
            return state
        jax.tree.map(lambda leaf: leaf.delete(), state)  # there may be no room for two
        self.say(f"the held-out loss was lowest after step {best}; that checkpoint is exported")
        return self.checkpoints.restore(best, self.job.program.state)

    def _sinks(self, start: int) -> Sinks:
        names = self.settings.log.sinks if self.main else ()
        return open_sinks(names, self.place, self.place.name, to_dict(self.settings), resume_step=start or None)

    def _results(self, folder: RunFolder, after: str) -> dict[str, Any]:
        """Write results.json, figure.svg and report.html."""
        metrics, held_out = read_log(self.place / "metrics.jsonl"), read_log(self.place / "held_out.jsonl")
        losses = _losses(held_out)
        devices = jax.devices()
        results = {
            "folder": str(self.place),
            "steps": self.steps,
            "held_out": {"start": losses[0], "end": losses[-1], "best": min(losses)} if losses else None,
            "parameters": self.counts,
            "skipped_steps": self.bad_steps.count,
            "compile_seconds": round(self.compile_seconds, 1),
            "wall_seconds": {name: round(value, 1) for name, value in self.wall.read().items()},
            "goodput": round(self.wall.goodput, 3),
            "next": after,
            "data": self.job.records["data"],
            "model": self.job.records["model"],
            "identity": dict(self.job.identity),
            "command": command(self.settings, "medjax.train"),
            "versions": versions("optax", "orbax-checkpoint"),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "mesh": {axis: size for axis, size in self.job.program.mesh.shape.items() if size > 1},
        }
        page = {
            "name": self.place.name,
            "date": time.time(),
            "metrics": metrics,
            "held_out": held_out,
            "model": {
                "name": results["model"]["name"],
                "parameters": sum(self.counts.values()),
                "trained": results["model"]["trained"],
                "trained_parameters": self.counts["trained"],
            },
            "devices": results["devices"],
            "wall": results["wall_seconds"],
            "data": self.job.records["data"],
            "settings": to_dict(self.settings),
            "record": {key: results[key] for key in ("identity", "versions", "mesh")},
            "command": results["command"],
            "reconstructions": [file.read_text("utf-8") for file in sorted(self.place.glob("reconstruction-*.svg"))],
        }
        folder.write_text("figure.svg", loss_figure(metrics, held_out))
        folder.write_text("report.html", training_report(page))
        folder.write_json("results.json", results)
        return results
