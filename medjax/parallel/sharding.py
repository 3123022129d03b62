"""Who is sharded how: one table from logical axis names to mesh axes.

Parameters name their axes where they are declared (nn.transformer); `Rules` maps the names to mesh axes; a dimension
that a mesh axis does not divide stays whole (9 heads on tensor=2), which `table` shows. Activations are told the same
way where the compiler could choose worse: `Constraint` is what a model calls on them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Rules:
    """Mesh axes of each logical axis; None keeps it whole.

    seq              tokens of a row, outside attention; inside too where heads do not suffice (nn.context)
    rank             of adapters: the factor without an embed axis is split by it, with its optimiser state
    attention_heads  heads inside attention, where every token of a row is needed: the axis that splits tokens elsewhere
                     splits heads there (arXiv 2309.14509)
    """

    batch: MeshAxes = ("data", "fsdp")
    seq: MeshAxes = "sequence"
    attention_heads: MeshAxes = ("tensor", "sequence")
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    rank: MeshAxes = "fsdp"
    layers: MeshAxes = None
    patch: MeshAxes = None


PRESETS: Mapping[str, Rules] = {
    "default": Rules(),
    "replicated": Rules(
        embed=None, heads=None, kv_heads=None, mlp=None, vocab=None, rank=None, attention_heads="sequence"
    ),
}


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; a mesh axis is used once, and only where it divides.

    Of several mesh axes for one logical axis the last are left out until the rest divides.
    """
    used: set[str] = set()
    entries: list[MeshAxes] = []
    for name, size in zip(axes, shape, strict=True):
        wanted = getattr(rules, name) if name else None
        names = mesh_axes(wanted)
        while names and (size % ways(mesh, names) or used & set(names)):
            names = names[:-1]
        if ways(mesh, names) == 1:
            entries.append(None)
        else:
            used |= set(names)
            entries.append(names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def mesh_axes(axes: MeshAxes) -> tuple[str, ...]:
    """One mesh axis, several or none, as a tuple."""
    return (axes,) if isinstance(axes, str) else axes or ()


def ways(mesh: Mesh, axes: MeshAxes) -> int:
    """Into how many parts these mesh axes split."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(axes))


@dataclass(frozen=True)
class Constraint:
    """Holds an array inside jit to the sharding of its logical axes, or leaves it to the compiler on one device."""

    mesh: Mesh
    rules: Rules

    def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
        place = self.sharding(x.shape, *axes)
        return x if place is None else jax.lax.with_sharding_constraint(x, place)

    def sharding(self, shape: Sequence[int], *axes: str | None) -> NamedSharding | None:
        """The sharding of an array with these logical axes; None on one device."""
        if self.mesh.size == 1:
            return None
        return NamedSharding(self.mesh, partition_spec(axes, shape, self.mesh, self.rules))


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
