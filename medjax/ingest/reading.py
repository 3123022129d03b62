"""Files read in processes of their own: a reader that dies or hangs costs one file, never the run.

Each process gets one file at a time and sends back rows, ready to be stored, and a refusal for each record that cannot
be. One that ends by itself, or is not ready in time, is replaced; the file it had is refused.
"""

import contextlib
import logging
import multiprocessing
import re
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.record import EcgFileError, EcgRecord
from medjax.data.ecg.storage import Row, to_row
from medjax.data.processes import single_threaded, uninterrupted
from medjax.ingest.sources import Source

MEMORY_GB = 8.0
_TOO_LARGE = "needs more memory than a reader may take, expected a shorter recording; cut it, or see --memory_gb."
_START_S = 120.0  # a process that has just begun imports what it needs
_OUTSIDE = re.compile(r"(^|[/\\])\.\.?([/\\]|$)|^[/\\~]|^[A-Za-z]:|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Refusal:
    """A file or record that was not stored; record and field are "" where the reason is not about one."""

    file: str
    reason: str
    record: str = ""
    field: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    source: Source
    rows: tuple[Row, ...] = ()
    refusals: tuple[Refusal, ...] = ()


Read = Callable[[Source], Outcome]


def read_source(source: Source) -> Outcome:
    """Read a file and make its records ready to be stored; what cannot be is refused with the reason."""
    try:
        records = read_ecg(source.path, source.stated())
    except EcgFileError as error:
        return _refused(source, error.reason, error.record or "", error.field or "")
    except (ImportError, OSError, ValueError) as error:
        return _refused(source, str(error))
    except MemoryError:
        return _refused(source, _TOO_LARGE)
    rows, refusals = [], []
    for number, record in enumerate(records):
        try:
            told = source.override(record)
            _check(told)
            rows.append(to_row(told, number=number, source=source.name))
        except ValueError as error:
            refusals.append(Refusal(source.name, str(error), record.id))
    if not records:
        refusals.append(Refusal(source.name, "got a file without an ECG, expected at least one; leave it out."))
    return Outcome(source, tuple(rows), tuple(refusals))


def _refused(source: Source, reason: str, record: str = "", part: str = "") -> Outcome:
    return Outcome(source, (), (Refusal(source.name, reason, record, part),))


def _check(record: EcgRecord) -> None:
    """Raise ValueError for a record that no use can be made of, or whose id would lead out of a folder."""
    if not record.usable.any():
        what = ", ".join(f"{record.status.count(s)} {s}" for s in ("flat", "missing") if s in record.status)
        raise ValueError(f"got no lead with a signal ({what}), expected at least one; leave it out.")
    if _OUTSIDE.search(record.id):
        raise ValueError(
            f"id: got {record.id!r}, expected a name without control characters that stays in its folder: no ., .., / "
            "at its start or drive; correct it, or give another in a list with the column id."
        )


class Reader:
    """A process that reads files. `busy` is the file it has, `deadline` when it must be ready.

    limit_s    seconds that a file may take, once the process has started
    read       what it does with a file
    memory_gb  that it may take; a file that needs more is refused
    """

    def __init__(self, limit_s: float, read: Read = read_source, *, memory_gb: float = MEMORY_GB) -> None:
        self._limit_s, self._read, self._memory_gb = limit_s, read, memory_gb
        self.busy: Source | None = None
        self.deadline = float("inf")
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, inner = context.Pipe()
        self._process = context.Process(target=_serve, args=(inner, self._read, self._memory_gb), daemon=True)
        with single_threaded(), uninterrupted():
            self._process.start()
        inner.close()  # else the end of the process would not be seen
        self._started = False

    def give(self, source: Source) -> None:
        """Send it a file; `outcome` gets what became of it."""
        self.busy = source
        self.deadline = time.monotonic() + (self._limit_s if self._started else _START_S)
        with contextlib.suppress(OSError):  # it died before: outcome says so
            self.connection.send(source)

    def outcome(self) -> Outcome | None:
        """What became of the file, once the connection is ready or the deadline is over; starts anew where it must.

        None where the process has only now started, and has its time before it.
        """
        source = self.busy
        assert source is not None
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
                if outcome is None:
                    self._started, self.deadline = True, time.monotonic() + self._limit_s
                    return None
                self.busy, self.deadline = None, float("inf")
                return outcome
            limit = self._limit_s if self._started else _START_S
            reason = f"got no answer within {limit:g} s, expected its records by then; see --limit_s."
        except (EOFError, OSError):
            self._process.join(5)
            reason = f"the reader process died{_cause(self._process.exitcode)}; the file may be damaged or too large."
        self.busy, self.deadline = None, float("inf")
        self.close()
        self._start()
        return _refused(source, reason)

    def read(self, source: Source) -> Outcome:
        """Read one file and wait for it."""
        self.give(source)
        outcome = None
        while outcome is None:
            self.connection.poll(max(0.0, self.deadline - time.monotonic()))
            outcome = self.outcome()
        return outcome

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _cause(status: int | None) -> str:
    if status is None or status >= 0:
        return f" with exit status {status}"
    names = {number.value: number.name for number in signal.Signals}
    return f" by {names.get(-status, f'signal {-status}')}"


def read_all(
    files: Sequence[Source],
    *,
    processes: int,
    limit_s: float,
    memory_gb: float = MEMORY_GB,
    read: Read = read_source,
) -> Iterator[Outcome]:
    """Read files in so many processes; outcomes come as they are ready.

    limit_s    seconds that a file may take
    memory_gb  that each process may take
    read       what is done with a file, in the process
    """
    waiting = iter(files)
    readers = [Reader(limit_s, read, memory_gb=memory_gb) for _ in range(min(processes, len(files)))]
    try:
        for reader, source in zip(readers, waiting, strict=False):
            reader.give(source)
        while busy := [reader for reader in readers if reader.busy]:
            wait([reader.connection for reader in busy], max(0.0, min(r.deadline for r in busy) - time.monotonic()))
            now = time.monotonic()
            for reader in busy:
                if reader.connection.poll() or reader.deadline <= now:
                    outcome = reader.outcome()
                    if outcome is None:
                        continue
                    if (more := next(waiting, None)) is not None:  # it reads on while this one is written
                        reader.give(more)
                    yield outcome
    finally:
        for reader in readers:
            reader.close()


def _serve(connection: Connection, read: Read, memory_gb: float) -> None:
    """Read what comes until the other end is gone."""
    _bound_memory(memory_gb)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # what matters of them is in the records' notes
    logging.disable(logging.WARNING)
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(None)  # it has started
        while True:
            source: Any = connection.recv()
            try:
                outcome = read(source)
            except MemoryError:
                outcome = _refused(source, _TOO_LARGE)
            except Exception as error:  # one bad file must not end the run
                outcome = _refused(source, f"the reader failed ({type(error).__name__}: {error}); please report it.")
            connection.send(outcome)


def _bound_memory(memory_gb: float) -> None:
    """What this process may allocate, libraries and mapped files aside; systems without such a limit have none."""
    most = round(memory_gb * 1e9)
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
