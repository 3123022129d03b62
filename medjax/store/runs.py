"""Run folders: the record of a run, made so that a killed run goes on where it was.

  runs/eval/<name>/run.json        what decides the results (identity); the same identity resumes, another starts anew
                   config.toml     every setting; the command with this file alone repeats the run
                   lock            held by the process that writes here; the operating system frees it when that ends
                   journal/*.jsonl finished work, one JSON line each, appended as it is done; line 1 names the identity
                   results.json, samples.jsonl, report.html, figure.svg    written whole at the end

A folder that holds another run is never overwritten: it is moved aside and the reason is told.
A run of several processes has a run folder for each of them in shards/ (medjax.eval.shards).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart there
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 120  # bytes; file systems allow 255, and endings are added
_TOLD = 4  # differences of two runs that a message names


class FolderInUseError(ValueError):
    """Another process is writing the run folder."""


class RunFolder:
    """An opened run folder, locked until it is closed or the process ends; a context manager.

    path     of the folder
    resumed  whether earlier work with the same identity was found
    note     one sentence on what was found, for the user; "" for a fresh folder
    """

    def __init__(self, path: Path, identity: str, resumed: bool, note: str, lock: IO[str] | None):
        self.path = path
        self.resumed = resumed
        self.note = note
        self._identity = identity
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        replace: bool = True,
        told: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]] = lambda old, new: [],
    ) -> "RunFolder":
        """Open or make a run folder for a run with this identity (plain JSON values).

        replace  another run that is found there is moved aside; False: refused, which says what differs
        told     says in words in what the identity found there and the run's own differ; [] leaves it to `changes`

        Raises ValueError when the folder exists and is not a run folder; FolderInUseError, which is one, when another
        process is writing there.
        """
        path = named(path)
        _check_own(path)
        lock = _lock(path)
        try:
            note, resumed = "", False
            record = path / "run.json"
            if record.is_file():
                try:
                    found = json.loads(record.read_text("utf-8"))
                except (json.JSONDecodeError, UnicodeDecodeError):
                    found = {}
                own = json.loads(json.dumps(identity))
                if changed := changes(found, own):
                    words = (told(found, own) if isinstance(found, dict) else []) or changed
                    shown = "; ".join([*words[:_TOLD], *([f"{len(words) - _TOLD} more"] if words[_TOLD:] else [])])
                if changed and not replace:
                    raise ValueError(
                        f"{path}: got another run ({shown}), expected the one that was begun there; "
                        "give the same settings, model and data on the same kind of devices, or choose another --out."
                    )
                if changed:
                    aside = free_name(path)
                    path.rename(aside)
                    moved, lock = lock, _lock(path)  # a lock goes with its folder
                    _close(moved)
                    note = f"{path} held another run ({shown}); it was moved to {aside}, "
                    note += "this one starts anew"
                else:
                    resumed, note = True, f"{path} holds this run already; going on from there"
            text = json.dumps(identity, sort_keys=True, allow_nan=False)
            run = cls(path, hashlib.sha256(text.encode()).hexdigest(), resumed, note, lock)
            if not resumed:  # before the journal, so that finished work never lies in a folder without an identity
                run.write_json("run.json", identity)
            (path / "journal").mkdir(exist_ok=True)
        except BaseException:
            _close(lock)
            raise
        return run

    @staticmethod
    def check(path: str | Path) -> None:
        """Raise the ValueError that `open` would raise, without making or changing anything."""
        path = named(path)
        _check_own(path)
        if (path / "lock").is_file():
            _close(_lock(path))

    def close(self) -> None:
        """Let other processes write here."""
        _close(self._lock)
        self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file whole: readers see the old one or the new one. Raises ValueError for NaN and infinity."""
        return self.write_text(name, _json(value, self.path / name, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file whole."""
        target = self.path / name
        temporary = target.with_name(target.name + ".partial")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, target)
        return target

    def journal(self, name: str) -> "Journal":
        return Journal(self.path / "journal" / f"{shortened(name)}.jsonl", self._identity)


class Journal:
    """Finished work, one JSON object a line. A last line cut short by a kill is dropped.

    identity  sha256 of the run's identity: the first line holds it
    """

    def __init__(self, path: Path, identity: str):
        self.path = path
        self.identity = identity

    def read(self, fields: Sequence[str] = ("i",)) -> Iterator[dict[str, Any]]:
        """The whole lines, in the order they were written; a torn tail is cut off the file.

        fields  that every line must have
        Raises ValueError naming file and line for the journal of another run and for a damaged line.
        """
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.path.write_bytes(whole)
        # not splitlines(): generated text may hold U+2028 and other line ends, which JSON lets stand
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            entry = self._entry(number, line, fields if number > 1 else ("identity",))
            if number > 1:
                yield entry
            elif entry["identity"] != self.identity:
                raise self._error(
                    1, f"got work of another run ({str(entry['identity'])[:12]}), expected {self.identity[:12]}"
                )

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Add lines and hand them to the operating system at once. Raises ValueError for NaN and infinity."""
        with self.path.open("a", encoding="utf-8") as file:
            lines = [{"identity": self.identity}, *entries] if file.tell() == 0 else entries
            file.write("".join(_json(line, self.path) + "\n" for line in lines))

    def _entry(self, number: int, line: bytes, fields: Sequence[str]) -> dict[str, Any]:
        try:
            entry = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self._error(number, f"byte {error.start} is not UTF-8") from None
        except json.JSONDecodeError as error:
            raise self._error(number, f"not JSON ({error.msg})") from None
        missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise self._error(number, f"got no {', '.join(map(repr, missing))}, expected an object with it")
        return entry

    def _error(self, number: int, what: str) -> ValueError:
        return ValueError(f"{self.path}, line {number}: {what}; delete the file to redo its work.")


def named(path: str | Path) -> Path:
    """The path with a last part that is a name, which "." and ".." are not; ~ is the home folder."""
    path = Path(path).expanduser()
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def shortened(name: str) -> str:
    """The name, or its beginning and a digest of the whole where a file system might find it too long."""
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    start = name.encode()[: _LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def changes(old: Any, new: Any, at: str = "") -> list[str]:
    """Which values differ between two JSON trees, as sentences "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += changes(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    if old == new:
        return []
    return [f"{at}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = ", ".join(value)
    text = "absent" if value is None else str(value)
    longest = 80 if " " in text or "/" in text else 24  # a digest tells no more in full, names and paths do
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _json(value: Any, path: Path, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected finite numbers: the checkpoint may be broken.") from error


def _check_own(path: Path) -> None:
    """Refuse a path that is taken by something else than a run, lies below a file, or where nothing can be written."""
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"{path}: got a place in {nearest}, where this process may not write, expected a folder where it may; "
            "choose another --out."
        )
    if (path / "run.json").is_file():
        return
    if path.is_dir():
        if {file.name for file in path.iterdir()} - {"lock", "run.json.partial", "shards"}:
            raise ValueError(
                f"{path}: got a folder with other files, expected a run folder or none; choose another --out."
            )
        return
    if not nearest.is_dir():
        raise ValueError(f"{nearest}: got a file, expected a run folder or none; choose another --out.")


def _lock(path: Path) -> IO[str] | None:
    """Make the folder and take its lock; None where there are no locks."""
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a place where the system lets nobody write
            raise ValueError(
                f"{path}: cannot be made ({error.strerror}), expected a place for a run folder; choose another --out."
            ) from None
        if fcntl is None:
            return None
        file = (path / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path / "lock")):
                return file
        except (BlockingIOError, PermissionError):
            file.close()
            raise FolderInUseError(
                f"{path}: another process is writing this run; wait for its end, or choose another --out."
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            file.close()
            return None
        file.close()  # the folder was moved aside in between


def _close(lock: IO[str] | None) -> None:
    if lock:
        lock.close()


def free_name(path: Path) -> Path:
    """The first of PATH.old1, PATH.old2, … that is not taken: where a former result is moved to."""
    number = 1
    while (candidate := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return candidate
