"""Run folders: the record of a run, made so that a killed run goes on where it was.

  runs/eval/<name>/run.json        what decides the results (identity); the same identity resumes, another starts anew
                   journal/*.jsonl finished work, one JSON line each, appended as it is done
                   results.json …  written whole at the end

A folder that holds another run is never overwritten: it is moved aside and the reason is told.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RunFolder:
    """An opened run folder.

    path     of the folder
    resumed  whether earlier work with the same identity was found
    note     one sentence on what was found, for the user; "" for a fresh folder
    """

    def __init__(self, path: Path, resumed: bool, note: str):
        self.path = path
        self.resumed = resumed
        self.note = note

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any]) -> "RunFolder":
        """Open or make a run folder for a run with this identity (plain JSON values).

        Raises ValueError when the folder exists and is not a run folder.
        """
        path = Path(path)
        record = path / "run.json"
        note, resumed = "", False
        if record.is_file():
            try:
                found = json.loads(record.read_text("utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                found = {}
            changed = changes(found, json.loads(json.dumps(identity)))
            if changed:
                aside = _free_name(path)
                path.rename(aside)
                note = (
                    f"{path} held another run ({'; '.join(changed[:3])}); it was moved to {aside}, this one starts anew"
                )
            else:
                resumed, note = True, f"{path} holds this run already; going on from there"
        elif path.exists() and not path.is_dir():
            raise ValueError(f"{path}: got a file, expected a run folder or none; choose another --out.")
        elif path.is_dir() and {file.name for file in path.iterdir()} - {"run.json.partial"}:
            raise ValueError(
                f"{path}: got a folder with other files, expected a run folder or none; choose another --out."
            )
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, resumed, note)
        if not resumed:  # before the journal, so that finished work never lies in a folder without an identity
            run.write_json("run.json", identity)
        (path / "journal").mkdir(exist_ok=True)
        return run

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file whole: readers see the old one or the new one."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file whole."""
        target = self.path / name
        temporary = target.with_name(target.name + ".partial")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, target)
        return target

    def journal(self, name: str) -> "Journal":
        return Journal(self.path / "journal" / f"{name}.jsonl")


class Journal:
    """Finished work, one JSON object a line. A last line cut short by a kill is dropped."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """The whole lines, in the order they were written; a torn tail is cut off the file."""
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.path.write_bytes(whole)
        # not splitlines(): generated text may hold U+2028 and other line ends, which JSON lets stand
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{self.path}, line {number}: not JSON ({error.msg}); delete the file to redo it."
                ) from None

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Add lines and hand them to the operating system at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


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
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else text[:21] + "..."


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return candidate
