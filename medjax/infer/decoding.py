"""The programs that write answers: prompts into a cache of keys and values, and steps of one token a sequence.

The cache has slots, each for one sequence: its own tokens, without the prefix that all share. `prefill` runs packed
prompts and writes what it computed into the slots that are named; the others keep what they hold. `decode` takes some
steps for every slot, chooses each next token on the device, and gives it to the next step there. A slot whose length is
the cache's room or more is at rest: it writes nothing, and what it gives means nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from medjax.infer.packing import Row, stack
from medjax.infer.programs import Programs, after
from medjax.infer.sampling import Draws, draw
from medjax.models.decoder import unembedding
from medjax.nn.attention import Cache, Prefix
from medjax.parallel.sharding import Constraint, Rules, mesh_axes, ways


class Decoding:
    """The programs of a model that fill and use its cache; compiled and kept by `programs`."""

    def __init__(self, programs: Programs):
        self.programs = programs
        self.config = programs.config
        self.mesh = programs.mesh

    @property
    def slot_shards(self) -> int:
        """Parts that the mesh splits slots into: of a number that it does not divide, every device would hold all."""
        return ways(self.mesh, self._cache_rules.batch)

    def empty_cache(self, slots: int, room: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values to decode into: two arrays [layers, slots, kv_heads, room, head_dim].

        Slots are split over the data axes, heads over `tensor`; where there are fewer heads than that, slots.
        """
        c, p = self.config, self.programs
        shape = (c.layers, slots, c.kv_heads, room, c.head_dim)
        place = p.placed(shape, self._cache_rules, None, "batch", "kv_heads", None, "head_dim")
        return p.zeros(shape, place), p.zeros(shape, place)

    def prefill(self, rows: list[Row], length: int, prefix: Prefix | None, cache, how: Draws | None = None):
        """Run packed prompts into the cache (donated).

        rows     at most `data_shards`; `sequences` are slots, `places` the row indices of each one's own tokens
        how      to draw each slot's first new token; None: greedy
        returns  the cache, and the first new token of every slot [slots] int32 (of slots in these rows), -1 where the
                 logits are not finite
        """
        p = self.programs
        slots, room = cache[0].shape[1], cache[0].shape[3]
        source = {"row": np.zeros(slots, np.int32), "place": np.zeros((slots, room), np.int32)}
        source["count"] = np.zeros(slots, np.int32)
        for r, row in enumerate(rows):
            for slot, places in zip(row.sequences, row.places, strict=True):
                source["row"][slot] = r
                source["place"][slot, : len(places)] = places
                source["count"][slot] = len(places)
        arrays = {name: p.put(a) for name, a in stack(rows, length, p.data_shards).items()}
        put = {name: p.put(a) for name, a in source.items()}
        name = f"prefill {p.data_shards}x{length} into {slots}x{room}{after(prefix)}{_drawn(how)}"
        out = tuple(array.sharding for array in cache), p.by_row
        args = p.variables, prefix, cache, arrays, put, self._put(how)
        return p.run(name, self._prefill, *args, donate=(2,), out=out)

    def decode(
        self, tokens: jax.Array, lengths: jax.Array, cache, prefix: Prefix | None, steps: int, how: Draws | None = None
    ):
        """Steps of every slot; the cache is donated.

        tokens   [slots] int32, the newest token of each, not yet in the cache
        lengths  [slots] int32, entries of the cache that count
        how      to draw tokens, `made` counting the newest ones; None: greedy
        returns  cache, tokens, lengths, and the new tokens [slots, steps]
        """
        p = self.programs
        slots, room = cache[0].shape[1], cache[0].shape[3]
        name = f"decode {steps} steps of {slots}x{room}{after(prefix)}{_drawn(how)}"
        function = partial(self._decode, steps=steps)
        out = tuple(array.sharding for array in cache), *3 * (p.by_row,)
        args = p.variables, tokens, lengths, cache, prefix, self._put(how)
        return p.run(name, function, *args, donate=(3,), out=out)

    def _put(self, how: Draws | None) -> Any:
        return how and Draws(*(self.programs.put(array) for array in how))

    @property
    def _token_rules(self) -> Rules:
        """While decoding the kernels stay where they lie: hidden states are few, and their sums are sent instead."""
        rules = self.programs.model.rules
        kept = set(mesh_axes(rules.embed))
        return replace(rules, batch=tuple(a for a in mesh_axes(rules.batch) if a not in kept), embed=None, rank=None)

    @property
    def _cache_rules(self) -> Rules:
        """Where there are fewer kv heads than devices that split them, these split slots instead."""
        rules = self.programs.model.rules
        if self.config.kv_heads % ways(self.mesh, rules.kv_heads) == 0:
            return rules
        return replace(rules, batch=(*mesh_axes(rules.batch), *mesh_axes(rules.kv_heads)), kv_heads=None)

    def _choose(self, table, hidden, how: Draws | None) -> jax.Array:
        """The next token of every slot, -1 where its logits are not finite: hidden [slots, embed] -> [slots] int32."""
        if how is None:
            found = self.programs.statistics(table, hidden)
            return jnp.where(jnp.isfinite(found.logsumexp), found.argmax, -1)
        with jax.named_scope("vocabulary"):
            return draw(jnp.einsum("bd,vd->bv", hidden, table, preferred_element_type=jnp.float32), how)

    def _prefill(self, variables, prefix, cache, arrays, source, how):
        hidden, kv = self.programs.apply(variables, arrays, prefix)
        row, place, count = source["row"], source["place"], source["count"]
        held = (jnp.arange(place.shape[1]) < count[:, None])[:, None, :, None]

        def add(layer, cache):
            def of_layer(old, new):
                own, before = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (new, old))
                after = jnp.where(held, own[row[:, None], place].swapaxes(1, 2).astype(old.dtype), before)
                return jax.lax.dynamic_update_index_in_dim(old, after, layer, 0)

            return tuple(of_layer(old, new) for old, new in zip(cache, kv, strict=True))

        # layer by layer: at once there would be another cache
        cache = jax.lax.fori_loop(0, self.config.layers, add, cache)
        last = jnp.take_along_axis(place, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        return cache, self._choose(self.programs.table(variables), hidden[row, last], how)

    def _decode(self, variables, tokens, lengths, cache, prefix, how, steps):
        by_cache = _ByCache(Constraint(self.mesh, self._token_rules), Constraint(self.mesh, self._cache_rules))
        decoder = self.programs.decoder.clone(constrain=by_cache)
        rows = jnp.arange(tokens.shape[0])
        before = prefix.length if prefix else 0
        table = unembedding(variables["params"])

        def step(carry, number):
            tokens, lengths, (k, v) = carry
            positions = (before + lengths)[:, None]
            hidden, new = decoder.apply(variables, tokens[:, None], positions, Cache(k, v, lengths), prefix)
            # a finished sequence may run past its room; its writes are dropped
            k, v = (
                old.at[:, rows, :, lengths].set(x[:, :, 0].swapaxes(0, 1).astype(old.dtype), mode="drop")
                for old, x in zip((k, v), new, strict=True)
            )
            now = how and how._replace(made=how.made + number)
            tokens = self._choose(table, hidden[:, 0], now)
            return (tokens, lengths + 1, (k, v)), tokens

        (tokens, lengths, cache), made = jax.lax.scan(step, (tokens, lengths, cache), jnp.arange(steps))
        return cache, tokens, lengths, made.T


@dataclass(frozen=True)
class _ByCache:
    """Queries, keys and values go to the cache, which is large and stays where it lies; all else is as `outside` says.

    They are held to `outside` first, so that what is moved is they, never the kernels that they come from.
    """

    outside: Constraint
    cache: Constraint

    def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
        x = self.outside(x, *axes)
        return self.cache(x, *axes) if "attention_heads" in axes else x

    def sharding(self, shape: Sequence[int], *axes: str | None) -> NamedSharding | None:
        return (self.cache if "attention_heads" in axes else self.outside).sharding(shape, *axes)


def _drawn(how: Draws | None) -> str:
    return ", drawn" if how else ""
