"""One run as several processes: which part is whose, what each leaves, and whether all parts are there.

  RUN/run.json, config.toml   of the whole run, made by the first process; another identity is refused
      shards/1-of-4/          a run folder: its identity is the whole run's, its journals number the run's asks
                    done.json what the process took, written when its part is complete
      journal/, results.json  made of all shards by the last process that ends, or by `merge`

No process talks to another: each holds the model on its own devices, and one that was lost is started again alone.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medjax.store.runs import FolderInUseError, Journal, RunFolder, changes, named

T = TypeVar("T")

# variables with a process's number, from 0, and with their count
_LAUNCHERS = (
    ("MEDJAX_PROCESS_ID", "MEDJAX_PROCESSES"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
_PATIENCE = 60.0  # seconds that a process waits for one that opens the same folder


@dataclass(frozen=True)
class Shard:
    """Part `number`, from 1, of `count`; every count-th item, or batch of packed rows, is its own."""

    number: int = 1
    count: int = 1

    def has(self, index: int) -> bool:
        """Whether the item or the batch of this number, from 0, belongs to this part."""
        return index % self.count == self.number - 1

    def folder(self, run: Path) -> Path:
        return run / "shards" / f"{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def read(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """From "2/4", or with "auto" from what the launcher tells its processes.

        Raises ValueError for anything else, and where "auto" finds no launcher.
        """
        if text == "auto":
            return _launched(environment)
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found:
            raise ValueError(
                f"shard: got {text!r}, expected this process's number, from 1, and how many there are; write 1/4."
            )
        number, count = map(int, found.groups())
        if not 1 <= number <= count:
            raise ValueError(
                f"shard: got {text}, expected one of "
                + (f"1/{count} to {count}/{count}: they count from 1." if count else "1 or more processes; write 1/4.")
            )
        return cls(number, count)


WHOLE = Shard()


def check_alone(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a process without a shard where the environment says that it is one of several."""
    if environment.get("MEDJAX_PROCESSES", "1") not in ("", "1"):
        raise ValueError(
            f"shard: got none in one of {environment['MEDJAX_PROCESSES']} processes (MEDJAX_PROCESSES), expected one: "
            "an evaluation uses no devices of other processes; add --shard auto, with --mesh within each machine."
        )


def join(
    run: Path,
    shard: Shard,
    identity: Mapping[str, Any],
    config: str,
    say: Callable[[str], None],
    told: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]],
) -> RunFolder:
    """Open this process's folder, and make the whole run's where it is the first.

    config  content of config.toml of the whole run
    say     called with what was found in either folder
    told    see RunFolder.open
    Raises ValueError when the folder holds another run that is not finished, or parts of another count, or this part is
    being written.
    """
    finished = (run / "results.json").is_file()

    def make() -> None:
        with RunFolder.open(run, identity, replace=finished, told=told) as whole:
            _check_count(run, shard)
            shard.folder(run).mkdir(parents=True, exist_ok=True)  # a process of another count sees it from here on
            whole.write_text("config.toml", config)
            if not whole.resumed and whole.note:
                say(whole.note)

    _patient(make)
    folder = RunFolder.open(shard.folder(run), identity, replace=False)
    if folder.note:
        say(folder.note)
    return folder


def check_free(run: Path, shard: Shard) -> None:
    """Raise what `join` would raise without knowing the model.

    That is for a folder of other files, parts of another count that wait for each other, and a part being written.
    """
    _patient(lambda: RunFolder.check(run))
    if not (run / "results.json").is_file():  # a finished run may be moved aside
        _check_count(run, shard)
    RunFolder.check(shard.folder(run))


def check_whole(run: Path) -> None:
    """Raise what RunFolder.check raises, and where parts of a run wait for the others."""
    if (run / "shards").is_dir() and not (run / "results.json").is_file():
        raise ValueError(
            f"{run}: got a run in shards that is not finished, and no shard to make; add --shard, put the shards "
            f"together (python -m medjax.eval merge {run}), or choose another --out."
        )
    RunFolder.check(run)


def finish(folder: RunFolder, shard: Shard, took: Mapping[str, Any]) -> None:
    """Write done.json unless it is there: a part that is run again has nothing to tell."""
    if not (folder.path / "done.json").is_file():
        folder.write_json("done.json", {"shard": str(shard), "host": platform.node(), **took})


def unfinished(run: Path, count: int) -> list[str]:
    """Those of the parts, such as "3/4", that are missing or not complete."""
    parts = [Shard(number, count) for number in range(1, count + 1)]
    return [str(part) for part in parts if not (part.folder(run) / "done.json").is_file()]


