"""Keys and values of sequences that are being written, and attention of one new token each to its own past.

The cache has slots, one a sequence, in groups whose slots have the same room: a short sequence is not made to read the
room of a long one. On a CPU keys lie with their entries last, which is how q . k reads them: six times faster than the
other order (64 slots of 1,024 entries). Elsewhere they lie as the values do: TPU's compiler writes an entry where it
lies in that order only, and would copy the keys before and after a loop of steps.

Kept in int8, an entry's keys and values have one scale for each head, its largest magnitude / 127 (the scheme of
per-token KV quantisation in LMDeploy and vLLM). Scales multiply scores and weights, never the entries.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from medjax.nn.forest import Prefix


@flax.struct.dataclass
class Group:
    """One layer's keys and values of the slots of one group.

    k                 [slots, kv_heads, head_dim, room], without entries_last as v
    v                 [slots, kv_heads, room, head_dim]
    k_scale, v_scale  [slots, kv_heads, room] float32 where k and v are int8, else None
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None
    entries_last: bool = flax.struct.field(pytree_node=False, default=True)

    @property
    def room(self) -> int:
        return self.v.shape[2]

    def written(self, k: jax.Array, v: jax.Array, lengths: jax.Array) -> "Group":
        """With a new entry of every slot: k, v [slots, kv_heads, head_dim]; lengths [slots] beyond the room: none."""
        new = packed(k, v, self.is_int8)
        keys = _put(self.k, new.k, lengths, axis=1 if self.entries_last else 0)
        values = _put(self.v, new.v, lengths)
        if self.k_scale is None or self.v_scale is None:
            return replace(self, k=keys, v=values)
        scales = _put(self.k_scale, new.k_scale, lengths), _put(self.v_scale, new.v_scale, lengths)
        return replace(self, k=keys, v=values, k_scale=scales[0], v_scale=scales[1])

    @property
    def is_int8(self) -> bool:
        return self.k_scale is not None


def _put(old: jax.Array, new: jax.Array, lengths: jax.Array, axis: int = 0) -> jax.Array:
    """New entries [slots, kv_heads, ...] at the places `lengths` [slots] along an axis of what each head has."""

    def one(old, new, place):
        return old.at[(slice(None),) * axis + (place,)].set(new.astype(old.dtype), mode="drop")

    # head by head: what TPU writes for several heads at once lies in another order than the cache, which it then copies
    places = jnp.broadcast_to(lengths[:, None], new.shape[:2])
    return jax.vmap(jax.vmap(one))(old, new, places)


@flax.struct.dataclass
class Cache:
    """One layer's cache.

    groups   as many slots in each
    lengths  [slots] int32: entries that count, so also the place of the next one; the room or more: at rest
    shards   parts that a mesh splits slots into. Every part has its share of each group, in the order of the groups
    """

    groups: tuple[Group, ...]
    lengths: jax.Array
    shards: int = flax.struct.field(pytree_node=False, default=1)

    def split(self, x: jax.Array) -> list[jax.Array]:
        """[slots, ...] -> of each group [slots of it, ...]."""
        parts = x.reshape(self.shards, len(self.groups), -1, *x.shape[1:])
        return [parts[:, number].reshape(-1, *x.shape[1:]) for number in range(len(self.groups))]

    def joined(self, parts: Sequence[jax.Array]) -> jax.Array:
        """The way back."""
        inner = parts[0].shape[1:]
        stacked = jnp.stack([part.reshape(self.shards, -1, *inner) for part in parts], axis=1)
        return stacked.reshape(-1, *inner)


class Packed(NamedTuple):
    """Entries as they are kept: k, v [..., head_dim], scales [...]."""

    k: jax.Array
    v: jax.Array
    k_scale: Any = None
    v_scale: Any = None


def packed(k: jax.Array, v: jax.Array, int8: bool) -> Packed:
    """Keys and values [..., head_dim] as they are kept, scales [...] included; rounded, not yet cast."""
    if not int8:
        return Packed(k, v)
    (k, k_scale), (v, v_scale) = (_int8(x) for x in (k, v))
    return Packed(k, v, k_scale, v_scale)


def _int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None]), scale


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Cache,
    *,
    scale: float,
    window: jax.Array | int | None = None,
    prefix: Prefix | None = None,
) -> tuple[jax.Array, Cache]:
    """Write one new token a sequence into the cache, and attend from it to the prefix, its own past, and itself.

    q        [b, 1, n, h]
    k, v     [b, 1, k, h] of the new token
    returns  [b, 1, n, h], dtype of q; and the cache, `lengths` as they were
    """
    b, _, n, h = q.shape
    kv = k.shape[2]
    q = (q * scale).reshape(b, kv, n // kv, h)
    # it is written before it is read, so that the cache is changed where it lies
    split = zip(*(cache.split(x) for x in (q, k[:, 0], v[:, 0], cache.lengths)), cache.groups, strict=True)
    outs, groups = [], []
    for part, new_k, new_v, lengths, group in split:
        group = group.written(new_k, new_v, lengths)
        outs.append(_attend(part, group, lengths, window, prefix))
        groups.append(group)
    return cache.joined(outs).reshape(b, 1, n, h), replace(cache, groups=tuple(groups))


def _attend(q, group: Group, lengths, window, prefix: Prefix | None):
    """q [b, k, g, h], scaled, to the entries up to `lengths` [b], the newest included: [b, k, g, h]."""
    b, lengths = q.shape[0], lengths[:, None]

    def masked(scores, seen, distance):
        seen = seen if window is None else seen & (distance < window)
        return jnp.where(seen[:, None, None], scores, -jnp.inf)

    index = jnp.arange(group.room)
    by_place = "bkgh,bkhs->bkgs" if group.entries_last else "bkgh,bksh->bkgs"
    scores = jnp.einsum(by_place, q, group.k.astype(q.dtype), preferred_element_type=jnp.float32)
    if group.k_scale is not None:
        scores *= group.k_scale[:, :, None]
    own = masked(scores, index <= lengths, lengths - index)
    top = jnp.max(own, axis=-1, keepdims=True)
    if prefix is not None:
        index = jnp.arange(prefix.k.shape[0])
        scores = jnp.einsum("bkgh,pkh->bkgp", q, prefix.k, preferred_element_type=jnp.float32)
        seen = jnp.broadcast_to(index < prefix.length, (b, index.size))
        before = masked(scores, seen, prefix.length + lengths - index)
        top = jnp.maximum(top, jnp.max(before, axis=-1, keepdims=True))

    weights = jnp.exp(own - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if group.v_scale is not None:
        weights *= group.v_scale[:, :, None]
    values = group.v.astype(q.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
    if prefix is not None:
        weights = jnp.exp(before - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        out += jnp.einsum("bkgp,pkh->bkgh", weights.astype(q.dtype), prefix.v, preferred_element_type=jnp.float32)
    return (out / total).astype(q.dtype)
