"""The programs that write answers: prompts into a cache of keys and values, and steps of one token a sequence.

The cache (nn.cache) has slots, each for one sequence: its own tokens, without the prefix that all share. `prefill` runs
packed prompts and writes what it computed into the slots that are named; the others keep what they hold. `decode` takes
some steps for every slot, chooses each next token on the device, and gives it to the next step there. A slot whose
length is the cache's room or more is at rest: it writes nothing, and what it gives means nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medjax.infer.packing import Row, stack
from medjax.infer.programs import Programs, after
from medjax.infer.sampling import Draws, draw, greedy
from medjax.models.decoder import continued, unembedding
from medjax.nn.attention import Prefix
from medjax.nn.cache import Cache, Group, packed
from medjax.parallel.sharding import Constraint, Rules, mesh_axes, partition_spec, ways

Layer = tuple[Group, ...]  # one layer's cache, by group


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

    @property
    def entries_last(self) -> bool:
        """In which order a cache has its keys: see nn.cache.Group."""
        return self.mesh.devices.flat[0].platform == "cpu"

    def empty_cache(self, slots: int, rooms: Sequence[int], int8: bool = False) -> tuple[Layer, ...]:
        """A cache to decode into, one tuple of groups a layer, a group for each of `rooms` tokens.

        slots  of all groups, a multiple of `slot_shards` times their number
        int8   whether keys and values are kept in it
        """
        c, p, rules = self.config, self.programs, self._cache_rules

        def zeros(*inner, dtype=jnp.int8 if int8 else None):
            shape = slots // len(rooms), c.kv_heads, *inner
            return p.zeros(shape, p.placed(shape, rules, *_axes(len(shape))), dtype)

        def group(room):
            k_scale, v_scale = (zeros(room, dtype=jnp.float32) if int8 else None for _ in "kv")
            k = zeros(c.head_dim, room) if self.entries_last else zeros(room, c.head_dim)
            return Group(k, zeros(room, c.head_dim), k_scale, v_scale, self.entries_last)

        return tuple(tuple(group(room) for room in rooms) for _ in range(c.layers))

    def group(self, slot: int, slots: int, groups: int) -> tuple[int, int]:
        """Which group a slot is in, and its place there: see nn.cache.Cache."""
        shard, within = divmod(slot, slots // self.slot_shards)
        each = slots // self.slot_shards // groups
        return within // each, shard * each + within % each

    def prefill(self, rows: list[Row], length: int, prefix: Prefix | None, cache, slots: int, how: Draws | None = None):
        """Run packed prompts into the cache (donated).

        rows     at most `data_shards`; `sequences` are slots, `places` the row indices of each one's own tokens
        slots    of the cache
        how      to draw each slot's first new token; None: greedy
        returns  the cache, and the first new token of every slot [slots] int32 (of slots in these rows), -1 where the
                 logits are not finite
        """
        p = self.programs
        source = {"row": np.zeros(slots, np.int32), "last": np.zeros(slots, np.int32)}
        groups = [_Into.nothing(group) for group in cache[0]]
        for r, row in enumerate(rows):
            for slot, places in zip(row.sequences, row.places, strict=True):
                source["row"][slot], source["last"][slot] = r, places[-1]
                group, place = self.group(slot, slots, len(groups))
                groups[group] = groups[group].added(place, r, places)
        arrays = {name: p.put(a) for name, a in stack(rows, length, p.data_shards).items()}
        put = {name: p.put(a) for name, a in source.items()}
        name = f"prefill {p.data_shards}x{length} for {slots}{after(prefix)}{_drawn(how)}"
        c = self.config
        shape = c.layers, p.data_shards, length, c.kv_heads, c.head_dim
        row_kv = p.placed(shape, p.model.rules, None, "batch", None, "kv_heads", None)
        args = p.variables, prefix, arrays, put, self._put(how)
        kv, chosen = p.run(name, self._prefill, *args, out=((row_kv, row_kv), p.by_row))
        into = [_Into(*(p.put(array, by_row=False) for array in group)) for group in groups]
        filled = []
        for number, layer in enumerate(cache):
            # a program for each layer and group would be the same program
            at = p.put(np.int32(number), by_row=False)
            filled.append(tuple(self._fill(*each, kv, at, length) for each in zip(layer, into, strict=True)))
        return tuple(filled), chosen

    def _fill(self, group: Group, into: "_Into", kv, layer, length: int) -> Group:
        p, slots = self.programs, group.v.shape[0]
        name = f"fill {slots}x{group.room}{_kept(group)} from {p.data_shards}x{length}"
        out = jax.tree.map(lambda array: array.sharding, group)
        return p.run(name, self._filled, group, into, *kv, layer, donate=(0,), out=out)

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
        name = f"decode {steps} steps of {_said(tokens.shape[0], cache)}{after(prefix)}{_drawn(how)}"
        function = partial(self._decode, steps=steps)
        out = _shardings(cache), *3 * (p.by_row,)
        args = p.by_layer, tokens, lengths, cache, prefix, self._put(how)
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
        with jax.named_scope("vocabulary"):
            logits = jnp.einsum("bd,vd->bv", hidden, table, preferred_element_type=jnp.float32)
            return draw(logits, how) if how else greedy(logits)

    def _prefill(self, variables, prefix, arrays, source, how):
        hidden, kv = self.programs.apply(variables, arrays, prefix)
        return kv, self._choose(self.programs.table(variables), hidden[source["row"], source["last"]], how)

    def _filled(self, group: Group, into: "_Into", k, v, layer) -> Group:
        """One layer's group with the sequences that `into` names: k, v [layers, b, t, kv_heads, head_dim]."""
        spec = partial(partition_spec, mesh=self.mesh, rules=self._cache_rules)
        held = jax.tree.map(lambda x: spec(_axes(x.ndim), x.shape), group)
        new = spec((None, None, "kv_heads", None), k.shape[1:])
        split = mesh_axes(held.k[0])

        def fill(group, into, k, v):
            mine = group.k.shape[0]
            start = jax.lax.axis_index(split) * mine if split else 0

            def add(number, group):
                row, place, slot = into.row[number], into.place[number], into.slot[number] - start
                k_own, v_own, *scales = packed(k[row][place], v[row][place], group.is_int8)  # [room, kv_heads, …]
                k_own = k_own.transpose(1, 2, 0) if group.entries_last else k_own.swapaxes(0, 1)
                k_scale, v_scale = (x if x is None else x.T for x in scales)
                own = Group(k_own, v_own.swapaxes(0, 1), k_scale, v_scale, group.entries_last)

                def write(group):
                    def put(old, new):
                        return jax.lax.dynamic_update_index_in_dim(old, new.astype(old.dtype), slot, 0)

                    return jax.tree.map(put, group, own)

                if not split:
                    return write(group)
                return jax.lax.cond((slot >= 0) & (slot < mine), write, lambda group: group, group)

            return jax.lax.fori_loop(0, into.count, add, group)

        specs = held, jax.tree.map(lambda _: PartitionSpec(), into), new, new
        of_mesh = jax.shard_map(fill, mesh=self.mesh, in_specs=specs, out_specs=held, check_vma=False)
        return of_mesh(group, into, *(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (k, v)))

    def _decode(self, variables, tokens, lengths, cache, prefix, how, steps):
        by_cache = _ByCache(Constraint(self.mesh, self._token_rules), Constraint(self.mesh, self._cache_rules))
        decoder = self.programs.decoder.clone(constrain=by_cache)
        before = prefix.length if prefix else 0
        table = unembedding(variables["params"])

        def step(carry, number):
            tokens, lengths, cache = carry
            caches = [Cache(groups, lengths, self.slot_shards) for groups in cache]
            hidden, caches = continued(decoder, variables, tokens, before + lengths, caches, prefix)
            now = how and how._replace(made=how.made + number)
            tokens = self._choose(table, hidden, now)
            return (tokens, lengths + 1, tuple(one.groups for one in caches)), tokens

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


