"""The log of a run: each step once whatever happened before, and times that add up."""

import contextlib
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.train import metrics
from medjax.train.metrics import MetricsLog, Rates, StepLog, WallTime, memory, read_log


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def written(path):
    return [json.loads(line)["step"] for line in path.read_text("utf-8").splitlines()]


def test_a_line_a_step_with_plain_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.time, "time", lambda: 1763755980.2345)
    log = MetricsLog(tmp_path / "run")
    line = log.write(1, {"loss": jnp.float32(1.5), "epoch": np.int64(2), "mfu": None, "remark": "飛ばした"})
    log.write(2, {"loss": float("nan"), "grad_norm": jnp.inf})
    text = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    first = '{"step": 1, "loss": 1.5, "epoch": 2, "mfu": null, "remark": "飛ばした", "time": 1763755980.234}'
    assert text == first + '\n{"step": 2, "loss": null, "grad_norm": null, "time": 1763755980.234}\n'
    assert json.loads(first) == line
    assert not (tmp_path / "run" / "held_out.jsonl").exists()


def test_a_resumed_run_has_each_step_once(tmp_path):
    log = MetricsLog(tmp_path)
    log.held_out(0, {"loss": 3.0})
    for step in range(1, 8):
        log.write(step, {"loss": 3 - step / 10})
        if step % 2 == 0:
            log.held_out(step, {"loss": 3 - step / 10})
    resumed = MetricsLog(tmp_path, resume_step=4)
    assert written(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert written(tmp_path / "held_out.jsonl") == [0, 2, 4]
    assert resumed.held_out(4, {"loss": 99.0})["loss"] == 2.6  # done already: the first result stands
    for step in range(5, 10):
        resumed.write(step, {"loss": 0.5})
    assert written(tmp_path / "metrics.jsonl") == list(range(1, 10))
    assert [line["loss"] for line in read_log(tmp_path / "metrics.jsonl")][3:6] == [2.6, 0.5, 0.5]


def test_a_run_without_a_checkpoint_starts_anew(tmp_path):
    StepLog(tmp_path / "a.jsonl").write(1, {"loss": 1.0})
    log = StepLog(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == b""
    log.write(1, {"loss": 2.0})
    assert read_log(tmp_path / "a.jsonl")[0]["loss"] == 2.0


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_torn_last_line_is_cut_off(cut, tmp_path):
    log = StepLog(tmp_path / "a.jsonl")
    log.write(1, {"loss": 1.0})
    log.write(2, {"loss": 0.5})
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-cut])
    assert [line["step"] for line in read_log(log.path)] == [1]
    again = StepLog(log.path, resume_step=2)
    assert again.last_step == 1
    again.write(2, {"loss": 0.5})
    assert written(log.path) == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 1}\n{"stp": 2}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: got '\{\"stp\": 2\}', expected a JSON object with step"):
        StepLog(tmp_path / "a.jsonl", resume_step=3)


def test_a_step_is_not_logged_twice(tmp_path):
    log = StepLog(tmp_path / "a.jsonl")
    log.write(5, {})
    with pytest.raises(ValueError, match="got step 5 after step 5, expected a later one"):
        log.write(5, {})


def test_wall_time_is_split_and_adds_up(clock):
    wall = WallTime(clock)
    clock.now += 3  # starting
    with wall.spent("restore"):
        clock.now += 2
    with wall.spent("step"):
        clock.now += 10
        with wall.spent("data"):
            clock.now += 1
        with contextlib.suppress(OSError), wall.spent("save"):
            clock.now += 4
            raise OSError("disk full")
        clock.now += 5
    assert wall.read() == {
        **{"step": 15.0, "data": 1.0, "compile": 0.0, "evaluate": 0.0, "save": 4.0, "restore": 2.0, "other": 3.0}
    }
    assert wall.goodput == 15 / 25
    with pytest.raises(ValueError, match="got span 'lunch', expected one of step, data"), wall.spent("lunch"):
        pass


def test_rates_are_over_training_time_only(clock):
    wall = WallTime(clock)
    rates = Rates(wall, devices=2, peak=1e12)
    assert rates.read() == {"tokens_per_s": None, "computed_tokens_per_s": None, "mfu": None}
    with wall.spent("compile"):
        clock.now += 60
    for _ in range(4):
        with wall.spent("data"):
            clock.now += 0.5
        with wall.spent("step"):
            clock.now += 1.5
        rates.add(real=1600, computed=2000, flops=3e12)
    with wall.spent("evaluate"):
        clock.now += 100
    assert rates.read() == {"tokens_per_s": 800.0, "computed_tokens_per_s": 1000.0, "mfu": 12e12 / (8 * 2 * 1e12)}
    assert rates.read()["tokens_per_s"] is None  # counted once
    assert rates.real == 6400


def test_the_compiling_step_can_be_left_out_of_the_rates(clock):
    wall = WallTime(clock)
    rates = Rates(wall, devices=1, peak=None)
    with wall.spent("step"):
        clock.now += 30
    rates.add(100, 100, 1e9)
    rates.skip()
    with wall.spent("step"):
        clock.now += 1
    rates.add(50, 100, 1e9)
    assert rates.read() == {"tokens_per_s": 50.0, "computed_tokens_per_s": 100.0, "mfu": None}


def test_memory_of_the_process_on_a_cpu():
    assert set(memory()) == {"process_memory_gib"}
    assert memory()["process_memory_gib"] == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_memory_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak * 2**30, "bytes_limit": 16 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(7), Device(5)])
    assert memory() == {"device_memory_gib": 7.0, "device_memory_limit_gib": 16.0}
