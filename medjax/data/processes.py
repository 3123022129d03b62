"""Starting processes that work beside this one: on one core each, and not torn apart by a signal while they start."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STOPS = (signal.SIGINT, signal.SIGTERM)


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
