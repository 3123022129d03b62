"""Two processes that train encoders of ECGs together end where one ends: losses, models, rules, and whom they saw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_ecg import OPTIONS, write_records

from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS
from medjax.store.encoders import load_encoder
from medjax.train.__main__ import main

pytestmark = pytest.mark.slow  # a minute

ROOT = Path(__file__).resolve().parents[2]
ENCODER = {"--signal.samples": 75, "--encoder.patch": 15, "--train.steps": 3, "--log.every": 1}
PARTS = {"--data.validation": 0.25, "--data.test": 0.25}


def given(options):
    """A dict of options as a command line."""
    line = []
    for name, value in options.items():
        line += [name, ",".join(value) if isinstance(value, tuple) else str(value).lower()]
    return [part if part != "" else "[]" for part in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `one-mae`, `one-detector`, `two-mae`, `two-detector` of the same records."""
    folder = tmp_path_factory.mktemp("processes")
    write_records(folder / "data")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        **{"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    }
    for name in ("one", "two"):
        shared = OPTIONS | ENCODER | PARTS | {"--data": str(folder / "data"), "--mesh": "data=8"}
        tasks = {
            "mae": {"--objective": "mae"},
            "detector": {"--objective": "classify", "--targets": ("high",), "--start": folder / f"{name}-mae"},
        }
        for task, own in tasks.items():
            arguments = given(shared | own | {"--out": folder / f"{name}-{task}"})
            if name == "one":
                assert main(arguments) == 0
                continue
            command = ["bash", str(ROOT / "launch" / "local_2process.sh"), *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("task", ["mae", "detector"])
def test_losses_and_weights_are_the_same(folder, task):
    losses = [
        [json.loads(line)["loss"] for line in (folder / f"{name}-{task}" / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [
        jax.tree.leaves(load_encoder(folder / f"{name}-{task}", make_mesh("data=8"), PRESETS["default"]).params)
        for name in ("one", "two")
    ]
    assert len(weights[0]) == len(weights[1]) > 10
    for one, two in zip(*weights, strict=True):
        # AdamW's first steps divide gradients by themselves: where one is near zero, its sign is that of rounding
        assert np.mean(np.abs(np.asarray(two) - np.asarray(one)) > 1e-4) < 0.01


def test_rules_are_those_of_one_process(folder):
    one, two = (
        json.loads((folder / f"{name}-detector" / "model" / "medjax.json").read_text())["facts"]
        for name in ("one", "two")
    )
    assert two["leads"] == one["leads"]
    assert two["split"] == one["split"]
    rules = [facts["rules"]["high"] for facts in (one, two)]
    assert rules[0]["threshold"]["origin"] == "validation"
    for part, key in (("threshold", "value"), ("calibration", "slope"), ("calibration", "intercept")):
        assert rules[1][part][key] == pytest.approx(rules[0][part][key], rel=0.02, abs=0.02), key


@pytest.mark.parametrize("task", ["mae", "detector"])
def test_whom_training_saw_is_written_once_and_whole(folder, task):
    one, two = (json.loads((folder / f"{name}-{task}" / "seen.json").read_text()) for name in ("one", "two"))
    assert two == one
    assert one["patients"]
