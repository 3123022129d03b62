"""Plain maths of decoder and encoders: norms, activations, and log-probabilities over a large vocabulary.

Reductions run in float32 whatever the compute dtype.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, exact (arXiv 1606.08415). The backward pass keeps x alone."""
    return (x * _normal_distribution(x)).astype(x.dtype)


def _normal_distribution(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * 0.5**0.5))


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, dy):
    density = jnp.exp(-0.5 * jnp.square(x.astype(jnp.float32))) * (2 * jnp.pi) ** -0.5
    return ((dy * (_normal_distribution(x) + x * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """x / rms(x) * (offset + scale) over the last axis, in float32 (arXiv 1910.07467; offset 1 is Gemma's form)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * (offset + scale.astype(jnp.float32))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last axis, in float32 (arXiv 1607.06450).

    The backward pass keeps x and two numbers a row.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    y = y - mean
    inverse = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    y = y * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_backward(eps, kept, dy):
    x, mean, inverse, scale, bias = kept
    normal = (x.astype(jnp.float32) - mean) * inverse
    dy = dy.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = jnp.sum(dy * normal, axis=rows), jnp.sum(dy, axis=rows)
    dn = dy * scale.astype(jnp.float32)
    along = jnp.mean(dn * normal, axis=-1, keepdims=True)
    dx = inverse * (dn - jnp.mean(dn, axis=-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RowStatistics(NamedTuple):
    """Of each row's logits: log of the sum of exponentials, and the arg-max token. Both [rows]."""

    logsumexp: jax.Array
    argmax: jax.Array


def row_statistics(hidden: jax.Array, unembedding: jax.Array, vocab_chunk: int, shards: int = 1) -> RowStatistics:
    """Reduce the logits hidden @ unembedding.T over the vocabulary without ever holding them all.

    hidden       [rows, d]
    unembedding  [v, d]
    vocab_chunk  vocabulary entries whose logits exist at one time; the last chunk overlaps the one before it
    shards       parts that the mesh splits v into: each meets the rows where it lies, chunk by chunk, and the parts'
                 results are merged. A chunk of the whole would have to be brought together first, every time
    returns      float32 log-sum-exp and int32 arg-max (the lowest id on a tie)
    """
    v, d = unembedding.shape
    if shards == 1 or v % shards:
        top, total, best = _running_statistics(hidden, unembedding, vocab_chunk)
        return RowStatistics(top + jnp.log(total), best)
    parts = unembedding.reshape(shards, v // shards, d)
    top, total, best = jax.vmap(lambda part: _running_statistics(hidden, part, vocab_chunk))(parts)  # [shards, rows]
    highest = jnp.max(top, axis=0)
    first = jnp.argmax(top, axis=0)
    best = jnp.take_along_axis(best, first[None], axis=0)[0] + first.astype(jnp.int32) * (v // shards)
    return RowStatistics(highest + jnp.log(jnp.sum(total * jnp.exp(top - highest), axis=0)), best)


def _running_statistics(
    hidden: jax.Array, unembedding: jax.Array, vocab_chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest logit of each row, the sum of exponentials relative to it, and the arg-max."""
    v, rows = unembedding.shape[0], hidden.shape[0]
    size = min(vocab_chunk, v)

    def body(i, carry):
        top, total, best = carry
        start = jnp.minimum(i * size, v - size)
        chunk = jax.lax.dynamic_slice_in_dim(unembedding, start, size)
        logits = jnp.einsum("rd,vd->rv", hidden, chunk, preferred_element_type=jnp.float32)
        if v % size:
            logits = jnp.where(start + jnp.arange(size) >= i * size, logits, -jnp.inf)
        chunk_top = jnp.max(logits, axis=-1)
        new_top = jnp.maximum(top, chunk_top)
        total = total * jnp.exp(top - new_top) + jnp.sum(jnp.exp(logits - new_top[:, None]), axis=-1)
        best = jnp.where(chunk_top > top, start + jnp.argmax(logits, axis=-1).astype(jnp.int32), best)
        return new_top, total, best

    start = jnp.full(rows, -jnp.inf, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.int32)
    return jax.lax.fori_loop(0, -(-v // size), body, start)


def target_logits(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array) -> jax.Array:
    """The logits of single tokens: hidden [e, d], unembedding [v, d], targets [e] int32 -> [e] float32."""
    return jnp.sum(hidden.astype(jnp.float32) * unembedding[targets].astype(jnp.float32), axis=-1)
