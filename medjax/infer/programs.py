"""The compiled programs of the engine, shared by scoring and generation: run packed rows, read scores, hold a prefix.

Every program is a pure function of (variables, arrays), compiled ahead for each set of shapes. Shapes are few, because
rows have one length a job; `Programs.shapes` lists them with the seconds each took to compile.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.infer.packing import MIN_ROW, Row, stack
from medjax.models.decoder import Decoder, unembedding
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import PREFIX_BLOCK, Cache, Prefix, forest
from medjax.nn.lora import LoraConfig
from medjax.nn.ops import row_statistics, target_logits
from medjax.parallel.sharding import Constraint, Rules, mesh_axes, partition_spec, ways

VOCAB_CHUNK = 8192  # vocabulary entries whose logits exist at one time
READ_CHUNK = 128  # rows of hidden states that meet the vocabulary at one time
_PREFIX_ROW = 512  # tokens of a prefix that are run at one time


class Model(Protocol):
    """A decoder on a mesh, as store.loading has it; params may be shapes (jax.ShapeDtypeStruct) with shardings."""

    @property
    def config(self) -> DecoderConfig: ...
    @property
    def params(self) -> Any: ...
    @property
    def mesh(self) -> Mesh: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def quantisation(self) -> str | None: ...


class Programs:
    """A model's programs on its mesh.

    dtype      compute dtype
    backend    of nn.attention
    lora       an adapter that runs beside the weights: its config and its factors, placed on the mesh
    precision  of matrix products: float32 means float32, also on devices that would use TF32 or bfloat16 for it
    """

    def __init__(
        self,
        model: Model,
        *,
        dtype: str | jnp.dtype,
        backend: str,
        lora: tuple[LoraConfig, Any] | None = None,
    ):
        self.model = model
        self.config = model.config
        self.mesh = model.mesh
        self.dtype = jnp.dtype(dtype)
        self.backend = backend
        config, factors = lora or (None, None)
        self.decoder = Decoder(
            model.config,
            dtype=self.dtype,
            backend=backend,
            lora=config,
            quantisation=model.quantisation,
            constrain=Constraint(model.mesh, model.rules),
        )
        self.variables = {"params": model.params, "lora": factors} if lora else {"params": model.params}
        self.precision = "highest" if self.dtype == jnp.float32 else "default"
        self.shapes: dict[str, float] = {}
        self._compiled: dict[str, Callable] = {}
        batch = model.rules.batch
        self.data_shards = ways(self.mesh, batch)
        self._by_row = NamedSharding(self.mesh, PartitionSpec(batch))
        self._whole = NamedSharding(self.mesh, PartitionSpec())

    def put(self, array: np.ndarray | np.int32, by_row: bool = True) -> jax.Array:
        """Host array -> device, split along its first axis over the data axes, or whole on every device."""
        return jax.device_put(array, self._by_row if by_row else self._whole)

    def zeros(self, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        """An array on the devices, in the compute dtype."""
        return jnp.zeros(shape, self.dtype, device=sharding)

    def run(self, name: str, function: Callable, *args: Any, donate: tuple[int, ...] = (), out: Any = None) -> Any:
        """Call a program; it is compiled when no program of this name, which must tell all shapes, was run before.

        out  shardings of what it returns, a tree; None: left to the compiler
        """
        if name not in self._compiled:
            start = time.perf_counter()
            self._compiled[name] = self.lower(function, args, donate, out).compile()
            self.shapes[name] = time.perf_counter() - start
        return self._compiled[name](*args)

    def lower(self, function: Callable, args: tuple[Any, ...], donate: tuple[int, ...], out: Any) -> Any:
        """A program as it is compiled, for arrays or their shapes; see `run`."""
        with jax.default_matmul_precision(self.precision):
            return jax.jit(function, donate_argnums=donate, out_shardings=out).lower(*args)

    def prefix(self, tokens: tuple[int, ...], row_tokens: int) -> Prefix | None:
        """Run a prefix and keep its keys and values: k, v [layers, p, kv_heads, head_dim], p a power of two.

        row_tokens  of the rows that follow it
        """
        if not tokens:
            return None
        row_tokens = max(MIN_ROW, min(row_tokens, _PREFIX_ROW))
        capacity = PREFIX_BLOCK
        while capacity < len(tokens) + row_tokens:  # a whole row is written at the end, its padding included
            capacity *= 2
        c = self.config
        shape = (c.layers, capacity, c.kv_heads, c.head_dim)
        place = self._placed(shape, self.model.rules, None, None, "kv_heads", "head_dim")
        k, v = (self.zeros(shape, place) for _ in "kv")
        for start in range(0, len(tokens), row_tokens):
            part = tokens[start : start + row_tokens]
            n = len(part)
            row = Row(list(part), list(range(start, start + n)), [n] * n)
            arrays = {name: self.put(a, by_row=False) for name, a in stack([row], row_tokens, 1).items()}
            length = self.put(np.int32(start), by_row=False)
            name = f"prefix {row_tokens} into {capacity}"
            args = self.variables, k, v, length, arrays
            k, v = self.run(name, self._prefix, *args, donate=(1, 2), out=(place, place))
        return Prefix(k, v, self.put(np.int32(len(tokens)), by_row=False))

    def score(self, rows: list[Row], length: int, prefix: Prefix | None, reads: dict[str, np.ndarray]) -> Any:
        """Run packed rows and read log-probabilities.

        rows     at most `data_shards` of them
        reads    places [b, r] int32: row indices where logits are needed, `chunks` of READ_CHUNK of them used;
                 entry [b, e]: index into places; target [b, e]: token
        returns  device arrays logprob [b, e] float32, greedy [b, e] bool: target is the arg-max
        """
        arrays = {name: self.put(a) for name, a in stack(rows, length, self.data_shards).items()}
        put = {name: self.put(a, by_row=a.ndim > 0) for name, a in reads.items()}
        name = f"score {self.data_shards}x{length}{_after(prefix)}, up to {put['entry'].shape[1]} targets"
        return self.run(name, self._score, self.variables, prefix, arrays, put)

    def empty_cache(self, sequences: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values to decode into: two arrays [layers, sequences, kv_heads, length, head_dim].

        Sequences are split over the data axes, heads over `tensor`; where there are fewer heads than that, sequences.
        """
        c = self.config
        shape = (c.layers, sequences, c.kv_heads, length, c.head_dim)
        place = self._placed(shape, self._cache_rules, None, "batch", "kv_heads", None, "head_dim")
        return self.zeros(shape, place), self.zeros(shape, place)

    def prefill(self, rows: list[Row], length: int, prefix: Prefix | None, cache):
        """Run packed prompts into the cache (donated).

        rows     at most `data_shards`; `sequences` are cache slots, `places` the row indices of each one's own tokens
        returns  the cache, and the first new token of every slot [sequences] int32 (of slots in these rows), -1 where
                 the logits are not finite
        """
        slots, room = cache[0].shape[1], cache[0].shape[3]
        source = {"row": np.zeros(slots, np.int32), "place": np.zeros((slots, room), np.int32)}
        source["count"] = np.zeros(slots, np.int32)
        for r, row in enumerate(rows):
            for slot, places in zip(row.sequences, row.places, strict=True):
                source["row"][slot] = r
                source["place"][slot, : len(places)] = places
                source["count"][slot] = len(places)
        arrays = {name: self.put(a) for name, a in stack(rows, length, self.data_shards).items()}
        put = {name: self.put(a) for name, a in source.items()}
        name = f"prefill {self.data_shards}x{length} into {slots}x{room}{_after(prefix)}"
        out = tuple(array.sharding for array in cache), self._by_row
        return self.run(name, self._prefill, self.variables, prefix, cache, arrays, put, donate=(2,), out=out)

    def decode(self, tokens: jax.Array, lengths: jax.Array, cache, prefix: Prefix | None, steps: int):
        """Greedy steps for every slot; the cache is donated.

        tokens   [sequences] int32, the newest token of each, not yet in the cache
        lengths  [sequences] int32, entries of the cache that count
        returns  cache, tokens, lengths, and the new tokens [sequences, steps]
        """
        slots, room = cache[0].shape[1], cache[0].shape[3]
        name = f"decode {steps} steps of {slots}x{room}{_after(prefix)}"
        function = partial(self._decode, steps=steps)
        out = tuple(array.sharding for array in cache), *3 * (self._by_row,)
        return self.run(name, function, self.variables, tokens, lengths, cache, prefix, donate=(3,), out=out)

    def _placed(self, shape: tuple[int, ...], rules: Rules, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, partition_spec(axes, shape, self.mesh, rules))

    @property
    def _token_rules(self) -> Rules:
        """While decoding the kernels stay where they lie: hidden states are few, and their sums are sent instead."""
        rules = self.model.rules
        kept = set(mesh_axes(rules.embed))
        return replace(rules, batch=tuple(a for a in mesh_axes(rules.batch) if a not in kept), embed=None, rank=None)

    @property
    def _cache_rules(self) -> Rules:
        """Where there are fewer kv heads than devices that split them, these split sequences instead."""
        rules = self.model.rules
        if self.config.kv_heads % ways(self.mesh, rules.kv_heads) == 0:
            return rules
        return replace(rules, batch=(*mesh_axes(rules.batch), *mesh_axes(rules.kv_heads)), kv_heads=None)

    def apply(self, variables, arrays, prefix):
        """Hidden states and keys and values of packed rows (inside jit)."""
        trees = forest(arrays["positions"], arrays["ends"])
        return self.decoder.apply(variables, arrays["tokens"], arrays["positions"], trees, prefix)

    def _statistics(self, table, hidden):
        with jax.named_scope("vocabulary"):
            return row_statistics(hidden, table, VOCAB_CHUNK, self._vocab_shards)

    def _table(self, variables):
        """The vocabulary's matrix, brought together over fsdp once, not for every chunk of it or of the rows."""
        return self.decoder.constrain(unembedding(variables["params"]), "vocab", None)

    @property
    def _vocab_shards(self) -> int:
        size, embed = self.config.vocab_size, self.config.embed
        return ways(self.mesh, partition_spec(("vocab", "embed"), (size, embed), self.mesh, self.model.rules)[0])

    def _prefix(self, variables, k, v, length, arrays):
        _, (new_k, new_v) = self.apply(variables, arrays, Prefix(k, v, length))
        return tuple(
            jax.lax.dynamic_update_slice(old, new[:, 0].astype(old.dtype), (0, length, 0, 0))
            for old, new in ((k, new_k), (v, new_v))
        )

    def _score(self, variables, prefix, arrays, reads):
        hidden, _ = self.apply(variables, arrays, prefix)
        with jax.named_scope("vocabulary"):
            return read_scores(hidden, self._table(variables), reads, self._vocab_shards)

    def _prefill(self, variables, prefix, cache, arrays, source):
        hidden, kv = self.apply(variables, arrays, prefix)
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
        found = self._statistics(self._table(variables), hidden[row, last])
        return cache, jnp.where(jnp.isfinite(found.logsumexp), found.argmax, -1)

    def _decode(self, variables, tokens, lengths, cache, prefix, steps):
        by_cache = _ByCache(Constraint(self.mesh, self._token_rules), Constraint(self.mesh, self._cache_rules))
        decoder = self.decoder.clone(constrain=by_cache)
        rows = jnp.arange(tokens.shape[0])
        before = prefix.length if prefix else 0
        table = unembedding(variables["params"])

        def step(carry, _):
            tokens, lengths, (k, v) = carry
            positions = (before + lengths)[:, None]
            hidden, new = decoder.apply(variables, tokens[:, None], positions, Cache(k, v, lengths), prefix)
            # a finished sequence may run past its room; its writes are dropped
            k, v = (
                old.at[:, rows, :, lengths].set(x[:, :, 0].swapaxes(0, 1).astype(old.dtype), mode="drop")
                for old, x in zip((k, v), new, strict=True)
            )
            tokens = self._statistics(table, hidden[:, 0]).argmax
            return (tokens, lengths + 1, (k, v)), tokens

        (tokens, lengths, cache), made = jax.lax.scan(step, (tokens, lengths, cache), None, length=steps)
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


