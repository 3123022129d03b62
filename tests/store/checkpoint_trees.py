"""Trees of every kind of leaf that training has, made from random bits, so that a copy is either exact or wrong."""

from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LEAVES = {  # name -> dtype, shape, PartitionSpec; sizes that 8 devices divide and sizes that they do not
    "lora/up/a": (np.float32, (4, 16, 8), PartitionSpec(None, "fsdp", "tensor")),
    "lora/up/b": (ml_dtypes.bfloat16, (4, 8, 6), PartitionSpec("data", None, "tensor")),
    "base/codes": (np.uint8, (12, 10), PartitionSpec("fsdp")),
    "base/scale": (np.int8, (7,), PartitionSpec()),
    "optimiser/0/count": (np.int32, (), PartitionSpec()),
    "optimiser/0/mu/a": (np.float32, (16, 3), PartitionSpec(("data", "fsdp"))),
    "optimiser/2": (np.float32, (), PartitionSpec()),
    "key": (np.uint32, (2,), PartitionSpec()),
    "zeros": (np.float32, (64, 32), PartitionSpec("data", "tensor")),
}


class Moments(NamedTuple):
    count: Any
    mu: Any


class Nothing(NamedTuple):
    """Like optax's EmptyState."""


def tree_of(leaf: dict[str, Any]) -> dict[str, Any]:
    """The leaves in a tree as training has it: nested dicts, a tuple of named tuples."""
    return {
        "lora": {"up": {"a": leaf["lora/up/a"], "b": leaf["lora/up/b"]}},
        "base": {"codes": leaf["base/codes"], "scale": leaf["base/scale"]},
        "optimiser": (
            Moments(leaf["optimiser/0/count"], {"a": leaf["optimiser/0/mu/a"]}),
            Nothing(),
            leaf["optimiser/2"],
        ),
        "key": leaf["key"],
        "zeros": leaf["zeros"],
    }


def host_tree(seed: int) -> dict[str, Any]:
    """NumPy arrays of random bits: NaNs with payloads, infinities and subnormal numbers occur. One is all -0.0."""
    rng = np.random.default_rng(seed)

    def bits(dtype, shape) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(size), dtype).reshape(shape)

    leaves = {name: bits(dtype, shape) for name, (dtype, shape, _) in LEAVES.items()}
    return tree_of(leaves | {"zeros": np.full(LEAVES["zeros"][1], -0.0, np.float32)})


def shardings(mesh: Mesh) -> dict[str, Any]:
    return tree_of({name: NamedSharding(mesh, spec) for name, (_, _, spec) in LEAVES.items()})


def placed(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(jax.device_put, tree, shardings(mesh))


def abstract(mesh: Mesh) -> dict[str, Any]:
    return tree_of(
        {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
            for name, (dtype, shape, spec) in LEAVES.items()
        }
    )


def same_bits(found: Any, expected: Any) -> bool:
    """Whether two trees agree in structure, dtypes, shapes and every bit."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )
