import re
import time

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
