"""Training checkpoints: written in the background, whole or not at all, read into any mesh.

  checkpoints/120/state/…              arrays (Orbax; store.arrays)
  checkpoints/120/record/record.json   step, metric, identity, meta, and shape and dtype of every leaf
  checkpoints/140.orbax-checkpoint-tmp a save under way, or what a killed one left: never listed, removed at the start

Orbax writes into the temporary folder and renames it at the end, and a checkpoint is renamed before it is deleted, so a
folder whose name is a number is complete at any moment. `identity` says what the arrays belong to (digests of base
weights and tokenizer, adapter settings); a checkpoint of something else is refused. Several processes share one folder:
each writes its own shards, Orbax's barriers hold them together, and process 0 deletes.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from medjax.store import arrays

FORMAT = 1
_DELETED = ".deleted"
_PARTIAL = re.compile(rf"\d+(\.orbax-checkpoint-tmp.*|{re.escape(_DELETED)})")
_LONGEST_WAIT = 1800  # seconds that one save may take, on the slowest process


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save at its end.

    folder        on a file system that every process sees; made by the first save
    keep_last     how many of the newest are kept, 1 or more
    keep_best     how many of the lowest metric are kept besides, 0 or more; of equal ones the earlier
    identity      what the arrays belong to, plain JSON values; compared when restoring
    asynchronous  save returns when the arrays are copied to the host, and the files are written in the background
    read_only     for readers beside a training that goes on: nothing is cleaned up, save is refused
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int,
        keep_best: int,
        identity: Mapping[str, Any],
        asynchronous: bool = True,
        read_only: bool = False,
    ):
        if "://" in str(folder):
            raise ValueError(
                f"checkpoints: got {folder}, expected a path of a file system, where a folder can be renamed; mount "
                "the bucket and name the mounted folder."
            )
        if keep_last < 1:
            raise ValueError(f"keep_last: got {keep_last}, expected 1 or more; a run cannot go on without its newest.")
        if keep_best < 0:
            raise ValueError(f"keep_best: got {keep_best}, expected 0 or more; 0 keeps by age only.")
        self.folder = Path(folder).expanduser().absolute()
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.identity = json.loads(_json(dict(identity), "identity"))
        self.asynchronous = asynchronous
        self.read_only = read_only
        self._writer: Any = None
        self._pending: int | None = None
        self._bytes = 0  # of the pending save
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: got a file, expected a folder or none; choose another folder.")
        if not read_only:
            self._clean()

    def save(self, step: int, tree: Any, meta: Mapping[str, Any], metric: float | None = None) -> None:
        """Save a tree of arrays; every process calls it with the same step.

        step    0 or more, without a checkpoint so far
        tree    nested dicts, tuples, named tuples of jax or NumPy arrays; may be donated once this returns
        meta    plain JSON values: data position, loss, versions
        metric  the lower the better, for keep_best; None, NaN or infinite: never among the best
        Raises OSError when this save could not be written, or (then this one is not begun) the one before, which went
        on in the background. What failed is removed, the checkpoints before it are intact, and the next save may
        succeed. Raises ValueError for arguments that cannot be saved.
        """
        if self.read_only:
            raise ValueError(f"{self.folder}: opened read_only, which saves nothing; open it without, and save then.")
        self.wait()
        if step < 0 or (self.folder / str(step)).exists():
            raise ValueError(
                f"{self.folder / str(step)}: got a step that is {'negative' if step < 0 else 'there already'}, "
                "expected a new one; save under another step, or delete the folder."
            )
        leaves = arrays.named_leaves(tree)
        record = {
            "format": FORMAT,
            "step": int(step),
            "metric": float(metric) if metric is not None and math.isfinite(metric) else None,
            "identity": self.identity,
            "meta": dict(meta),
            "leaves": arrays.described(leaves),
        }
        _json(record, f"step {step}")
        import orbax.checkpoint as ocp

        self._clean()
        self._pending = int(step)
        self._bytes = sum(leaf.nbytes for leaf in leaves.values())
        try:
            self._open_writer().save(
                self.folder / str(step),
                args=ocp.args.Composite(state=arrays.save_arguments(leaves), record=ocp.args.JsonSave(record)),
            )
        except Exception as error:
            raise self._failure(error) from error
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in the background, then delete what need not be kept. Raises OSError when it failed."""
        if self._pending is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._pending = None
        if arrays.is_primary():
            self._prune()

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in rising order."""
        return sorted(self._records())

    def latest(self) -> int | None:
        """The newest step with a complete checkpoint."""
        return max(self._records(), default=None)

    def best(self) -> int | None:
        """The step of the lowest metric; None without any."""
        return next(iter(_ranked(self._records())), None)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved as meta with this step. Raises FileNotFoundError when there is none."""
        return self._record(step)["meta"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Read a checkpoint into the current mesh, whatever mesh saved it.

        abstract  the tree that was saved, with jax.ShapeDtypeStruct leaves whose shardings say where to put them
                  (arrays do as well)
        returns   the same tree of jax.Arrays, bit for bit what was saved
        Raises ValueError for another identity, naming the key; for a tree that differs, naming the leaf; and for
        damaged files. Raises FileNotFoundError when there is no such step.
        """
        self.wait()
        record, path = self._record(step), self.folder / str(step)
        self._check_identity(record["identity"], path)
        wanted = arrays.named_leaves(abstract)
        advice = "use the model, optimiser and adapter settings that saved it, or start anew in another folder"
        arrays.check_leaves(record["leaves"], arrays.described(wanted), str(path), advice)
        found = arrays.read_leaves(path / "state", wanted)
        return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])

    def close(self) -> None:
        """Wait for the last save and free the writer. Raises OSError when that save failed."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # the first error is the one to be told

    def _open_writer(self) -> Any:
        import orbax.checkpoint as ocp

        if self._writer is None:
            self._writer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(state=arrays.handler(), record=ocp.JsonCheckpointHandler("record.json")),
                # made in the background, a folder that cannot be made is noticed after minutes only
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=_LONGEST_WAIT, create_directories_asynchronously=False
                ),
            )
        return self._writer

    def _records(self) -> dict[int, dict[str, Any]]:
        """Step -> record of every complete checkpoint."""
        if not self.folder.is_dir():
            return {}
        found = {}
        for entry in self.folder.iterdir():
            if entry.name.isascii() and entry.name.isdecimal() and str(int(entry.name)) == entry.name:
                record = _read_record(entry)
                if record is not None:
                    found[int(entry.name)] = record
        return found

    def _record(self, step: int) -> dict[str, Any]:
        records = self._records()
        if step not in records:
            there = ", ".join(map(str, sorted(records))) or "none"
            raise FileNotFoundError(
                f"{self.folder / str(step)}: no complete checkpoint of step {step}, there are: {there}; name one of "
                "them, or start anew."
            )
        return records[step]

    def _check_identity(self, found: Mapping[str, Any], path: Path) -> None:
        differing = _differences(found, self.identity, "")
        if differing:
            key, got, expected = differing[0]
            others = f" (and {', '.join(other for other, _, _ in differing[1:])})" if differing[1:] else ""
            raise ValueError(
                f"{path}: made with another {key}{others}: got {key}={got}, expected {expected}; go on with the {key} "
                "that it was made with, or start anew in another folder."
            )

    def _prune(self) -> None:
        records = self._records()
        kept = {*sorted(records)[-self.keep_last :], *_ranked(records)[: self.keep_best]}
        for step in sorted(records.keys() - kept):
            _delete(self.folder / str(step))

    def _clean(self) -> None:
        """Delete what saves and deletions left that were killed or failed."""
        if arrays.is_primary() and self.folder.is_dir():
            for entry in self.folder.iterdir():
                if _PARTIAL.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)

    def _failure(self, error: Exception) -> OSError:
        """The error of the pending save, whose partial files are deleted."""
        step, self._pending = self._pending, None
        self._clean()
        good = self.latest()
        last = "no earlier checkpoint is there" if good is None else f"the last good checkpoint is step {good}"
        where = self.folder / str(step)
        if trouble := arrays.disk_trouble(error):
            free = shutil.disk_usage(next(place for place in where.parents if place.is_dir())).free
            return OSError(
                f"{where}: the checkpoint of step {step} could not be written: {trouble}; it takes "
                f"{self._bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free without it; {last}: free space, or "
                "keep fewer checkpoints, and save again."
            )
        return OSError(
            f"{where}: the checkpoint of step {step} could not be written ({arrays.reason(error)}); {last}: see that "
            "every process can write into the folder, and save again."
        )


def _ranked(records: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The steps with a metric, the best first."""
    return sorted(
        (step for step in records if records[step]["metric"] is not None),
        key=lambda step: (records[step]["metric"], step),
    )


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of a checkpoint; None where there is none: another folder, or one deleted meanwhile."""
    try:
        record = json.loads((path / "record" / "record.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _delete(path: Path) -> None:
    """Delete a checkpoint so that no half of it is ever listed."""
    aside = path.with_name(path.name + _DELETED)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _differences(found: Any, expected: Any, at: str) -> list[tuple[str, str, str]]:
    """(key, found, expected) for each value in which two JSON trees differ; nested keys are joined by dots."""
    if isinstance(found, dict) and isinstance(expected, dict):
        differing = []
        for key in sorted({*found, *expected}):
            differing += _differences(found.get(key), expected.get(key), f"{at}.{key}" if at else key)
        return differing
    return [] if found == expected else [(at, json.dumps(found), json.dumps(expected))]


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}: got a value that JSON cannot hold ({error}), expected plain finite values; convert it first."
        ) from None
