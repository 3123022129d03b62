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

Back ends, tested against "reference" on packed and, the first two, on branching input:
  reference   materialises every score; the definition
  blockwise   online softmax over key blocks (arXiv 2205.14135): no score matrix is ever whole, and key blocks before
              the first tree that a query block touches are never computed. Its gradient computes the scores of a block
              again from their log-sum-exp (arXiv 2205.14135, 2307.08691); with a prefix it has none
  splash      TPU kernel, rows of whole documents only (nn.kernels)
  cudnn       GPU kernel, one document a row only (nn.kernels)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from medjax.nn.kernels import KERNELS, kernel_attention

BLOCK = 128  # tokens of a query block and of a key block; rows are multiples of it
PREFIX_BLOCK = 256  # keys of the prefix taken at one time; prefix buffers are multiples of it
_MASKED = -1e30  # finite, so that a row of nothing but masked keys gives 0 / 0 nowhere

BACKENDS = ("reference", "blockwise")  # of any forest; those of nn.kernels are for rows of documents


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
    """Keys and values that precede every row: k and v [p, kv_heads, head_dim], of which `length` (int32) count."""

    k: jax.Array
    v: jax.Array
    length: jax.Array


class Cache(NamedTuple):
    """Keys and values of each sequence's own past, for decoding; a prefix is not part of it.

    k, v     [b, kv_heads, s, head_dim]: heads first, so that a step reads each head's past in one piece
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
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Attend within rows of packed trees, and to a prefix that all rows share.

    q        [b, t, n, h]; heads n are a multiple of the key/value heads k, query head i reads kv head i // (n / k)
    k, v     [b, t, k, h]
    scale    factor on q . k
    window   a token sees the last `window` positions, itself included; None: no limit
    sharding of q on a mesh of several devices, which the back ends of nn.kernels need
    returns  [b, t, n, h], dtype of q

    Raises ValueError on an unknown back end, and where one of nn.kernels cannot do what is asked.
    """
    if backend == "reference":
        return _reference(q, k, v, trees, scale, window, prefix)
    if backend == "blockwise":
        if prefix is None:
            return _blockwise_differentiable(scale, q, k, v, trees, window)
        return _blockwise(q, k, v, trees, scale, window, prefix)[0]
    if backend not in KERNELS:
        raise ValueError(f"attention: got backend={backend!r}, expected one of {', '.join(BACKENDS + KERNELS)}.")
    if prefix is not None:
        raise ValueError(f"attention: got a prefix for backend={backend}, expected none; use backend=blockwise.")
    return kernel_attention(backend, q, k, v, trees.ends, scale=scale, window=window, sharding=sharding)


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

    index, lengths = jnp.arange(cache.k.shape[2]), cache.lengths[:, None]
    add("bkgh,bksh->bkgs", cache.k, cache.v, "bkgs,bksh->bkgh", index < lengths, lengths - index)
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


