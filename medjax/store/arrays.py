"""Trees of arrays on disk: named leaves, their description in JSON, and the Orbax calls that write and read them.

A tree (nested dicts, named tuples, tuples) is written as one flat table from leaf name to array, so that what lies on
disk does not depend on the classes of an optimiser's state:

  {"lora": {"layers": {"mlp": {"up": {"a": …}}}}, "optimiser": (ScaleByAdamState(count=…, mu={"a": …}), EmptyState())}
  lora/layers/mlp/up/a      optimiser/0/count      optimiser/0/mu/a

Arrays are not compressed: weights barely shrink (8 %), and writing and reading is four times faster without. They are
cut into chunks of at most 64 MiB, so that another mesh reads what its shards need, not the whole array.
"""

import errno
import logging
import math
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CHUNK = 64 << 20  # bytes
_SHARED = 16 << 20  # bytes
_IN_FLIGHT = 4  # gigabytes
_SHOWN = 4  # differences told in one message
_QUOTED = 200  # characters of a foreign message
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the disk does not take files of this size",
}


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaf name -> leaf, in the order of jax.tree.leaves. Raises ValueError when two leaves have one name."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"tree: got two leaves named {name}, expected one; rename a key that contains a slash.")
        leaves[name] = leaf
    return leaves


def described(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaf name -> {"shape", "dtype"}, ready for JSON.

    leaves  arrays, or jax.ShapeDtypeStruct
    Raises ValueError for a leaf that would not come back bit for bit: Python numbers, 64 bits, typed keys.
    """
    found = {}
    for name, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise ValueError(
                f"{name}: got {type(leaf).__name__}, expected an array; make it jnp.asarray(value), or keep it in meta."
            )
        if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            raise ValueError(
                f"{name}: got a typed key ({dtype}), expected an array of numbers; store jax.random.key_data(key)."
            )
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{name}: got {dtype}, expected at most 32 bits, which is what JAX holds; convert it first, or keep "
                "counters in meta."
            )
        found[name] = {"shape": list(leaf.shape), "dtype": str(np.dtype(dtype))}
    return found


def check_leaves(found: Mapping[str, Any], expected: Mapping[str, Any], where: str, advice: str) -> None:
    """Compare two descriptions; ValueError names each leaf that differs, what was found and what was expected."""
    differences = [
        f"{name}: got {_text(found.get(name))}, expected {_text(expected.get(name))}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(f"{where}: {'; '.join(differences[:_SHOWN])}{more}; {advice}.")


def _text(leaf: Mapping[str, Any] | None) -> str:
    return f"{leaf['dtype']}{leaf['shape']}" if leaf else "no such leaf"


def handler(largest: int = 0) -> Any:
    """The Orbax handler of a flat table of arrays; largest: bytes of the largest array to read."""
    import orbax.checkpoint as ocp

    _quieten()
    kinds = ocp.type_handlers
    return ocp.PyTreeCheckpointHandler(
        use_compression=False,
        # what is read but not yet on its device takes host memory; one array must fit
        restore_concurrent_gb=max(_IN_FLIGHT, -(-largest // 10**9)),
        type_handler_registry=kinds.create_type_handler_registry(
            (np.ndarray, kinds.NumpyHandler()),
            # replicas share the writing of large arrays; for small ones it would compile a slice for every shape
            (jax.Array, kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED)),
        ),
    )


def save_arguments(leaves: Mapping[str, Any], *, by_first_axis: Container[str] = ()) -> Any:
    """What to write, for `handler`. NumPy leaves are copied: a save in the background must not see later changes.

    by_first_axis  names of leaves that are read along their first axis: no chunk spans two places of it
    """
    import orbax.checkpoint as ocp

    held = {name: leaf if isinstance(leaf, jax.Array) else np.array(leaf) for name, leaf in leaves.items()}
    how = {
        name: ocp.SaveArgs(chunk_byte_size=_CHUNK, shard_axes=(0,) if name in by_first_axis else ()) for name in held
    }
    return ocp.args.PyTreeSave(held, save_args=how)


def read_leaves(path: Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Read arrays straight into shardings: every process reads what its devices hold.

    wanted  leaf name -> jax.ShapeDtypeStruct with a sharding; a subset of what was written; another float dtype is
            rounded while reading
    Raises ValueError naming the leaf whose sharding is missing or does not divide it, and the folder when its files
    are damaged.
    """
    import orbax.checkpoint as ocp

    for name, leaf in wanted.items():
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(
                f"{name}: got a shape without a sharding, expected where to put it; give "
                "jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))."
            )
        try:
            leaf.sharding.shard_shape(leaf.shape)
        except ValueError:
            where = getattr(leaf.sharding, "spec", leaf.sharding)
            raise ValueError(
                f"{name}: got {where} for shape {leaf.shape}, expected a sharding that divides it; take the rules of "
                "parallel.sharding, which leave such an axis whole."
            ) from None
    how = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
        for name, leaf in wanted.items()
    }
    largest = max((math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values()), default=0)
    with ocp.Checkpointer(handler(largest)) as reader:
        try:
            arguments = ocp.args.PyTreeRestore(dict(wanted), restore_args=how, partial_restore=True)
            found = reader.restore(path, args=arguments)
        except Exception as error:  # a missing chunk is raised as a plain Exception
            raise ValueError(
                f"{path}: the arrays cannot be read ({reason(error)}); files are missing or damaged: "
                "use another checkpoint, or copy the folder again."
            ) from error
    return {name: found[name] for name in wanted}


def disk_trouble(error: BaseException) -> str | None:
    """What an error, or one that caused it, says of a disk that takes no more, in words; None when it does not."""
    cause: BaseException | None = error
    while cause is not None:
        for number, words in _FULL.items():
            # tensorstore has no errno, it quotes the system's sentence
            if (isinstance(cause, OSError) and cause.errno == number) or os.strerror(number) in str(cause):
                return f"{words} ({os.strerror(number)})"
        cause = cause.__cause__ or cause.__context__
    return None


def reason(error: BaseException) -> str:
    """The beginning of the message of what caused an error at first, for a message that quotes it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def is_primary() -> bool:
    """Whether this process is the one that makes and deletes files of its own."""
    return jax.process_index() == 0


class _NotOrbax(logging.Filter):
    """Orbax tells every step at level INFO, and again as a traceback what it raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


_NOT_ORBAX = _NotOrbax()


def _quieten() -> None:
    logging.getLogger("absl").addFilter(_NOT_ORBAX)  # a filter that is there already is not added again