def _after(prefix: Prefix | None) -> str:
    return f" after {prefix.k.shape[1]}" if prefix else ""


def read_scores(
    hidden: jax.Array, table: jax.Array, reads: dict[str, jax.Array], shards: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of target tokens at chosen places: see Programs.score. hidden [b, t, d], table [v, d].

    shards  parts that the mesh splits the table into
    """
    b, _, d = hidden.shape
    places = reads["places"]
    picked = jnp.take_along_axis(hidden, places[..., None], axis=1)  # [b, r, d]

    def body(i, carry):
        part = jax.lax.dynamic_slice_in_dim(picked, i * READ_CHUNK, READ_CHUNK, axis=1)
        found = row_statistics(part.reshape(-1, d), table, VOCAB_CHUNK, shards)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new.reshape(b, READ_CHUNK), i * READ_CHUNK, axis=1)
            for old, new in zip(carry, found, strict=True)
        )

    start = jnp.zeros(places.shape, jnp.float32), jnp.zeros(places.shape, jnp.int32)
    logsumexp, argmax = jax.lax.fori_loop(0, reads["chunks"], body, start)
    at = jnp.take_along_axis(picked, reads["entry"][..., None], axis=1)  # [b, e, d]
    logits = target_logits(at.reshape(-1, d), table, reads["target"].reshape(-1)).reshape(b, -1)
    logprob = logits - jnp.take_along_axis(logsumexp, reads["entry"], axis=1)
    return logprob, jnp.take_along_axis(argmax, reads["entry"], axis=1) == reads["target"]