class _Running(NamedTuple):
    """An online softmax over the keys seen so far: top and total [b, kv, rows] float32, out [b, kv, rows, h]."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


def _fold(state: _Running, q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None) -> _Running:
    """Add one block of keys.

    q     [b, kv, groups * queries, h], scaled; the queries of one kv head stand together, one large matmul a head
    k, v  [b, kv, s, h]
    seen  [b or 1, queries or 1, s] bool, the same for all heads; None is all
    """
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    if seen is not None:
        b, kv, _, s = shape = scores.shape
        scores = scores.reshape(b, kv, -1, seen.shape[1], s)
        scores = jnp.where(seen[:, None, None], scores, _MASKED).reshape(shape)
    top = jnp.maximum(state.top, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - top[..., None])
    keep = jnp.exp(state.top - top)
    added = jnp.einsum("bkqs,bksh->bkqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _Running(top, state.total * keep + jnp.sum(weights, axis=-1), state.out * keep[..., None] + added)


def _blockwise(q, k, v, trees, scale, window, prefix):
    """The output [b, t, n, h] and the log-sum-exp of every query's scores [t / BLOCK, b, kv, groups * BLOCK]."""
    b, t, n, h = q.shape
    kv = k.shape[2]
    groups = n // kv
    # wide blocks of queries meet the prefix, which has no structure; their narrow blocks meet the row, which has
    wide = BLOCK * next(count for count in (5, 4, 3, 2, 1) if t // BLOCK % count == 0)

    def cut(x, start, size, axis):
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    def in_window(start, size, key_positions):  # queries from start on against keys [b or 1, s] -> [b, size, s]
        return cut(trees.positions, start, size, 1)[:, :, None] - key_positions[:, None, :] < window

    if prefix is not None:
        prefix_k, prefix_v = (
            jnp.broadcast_to(x.transpose(1, 0, 2), (b, kv, x.shape[0], h)) for x in (prefix.k, prefix.v)
        )
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def over_prefix(i, q_block, running):
        def add(running, start, size, ends_inside):
            index = start + jnp.arange(size)
            seen = (index < prefix.length)[None, None] if ends_inside else None
            if window is not None:
                near = in_window(i * wide, wide, index[None])
                seen = near if seen is None else seen & near
            return _fold(running, q_block, cut(prefix_k, start, size, 2), cut(prefix_v, start, size, 2), seen)

        whole = prefix.length // PREFIX_BLOCK
        first, last = whole * (PREFIX_BLOCK // BLOCK), (prefix.length + BLOCK - 1) // BLOCK
        running = jax.lax.fori_loop(
            0, whole, lambda j, r: add(r, j * PREFIX_BLOCK, PREFIX_BLOCK, ends_inside=False), running
        )
        return jax.lax.fori_loop(first, last, lambda j, r: add(r, j * BLOCK, BLOCK, ends_inside=True), running)

    def over_row(args):
        i, q_block, running = args
        query = i * BLOCK + jnp.arange(BLOCK)

        def add(j, running):
            start = j * BLOCK
            key = start + jnp.arange(BLOCK)
            seen = (key <= query[:, None]) & (query[:, None] < cut(trees.ends, start, BLOCK, 1)[:, None, :])
            if window is not None:
                seen &= in_window(i * BLOCK, BLOCK, cut(trees.positions, start, BLOCK, 1))
            return _fold(running, q_block, cut(k, start, BLOCK, 2), cut(v, start, BLOCK, 2), seen)

        running = jax.lax.fori_loop(trees.first_block[i], i + 1, add, running)
        return running.out / running.total[..., None], running.top + jnp.log(running.total)

    def narrow(x):  # [b, kv, groups * wide, …] -> [wide / BLOCK, b, kv, groups * BLOCK, …]
        x = x.reshape(b, kv, groups, wide // BLOCK, BLOCK, *x.shape[3:])
        return jnp.moveaxis(x, 3, 0).reshape(wide // BLOCK, b, kv, groups * BLOCK, *x.shape[5:])

    def block(args):
        i, q_block = args
        rows = (b, kv, groups * wide)
        running = _Running(jnp.full(rows, _MASKED), jnp.zeros(rows), jnp.zeros((*rows, h)))
        if prefix is not None:
            running = over_prefix(i, q_block, running)
        numbers = i * (wide // BLOCK) + jnp.arange(wide // BLOCK)
        return jax.lax.map(over_row, (numbers, narrow(q_block), jax.tree.map(narrow, running)))

    # the queries of one kv head stand together: one large matmul a head
    q = (q * scale).reshape(b, t // wide, wide, kv, groups, h).transpose(1, 0, 3, 4, 2, 5)
    out, total = jax.lax.map(block, (jnp.arange(t // wide), q.reshape(t // wide, b, kv, groups * wide, h)))
    out = out.reshape(t // BLOCK, b, kv, groups, BLOCK, h).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(b, t, n, h).astype(q.dtype), total.reshape(t // BLOCK, b, kv, groups * BLOCK)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise_differentiable(scale, q, k, v, trees, window):
    return _blockwise(q, k, v, trees, scale, window, None)[0]


def _blockwise_forward(scale, q, k, v, trees, window):
    out, total = _blockwise(q, k, v, trees, scale, window, None)
    out, total = checkpoint_name(out, "attention"), checkpoint_name(total, "attention")
    return out, (q, k, v, trees, window, out, total)


def _blockwise_backward(scale, residuals, d_out):
    q, k, v, trees, window, out, total = residuals
    b, t, n, h = q.shape
    kv = k.shape[2]
    groups = n // kv

    def cut(x, start, axis):
        return jax.lax.dynamic_slice_in_dim(x, start, BLOCK, axis)

    def by_block(x):  # [b, t, n, …] -> [t / BLOCK, b, kv, groups * BLOCK, …], as the forward pass has them
        x = x.reshape(b, t // BLOCK, BLOCK, kv, groups, *x.shape[3:])
        x = jnp.moveaxis(x, (1, 0, 3, 4, 2), (0, 1, 2, 3, 4))
        return x.reshape(t // BLOCK, b, kv, groups * BLOCK, *x.shape[5:])

    k_rows, v_rows, k_columns = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1)
    # sum over s of weight * d weight, which every d score subtracts
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def block(carry, inputs):
        i, q_block, d_block, shared_block, total_block = inputs
        query = i * BLOCK + jnp.arange(BLOCK)

        # scores stand keys first, [b, kv, s, q], and dq is summed as [b, kv, h, q]: then no product sums over the first
        # axis of a batched operand, which XLA's CPU back end does several times slower
        def add(j, state):
            dq, dk, dv = state
            start = j * BLOCK
            key = start + jnp.arange(BLOCK)[:, None]
            seen = (key <= query) & (query < cut(trees.ends, start, 1)[:, :, None])
            if window is not None:
                positions = cut(trees.positions, i * BLOCK, 1)[:, None, :], cut(trees.positions, start, 1)[:, :, None]
                seen &= positions[0] - positions[1] < window
            k_block, v_block = cut(k_rows, start, 2), cut(v_rows, start, 2)
            scores = product("bksh,bkqh->bksq", k_block, q_block) - total_block[:, :, None]
            shape = scores.shape
            scores = scores.reshape(b, kv, BLOCK, groups, BLOCK)
            weights = jnp.exp(jnp.where(seen[:, None, :, None], scores, _MASKED).reshape(shape))
            d_scores = weights * (product("bksh,bkqh->bksq", v_block, d_block) - shared_block[:, :, None])
            weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
            dk_block = cut(dk, start, 2) + product("bksq,bkqh->bksh", d_scores, q_block)
            dv_block = cut(dv, start, 2) + product("bksq,bkqh->bksh", weights, d_block)
            return (
                dq + product("bkhs,bksq->bkhq", jax.lax.dynamic_slice_in_dim(k_columns, start, BLOCK, 3), d_scores),
                jax.lax.dynamic_update_slice_in_dim(dk, dk_block, start, 2),
                jax.lax.dynamic_update_slice_in_dim(dv, dv_block, start, 2),
            )

        state = jnp.zeros((b, kv, h, groups * BLOCK), jnp.float32), *carry
        dq, dk, dv = jax.lax.fori_loop(trees.first_block[i], i + 1, add, state)
        return (dk, dv), dq

    zeros = jnp.zeros(k_rows.shape, jnp.float32)
    blocks = jnp.arange(t // BLOCK), by_block(q * scale), by_block(d_out), by_block(shared), total
    (dk, dv), dq = jax.lax.scan(block, (zeros, zeros), blocks)
    dq = dq.reshape(t // BLOCK, b, kv, h, groups, BLOCK).transpose(1, 0, 5, 2, 4, 3).reshape(b, t, n, h) * scale
    dk, dv = dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_blockwise_differentiable.defvjp(_blockwise_forward, _blockwise_backward)