def how_to_go_on(command: str, missing: Sequence[str]) -> str:
    """Lines with the commands that make the missing parts; command makes the whole run in one process."""
    return "\n".join(f"  {command} --shard {part}" for part in missing)


def complete_count(run: Path, command: str) -> int:
    """How many parts a run has, all of which are complete and of the same identity.

    command  that makes the whole run, for the message
    Raises ValueError that names the parts which are missing, or differ, and how to make them; FileNotFoundError where
    there are none.
    """
    folders, counts = _parts(run), _counts(run)
    if not counts:
        raise FileNotFoundError(f"{run}: found no shards/1-of-N, expected a run made with --shard; name its folder.")
    if len(counts) > 1:
        raise ValueError(
            f"{run}/shards: got parts of runs of {' and of '.join(map(str, counts))} processes, expected one count; "
            f"delete those that are not wanted ({' or '.join(f'*-of-{count}' for count in counts)})."
        )
    (count,) = counts
    if missing := unfinished(run, count):
        raise ValueError(
            f"{run}: {len(missing)} of {count} shards {'is' if len(missing) == 1 else 'are'} missing or not complete; "
            f"run:\n{how_to_go_on(command, missing)}"
        )
    whole = _json(run / "run.json")
    for path in folders:
        if differs := changes(whole, _json(path / "run.json")):
            raise ValueError(
                f"{path}: got a shard of another run ({'; '.join(differs[:3])}), expected the run of {run}/run.json; "
                "delete the folder and run this shard again with the settings of the others."
            )
    return count


def gather(run: Path, count: int, journal: Journal) -> None:
    """Make an evaluation's journal of those of all parts, written whole: readers see the old one or the new one.

    Raises ValueError naming file and line for a damaged one.
    """
    entries: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        path = Shard(number, count).folder(run) / "journal" / journal.path.name
        entries += Journal(path, journal.identity).read()
    if not entries:
        journal.path.unlink(missing_ok=True)
        return
    # where a file system has no locks, another process may do the same
    own = Journal(journal.path.with_name(f"{journal.path.name}.{platform.node()}-{os.getpid()}"), journal.identity)
    own.path.unlink(missing_ok=True)
    own.append(entries)
    own.path.replace(journal.path)


def record(run: Path, count: int) -> list[dict[str, Any]]:
    """What done.json of every part says, in order."""
    return [_json(Shard(number, count).folder(run) / "done.json") for number in range(1, count + 1)]


def settings_file(run: str | Path) -> Path:
    """config.toml of a run in shards. Raises FileNotFoundError where there is none."""
    path = named(run) / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the folder of a run made with --shard; name it.")
    return path


def _parts(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("shards/*-of-*") if path.is_dir())


def _counts(run: Path) -> list[int]:
    """The counts of processes that a run's folder holds parts of."""
    return sorted({int(count) for path in _parts(run) if (count := path.name.rpartition("-of-")[2]).isdigit()})


def _check_count(run: Path, shard: Shard) -> None:
    """Refuse a part of another count than those that are there: the two would not add up to one run."""
    if others := [count for count in _counts(run) if count != shard.count]:
        known = others[0]
        there = [path.name for path in _parts(run)]
        shown = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise ValueError(
            f"{run}: got shard {shard}, one of {shard.count} processes, expected one of {known}, since shards/ holds "
            f"{shown}; go on with --shard 1/{known} to {known}/{known}, delete {run}/shards to begin anew with "
            f"{shard.count}, or choose another --out."
        )


def _launched(environment: Mapping[str, str]) -> Shard:
    if all(environment.get(name, "").isdigit() for name in _ARRAY):
        number, first, last, count = (int(environment[name]) for name in _ARRAY)
        if last - first + 1 != count:
            raise ValueError(
                f"shard: got an array of {count} tasks from {first} to {last}, expected numbers without gaps; submit "
                "it with --array 1-4, or give each that is sent again its shard (SHARD=3/4)."
            )
        return Shard(number - first + 1, count)
    for place, size in _LAUNCHERS:
        number_text, count_text = environment.get(place, ""), environment.get(size, "")
        if number_text.isdigit() and count_text.isdigit() and int(number_text) < int(count_text):
            return Shard(int(number_text) + 1, int(count_text))
    names = ", ".join([_ARRAY[0], *(place for place, _ in _LAUNCHERS)])
    raise ValueError(
        f"shard: got auto, but no launcher says which process this is ({names}), expected srun, a job array or mpirun; "
        "write the number and the count, such as 1/4."
    )


def _patient(work: Callable[[], T]) -> T:
    """Do it, once the folder's other process, which holds it for an instant, is through."""
    limit = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except FolderInUseError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run this shard again.") from None
