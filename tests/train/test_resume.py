"""Runs that are killed, stopped, or run out of disk, in their own processes, and what the same command makes of it."""

import json
from pathlib import Path

import pytest
from tiny_training import arguments, disturbed

from medjax.config import load
from medjax.store.checkpoints import Checkpoints
from medjax.train.__main__ import main
from medjax.train.language import language_job
from medjax.train.settings import TrainSettings


def numbers(folder: Path, name: str = "metrics.jsonl") -> list[tuple]:
    """What of a log is computed, not timed: every bit of loss and gradient norm."""
    lines = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
    return [(line["step"], line["loss"], line.get("grad_norm"), line["accuracy"]) for line in lines]


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter.safetensors").read_bytes()


def checkpoints(folder: Path) -> set[str]:
    """The complete ones; what is partial has a longer name."""
    return {entry.name for entry in (folder / "checkpoints").iterdir() if entry.name.isdecimal()}


def same(folder: Path, reference: Path) -> None:
    assert numbers(folder) == numbers(reference)
    assert numbers(folder, "held_out.jsonl") == numbers(reference, "held_out.jsonl")
    assert adapter(folder) == adapter(reference)


def test_killed_stopped_and_continued_it_takes_the_same_steps(reference, cached, tmp_path, capsys):
    """Kill -9 at the begin of a save, SIGTERM, then the end: bit for bit the same run."""
    out = tmp_path / "run"
    given = arguments(cached, out)
    assert [step for step, *_ in numbers(reference)] == [*range(1, 13)]
    assert [step for step, *_ in numbers(reference, "held_out.jsonl")] == [0, 4, 8, 12]

    killed = disturbed(cached, "KILL", "saving:6", *given)
    assert killed.returncode == -9, killed.stderr
    kept = max(map(int, checkpoints(out)))
    assert 3 <= kept < 6

    stopped = disturbed(cached, "TERM", "logged:7", *given)
    assert stopped.returncode == 75, stopped.stderr
    assert f"going on from the checkpoint of step {kept}\n" in stopped.stdout
    step = max(map(int, checkpoints(out)))
    assert step in (7, 8)  # the step under way is finished
    assert stopped.stderr.splitlines()[-1] == (
        f"medjax.train: stopped after step {step} of 12, which is saved; the same command goes on."
    )

    capsys.readouterr()
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert f"{out} holds this run already; going on from there\n" in printed
    assert f"going on from the checkpoint of step {step}\n" in printed
    same(out, reference)
    assert checkpoints(out) == checkpoints(reference)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["logged:1", "saved:3", "evaluated:4", "logged:5", "evaluated:8", "saving:12"])
def test_killed_at_any_moment(reference, cached, tmp_path, moment):
    out = tmp_path / "run"
    assert disturbed(cached, "KILL", moment, *arguments(cached, out)).returncode == -9
    assert main(arguments(cached, out)) == 0
    same(out, reference)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(reference, cached, tmp_path):
    """Later nothing large can be written: the run goes on to its end, says so, and fails."""
    out = tmp_path / "run"
    done = disturbed(cached, "FULL", "saved:3", *arguments(cached, out))
    assert done.returncode == 1, done.stderr
    for step in (6, 9):
        (line,) = [line for line in done.stderr.splitlines() if f"the checkpoint of step {step} could not be" in line]
        assert line.startswith("training goes on without a checkpoint: ")
        assert "the last good checkpoint is step 3: free space, or keep fewer checkpoints, and save again" in line
    assert f"medjax.train: {out / 'checkpoints' / '12'}: the checkpoint of step 12 could not be written" in done.stderr
    assert checkpoints(out) == {"3"}
    job = language_job(load(TrainSettings, overrides=arguments(cached, out)), lambda line: None)
    kept = Checkpoints(out / "checkpoints", keep_last=2, keep_best=1, identity=job.identity, read_only=True)
    assert int(kept.restore(3, job.program.state).step) == 3


@pytest.mark.slow
def test_fewer_devices_go_on_with_the_checkpoint_of_more(reference, cached, tmp_path):
    """8 -> 4 -> 1 devices, each stopped by SIGTERM: the losses of 8 throughout."""
    out = tmp_path / "run"
    for devices, moment, status in ((8, "logged:3", 75), (4, "logged:7", 75), (1, "logged:99", 0)):
        done = disturbed(cached, "TERM", moment, *arguments(cached, out), devices=devices)
        assert done.returncode == status, done.stderr
        assert f"{devices} local of {devices} devices" in done.stdout
    expected = [(loss, norm) for _, loss, norm, _ in numbers(reference)]
    found = [(loss, norm) for _, loss, norm, _ in numbers(out)]
    assert found == [(pytest.approx(loss, abs=1e-5), pytest.approx(norm, rel=1e-4)) for loss, norm in expected]
    assert found[:3] == expected[:3]
