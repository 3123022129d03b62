import re
import sys
import time

import pytest

from medjax.report import progress


def test_a_log_gets_a_line_only_now_and_then(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.ProgressBar(True, "scoring") as bar:
        bar.reach(1, 40)
        clock[0] += 31
        bar.reach(10, 40)
        bar.advance(2, 40)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(r"scoring:\s+25%.*10/40", lines[0])
    assert re.match(r"scoring:\s+30%.*12/40", lines[1])  # where it ended


def test_a_hidden_bar_prints_nothing(capsys):
    with progress.ProgressBar(False, "scoring") as bar:
        bar._logged = time.monotonic() - 100
        bar.reach(5, 5)
    assert capsys.readouterr().err == ""


@pytest.fixture
def clock(monkeypatch):
    """What both clocks say; time passes when a test adds to it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_rate_and_time_left_leave_compilation_out(capsys, clock):
    with progress.ProgressBar(True, "scoring") as bar:
        for number in (0, 1):  # at the beginning, and between two batches
            with bar.compiling():
                clock[0] += 500
            clock[0] += 10
            bar.reach(5 * number + 5, 40)
    # ten items in twenty seconds: 0.5 a second, thirty to go
    assert capsys.readouterr().err.splitlines()[-1].endswith("10/40 [00:20<01:00,  2.00s/item, +1000s compiling]")


def test_compilation_is_told_while_it_lasts(capsys, clock):
    with progress.ProgressBar(True, "scoring") as bar:
        bar.reach(5, 40)
        clock[0] += 31
        with bar.compiling():
            (line,) = capsys.readouterr().err.splitlines()
            assert line.endswith("5/40 [00:31<03:37,  6.20s/item, compiling]")


def test_what_was_done_before_is_no_part_of_the_rate(capsys, clock):
    with progress.ProgressBar(True, "scoring") as bar:
        bar.begin(1000, 1040)
        clock[0] += 10
        bar.reach(1010, 1040)
    assert capsys.readouterr().err.splitlines()[-1].endswith("1010/1040 [00:10<00:30,  1.00item/s]")


def test_a_long_label_leaves_room_for_rate_and_time_left(capsys, clock):
    label = "mini_ja_cot-4tokens-24think-rotated-2samples-t0.7-0shot_adapter"
    with progress.ProgressBar(True, label) as bar, bar.compiling():
        clock[0] += 5
        bar.reach(10, 40)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{label}:  25%|")
    assert "10/40 [00:00<" in line
    assert line.endswith("+5s compiling]")


def _interrupted_at(line, monkeypatch):
    """What is left to say after Ctrl-C at this line of the making of a bar, counted from 1; None: made before it."""
    unraisable, lines = [], 0

    def trace(frame, event, arg):
        nonlocal lines
        if event == "line" and "tqdm" in frame.f_code.co_filename:
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return trace

    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(repr(found.exc_value)))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        made = progress.ProgressBar(True, "reading")  # kept: only the making is interrupted
    except KeyboardInterrupt:
        made = None
    finally:
        sys.settrace(before)
    return unraisable if made is None else None


def test_ctrl_c_while_a_bar_is_made_leaves_no_word(monkeypatch, capsys):
    line = 1
    while (left := _interrupted_at(line, monkeypatch)) is not None:
        assert left == [], f"at line {line} of the making"
        line += 1
    assert line > 100  # else nothing was interrupted
