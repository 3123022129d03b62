"""The TOML files of configs/eval, and what settings refuse."""

import math
import shlex
from pathlib import Path

import pytest

from medjax.config import ConfigError, load
from medjax.data.exams.tasks import TASKS
from medjax.eval.protocols import Protocol
from medjax.eval.settings import EvalSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "eval").glob("*.toml"))


def test_there_are_configs():
    assert [path.stem for path in CONFIGS] == ["igakuqa_kasai", "igakuqa_logprob", "medical_all", "mini"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_and_what_to_expect(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = path.read_text("utf-8").splitlines()
    name = path.relative_to(ROOT).as_posix()
    assert lines[0].startswith(f"# python -m medjax.eval {name}")
    for line, label in zip(lines[1:4], ("# hardware: ", "# time:     ", "# result:   "), strict=True):
        assert line.startswith(label)
        assert line.removeprefix(label).strip()
    command = shlex.split(lines[0].removeprefix("# "))
    assert command[:3] == ["python", "-m", "medjax.eval"]
    settings = load(EvalSettings, None, command[3:])
    assert {task.partition(":")[0] for task in settings.task.names} <= set(TASKS)
    for protocol in settings.protocol.names:
        assert Protocol(protocol, settings.protocol).id.startswith(protocol)


def test_what_the_configs_stand_for():
    ids = {
        path.stem: [Protocol(name, settings.protocol).id for name in settings.protocol.names]
        for path, settings in ((path, load(EvalSettings, path)) for path in CONFIGS)
    }
    assert ids == {
        "igakuqa_kasai": ["kasai-3shot"],
        "igakuqa_logprob": ["choice-logprob-3shot"],
        "medical_all": ["choice-logprob-0shot", "strict-0shot"],
        "mini": ["choice-logprob-0shot", "strict-0shot"],
    }
    mini = load(EvalSettings, ROOT / "configs" / "eval" / "mini.toml")
    assert mini.task == EvalSettings().task
    assert mini.model == EvalSettings().model
    every = load(EvalSettings, ROOT / "configs" / "eval" / "medical_all.toml").task.names
    assert set(every) < set(TASKS)
    # of the sets of choices that medjax fetches itself, these are left out: editions of one that is there, reports
    choices = {name for name, task in TASKS.items() if task.sets and "entity_exact_f1" not in task.metrics}
    assert choices - set(every) == {"medqa-4op", "jmmlu-medical-100", "yakugakuqa", "crade", "rrtnm"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit: got 0, expected 1 or more items."),
        ({"tasks": ""}, "tasks: got no question set, expected at least one; see --help."),
        ({"num_fewshot": -1}, "num_fewshot: got -1, expected 0 or more."),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected 1 or more."),
        ({"protocol.samples": 0}, "protocol.samples: got 0, expected 1 or more."),
        (
            {"protocol.samples": 5},
            "protocol.samples: got 5 at temperature 0, where all are the same; set --protocol.temperature, for "
            "instance 0.7.",
        ),
        ({"protocol.temperature": -1.0}, "protocol.temperature: got -1.0, expected 0 or more."),
        ({"protocol.temperature": math.inf}, "protocol.temperature: got inf, expected 0 or more."),
        ({"protocol.top_p": 0.0}, "protocol.top_p: got 0.0, expected a share above 0 and up to 1."),
        ({"protocol.think_tokens": 0}, "protocol.think_tokens: got 0, expected 1 or more."),
        (
            {"protocol.majority": True, "template": "a.txt"},
            "protocol.majority: got 1 templates, expected two or more; write --template FILE,FILE,FILE.",
        ),
        ({"engine.row_tokens": 100}, "engine.row_tokens: got 100, expected a multiple of 128."),
        ({"batch_size": 0}, "batch_size: got 0, expected 1 or more."),
        ({"resamples": 0}, "resamples: got 0, expected 1 or more."),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(ConfigError) as caught:
        load(EvalSettings, overrides=options)
    assert str(caught.value) == message
