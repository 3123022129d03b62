"""Why a run ends early: too many bad steps in a row, and signals, which are heard once."""

import json
import os
import signal

import numpy as np
import pytest

from medjax.train.settings import TrainingSettings
from medjax.train.step import StepMetrics
from medjax.train.stopping import BadSteps, Preemption, TrainingError


class Named:
    """Batches of one document a row, named by the step, counted from 0."""

    def record_ids(self, step):
        return [f"d{step}"]


def metrics(loss=2.0, taken=False, bad_steps=1, counted=5.0):
    means = {"loss": np.float32(loss)}
    return StepMetrics(means, np.float32(counted), np.float32(3.0), np.bool_(taken), np.int32(bad_steps))


def test_a_step_that_was_taken_leaves_no_trace(tmp_path):
    bad = BadSteps(tmp_path, TrainingSettings(on_bad_step="stop"), Named(), 0, True)
    bad.check(1, metrics(taken=True), pytest.fail)
    assert (bad.count, list(tmp_path.iterdir())) == (0, [])


def test_too_many_in_a_row_end_the_run(tmp_path):
    said: list[str] = []
    bad = BadSteps(tmp_path, TrainingSettings(most_bad_steps=3), Named(), 0, True)
    bad.check(7, metrics(float("nan"), bad_steps=1), said.append)
    bad.check(8, metrics(float("inf"), bad_steps=2), said.append)
    with pytest.raises(TrainingError) as error:
        bad.check(9, metrics(1e9, bad_steps=3), said.append)
    assert str(error.value) == (
        "step 9: loss 1e+09, gradient norm 3; its update is left out, like the 2 steps before it; the run has diverged."
        " Go back to an earlier checkpoint with a lower learning rate, a longer warm-up or a smaller clip."
    )
    assert said[1] == (
        f"step 8: loss inf, gradient norm 3; its update is left out (documents: {tmp_path}/bad_steps.jsonl)"
    )
    lines = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["documents"]) for line in lines] == [
        *((7, "nan", ["d6"]), (8, "inf", ["d7"]), (9, "1000000000.0", ["d8"]))
    ]


def test_a_batch_in_which_nothing_counts_is_called_so(tmp_path):
    said: list[str] = []
    BadSteps(tmp_path, TrainingSettings(), Named(), 0, True).check(2, metrics(0.0, counted=0.0), said.append)
    assert said[0].startswith("step 2: no token of the batch counts for the loss; its update is left out")


def test_bad_steps_that_come_again_are_written_once(tmp_path):
    """Going on from step 8: what was bad before stays, what comes again is cut off; one process writes."""
    bad = BadSteps(tmp_path, TrainingSettings(), Named(), 0, True)
    for step in (3, 8, 10):
        bad.check(step, metrics(), lambda line: None)
    again = BadSteps(tmp_path, TrainingSettings(), Named(), 8, True)
    assert again.count == 2
    again.check(10, metrics(), lambda line: None)
    assert again.count == 3
    other = BadSteps(tmp_path, TrainingSettings(), Named(), 8, False)
    other.check(10, metrics(), lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_once_and_then_has_its_old_meaning(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert not preemption.asked(1)
        os.kill(os.getpid(), number)
        assert preemption.asked(2)
        assert preemption.asked(3)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
