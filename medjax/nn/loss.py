"""Cross-entropy over a large vocabulary without its logits: the loss and its gradient, a few tokens at a time.

A [batch, tokens, vocab] float32 array is what runs a training step out of memory (4 x 2,048 tokens of Llama 3: 4 GiB),
and most of it is for tokens that no loss is taken of, the prompts. Here

  1. the tokens that count are brought together (a permutation within each shard of the batch);
  2. a loop takes `chunk` of them at a time, as many times as there are counted tokens, and no more;
  3. each turn computes its logits, their loss and at once the gradient of the hidden states, so that the backward pass
     computes no logits again. What is kept is one gradient the size of the hidden states.

The result is a sum, not a mean: gradient accumulation and several hosts divide by the count of all their tokens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

CHUNK = 512  # tokens of one shard whose logits exist at one time


class TablePlaces(NamedTuple):
    """Shardings of the vocabulary's table [v, d] on a mesh.

    home   where it and its gradient lie
    whole  during the loop: brought together over the axes that split d, once and not for every chunk
    parts  of its gradient during the loop, [parts of the tokens, v, d]: every part adds up its own
    """

    home: NamedSharding
    whole: NamedSharding
    parts: NamedSharding


class LossSums(NamedTuple):
    """Sums over counted tokens, float32: negative log-likelihood, z-loss term, and tokens whose arg-max is right."""

    nll: jax.Array
    z: jax.Array
    right: jax.Array


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_weight: float = 0.0,
    shards: tuple[int, int] = (1, 1),
    chunk: int = CHUNK,
    trains_table: bool = False,
    places: TablePlaces | None = None,
) -> tuple[jax.Array, LossSums]:
    """Weighted sum of -log softmax(hidden table^T)[target] + z_weight * logsumexp^2 (arXiv 2204.02311, section 5).

    hidden   [b, t, d]; table [v, d]
    targets  [b, t] int32; weights [b, t] float32, 0 where no loss is taken
    shards   into how many parts the mesh splits b and t
    chunk    tokens of a shard whose logits exist at one time
    trains_table  also give the table's gradient; costs a float32 array of its size and half as many products again
    places   on a mesh, where the table lies before, in and after the loop; None leaves that to the compiler
    returns  the sum (differentiable in hidden, and in table if asked), and its parts (not differentiable)
    """
    rows = _by_shard(hidden, shards)
    targets, weights = (_by_shard(x[..., None], shards)[..., 0] for x in (targets, weights))
    static = _Static(z_weight, min(chunk, rows.shape[1]), trains_table, places)
    total, sums = _cross_entropy(static, rows, table, targets, weights)
    return total, jax.lax.stop_gradient(sums)


class _Static(NamedTuple):
    z_weight: float
    chunk: int
    trains_table: bool
    places: TablePlaces | None

    def hold(self, x: jax.Array, place: str) -> jax.Array:
        """x at one of the places."""
        return x if self.places is None else jax.lax.with_sharding_constraint(x, getattr(self.places, place))


def _by_shard(x, shards):
    """[b, t, d] -> [parts, tokens of a part, d]; a part lies on one device."""
    b, t, d = x.shape
    parts_b, parts_t = shards
    x = x.reshape(parts_b, b // parts_b, parts_t, t // parts_t, d).swapaxes(1, 2)
    return x.reshape(parts_b * parts_t, -1, d)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(static, rows, table, targets, weights):
    return _forward(static, rows, table, targets, weights)[0]


@jax.named_scope("loss")
def _forward(static, rows, table, targets, weights):
    parts, tokens, d = rows.shape
    size = static.chunk
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    turns = (jnp.max(jnp.sum(weights != 0, axis=1)) + size - 1) // size
    padded = jnp.pad(order, ((0, 0), (0, -tokens % size)))
    held = static.hold(static.hold(table, "home").astype(rows.dtype), "whole")

    def turn(i, state):
        sums, gradient, d_table = state
        place = jax.lax.dynamic_slice_in_dim(padded, i * size, size, 1)
        inside = i * size + jnp.arange(size) < tokens
        h = jnp.take_along_axis(rows, place[..., None], axis=1)
        target = jnp.take_along_axis(targets, place, axis=1)
        weight = jnp.where(inside, jnp.take_along_axis(weights, place, axis=1), 0.0)
        logits = jnp.einsum("pcd,vd->pcv", h, held, preferred_element_type=jnp.float32)
        top = jnp.max(logits, axis=-1)
        total = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
        at_target = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        sums = LossSums(
            sums.nll + jnp.sum(weight * (total - at_target)),
            sums.z + jnp.sum(weight * total * total) * static.z_weight,
            sums.right + jnp.sum((weight != 0) & (at_target >= top)),
        )
        slope = 1.0 + 2.0 * static.z_weight * total
        is_target = jnp.arange(table.shape[0]) == target[..., None]
        d_logits = jnp.exp(logits - total[..., None]) * (slope * weight)[..., None]
        d_logits = (d_logits - jnp.where(is_target, weight[..., None], 0.0)).astype(h.dtype)
        d_hidden = jnp.einsum("pcv,vd->pcd", d_logits, held)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, d_hidden, i * size, 1)
        if static.trains_table:
            added = jnp.einsum("pcv,pcd->pvd", d_logits, h, preferred_element_type=jnp.float32)
            d_table = static.hold(d_table + added, "parts")
        return sums, gradient, d_table

    zero = jnp.zeros((), jnp.float32)
    gradient = jnp.zeros((parts, padded.shape[1], d), rows.dtype)
    d_table = jnp.zeros((parts, *table.shape) if static.trains_table else (), jnp.float32)
    sums, gradient, d_table = jax.lax.fori_loop(0, turns, turn, (LossSums(zero, zero, zero), gradient, d_table))
    if static.trains_table:
        d_table = static.hold(jnp.sum(d_table, axis=0), "home")
    back = jnp.argsort(order, axis=1)
    gradient = jnp.take_along_axis(gradient, back[..., None], axis=1)
    return (sums.nll + sums.z, sums), (gradient, d_table, table)


def _backward(static, residuals, cotangents):
    gradient, d_table, table = residuals
    by = cotangents[0]
    d_rows = gradient * by.astype(gradient.dtype)
    return d_rows, (d_table * by).astype(table.dtype) if static.trains_table else jnp.zeros_like(table), None, None


_cross_entropy.defvjp(_forward, _backward)
