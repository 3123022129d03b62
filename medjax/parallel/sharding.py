"""Who is sharded how: one table from logical axis names to mesh axes.

Parameters name their axes where they are declared (nn.transformer); `Rules` maps the names to mesh axes; a dimension
that a mesh axis does not divide stays whole (9 heads on tensor=2), which `table` shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Rules:
    """Mesh axes of each logical axis; None keeps it whole."""

    batch: MeshAxes = ("data", "fsdp")
    seq: MeshAxes = None
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    rank: MeshAxes = None
    layers: MeshAxes = None
    patch: MeshAxes = None


PRESETS: Mapping[str, Rules] = {
    "default": Rules(),
    "replicated": Rules(embed=None, heads=None, kv_heads=None, mlp=None, vocab=None),
}


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; a mesh axis is used once, and only where it divides."""
    used: set[str] = set()
    entries: list[MeshAxes] = []
    for name, size in zip(axes, shape, strict=True):
        wanted = getattr(rules, name) if name else None
        names = (wanted,) if isinstance(wanted, str) else (wanted or ())
        ways = 1
        for axis in names:
            ways *= mesh.shape[axis]
        if ways == 1 or size % ways or used & set(names):
            entries.append(None)
        else:
            used |= set(names)
            entries.append(wanted)
    return PartitionSpec(*entries)


def is_box(leaf: Any) -> bool:
    """Whether a leaf of an abstract tree carries logical axis names."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def shardings(abstract: Any, mesh: Mesh, rules: Rules) -> Any:
    """Boxed abstract parameters -> NamedShardings in a tree of the same shape."""
    return jax.tree.map(
        lambda box: NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules)),
        abstract,
        is_leaf=is_box,
    )


def table(abstract: Any, mesh: Mesh, rules: Rules) -> str:
    """One line a parameter: path, shape, logical axes, PartitionSpec."""
    lines = []
    for path, box in jax.tree_util.tree_leaves_with_path(abstract, is_leaf=is_box):
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        spec = partition_spec(box.names, box.value.shape, mesh, rules)
        lines.append(f"{name:<44}{box.value.shape!s:<28}{' '.join(str(n) for n in box.names):<36}{tuple(spec)}")
    return "\n".join(lines)
