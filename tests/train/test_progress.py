import io
import sys

import pytest

from medjax.train import progress
from medjax.train.progress import TrainProgress

VALUES = {"loss": 1.71349, "tokens_per_s": 1812.4, "mfu": 0.3141, "grad_norm": 3.0}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_one_line_for_each_logged_step(capsys, clock):
    with TrainProgress(1000, start=100) as shown:
        clock[0] += 500  # compiling, the first held-out loss
        for step in range(101, 111):
            shown.reach(step)
            clock[0] += 6 if step < 110 else 0
        shown.show(110, VALUES)
        shown.say("saved checkpoints/110")
        shown.show(111, {"loss": None, "tokens_per_s": None, "held_out_loss": 1.5})
    # a step took 6 s after the first, so 890 take 5340 s; then 10 took 54 s
    assert capsys.readouterr().err.splitlines() == [
        "train: step 110/1000  loss 1.7135  1,812 tokens/s  MFU 31.4 %  1:29:00 left",
        "saved checkpoints/110",
        "train: step 111/1000  loss not finite  held-out 1.5000  1:20:00 left",
    ]


def test_the_time_left_is_not_known_from_one_step(capsys, clock):
    with TrainProgress(10) as shown:
        shown.show(1, {})
    assert capsys.readouterr().err == "train: step 1/10  ? left\n"


def test_a_terminal_gets_a_live_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TrainProgress(40, start=8) as shown:
        shown.show(10, VALUES)
        shown.say("saved")
    lines = sys.stderr.getvalue().replace("\n", "\r").split("\r")
    assert "saved" in [line.strip() for line in lines]
    live = next(line for line in reversed(lines) if "10/40" in line)
    assert live.startswith("train:  25%|")
    assert live.rstrip().endswith(", loss 1.7135, 1,812 tokens/s, MFU 31.4 %]")


def test_other_processes_print_nothing(capsys):
    with TrainProgress(10, shown=False) as shown:
        shown.show(1, VALUES)
        shown.say("saved")
    assert capsys.readouterr().err == ""
