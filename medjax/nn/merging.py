"""Adapters into the weights and out again: kernel' = kernel + scale * (a @ b), one layer at a time.

The product is taken in float32 whatever the kernel's dtype is, and rounded once. Kernels keep their sharding. Above the
parameters and the merged kernels a device holds the product of one layer.

  kernel [layers, *in, *out]      a [layers, *in, rank]      b [layers, rank, *out]

The target `query_key_value` touches three kernels: b [layers, rank, 3, heads, head_dim] holds one part for each.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Mapping[str, Any]
_FUSED = ("query", "key", "value")


def merge(params: Tree, lora: Tree, scale: float, *, donate: bool = False) -> dict[str, Any]:
    """Parameters with the adapter in them, in a new tree; leaves without an adapter are shared with the old one.

    params  as models.decoder describes them
    lora    as nn.lora describes it, NumPy or JAX arrays
    donate  the touched kernels of `params` are used up, so that base and merged kernels never exist together

    Raises ValueError for a kernel that is absent or quantised.
    """
    merged = _copied(params)
    for path, a, b in _pairs(lora):
        node = merged
        for depth, key in enumerate(path):
            if key not in node:
                raise ValueError(
                    f"lora/{'/'.join(path)}: the model has no {'/'.join(path[: depth + 1])}, expected a kernel of that "
                    "name; take the adapter that was made for this model."
                )
            node = node[key]
        kernel = node["kernel"]
        if isinstance(kernel, Mapping):
            raise ValueError(
                f"{'/'.join(path)}/kernel: got quantised weights ({', '.join(kernel)}), expected floats; "
                "load the base without quantising it, or take the checkpoint that it was made from."
            )
        node["kernel"] = (_add_in_place if donate else _add)(kernel, a, b, scale, kernel.sharding)
    return merged


def unmerge(params: Tree, lora: Tree, scale: float, *, donate: bool = False) -> dict[str, Any]:
    """The base back out of merged parameters, to the rounding of their dtype; as `merge`."""
    return merge(params, lora, -scale, donate=donate)


def _copied(tree: Tree) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _pairs(lora: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Path of each kernel's module, and the factors that belong to it."""
    for key, node in lora.items():
        if "a" not in node:
            yield from _pairs(node, (*path, key))
        elif key == "query_key_value":
            for index, part in enumerate(_FUSED):
                yield (*path, part), node["a"], node["b"][:, :, index]
        else:
            yield (*path, key), node["a"], node["b"]


def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, sharding: jax.sharding.Sharding) -> jax.Array:
    def one_layer(layer, kernel):
        left, right = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False).astype(jnp.float32) for x in (a, b))
        # the default precision of a TPU would round the factors to bfloat16
        product = jnp.tensordot(left, right, axes=1, precision=jax.lax.Precision.HIGHEST)
        old = jax.lax.dynamic_index_in_dim(kernel, layer, keepdims=False)
        new = (old.astype(jnp.float32) + scale * product).astype(kernel.dtype)
        return jax.lax.dynamic_update_index_in_dim(kernel, new, layer, 0)

    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, kernel.shape[0], one_layer, kernel), sharding)


_add = jax.jit(_sum, static_argnums=4)
_add_in_place = jax.jit(_sum, static_argnums=4, donate_argnums=0)
