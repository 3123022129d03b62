"""Processes: what stops this one, and starting others beside it, on one core each and not torn apart by a signal."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. A class of its own, because KeyboardInterrupt itself may cost a command its exit status.

    Where that passes through an exec(), as those of dataclasses while modules are imported, Python started with -m ends
    by signal 2, whatever status the command gives.
    """


def hear_stops() -> None:
    """Raise Interrupted at Ctrl-C, unless that is ignored, and at SIGTERM, by which a scheduler ends a job."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    for number in _STOPS:
        if number == signal.SIGTERM or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, stop)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started meanwhile use one core each: there are as many of them as cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come meanwhile are heard at its end.

    A process whose start is broken off would die with a traceback of its own, after this one's last word. Those started
    meanwhile never hear Ctrl-C, which a terminal sends to all. Outside the main thread, where no signal is heard, it
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a new process inherits
    before = {number: signal.signal(number, lambda caught, _: heard.append(caught)) for number in _STOPS}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(heard):
            signal.raise_signal(caught)
