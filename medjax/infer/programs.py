"""The compiled programs of the engine, shared by scoring and generation: run packed rows, read scores, hold a prefix.

Every program is a pure function of (variables, arrays), compiled ahead for each set of shapes. Shapes are few, because
rows have one length a job; `Programs.shapes` lists them with the seconds each took to compile.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medjax.infer.packing import Row, stack
from medjax.models.decoder import Decoder, unembedding
from medjax.nn.attention import PREFIX_BLOCK, Cache, Prefix, forest
from medjax.nn.lora import LoraConfig
from medjax.nn.ops import row_statistics, target_logits
from medjax.store.loading import LoadedDecoder

VOCAB_CHUNK = 8192  # vocabulary entries whose logits exist at one time
READ_CHUNK = 128  # rows of hidden states that meet the vocabulary at one time


class Programs:
    """A model's programs on its mesh.

    dtype      compute dtype
    backend    of nn.attention
    lora       an adapter that runs beside the weights: its config and its factors, placed on the mesh
    precision  of matrix products: float32 means float32, also on devices that would use TF32 or bfloat16 for it
    """

    def __init__(
        self,
        model: LoadedDecoder,
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
            model.config, dtype=self.dtype, backend=backend, lora=config, quantisation=model.quantisation
        )
        self.variables = {"params": model.params, "lora": factors} if lora else {"params": model.params}
        self.precision = "highest" if self.dtype == jnp.float32 else "default"
        self.shapes: dict[str, float] = {}
        self._compiled: dict[str, Callable] = {}
        batch = model.rules.batch
        axes = (batch,) if isinstance(batch, str) else batch or ()
        self.data_shards = math.prod(self.mesh.shape[axis] for axis in axes)
        self._by_row = NamedSharding(self.mesh, PartitionSpec(batch))
        self._whole = NamedSharding(self.mesh, PartitionSpec())

    def put(self, array: np.ndarray | np.int32, by_row: bool = True) -> jax.Array:
        """Host array -> device, split along its first axis over the data axes, or whole on every device."""
        return jax.device_put(array, self._by_row if by_row else self._whole)

    def run(self, name: str, function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Any:
        """Call a program; it is compiled when no program of this name, which must tell all shapes, was run before."""
        if name not in self._compiled:
            start = time.perf_counter()
            with jax.default_matmul_precision(self.precision):
                self._compiled[name] = jax.jit(function, donate_argnums=donate).lower(*args).compile()
            self.shapes[name] = time.perf_counter() - start
        return self._compiled[name](*args)

    def prefix(self, tokens: tuple[int, ...], row_tokens: int) -> Prefix | None:
        """Run a prefix and keep its keys and values: k, v [layers, p, kv_heads, head_dim], p a power of two."""
        if not tokens:
            return None
        capacity = PREFIX_BLOCK
        while capacity < len(tokens) + row_tokens:  # a whole row is written at the end, its padding included
            capacity *= 2
        c = self.config
        k, v = (jnp.zeros((c.layers, capacity, c.kv_heads, c.head_dim), self.dtype, device=self._whole) for _ in "kv")
        for start in range(0, len(tokens), row_tokens):
            part = tokens[start : start + row_tokens]
            n = len(part)
            row = Row(list(part), list(range(start, start + n)), [n] * n)
            arrays = {name: self.put(a, by_row=False) for name, a in stack([row], row_tokens, 1).items()}
            length = self.put(np.int32(start), by_row=False)
            name = f"prefix {row_tokens} into {capacity}"
            k, v = self.run(name, self._prefix, self.variables, k, v, length, arrays, donate=(1, 2))
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
        """Keys and values to decode into: two arrays [layers, sequences, kv_heads, length, head_dim]."""
        c = self.config
        sharding = NamedSharding(self.mesh, PartitionSpec(None, *self._by_row.spec))
        shape = (c.layers, sequences, c.kv_heads, length, c.head_dim)
        return jnp.zeros(shape, self.dtype, device=sharding), jnp.zeros(shape, self.dtype, device=sharding)

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
        return self.run(name, self._prefill, self.variables, prefix, cache, arrays, put, donate=(2,))

    def decode(self, tokens: jax.Array, lengths: jax.Array, cache, prefix: Prefix | None, steps: int):
        """Greedy steps for every slot; the cache is donated.

        tokens   [sequences] int32, the newest token of each, not yet in the cache
        lengths  [sequences] int32, entries of the cache that count
        returns  cache, tokens, lengths, and the new tokens [sequences, steps]
        """
        slots, room = cache[0].shape[1], cache[0].shape[3]
        name = f"decode {steps} steps of {slots}x{room}{_after(prefix)}"
        function = partial(self._decode, steps=steps)
        return self.run(name, function, self.variables, tokens, lengths, cache, prefix, donate=(3,))

    def apply(self, variables, arrays, prefix):
        """Hidden states and keys and values of packed rows (inside jit)."""
        trees = forest(arrays["positions"], arrays["ends"])
        return self.decoder.apply(variables, arrays["tokens"], arrays["positions"], trees, prefix)

    def _prefix(self, variables, k, v, length, arrays):
        _, (new_k, new_v) = self.apply(variables, arrays, Prefix(k, v, length))
        return tuple(
            jax.lax.dynamic_update_slice(old, new[:, 0].astype(old.dtype), (0, length, 0, 0))
            for old, new in ((k, new_k), (v, new_v))
        )

    def _score(self, variables, prefix, arrays, reads):
        hidden, _ = self.apply(variables, arrays, prefix)
        with jax.named_scope("vocabulary"):
            return read_scores(hidden, unembedding(variables["params"]), reads)

    def _prefill(self, variables, prefix, cache, arrays, source):
        hidden, kv = self.apply(variables, arrays, prefix)
        row, place, count = source["row"], source["place"], source["count"]
        held = (jnp.arange(place.shape[1]) < count[:, None])[None, :, None, :, None]
        cache = tuple(
            jnp.where(held, new[:, row[:, None], place].swapaxes(2, 3).astype(old.dtype), old)
            for old, new in zip(cache, kv, strict=True)
        )
        last = jnp.take_along_axis(place, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        found = row_statistics(hidden[row, last], unembedding(variables["params"]), VOCAB_CHUNK)
        return cache, jnp.where(jnp.isfinite(found.logsumexp), found.argmax, -1)

    def _decode(self, variables, tokens, lengths, cache, prefix, steps):
        rows = jnp.arange(tokens.shape[0])
        before = prefix.length if prefix else 0

        def step(carry, _):
            tokens, lengths, (k, v) = carry
            positions = (before + lengths)[:, None]
            hidden, new = self.decoder.apply(variables, tokens[:, None], positions, Cache(k, v, lengths), prefix)
            # a finished sequence may run past its room; its writes are dropped
            k, v = (
                old.at[:, rows, :, lengths].set(x[:, :, 0].swapaxes(0, 1).astype(old.dtype), mode="drop")
                for old, x in zip((k, v), new, strict=True)
            )
            tokens = row_statistics(hidden[:, 0], unembedding(variables["params"]), VOCAB_CHUNK).argmax
            return (tokens, lengths + 1, (k, v)), tokens

        (tokens, lengths, cache), made = jax.lax.scan(step, (tokens, lengths, cache), None, length=steps)
        return cache, tokens, lengths, made.T


def _after(prefix: Prefix | None) -> str:
    return f" after {prefix.k.shape[1]}" if prefix else ""


def read_scores(hidden: jax.Array, table: jax.Array, reads: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of target tokens at chosen places: see Programs.score. hidden [b, t, d], table [v, d]."""
    b, _, d = hidden.shape
    places = reads["places"]
    picked = jnp.take_along_axis(hidden, places[..., None], axis=1)  # [b, r, d]

    def body(i, carry):
        part = jax.lax.dynamic_slice_in_dim(picked, i * READ_CHUNK, READ_CHUNK, axis=1)
        found = row_statistics(part.reshape(-1, d), table, VOCAB_CHUNK)
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
