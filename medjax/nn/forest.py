"""Where the tokens of packed rows stand, and what precedes them: the data that every back end of attention reads.

A row of tokens holds trees in depth-first order: a question, then its first answer choice, then the next, then the next
question. `ends[s]` is the index one past the subtree of token s, so that

    token t sees token s   if and only if   s <= t < ends[s]

which is causal attention for a single sequence (ends = t), packed documents (ends = end of the document), and a
question shared by its choices (ends of a question's tokens = end of its last choice), all in one integer a token:

    tokens  q q q  a a  b b b | q q ...          a sees q q q and a's own past, never b; nothing sees across |
    ends    8 8 8  5 5  8 8 8   ...

Keys of a `Prefix` (a few-shot prompt) come before every row and are seen by all its tokens. Positions, which RoPE and
sliding windows need, are given apart: both choices above start at position 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # tokens of a query block and of a key block; rows are multiples of it
PREFIX_BLOCK = 256  # keys of the prefix taken at one time; prefix buffers are multiples of it


class Forest(NamedTuple):
    """Where the tokens of packed rows stand.

    positions    [b, t] int32: distance from the start of the own sequence, prefix included
    ends         [b, t] int32: one past the token's subtree, an index into the row; padding sees itself (ends = t + 1)
    reach        [t / BLOCK] int32: of a block of keys, the largest of `ends` in any row; queries from there on see none
    """

    positions: jax.Array
    ends: jax.Array
    reach: jax.Array


class Prefix(NamedTuple):
    """Keys and values that precede every row: k and v [p, kv_heads, head_dim], of which `length` (int32) count."""

    k: jax.Array
    v: jax.Array
    length: jax.Array


def forest(positions: jax.Array, ends: jax.Array) -> Forest:
    """Derive what blocks reach: positions and ends [b, t] int32, t a multiple of BLOCK."""
    t = ends.shape[1]
    if t % BLOCK:
        raise ValueError(f"attention: got rows of {t} tokens, expected a multiple of {BLOCK}; pad the rows.")
    return Forest(positions, ends, jnp.max(ends.reshape(-1, t // BLOCK, BLOCK), axis=(0, 2)))


def met(trees: Forest, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Whether any query of a block sees any key of another: numbers of blocks [q] and [k] -> [q, k] bool."""
    return (keys <= queries[:, None]) & (trees.reach[keys] > BLOCK * queries[:, None])
