"""Attention without a whole score matrix: online softmax over key blocks (arXiv 2205.14135), on any device.

Pairs of blocks that share no tree are never computed, so that a beginning which all of a row share costs its own
blocks only. The gradient computes the scores of a block again from their log-sum-exp (arXiv 2205.14135, 2307.08691).

Queries and keys may be parts of a row (`Part`), as they are where a row is split over devices (nn.context). What a
query sees of the keys at hand then is a share of its softmax: the output is normalised over these keys, and the
log-sum-exp of their scores is what shares are merged by.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from medjax.nn.forest import BLOCK, PREFIX_BLOCK, Forest, Prefix, met

_MASKED = -1e30  # finite, so that a row of nothing but masked keys gives 0 / 0 nowhere


class Part(NamedTuple):
    """Which blocks of the row the queries and the keys at hand are, in ascending order.

    queries  [queries / BLOCK] int32
    keys     [keys / BLOCK] int32
    """

    queries: jax.Array
    keys: jax.Array


class _Turns(NamedTuple):
    """Of a query block: its number in the row, and the key blocks at hand that it meets: the first `met` of `keys`."""

    block: jax.Array
    keys: jax.Array
    met: jax.Array


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


def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    trees: Forest,
    scale: float,
    window: jax.Array | int | None,
    prefix: Prefix | None = None,
    part: Part | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attend from every query to the keys at hand that it sees.

    q        [b, t, n, h]; k, v [b, s, kv, h]: of whole rows, or of the blocks that `part` names (not with a prefix)
    trees    of the whole rows
    returns  [b, t, n, h], dtype of q with whole rows, float32 with parts, and the log-sum-exp of the queries' scores
             [b, t, n] float32; a query that sees no key at hand gets finite numbers and a log-sum-exp of -1e30 or less
    """
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

    def over_prefix(prefix, i, q_block, running):
        def add(running, start, size, ends_inside):
            index = start + jnp.arange(size)
            seen = (index < prefix.length)[None, None] if ends_inside else None
            if window is not None:
                near = in_window(i * wide, wide, index[None])
                seen = near if seen is None else seen & near
            return _fold(running, q_block, cut(prefix_k, start, size, 2), cut(prefix_v, start, size, 2), seen)

        whole = prefix.length // PREFIX_BLOCK
        first, last = whole * (PREFIX_BLOCK // BLOCK), (prefix.length + BLOCK - 1) // BLOCK
        with jax.named_scope("prefix"):
            running = jax.lax.fori_loop(
                0, whole, lambda j, r: add(r, j * PREFIX_BLOCK, PREFIX_BLOCK, ends_inside=False), running
            )
        with jax.named_scope("prefix_end"):
            return jax.lax.fori_loop(first, last, lambda j, r: add(r, j * BLOCK, BLOCK, ends_inside=True), running)

    def over_row(args):
        turns, q_block, running = args
        query = turns.block * BLOCK + jnp.arange(BLOCK)

        def add(turn, running):
            j = turns.keys[turn]
            start = BLOCK * (j if part is None else part.keys[j])
            key = start + jnp.arange(BLOCK)
            seen = (key <= query[:, None]) & (query[:, None] < cut(trees.ends, start, BLOCK, 1)[:, None, :])
            if window is not None:
                seen &= in_window(turns.block * BLOCK, BLOCK, cut(trees.positions, start, BLOCK, 1))
            return _fold(running, q_block, cut(k, j * BLOCK, BLOCK, 2), cut(v, j * BLOCK, BLOCK, 2), seen)

        running = jax.lax.fori_loop(0, turns.met, add, running)
        total = jnp.maximum(running.total, 1.0)  # the top score alone adds 1, so less is no key at all
        return running.out / total[..., None], running.top + jnp.log(total)

    def narrow(x):  # [b, kv, groups * wide, …] -> [wide / BLOCK, b, kv, groups * BLOCK, …]
        x = x.reshape(b, kv, groups, wide // BLOCK, BLOCK, *x.shape[3:])
        return jnp.moveaxis(x, 3, 0).reshape(wide // BLOCK, b, kv, groups * BLOCK, *x.shape[5:])

    def block(args):
        i, q_block = args
        rows = (b, kv, groups * wide)
        running = _Running(jnp.full(rows, _MASKED), jnp.zeros(rows), jnp.zeros((*rows, h)))
        if prefix is not None:
            running = over_prefix(prefix, i, q_block, running)
        mine = jax.tree.map(lambda x: cut(x, i * (wide // BLOCK), wide // BLOCK, 0), turns)
        return jax.lax.map(over_row, (mine, narrow(q_block), jax.tree.map(narrow, running)))

    dtype, turns = q.dtype, _turns(t, trees, part)
    # the queries of one kv head stand together: one large matmul a head
    q = (q * scale).reshape(b, t // wide, wide, kv, groups, h).transpose(1, 0, 3, 4, 2, 5)
    out, lse = jax.lax.map(block, (jnp.arange(t // wide), q.reshape(t // wide, b, kv, groups * wide, h)))
    out = out.reshape(t // BLOCK, b, kv, groups, BLOCK, h).transpose(1, 0, 4, 2, 3, 5).reshape(b, t, n, h)
    lse = lse.reshape(t // BLOCK, b, kv, groups, BLOCK).transpose(1, 0, 4, 2, 3).reshape(b, t, n)
    return out.astype(dtype) if part is None else out, lse


def _turns(t: int, trees: Forest, part: Part | None) -> _Turns:
    """Of every query block: [t / BLOCK, …] each."""
    whole = jnp.arange(t // BLOCK, dtype=jnp.int32)
    queries, keys = (whole, whole) if part is None else part
    seen = met(trees, queries, keys)
    return _Turns(queries, jnp.argsort(~seen, axis=1, stable=True), jnp.sum(seen, axis=1))


def blockwise_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    trees: Forest,
    scale: float,
    window: jax.Array | int | None,
    lse: jax.Array,
    shared: jax.Array,
    d_out: jax.Array,
    part: Part | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients by q, k and v of the keys at hand, float32.

    lse      [b, t, n] of all keys that the queries see
    shared   [b, t, n] sum of out * d_out, which every d score subtracts
    d_out    [b, t, n, h]
    """
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
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def block(carry, inputs):
        turns, q_block, d_block, shared_block, lse_block = inputs
        query = turns.block * BLOCK + jnp.arange(BLOCK)

        # scores stand keys first, [b, kv, s, q], and dq is summed as [b, kv, h, q]: then no product sums over the first
        # axis of a batched operand, which XLA's CPU back end does several times slower
        def add(turn, state):
            j = turns.keys[turn]
            dq, dk, dv = state
            local, start = j * BLOCK, BLOCK * (j if part is None else part.keys[j])
            key = start + jnp.arange(BLOCK)[:, None]
            seen = (key <= query) & (query < cut(trees.ends, start, 1)[:, :, None])
            if window is not None:
                positions = (
                    cut(trees.positions, turns.block * BLOCK, 1)[:, None, :],
                    cut(trees.positions, start, 1)[:, :, None],
                )
                seen &= positions[0] - positions[1] < window
            k_block, v_block = cut(k_rows, local, 2), cut(v_rows, local, 2)
            scores = product("bksh,bkqh->bksq", k_block, q_block) - lse_block[:, :, None]
            shape = scores.shape
            scores = scores.reshape(b, kv, BLOCK, groups, BLOCK)
            weights = jnp.exp(jnp.where(seen[:, None, :, None], scores, _MASKED).reshape(shape))
            d_scores = weights * (product("bksh,bkqh->bksq", v_block, d_block) - shared_block[:, :, None])
            weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
            dk_block = cut(dk, local, 2) + product("bksq,bkqh->bksh", d_scores, q_block)
            dv_block = cut(dv, local, 2) + product("bksq,bkqh->bksh", weights, d_block)
            return (
                dq + product("bkhs,bksq->bkhq", jax.lax.dynamic_slice_in_dim(k_columns, local, BLOCK, 3), d_scores),
                jax.lax.dynamic_update_slice_in_dim(dk, dk_block, local, 2),
                jax.lax.dynamic_update_slice_in_dim(dv, dv_block, local, 2),
            )

        state = jnp.zeros((b, kv, h, groups * BLOCK), jnp.float32), *carry
        dq, dk, dv = jax.lax.fori_loop(0, turns.met, add, state)
        return (dk, dv), dq

    zeros = jnp.zeros(k_rows.shape, jnp.float32)
    blocks = _turns(t, trees, part), by_block(q * scale), by_block(d_out), by_block(shared), by_block(lse)
    (dk, dv), dq = jax.lax.scan(block, (zeros, zeros), blocks)
    dq = dq.reshape(t // BLOCK, b, kv, h, groups, BLOCK).transpose(1, 0, 5, 2, 4, 3).reshape(b, t, n, h) * scale
    return dq, dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable_blockwise(
    scale: float, q: jax.Array, k: jax.Array, v: jax.Array, trees: Forest, window: jax.Array | int | None
) -> jax.Array:
    """The output of `blockwise` for whole rows without a prefix; under remat its residuals are named "attention"."""
    return blockwise(q, k, v, trees, scale, window)[0]


def _forward(scale, q, k, v, trees, window):
    out, lse = blockwise(q, k, v, trees, scale, window)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, trees, window, out, lse)


def _backward(scale, residuals, d_out):
    q, k, v, trees, window, out, lse = residuals
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    gradients = blockwise_gradient(q, k, v, trees, scale, window, lse, shared, d_out)
    return *(gradient.astype(x.dtype) for gradient, x in zip(gradients, (q, k, v), strict=True)), None, None


differentiable_blockwise.defvjp(_forward, _backward)
