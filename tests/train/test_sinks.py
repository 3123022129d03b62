"""What each sink is given; wandb and MLflow are stood in for by modules that write down their calls."""

import json
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from medjax.train.sinks import open_sinks

CONFIG = {"model": {"name": "smollm2-135m"}, "train": {"steps": 40, "seed": 7}}
LINE = {"step": 3, "loss": 1.5, "tokens_per_s": 800, "mfu": None, "remark": "text", "skipped": False}


def events(folder):
    """(step, tag, value) of the scalars in the event files of a folder, in the order they were written."""
    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:  # a record: length (8 bytes), checksum (4), event, checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
            data = data[16 + size :]
    return found


@pytest.fixture
def wandb(monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            if step == 13:
                raise ConnectionError("no route")
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    module = types.ModuleType("wandb")
    module.init = lambda **arguments: calls.append(("init", arguments)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(("experiment", name))
            return "5"

        def create_run(self, experiment_id, run_name):
            calls.append(("run", experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_batch(self, run_id, metrics=(), params=()):
            calls.append(("batch", run_id, [m[:2] + m[3:] for m in metrics], list(params)))

        def update_run(self, run_id, status):
            calls.append(("update", run_id, status))

        def set_terminated(self, run_id):
            calls.append(("end", run_id))

    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient = Client
    entities.Metric = lambda *values: values
    entities.Param = lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


def test_tensorboard_gets_the_numbers_by_group(tmp_path):
    sinks = open_sinks(["tensorboard"], tmp_path, "run", CONFIG)
    sinks.log(3, LINE)
    sinks.log(3, {"loss": 1.25}, "held_out")
    sinks.close()
    assert events(tmp_path / "tensorboard") == [
        *((3, "train/loss", 1.5), (3, "train/tokens_per_s", 800.0), (3, "held_out/loss", 1.25))
    ]


def test_wandb_gets_config_and_numbers_and_goes_on_in_the_same_run(tmp_path, wandb):
    sinks = open_sinks(["wandb"], tmp_path / "run", "run", CONFIG)
    sinks.log(3, LINE)
    sinks.close()
    (_, arguments), log, end = wandb
    number = arguments.pop("id")
    assert arguments == {
        **{"project": "medjax", "name": "run", "dir": str(tmp_path / "run"), "config": CONFIG, "resume": "allow"}
    }
    assert (log, end) == (("log", 3, {"train/loss": 1.5, "train/tokens_per_s": 800.0}), ("finish",))
    open_sinks(["wandb"], tmp_path / "run", "run", CONFIG, resume_step=3)
    assert wandb[-1][1]["id"] == number
    open_sinks(["wandb"], tmp_path / "run", "run", CONFIG)  # from the start again: another run
    assert wandb[-1][1]["id"] != number


def test_mlflow_gets_settings_once_and_numbers(tmp_path, mlflow):
    sinks = open_sinks(["mlflow"], tmp_path, "run", CONFIG)
    sinks.log(3, LINE)
    sinks.close()
    settings = [("model.name", "smollm2-135m"), ("train.steps", "40"), ("train.seed", "7")]
    assert mlflow == [
        ("uri", f"sqlite:///{tmp_path}/mlflow.db"),
        ("experiment", "medjax"),
        ("run", "5", "run"),
        ("batch", "r1", [], settings),
        ("batch", "r1", [("train/loss", 1.5, 3), ("train/tokens_per_s", 800.0, 3)], []),
        ("end", "r1"),
    ]
    mlflow.clear()
    open_sinks(["mlflow"], tmp_path, "run", CONFIG, resume_step=3)
    assert mlflow == [("uri", f"sqlite:///{tmp_path}/mlflow.db"), ("update", "r1", "RUNNING")]
    assert json.loads((tmp_path / "sinks.json").read_text()) == {"mlflow": "r1"}


def test_a_sink_that_fails_later_warns_once_and_the_others_go_on(tmp_path, wandb, capsys):
    sinks = open_sinks(["wandb", "tensorboard"], tmp_path, "run", CONFIG)
    for step in (12, 13, 14):
        sinks.log(step, {"loss": 1.0})
    sinks.close()
    assert capsys.readouterr().err == (
        "log.sinks: wandb failed at step 13 (ConnectionError: no route); the run goes on without it, metrics.jsonl has "
        "every line.\n"
    )
    assert [step for step, _, _ in events(tmp_path / "tensorboard")] == [12, 13, 14]
    assert [call[0] for call in wandb] == ["init", "log"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'log\.sinks: {name} needs a package .*pip install "medjax\[{name}\]"'):
        open_sinks([name], tmp_path, "run", CONFIG)


def test_a_sink_that_cannot_be_opened_is_told_at_the_start(tmp_path, wandb, monkeypatch):
    def init(**_):
        raise PermissionError("no key")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(ValueError, match=r"wandb cannot be opened \(PermissionError: no key\); correct that, or leave"):
        open_sinks(["wandb"], tmp_path, "run", CONFIG)


def test_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"log\.sinks: got comet, expected some of tensorboard, wandb, mlflow"):
        open_sinks(["tensorboard", "comet"], tmp_path, "run", CONFIG)
