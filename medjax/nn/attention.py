"""Attention over a forest of token sequences, the one function of every model here.

A row of tokens holds trees in depth-first order: a question, then its first answer choice, then the next, then the next
question. `ends[s]` is the index one past the subtree of token s, so that

    token t sees token s   if and only if   s <= t < ends[s]

which is causal attention for a single sequence (ends = t), packed documents (ends = end of the document), and a
question shared by its choices (ends of a question's tokens = end of its last choice), all in one integer a token:

    tokens  q q q  a a  b b b | q q ...          a sees q q q and a's own past, never b; nothing sees across |
    ends    8 8 8  5 5  8 8 8   ...

Keys of a `Prefix` (a few-shot prompt) come before every row and are seen by all its tokens. Positions, which RoPE and
sliding windows need, are given apart: both choices above start at position 3.

Back ends, all tested against "reference" on packed and branching input:
  reference   materialises every score; the definition
  blockwise   online softmax over key blocks (arXiv 2205.14135): no score matrix is ever whole, and key blocks before
              the first tree that a query block touches are never computed
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # tokens of a query block and of a key block; rows are multiples of it
PREFIX_BLOCK = 512  # keys of the prefix taken at one time; prefix buffers are multiples of it

BACKENDS = ("reference", "blockwise")


class Forest(NamedTuple):
    """Where the tokens of packed rows stand.

    positions    [b, t] int32: distance from the start of the own sequence, prefix included
    ends         [b, t] int32: one past the token's subtree, an index into the row; padding sees itself (ends = t + 1)
    first_block  [t / BLOCK] int32: the first key block that any query of this block can see, in any row
    """

    positions: jax.Array
    ends: jax.Array
    first_block: jax.Array


class Prefix(NamedTuple):
    """Keys and values that precede every row: k and v [p, kv_heads, head_dim], length scalar int32 (the rest unused)."""

    k: jax.Array
    v: jax.Array
    length: jax.Array


class Cache(NamedTuple):
    """Keys and values of each sequence's own past, for decoding; a prefix is not part of it.

    k, v     [b, s, kv_heads, head_dim]
    lengths  [b] int32: entries that count, so also the slot of the next token
    """

    k: jax.Array
    v: jax.Array
    lengths: jax.Array


def forest(positions: jax.Array, ends: jax.Array) -> Forest:
    """Derive the block bounds: positions and ends [b, t] int32, t a multiple of BLOCK."""
    t = ends.shape[1]
    if t % BLOCK:
        raise ValueError(f"attention: got rows of {t} tokens, expected a multiple of {BLOCK}; pad the rows.")
    block_start = jnp.arange(0, t, BLOCK)
    seen = jnp.any(ends[:, None, :] > block_start[:, None], axis=0)  # [t / BLOCK, t]
    return Forest(positions, ends, (jnp.argmax(seen, axis=1) // BLOCK).astype(jnp.int32))


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
) -> jax.Array:
    """Attend within rows of packed trees, and to a prefix that all rows share.

    q        [b, t, n, h]; heads n are a multiple of the key/value heads k, query head i reads kv head i // (n / k)
    k, v     [b, t, k, h]
    scale    factor on q . k
    window   a token sees the last `window` positions, itself included; None: no limit
    returns  [b, t, n, h], dtype of q

    Raises ValueError on an unknown back end.
    """
    if backend == "reference":
        return _reference(q, k, v, trees, scale, window, prefix)
    if backend == "blockwise":
        return _blockwise(q, k, v, trees, scale, window, prefix)
    raise ValueError(f"attention: got backend={backend!r}, expected one of {', '.join(BACKENDS)}.")


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Cache,
    *,
    scale: float,
    window: jax.Array | int | None = None,
    prefix: Prefix | None = None,
) -> jax.Array:
    """Attend from one new token a sequence to the prefix, its own past, and itself.

    q        [b, 1, n, h]
    k, v     [b, 1, k, h] of the new token, not yet in the cache
    returns  [b, 1, n, h], dtype of q
    """
    b, _, n, h = q.shape
    kv = k.shape[2]
    grouped = (q * scale).reshape(b, kv, n // kv, h)
    # every source of keys: scores [b, kv, g, s], and how its values [.., s, ..] are summed
    sources = [(jnp.einsum("bkgh,bskh->bkgs", grouped, k, preferred_element_type=jnp.float32), "bkgs,bskh->bkgh", v)]

    def add(equation, keys, values, sum_equation, seen, distance):
        scores = jnp.einsum(equation, grouped, keys, preferred_element_type=jnp.float32)
        if window is not None:
            seen = seen & (distance < window)
        sources.append((jnp.where(seen[:, None, None], scores, -jnp.inf), sum_equation, values))

    index, lengths = jnp.arange(cache.k.shape[1]), cache.lengths[:, None]
    add("bkgh,bskh->bkgs", cache.k, cache.v, "bkgs,bskh->bkgh", index < lengths, lengths - index)
    if prefix is not None:
        index = jnp.arange(prefix.k.shape[0])
        seen = jnp.broadcast_to(index < prefix.length, (b, index.size))
        add("bkgh,pkh->bkgp", prefix.k, prefix.v, "bkgp,pkh->bkgh", seen, prefix.length + lengths - index)
    top = jnp.stack([jnp.max(scores, axis=-1) for scores, _, _ in sources]).max(axis=0)[..., None]
    total, out = jnp.zeros(top.shape, jnp.float32), jnp.zeros(grouped.shape, jnp.float32)
    for scores, equation, values in sources:
        weights = jnp.exp(scores - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        out += jnp.einsum(equation, weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
    return (out / total).reshape(b, 1, n, h).astype(q.dtype)


def _reference(q, k, v, trees, scale, window, prefix):
    b, t, n, h = q.shape
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


def _blockwise(q, k, v, trees, scale, window, prefix):
    b, t, n, h = q.shape
    kv = k.shape[2]
    groups, blocks = n // kv, t // BLOCK
    # the queries of one kv head stand together, so that each key block meets one large matmul a head
    q = (q * scale).reshape(b, blocks, BLOCK, kv, groups, h).transpose(1, 0, 3, 4, 2, 5)
    q = q.reshape(blocks, b, kv, groups * BLOCK, h)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [b, kv, t, h]

    def fold(state, q_block, k_block, v_block, seen):
        """Add one key block to the running softmax; seen broadcasts to [b, kv, groups, BLOCK, s], None is all."""
        top, total, out = state
        scores = jnp.einsum("bkqh,bksh->bkqs", q_block, k_block, preferred_element_type=jnp.float32)
        if seen is not None:
            shape = scores.shape
            scores = scores.reshape(b, kv, groups, BLOCK, shape[-1])
            scores = jnp.where(seen, scores, -1e30).reshape(shape)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_top[..., None])
        keep = jnp.exp(top - new_top)
        total = total * keep + jnp.sum(weights, axis=-1)
        added = jnp.einsum("bkqs,bksh->bkqh", weights.astype(v.dtype), v_block, preferred_element_type=jnp.float32)
        return new_top, total, out * keep[..., None] + added

    def query_block(i, q_block):
        query_index = i * BLOCK + jnp.arange(BLOCK)
        query_positions = jax.lax.dynamic_slice_in_dim(trees.positions, i * BLOCK, BLOCK, axis=1)

        def in_window(key_positions):  # [b, s] -> [b, 1, 1, BLOCK, s]
            return (query_positions[:, :, None] - key_positions[:, None, :] < window)[:, None, None]

        def own(j, state):
            take = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, j * BLOCK, BLOCK, axis=axis)  # noqa: E731
            key_index = j * BLOCK + jnp.arange(BLOCK)
            seen = (key_index <= query_index[:, None]) & (query_index[:, None] < take(trees.ends, 1)[:, None, :])
            seen = seen[:, None, None]
            if window is not None:
                seen &= in_window(take(trees.positions, 1))
            return fold(state, q_block, take(k, 2), take(v, 2), seen)

        def shared(j, state):
            key_index = j * PREFIX_BLOCK + jnp.arange(PREFIX_BLOCK)
            seen = (key_index < prefix.length)[None, None, None, None, :]
            if window is not None:
                seen &= in_window(jnp.broadcast_to(key_index, (b, PREFIX_BLOCK)))
            k_block, v_block = (
                jnp.broadcast_to(
                    jax.lax.dynamic_slice_in_dim(x, j * PREFIX_BLOCK, PREFIX_BLOCK).transpose(1, 0, 2),
                    (b, kv, PREFIX_BLOCK, h),
                )
                for x in (prefix.k, prefix.v)
            )
            return fold(state, q_block, k_block, v_block, seen)

        rows = (b, kv, groups * BLOCK)
        state = (jnp.full(rows, -1e30, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros((*rows, h), jnp.float32))
        if prefix is not None:
            state = jax.lax.fori_loop(0, (prefix.length + PREFIX_BLOCK - 1) // PREFIX_BLOCK, shared, state)
        _, total, out = jax.lax.fori_loop(trees.first_block[i], i + 1, own, state)
        return (out / total[..., None]).astype(q.dtype)

    out = jax.lax.map(lambda args: query_block(*args), (jnp.arange(blocks), q))
    out = out.reshape(blocks, b, kv, groups, BLOCK, h).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(b, t, n, h)
