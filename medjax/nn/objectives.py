"""Losses of encoders: masked patches, yes or no, a number, ordered classes. All in float32.

Losses of heads are returned target by target, so that the caller sums them by weights and divides by the sum of weights
once, after gradient accumulation. A target that is not known has weight 0 and any finite value.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_EPS = 1e-6  # added to a patch's variance, arXiv 2111.06377's reference code


def normalised_patches(patches: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-6) of each patch by itself: [..., values] -> the same, float32.

    The variance is the population's; a flat patch becomes 0.
    """
    x = patches.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPS)


def masked_patch_error(predicted: jax.Array, targets: jax.Array, masked: jax.Array) -> jax.Array:
    """Sum over masked patches of each one's mean squared error.

    predicted, targets  [b, t, values]; masked [b, t] bool
    returns             float32 scalar; divide by the number of masked patches for the mean
    """
    difference = predicted.astype(jnp.float32) - targets.astype(jnp.float32)
    difference = jnp.where(masked[..., None], difference, 0.0)
    return jnp.sum(difference * difference) / targets.shape[-1]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, class_weights: Sequence[float] = (1, 1)) -> jax.Array:
    """-log sigmoid(logit) where the target is 1, -log sigmoid(-logit) where it is 0, elementwise.

    targets        0 to 1, shape of logits
    class_weights  factors of the two terms, that of 0 first
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    negative, positive = class_weights
    return positive * targets * jax.nn.softplus(-logits) + negative * (1 - targets) * jax.nn.softplus(logits)


def huber(predicted: jax.Array, targets: jax.Array, delta: float | None) -> jax.Array:
    """e^2 / 2 up to |e| = delta and delta * (|e| - delta / 2) beyond, elementwise; delta None: e^2.

    The usual scales of both: with delta the slope at small errors is half that of e^2.
    """
    error = predicted.astype(jnp.float32) - targets.astype(jnp.float32)
    if delta is None:
        return error * error
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))


def ordinal_cross_entropy(logits: jax.Array, classes: jax.Array, class_weights: Sequence[float] = ()) -> jax.Array:
    """Cumulative-logit loss: the sum of binary cross-entropies of "above class j", j = 0 … classes - 2.

    logits         [..., classes - 1], of P(y > j)
    classes        [...] 0, 1, …, classes - 1, as floats
    class_weights  a factor a class of the record's own class; empty: 1
    returns        [...]
    """
    steps = jnp.arange(logits.shape[-1], dtype=jnp.float32)
    above = (classes[..., None] > steps).astype(jnp.float32)
    loss = jnp.sum(binary_cross_entropy(logits, above), axis=-1)
    if not class_weights:
        return loss
    own = jax.nn.one_hot(classes.astype(jnp.int32), len(class_weights), dtype=jnp.float32)
    return loss * (own @ jnp.asarray(class_weights, jnp.float32))


def ordinal_probabilities(logits: jax.Array) -> jax.Array:
    """P(y = j) of cumulative logits: [..., classes - 1] of P(y > j), not rising -> [..., classes]."""
    above = jax.nn.sigmoid(logits.astype(jnp.float32))
    ends = (*above.shape[:-1], 1)
    return jnp.concatenate([jnp.ones(ends), above], axis=-1) - jnp.concatenate([above, jnp.zeros(ends)], axis=-1)


def weighted_sum(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weights * losses, both of one shape; float32 scalar."""
    return jnp.sum(weights.astype(jnp.float32) * losses, dtype=jnp.float32)
