"""The folder of a whole model in medjax's own form, whatever the model: one JSON record beside its arrays.

  FOLDER/medjax.json   format, kind, shape and dtype of every array, and what that kind of model needs besides
         weights/…     arrays (Orbax; store.arrays)
         …             further files, copied

The folder is written under another name and renamed at the end: whole or absent. store.native keeps decoders in it,
store.encoders what reads ECGs. Nothing here needs JAX before arrays are touched.
"""

import json
import shutil
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from medjax.store.json_file import read_json

FORMAT = 1
RECORD = "medjax.json"
WEIGHTS = "weights"


def new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that is not there yet. Raises ValueError when it is."""
    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        raise ValueError(f"{folder}: is there already, expected a new folder; choose another, or delete it first.")
    return folder


def write_model(
    folder: Path,
    kind: str,
    fields: Mapping[str, Any],
    leaves: Mapping[str, Any],
    files: Iterable[Path] = (),
    *,
    by_first_axis: Container[str] = (),
) -> Path:
    """Write a model; every process of a run calls it, and all see the same file system.

    folder         of new_folder
    fields         plain JSON values that stand in the record beside format and kind
    leaves         name -> jax or NumPy array
    files          copied beside the weights under their own names
    by_first_axis  names of leaves that are read along their first axis
    Raises ValueError for fields that are not JSON, OSError when the disk is full. Nothing is left then.
    """
    import orbax.checkpoint as ocp

    from medjax.store import arrays

    record = {"format": FORMAT, "kind": kind, **fields}
    try:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / RECORD}: {error}; expected plain JSON values with finite numbers; correct what is stored "
            "beside the weights."
        ) from None
    temporary = folder.with_name(f".{folder.name}.partial")
    if arrays.is_primary():
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        with ocp.Checkpointer(arrays.handler()) as writer:  # waits for all processes before and after
            writer.save(temporary / WEIGHTS, args=arrays.save_arguments(leaves, by_first_axis=by_first_axis))
        if arrays.is_primary():
            for file in files:
                shutil.copyfile(file, temporary / file.name)
            (temporary / RECORD).write_text(text, "utf-8")
            temporary.rename(folder)
    except Exception as error:
        if arrays.is_primary():
            shutil.rmtree(temporary, ignore_errors=True)
        why = arrays.disk_trouble(error) or arrays.reason(error)
        size = sum(leaf.nbytes for leaf in leaves.values()) / 2**20
        raise OSError(
            f"{folder}: the model could not be written: {why}; it takes {size:.1f} MiB: see that the disk has room and "
            "can be written, then save again."
        ) from error
    _wait_for_all(f"{kind} {folder.name}")
    return folder


def read_record(folder: Path, kinds: tuple[str, ...], fields: Iterable[str]) -> dict[str, Any]:
    """The record of a model of one of these kinds, with these fields. Raises ValueError naming the file otherwise."""
    record, where = read_json(folder / RECORD), folder / RECORD
    if record.get("format") != FORMAT or record.get("kind") not in kinds:
        raise ValueError(
            f"{where}: got format {record.get('format')!r} of kind {record.get('kind')!r}, expected format {FORMAT} of "
            f"kind {' or '.join(map(repr, kinds))}; use the medjax version that wrote it, or convert the model again."
        )
    missing = [key for key in fields if key not in record]
    if missing:
        raise ValueError(f"{where}: no {', '.join(missing)}, expected a whole record; copy the folder again.")
    return record


def model_files(folder: Path) -> tuple[Path, ...]:
    """Everything whose bytes decide the model's numbers."""
    weights = folder / WEIGHTS
    return (folder / RECORD, weights / "manifest.ocdbt", *sorted(weights.glob("**/d/*")))


def read_params(
    folder: Path, wanted: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The arrays as nested dicts; one array after the other, and of each only this process's shards.

    wanted    leaf name -> jax.ShapeDtypeStruct with a sharding
    progress  called with (arrays done, arrays in all)
    Raises ValueError naming the folder when its files are damaged.
    """
    from medjax.store import arrays

    params: dict[str, Any] = {}
    for done, (name, leaf) in enumerate(wanted.items()):
        node = params
        *parents, last = name.split("/")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = arrays.read_leaves(folder / WEIGHTS, {name: leaf})[name]
        if progress:
            progress(done + 1, len(wanted))
    return params


def _wait_for_all(name: str) -> None:
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
