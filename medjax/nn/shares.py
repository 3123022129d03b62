"""What one device computes where a row is split over devices (nn.context): shares of an online softmax, and gradients.

Device i of n has the queries of pieces i and 2 n - 1 - i of the 2 n equal pieces of a row. It meets its own keys, keys
of another device (`source`), or all keys in the order of the row. Arrays have heads first: q [b, n, t, h], k and v
[b, kv, s, h]; outputs, log-sum-exps [b, n, t] and gradients are float32.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from medjax.nn import splash
from medjax.nn.blockwise import Part, blockwise, blockwise_gradient
from medjax.nn.forest import BLOCK, Forest


class State(NamedTuple):
    """An online softmax over the keys seen so far: out [b, n, t, h], normalised, and log-sum-exp [b, n, t]."""

    out: jax.Array
    lse: jax.Array


class Final(NamedTuple):
    """What a gradient needs of all keys: out and its gradient [b, n, t, h], log-sum-exp [b, n, t]."""

    out: jax.Array
    lse: jax.Array
    d_out: jax.Array


class Gradients(NamedTuple):
    """By q, and by the k and v at hand."""

    q: jax.Array
    k: jax.Array
    v: jax.Array


class Shares(Protocol):
    """A back end: `own` starts from nothing, `add` adds the keys of another device, `all` takes all keys."""

    def own(self, q: jax.Array, k: jax.Array, v: jax.Array) -> State: ...

    def add(self, state: State, q: jax.Array, k: jax.Array, v: jax.Array, source: jax.Array) -> State: ...

    def all(self, q: jax.Array, k: jax.Array, v: jax.Array) -> State: ...

    def own_gradient(self, q: jax.Array, k: jax.Array, v: jax.Array, final: Final) -> Gradients: ...

    def add_gradient(
        self, sums: Gradients, q: jax.Array, k: jax.Array, v: jax.Array, final: Final, source: jax.Array
    ) -> Gradients: ...

    def all_gradient(self, q: jax.Array, k: jax.Array, v: jax.Array, final: Final) -> Gradients: ...


def merge(one: State, other: State) -> State:
    """The online softmax over the keys of both."""
    lse = jnp.logaddexp(one.lse, other.lse)
    out = one.out * jnp.exp(one.lse - lse)[..., None] + other.out * jnp.exp(other.lse - lse)[..., None]
    return State(out, lse)


class SplashShares:
    """By nn.splash, whose masks must be known while compiling: zig-zag order leaves three, one kernel each.

    kernels  the causal one of own keys, that of all queries with the first half of another device's keys, that of the
             second half of the queries with all of another device's keys; or the one of all keys
    """

    def __init__(self, trees: Forest, device: jax.Array, shards: int, kernels: tuple[Any, ...]):
        self.device, self.shards, self.ends, self.kernels = device, shards, trees.ends, kernels
        self.piece = trees.ends.shape[1] // (2 * shards)
        self.ids = self._ids(device)

    def _ids(self, device: jax.Array) -> jax.Array:
        pieces = device, 2 * self.shards - 1 - device
        return jnp.concatenate(
            [jax.lax.dynamic_slice_in_dim(self.ends, piece * self.piece, self.piece, 1) for piece in pieces], axis=1
        )

    def _case(self, source: jax.Array) -> jax.Array:
        """What to do with the keys of another device: nothing, 0; first half of the keys, 1; second of the queries, 2.

        Nothing when no document reaches from the last of the keys that come before to the first query after it.
        """
        earlier, far = source < self.device, 2 * self.shards - 1
        key = (jnp.where(earlier, source, far - source) + 1) * self.piece - 1
        query = jnp.where(earlier, self.device, far - self.device) * self.piece
        reached = jnp.any(jax.lax.dynamic_index_in_dim(self.ends, key, 1) > query)
        return jnp.where(reached, jnp.where(earlier, 1, 2), 0)

    def own(self, q, k, v):
        return State(*_float32(splash.share(self.kernels[0], q, k, v, self.ids, self.ids)))

    def add(self, state, q, k, v, source):
        half, k_ids = self.piece, self._ids(source)

        def earlier(state):
            call = q, k[:, :, :half], v[:, :, :half], self.ids, k_ids[:, :half]
            return merge(state, State(*splash.share(self.kernels[1], *call)))

        def later(state):
            call = q[:, :, half:], k, v, self.ids[:, half:], k_ids
            last = merge(State(*(x[:, :, half:] for x in state)), State(*splash.share(self.kernels[2], *call)))
            return State(*(x.at[:, :, half:].set(y) for x, y in zip(state, last, strict=True)))

        return jax.lax.switch(self._case(source), (_same, earlier, later), state)

    def all(self, q, k, v):
        return State(*_float32(splash.share(self.kernels[0], q, k, v, self.ids, self.ends)))

    def own_gradient(self, q, k, v, final):
        return Gradients(*_float32(splash.share_gradient(self.kernels[0], q, k, v, self.ids, self.ids, *final)))

    def add_gradient(self, sums, q, k, v, final, source):
        half, k_ids = self.piece, self._ids(source)

        def earlier(sums):
            call = q, k[:, :, :half], v[:, :, :half], self.ids, k_ids[:, :half]
            dq, dk, dv = splash.share_gradient(self.kernels[1], *call, *final)
            return Gradients(sums.q + dq, sums.k.at[:, :, :half].add(dk), sums.v.at[:, :, :half].add(dv))

        def later(sums):
            call = q[:, :, half:], k, v, self.ids[:, half:], k_ids, *(x[:, :, half:] for x in final)
            dq, dk, dv = splash.share_gradient(self.kernels[2], *call)
            return Gradients(sums.q.at[:, :, half:].add(dq), sums.k + dk, sums.v + dv)

        return jax.lax.switch(self._case(source), (_same, earlier, later), sums)

    def all_gradient(self, q, k, v, final):
        return Gradients(*_float32(splash.share_gradient(self.kernels[0], q, k, v, self.ids, self.ends, *final)))


class BlockwiseShares:
    """By nn.blockwise, which meets only the key blocks that a query block sees."""

    def __init__(self, trees: Forest, device: jax.Array, shards: int, scale: float, window: jax.Array | None):
        self.trees, self.shards, self.scale, self.window = trees, shards, scale, window
        self.blocks = trees.ends.shape[1] // BLOCK
        self.queries = self._numbers(device)

    def _numbers(self, device: jax.Array) -> jax.Array:
        piece = self.blocks // (2 * self.shards)
        starts = jnp.stack([device, 2 * self.shards - 1 - device]) * piece
        return (starts[:, None] + jnp.arange(piece)).reshape(-1).astype(jnp.int32)

    def _share(self, q, k, v, keys: jax.Array) -> State:
        q, k, v = (_tokens_first(x) for x in (q, k, v))
        out, lse = blockwise(q, k, v, self.trees, self.scale, self.window, part=Part(self.queries, keys))
        return State(out.transpose(0, 2, 1, 3), lse.transpose(0, 2, 1))

    def _gradient(self, q, k, v, final: Final, keys: jax.Array) -> Gradients:
        shared = jnp.sum(final.d_out.astype(jnp.float32) * final.out.astype(jnp.float32), axis=-1)
        q, k, v, d_out = (_tokens_first(x) for x in (q, k, v, final.d_out))
        lse, shared = (x.transpose(0, 2, 1) for x in (final.lse, shared))
        part = Part(self.queries, keys)
        found = blockwise_gradient(q, k, v, self.trees, self.scale, self.window, lse, shared, d_out, part)
        return Gradients(*(_tokens_first(x) for x in found))

    def own(self, q, k, v):
        return self._share(q, k, v, self.queries)

    def add(self, state, q, k, v, source):
        return merge(state, self._share(q, k, v, self._numbers(source)))

    def all(self, q, k, v):
        return self._share(q, k, v, jnp.arange(self.blocks, dtype=jnp.int32))

    def own_gradient(self, q, k, v, final):
        return self._gradient(q, k, v, final, self.queries)

    def add_gradient(self, sums, q, k, v, final, source):
        found = self._gradient(q, k, v, final, self._numbers(source))
        return Gradients(*(one + other for one, other in zip(sums, found, strict=True)))

    def all_gradient(self, q, k, v, final):
        return self._gradient(q, k, v, final, jnp.arange(self.blocks, dtype=jnp.int32))


def _same(x: Any) -> Any:
    return x


def _float32(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x.astype(jnp.float32) for x in arrays)


def _tokens_first(x: jax.Array) -> jax.Array:
    """[b, n, t, h] <-> [b, t, n, h]."""
    return x.transpose(0, 2, 1, 3)
