"""What a run trains and what it keeps: the trainable part of the variables, the optimiser's state, a few counters.

Variables are one tree {"params": …, "lora": …}. Names choose what of it is trained; the rest is frozen: it has no
gradient, no optimiser state, and no place in a checkpoint.

  trainable = lora             lora/…                         adapters only
  trainable = full             params/…                       every parameter (no adapters)
  trainable = head             the unembedding                the embedding where they are tied
  trainable = params/layers/*norm*, lora      any parameters whose path matches a pattern, and the adapters
"""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.parallel.sharding import Rules, is_box, partition_spec

Tree = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that a step changes, and a checkpoint holds.

    step          int32 []: steps taken, skipped ones included
    trainable     float32 tree, the master copy
    optimizer     of Optax, for trainable leaves only
    loss_average  float32 []: running mean of the loss, which tells a spike; 0 before the first step
    bad_steps     int32 []: skipped steps, in a row up to now
    """

    step: jax.Array
    trainable: Tree
    optimizer: Any
    loss_average: jax.Array
    bad_steps: jax.Array


def path_name(path: Sequence[Any]) -> str:
    """A tree path as "params/layers/mlp/up/kernel"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def choose_trainable(abstract: Tree, names: Sequence[str]) -> frozenset[str]:
    """The paths of the leaves that are trained.

    abstract  boxed tree of all variables; names as in the module docstring
    Raises ValueError for a name that chooses nothing, and for a quantised leaf.
    """
    leaves = {path_name(path): box for path, box in jax.tree_util.tree_leaves_with_path(abstract, is_leaf=is_box)}
    head = "params/unembedding" if "params/unembedding" in leaves else "params/embedding"
    presets: Mapping[str, str] = {"lora": "lora/*", "full": "params/*", "head": head}
    chosen: set[str] = set()
    for name in names:
        found = fnmatch.filter(leaves, presets.get(name, name))
        if not found:
            near = difflib.get_close_matches(name, [other for other in (*presets, *leaves) if other != name], n=1)
            raise ValueError(
                f"train.trainable: {name!r} matches no parameter; {f'did you mean {near[0]}? ' if near else ''}"
                f"expected {', '.join(presets)} or a pattern of paths such as params/layers/*norm*."
            )
        chosen |= set(found)
    for name in sorted(chosen):
        if not jnp.issubdtype(leaves[name].value.dtype, jnp.floating) or _is_quantised(name):
            raise ValueError(
                f"train.trainable: {name} is quantised and cannot be trained; train adapters (lora), name other "
                "parameters, or leave model.quantisation out."
            )
    return frozenset(chosen)


def _is_quantised(name: str) -> bool:
    return "/kernel/" in name  # a plain kernel is a leaf, a quantised one a folder of them


def split(variables: Tree, chosen: frozenset[str], at: str = "") -> tuple[Tree, Tree]:
    """The chosen leaves and the others, each as a tree without empty branches."""
    inside: Tree = {}
    outside: Tree = {}
    for key, value in variables.items():
        name = f"{at}/{key}" if at else key
        if isinstance(value, dict):
            for tree, part in zip((inside, outside), split(value, chosen, name), strict=True):
                if part:
                    tree[key] = part
        else:
            (inside if name in chosen else outside)[key] = value
    return inside, outside


def join(first: Tree, second: Tree) -> Tree:
    """The two parts of `split` as one tree."""
    joined = dict(first)
    for key, value in second.items():
        joined[key] = join(joined[key], value) if key in joined else value
    return joined


def abstract_state(abstract: Tree, chosen: frozenset[str], tx: optax.GradientTransformation, mesh: Mesh, rules: Rules):
    """The state as jax.ShapeDtypeStructs with shardings, float32 where trained; nothing is allocated.

    An optimiser's moment lies where its parameter lies, one that is reduced over an axis (Adafactor) as the axes that
    are left; what has no parameter's shape is whole on every device.
    """

    def leaf(box):
        sharding = NamedSharding(mesh, partition_spec(box.names, box.value.shape, mesh, rules))
        return jax.ShapeDtypeStruct(box.value.shape, jnp.float32, sharding=sharding)

    trainable = jax.tree.map(leaf, split(abstract, chosen)[0], is_leaf=is_box)
    whole = NamedSharding(mesh, PartitionSpec())

    def scalar(dtype):
        return jax.ShapeDtypeStruct((), dtype, sharding=whole)

    def moment(value, parameter):
        sharding = NamedSharding(mesh, _reduced_spec(value.shape, parameter))
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    def other(value):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=whole)

    optimizer = optax.tree_map_params(
        tx, moment, jax.eval_shape(tx.init, trainable), trainable, transform_non_params=other
    )
    return TrainState(scalar(jnp.int32), trainable, optimizer, scalar(jnp.float32), scalar(jnp.int32))


def _reduced_spec(shape: tuple[int, ...], parameter: jax.ShapeDtypeStruct) -> PartitionSpec:
    """The spec of a moment of this shape: its parameter's, without the axis that the moment lacks."""
    spec = tuple(parameter.sharding.spec)
    if shape == parameter.shape:
        return PartitionSpec(*spec)
    for axis in range(len(parameter.shape)):
        if shape == parameter.shape[:axis] + parameter.shape[axis + 1 :]:
            return PartitionSpec(*spec[:axis], *spec[axis + 1 :])
    return PartitionSpec()


def init_state(trainable: Tree, tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The state before the first step; the trainable leaves (donated) are cast to float32 in their shardings."""

    def init(trainable):
        trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, trainable, tx.init(trainable), jnp.zeros((), jnp.float32), zero)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(trainable)


def count(tree: Tree) -> int:
    """Numbers in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
