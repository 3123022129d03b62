"""Splash attention for TPU: its block sizes, and its kernels for whole rows and for shares of a row.

Block sizes. A kernel walks over blocks of queries x keys, and skips those above the diagonal and beyond the window.
Small blocks waste time on every step, large ones on masked scores in the blocks that the diagonal cuts; the compiler
refuses those whose operands, twice, and float32 scores overflow the vector memory that it grants a kernel.
`block_sizes` takes the cheapest of those that were seen to compile for every chip (tests/nn/test_splash.py).

Shares. `share` and `share_gradient` are forward and backward for queries and keys that are parts of a row: the first
returns the log-sum-exp of the scores beside the output, by which shares are merged (nn.context); the second takes
output and log-sum-exp of all keys. JAX has no public name for this backward pass; the private one used here is the same
in 0.10 and 0.12.

Ids say which document a token belongs to: a query sees keys of its own id. Queries come scaled.
Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128  # blocks are multiples of it
_STEP = 512**2  # scores that are computed in the time that a step of the grid costs besides: assumed, not measured
_AT_ONCE = 512  # keys that the inner loops of forward and dkv take; with 1024 some of the blocks below do not compile

# Longest blocks of forward, dkv and dq, by bytes of a number and components of a head (lanes filled up): they compile
# for v4, v5e, v5p (which grant a kernel 16 MiB of vector memory) and v6e (32 MiB). For bfloat16 and heads of 128, v5e
# and v6e compile blocks of 2048 too, in four times the time, to save an eighth of the cost of a row of 32768 tokens by
# the estimate below: left out.
_LONGEST: dict[tuple[int, int], tuple[int, int, int]] = {
    (2, 128): (1024, 1024, 1024),
    (2, 256): (1024, 1024, 1024),
    (4, 128): (512, 1024, 512),
    (4, 256): (512, 512, 512),
}


class Blocks(NamedTuple):
    """Tokens of a block: queries, keys, and keys that the inner loop takes at once.

    forward  of the output; dkv: of the gradient by keys and values; dq: of that by queries, which has no inner loop
    """

    forward: tuple[int, int, int]
    dkv: tuple[int, int, int]
    dq: tuple[int, int]


def block_sizes(
    queries: int, keys: int, head_dim: int, dtype: Any, *, causal: bool = True, window: int | None = None
) -> Blocks:
    """The blocks of a shape: of those that compile, those with the least cost of steps and scores.

    queries, keys  tokens, multiples of LANES
    causal         whether queries see keys up to their own, of which the last `window`; else all keys
    """
    number, lanes = jnp.dtype(dtype).itemsize, -(-head_dim // LANES) * LANES
    forward, dkv, dq = _LONGEST.get((number, lanes), (max(LANES, 2**18 // (number * lanes)),) * 3)

    def choose(longest: int) -> tuple[int, int, int]:
        def cost(pair: tuple[int, int]) -> float:
            q, k = pair
            steps = queries // q * (keys // k)
            if causal:
                starts = range(0, queries, q)
                steps = sum((s + q - 1) // k - max(0, s + 1 - (window or keys)) // k + 1 for s in starts)
            return steps * (_STEP + q * k)

        pairs = [(q, k) for q in _divisors(queries, longest) for k in _divisors(keys, longest) if q == k or not causal]
        q, k = min(pairs, key=cost)
        return q, k, max(_divisors(k, _AT_ONCE))

    return Blocks(choose(forward), choose(dkv), choose(dq)[:2])


def _divisors(tokens: int, longest: int) -> list[int]:
    return [size for size in range(LANES, min(tokens, longest) + 1, LANES) if tokens % size == 0]


def make_kernel(
    queries: np.ndarray | int,
    keys: int,
    heads: int,
    head_dim: int,
    dtype: Any,
    *,
    causal: bool = True,
    window: int | None = None,
    shards: int = 1,
    share: bool = False,
    interpret: bool = False,
) -> Any:
    """A splash kernel for one row: kernel(q [n, t, h], k [kv, s, h], v, SegmentIds) -> [n, t, h].

    queries    how many; or the index in the row of every query, int32, in the order in which they come
    window     with causal, a token sees the last `window` tokens of the row
    shards     equal parts that the queries are in (kernel.manual_sharding_spec)
    share      also return the log-sum-exp, and have no gradient of its own
    interpret  emulate the TPU, for tests
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    count = queries if isinstance(queries, int) else len(queries)
    mask: Any
    if not causal:
        mask = splash.FullMask((count, keys))
    elif window is None:
        mask = splash.CausalMask((count, keys))
    else:
        mask = splash.LocalMask((count, keys), (window - 1, 0), 0)
    if not isinstance(queries, int):
        mask.q_sequence = queries
    # queries in an order of their own come in two runs a shard: no block holds some of both
    run = count if isinstance(queries, int) else count // (2 * shards)
    blocks = block_sizes(run, keys, head_dim, dtype, causal=causal, window=window)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=shards,
        block_sizes=splash.BlockSizes(
            *blocks.forward,
            *blocks.dkv,
            *blocks.dq,
        ),
        save_residuals=share,
        residual_checkpoint_name=None if share else "attention",
        interpret=interpret,
    )


def whole_rows(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, ends: jax.Array) -> jax.Array:
    """A kernel over rows: q [b, n, t, h], k and v [b, kv, t, h], ends [b, t] as ids -> [b, n, t, h], differentiable."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return jax.vmap(lambda q, k, v, ends: kernel(q, k, v, SegmentIds(ends, ends)))(q, k, v, ends)


def share(
    kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, q_ids: jax.Array, k_ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What queries [b, n, t, h] see of these keys [b, kv, s, h]; ids [b, t] and [b, s].

    returns  [b, n, t, h], normalised over these keys, and the log-sum-exp of their scores [b, n, t] float32; a query
             that sees none of them gets finite numbers and a log-sum-exp below -1e38
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    out, (lse,) = jax.vmap(lambda q, k, v, *ids: kernel(q, k, v, SegmentIds(*ids)))(q, k, v, q_ids, k_ids)
    return out, lse


def share_gradient(
    kernel: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_ids: jax.Array,
    k_ids: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients by q, k and v of these keys.

    out [b, n, t, h] and lse [b, n, t] are of all keys that the queries see, d_out is the gradient by out.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import _splash_attention_bwd

    made = kernel.kwargs

    def row(q, k, v, q_ids, k_ids, out, lse, d_out):
        residuals = q, k, v, SegmentIds(q_ids, k_ids), None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info
        # save_residuals, mask_value, is_mqa, block_sizes, checkpoint name, mask_function, soft cap
        static = False, made["mask_value"], False, made["block_sizes"], None, made["mask_function"], None
        return _splash_attention_bwd(*static, made["interpret"], residuals, d_out)[3:6]

    return jax.vmap(row)(q, k, v, q_ids, k_ids, out, lse, d_out)
