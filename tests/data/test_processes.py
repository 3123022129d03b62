"""Processes: what stops this one, and how others are started beside it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from medjax.data.processes import Interrupted, hear_stops, single_threaded, uninterrupted


@pytest.fixture
def stopping():
    """SIGTERM as Ctrl-C, as the commands have it; Ctrl-C itself may be ignored where tests run in the background."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    hear_stops()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_when_all_is_done(stopping, number):
    done, handler = [], signal.getsignal(number)

    def start():
        with uninterrupted():
            os.kill(os.getpid(), number)
            done.append("the rest")

    with pytest.raises(Interrupted):
        start()
    assert done == ["the rest"]
    assert signal.getsignal(number) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_status_is_the_commands_where_an_exec_was_stopped(tmp_path, number):
    code = f"""
import signal, sys
from medjax.data.processes import hear_stops
def main():
    try:
        exec("signal.raise_signal({int(number)})")
    except KeyboardInterrupt:
        return 75
signal.signal(signal.SIGINT, signal.default_int_handler)
hear_stops()
sys.exit(main())
"""
    (tmp_path / "command.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run([sys.executable, "-m", "command"], env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 75


def test_ctrl_c_stays_ignored_where_it_is():
    code = (
        "import signal; from medjax.data.processes import hear_stops; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "hear_stops(); signal.raise_signal(signal.SIGINT); print('lives')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "lives\n"


def test_processes_started_meanwhile_do_not_hear_ctrl_c():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"
    with uninterrupted():
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (0, "lives\n")


def test_another_thread_may_start_processes_too():
    done = []

    def start():
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert done == [True]


def test_one_core_each_and_what_was_set_is_set_again(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with single_threaded():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
