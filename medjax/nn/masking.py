"""Masks of tokens for masked autoencoding, and putting the visible tokens back among all.

Tokens fall into equal groups, each masked by itself: one group is random masking over all tokens, a group a lead masks
the same share of every lead. A row draws from its own seed, so its mask depends on no other row, mesh or accumulation.

Of a group's v valid tokens floor(v * (1 - masked)) are shown, at least one; the other valid ones are masked and become
targets. Tokens that are not valid are neither. Shapes stay fixed: `keep` has room for a group whose tokens are all
valid, and in other rows its last places are filled with tokens that are not shown (valid ones before the others), which
the encoder must not see as keys.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_STREAM = 1  # of a row's seed; nn.encoder draws drop path from another
_ROUNDING = 1e-4  # (1 - 0.9) * 240 is below 24 in floating point


class Mask(NamedTuple):
    """Which tokens the encoder gets, and which the decoder is asked for.

    keep    [b, k] int32, tokens that are computed, all different
    slot    [b, t] int32, place of each token in keep, k where it is not there
    shown   [b, t] bool, valid tokens that the encoder may look at
    masked  [b, t] bool, valid tokens that are hidden: the targets
    """

    keep: jax.Array
    slot: jax.Array
    shown: jax.Array
    masked: jax.Array


def draw_mask(seeds: jax.Array, valid: jax.Array, *, masked: float, groups: int = 1) -> Mask:
    """Draw a mask for each row.

    seeds   [b] uint32
    valid   [b, t] bool; t a multiple of groups
    masked  share of each group's valid tokens that is hidden
    """
    b, t = valid.shape
    size = t // groups
    k = max(1, math.floor(size * (1 - masked) + _ROUNDING))

    def noise(seed):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), _STREAM), (groups, size))

    grouped = valid.reshape(b, groups, size)
    score = jnp.where(grouped, jax.vmap(noise)(seeds), 2.0)
    order = jnp.argsort(score, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    count = jnp.sum(grouped, axis=-1, keepdims=True)
    visible = jnp.floor(count * (1 - masked) + _ROUNDING).astype(jnp.int32)
    shown = grouped & (rank < jnp.maximum(visible, 1))
    group = jnp.arange(groups, dtype=jnp.int32)[:, None]
    keep = order[..., :k].astype(jnp.int32) + group * size
    slot = jnp.where(rank < k, rank.astype(jnp.int32) + group * k, groups * k)
    return Mask(keep.reshape(b, -1), slot.reshape(b, t), shown.reshape(b, t), (grouped & ~shown).reshape(b, t))


def take(tokens: jax.Array, keep: jax.Array) -> jax.Array:
    """tokens [b, t, …], keep [b, k] -> [b, k, …]"""
    return jnp.take_along_axis(tokens, keep.reshape(*keep.shape, *(1,) * (tokens.ndim - 2)), axis=1)


@jax.custom_vjp
def restore(kept: jax.Array, fill: jax.Array, mask: Mask) -> jax.Array:
    """Tokens of the whole row: those shown from kept, `fill` everywhere else.

    kept     [b, k, d]; fill [d]
    returns  [b, t, d]
    """
    return jnp.where(mask.shown[..., None], take(kept, jnp.minimum(mask.slot, kept.shape[1] - 1)), fill)


def _restore_forward(kept, fill, mask):
    return restore(kept, fill, mask), mask


def _restore_backward(mask, gradient):
    # no token is kept twice, so the gradient is a gather as well: XLA's scatter would take one row after the other
    shown = mask.shown[..., None]
    d_fill = jnp.sum(jnp.where(shown, 0, gradient), axis=(0, 1), dtype=jnp.float32)
    return take(jnp.where(shown, gradient, 0), mask.keep), d_fill.astype(gradient.dtype), None


restore.defvjp(_restore_forward, _restore_backward)
