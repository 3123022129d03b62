"""Where else the numbers of metrics.jsonl go: TensorBoard, Weights & Biases, MLflow; chosen by name.

  tensorboard  RUN/tensorboard, read by `tensorboard --logdir RUN`
  wandb        project "medjax"; WANDB_MODE=offline keeps it in RUN/wandb, for `wandb sync` later
  mlflow       experiment "medjax" at MLFLOW_TRACKING_URI, or in RUN/mlflow.db, read by
               `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`

A resumed run goes on in the same run of each service, whose ids are kept in RUN/sinks.json. A sink that cannot be
opened stops the start, since then the user is still there; one that fails later is dropped with one warning, as the
training matters more than copies of its log.
"""

import functools
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

PROJECT = "medjax"


class Sink(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Sinks:
    """The opened sinks of a run, by name."""

    def __init__(self, opened: Mapping[str, Sink]):
        self.opened = dict(opened)

    def log(self, step: int, values: Mapping[str, Any], group: str = "train") -> None:
        """Pass on the numbers of a log line as group/name; texts, None and the step itself stay behind."""
        numbers = {
            f"{group}/{name}": float(value)
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, sink in list(self.opened.items()):
            self._try(name, functools.partial(sink.log, step, numbers), f"step {step}")

    def close(self) -> None:
        """Finish the run of each sink."""
        for name, sink in list(self.opened.items()):
            self._try(name, sink.close, "closing")
        self.opened.clear()

    def _try(self, name: str, act: Callable[[], None], what: str) -> None:
        try:
            act()
        except Exception as error:  # whatever a service does wrong, the training goes on
            del self.opened[name]
            print(
                f"log.sinks: {name} failed at {what} ({type(error).__name__}: {error}); the run goes on without it, "
                "metrics.jsonl has every line.",
                file=sys.stderr,
                flush=True,
            )


def open_sinks(
    names: Sequence[str],
    folder: str | Path,
    run_name: str,
    config: Mapping[str, Any],
    *,
    resume_step: int | None = None,
) -> Sinks:
    """Open the sinks with these names; process 0 alone does this.

    folder       of the run
    config       settings of the run, plain nested values, shown by each sink
    resume_step  the step that was restored; None: a new run

    Raises ValueError for a name that is none or a sink that cannot be opened, ImportError for a missing package.
    """
    folder = Path(folder)
    if unknown := [name for name in names if name not in _KINDS]:
        raise ValueError(f"log.sinks: got {', '.join(unknown)}, expected some of {', '.join(_KINDS)}; name those.")
    opened: dict[str, Sink] = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = _KINDS[name](folder, run_name, config, resume_step)
        except ImportError as error:
            raise ImportError(
                f'log.sinks: {name} needs a package that is not installed ({error}); pip install "medjax[{name}]", or '
                f"leave {name} out of log.sinks."
            ) from error
        except Exception as error:
            raise ValueError(
                f"log.sinks: {name} cannot be opened ({type(error).__name__}: {error}); correct that, or leave {name} "
                "out of log.sinks."
            ) from error
    return Sinks(opened)


class _TensorBoard:
    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], resume_step: int | None):
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1  # TensorBoard hides the steps that are done again
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, flush_secs=10)
        if resume_step is None:
            self._writer.add_text("config", f"{run_name}\n\n" + _markdown(config), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], resume_step: int | None):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        known = _known_id(folder, "wandb", resume_step)
        number = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name,
            id=number,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        _keep_id(folder, "wandb", number)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], resume_step: int | None):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        known = _known_id(folder, "mlflow", resume_step)
        if known is None:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(title)
            number = experiment.experiment_id if experiment else self._client.create_experiment(title)
            known = str(self._client.create_run(number, run_name=run_name).info.run_id)
            settings = [Param(key, str(value)[:500]) for key, value in _flat(config)]
            for start in range(0, len(settings), 100):  # the service's limit for one call
                self._client.log_batch(known, params=settings[start : start + 100])
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known
        _keep_id(folder, "mlflow", known)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


_KINDS: dict[str, Callable[[Path, str, Mapping[str, Any], int | None], Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def _ids(folder: Path) -> dict[str, str]:
    path = folder / "sinks.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _known_id(folder: Path, name: str, resume_step: int | None) -> str | None:
    return None if resume_step is None else _ids(folder).get(name)


def _keep_id(folder: Path, name: str, number: str) -> None:
    partial = folder / "sinks.json.partial"
    partial.write_text(json.dumps({**_ids(folder), name: number}) + "\n", "utf-8")
    os.replace(partial, folder / "sinks.json")


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _markdown(config: Mapping[str, Any]) -> str:
    return "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in _flat(config))])