class _Into(NamedTuple):
    """Sequences of packed rows that go into slots of one group.

    slot, row  [slots] int32, of which the first `count` are meant
    place      [slots, room] int32: row indices of a sequence's tokens
    """

    count: Any
    slot: Any
    row: Any
    place: Any

    @classmethod
    def nothing(cls, group: Group) -> "_Into":
        slots = group.v.shape[0]
        slot, row = np.zeros((2, slots), np.int32)
        return cls(np.int32(0), slot, row, np.zeros((slots, group.room), np.int32))

    def added(self, slot: int, row: int, places: Sequence[int]) -> "_Into":
        at = int(self.count)
        self.slot[at], self.row[at], self.place[at, : len(places)] = slot, row, places
        return self._replace(count=np.int32(at + 1))


def _drawn(how: Draws | None) -> str:
    return ", drawn" if how else ""


def _said(slots: int, cache: tuple[Layer, ...]) -> str:
    return f"{slots}x{'+'.join(str(group.room) for group in cache[0])}{_kept(cache[0][0])}"


def _kept(group: Group) -> str:
    return " int8" if group.is_int8 else ""


def _axes(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of an array of the cache."""
    return "batch", "kv_heads", *(None,) * (ndim - 2)


def _shardings(cache: tuple[Layer, ...]) -> Any:
    return jax.tree.map(lambda array: array.sharding, cache)
