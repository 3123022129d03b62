"""Attention over a forest of token sequences, the one function of every model here.

What a token sees is said by nn.forest. Back ends, tested against "reference" on packed and, the first two, on branching
input:
  reference   materialises every score; the definition
  blockwise   online softmax over key blocks, no score matrix is ever whole; no gradient with a prefix (nn.blockwise)
  splash      TPU kernel, rows of whole documents only (nn.splash)
  cudnn       GPU kernel, one document a row only (nn.kernels)

Where a sharding splits the tokens of a row, nn.context brings queries and keys together. Tokens that are written
one after the other attend by nn.cache.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from medjax.nn.blockwise import blockwise, differentiable_blockwise
from medjax.nn.context import context_attention, splits_tokens
from medjax.nn.forest import BLOCK as BLOCK
from medjax.nn.forest import PREFIX_BLOCK as PREFIX_BLOCK
from medjax.nn.forest import Forest, Prefix
from medjax.nn.forest import forest as forest
from medjax.nn.kernels import KERNELS, kernel_attention

BACKENDS = ("reference", "blockwise")  # of any forest; those of nn.kernels are for rows of documents


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    trees: Forest,
    scale: float,
    window: jax.Array | int | None = None,
    prefix: Prefix | None = None,
    backend: str = "blockwise",
    sharding: NamedSharding | None = None,
    context: str = "heads",
) -> jax.Array:
    """Attend within rows of packed trees, and to a prefix that all rows share.

    q        [b, t, n, h]; heads n are a multiple of the key/value heads k, query head i reads kv head i // (n / k)
    k, v     [b, t, k, h]
    scale    factor on q . k
    window   a token sees the last `window` positions, itself included; None: no limit
    sharding of q on a mesh of several devices, which the back ends of nn.kernels need
    context  of nn.context, where sharding splits the tokens of a row: then q, k and v are in its order, trees are not
    returns  [b, t, n, h], dtype of q

    Raises ValueError on an unknown back end, and where one of nn.kernels or nn.context cannot do what is asked.
    """
    if sharding is not None and splits_tokens(sharding):
        if prefix is not None:
            raise ValueError(
                "attention: got a prefix with rows split over devices, expected none; split heads instead."
            )
        return context_attention(context, backend, q, k, v, trees, scale=scale, window=window, sharding=sharding)
    if backend == "reference":
        return _reference(q, k, v, trees, scale, window, prefix)
    if backend == "blockwise":
        if prefix is None:
            return differentiable_blockwise(scale, q, k, v, trees, window)
        return blockwise(q, k, v, trees, scale, window, prefix)[0]
    if backend not in KERNELS:
        raise ValueError(f"attention: got backend={backend!r}, expected one of {', '.join(BACKENDS + KERNELS)}.")
    if prefix is not None:
        raise ValueError(f"attention: got a prefix for backend={backend}, expected none; use backend=blockwise.")
    return kernel_attention(backend, q, k, v, trees.ends, scale=scale, window=window, sharding=sharding)


def _reference(q, k, v, trees, scale, window, prefix):
    b, t, n, _ = q.shape
    groups = n // k.shape[2]
    index = jnp.arange(t)
    seen = (index <= index[:, None]) & (index[:, None] < trees.ends[:, None, :])  # [b, t, s]
    key_positions = trees.positions
    if prefix is not None:
        p = prefix.k.shape[0]
        k = jnp.concatenate([jnp.broadcast_to(prefix.k, (b, *prefix.k.shape)), k], axis=1)
        v = jnp.concatenate([jnp.broadcast_to(prefix.v, (b, *prefix.v.shape)), v], axis=1)
        seen = jnp.concatenate([jnp.broadcast_to(jnp.arange(p) < prefix.length, (b, t, p)), seen], axis=2)
        key_positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(p), (b, p)), key_positions], axis=1)
    if window is not None:
        seen &= trees.positions[:, :, None] - key_positions[:, None, :] < window
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32).astype(q.dtype)
