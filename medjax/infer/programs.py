"""The compiled programs of the engine, shared by scoring and generation: run packed rows, read scores, hold a prefix.

Every program is a pure function of (variables, arrays), compiled ahead for each set of shapes. Shapes are few, because
rows have one length a job; `Programs.shapes` lists them with the seconds each took to compile.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.infer.packing import MIN_ROW, Row, stack
from medjax.models.decoder import Decoder, unembedding
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import PREFIX_BLOCK, Prefix, forest
from medjax.nn.lora import LoraConfig
from medjax.nn.ops import row_statistics, target_logits
from medjax.parallel.sharding import Constraint, Rules, partition_spec, ways

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
        self._compiling: Callable[[], AbstractContextManager[None]] = nullcontext
        batch = model.rules.batch
        self.data_shards = ways(self.mesh, batch)
        self.by_row = NamedSharding(self.mesh, PartitionSpec(batch))
        self.whole = NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def by_layer(self) -> dict[str, Any]:
        """The variables, on one CPU with a tree a layer that shares memory with them: a program there copies what it
        slices. Elsewhere slices are read where they lie.
        """
        device = self.mesh.devices.flat[0]
        leaves = jax.tree.leaves(self.variables)
        if device.platform != "cpu" or self.mesh.size > 1 or isinstance(leaves[0], jax.ShapeDtypeStruct):
            return self.variables

        def of_layer(x, number):
            return jax.device_put(np.asarray(x)[number], self.whole, may_alias=True)

        def split(layers):
            return tuple(jax.tree.map(partial(of_layer, number=n), layers) for n in range(self.config.layers))

        return {name: {**tree, "layers": split(tree["layers"])} for name, tree in self.variables.items()}

    @contextmanager
    def watched(self, compiling: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Until it ends, every compilation runs within a `compiling()`, which may stop a clock."""
        self._compiling = compiling
        try:
            yield
        finally:
            self._compiling = nullcontext

    def put(self, array: jax.Array | np.ndarray | np.int32, by_row: bool = True) -> jax.Array:
        """Host array -> device, split along its first axis over the data axes, or whole on every device."""
        return jax.device_put(array, self.by_row if by_row else self.whole)

    def zeros(self, shape: tuple[int, ...], sharding: NamedSharding, dtype: Any = None) -> jax.Array:
        """An array on the devices, in the compute dtype where no other is given."""
        return jnp.zeros(shape, dtype or self.dtype, device=sharding)

    def run(self, name: str, function: Callable, *args: Any, donate: tuple[int, ...] = (), out: Any = None) -> Any:
        """Call a program; it is compiled when no program of this name, which must tell all shapes, was run before.

        out  shardings of what it returns, a tree; None: left to the compiler
        """
        if name not in self._compiled:
            start = time.perf_counter()
            with self._compiling():
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
        place = self.placed(shape, self.model.rules, None, None, "kv_heads", "head_dim")
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
        name = f"score {self.data_shards}x{length}{after(prefix)}, up to {put['entry'].shape[1]} targets"
        return self.run(name, self._score, self.variables, prefix, arrays, put)

    def placed(self, shape: tuple[int, ...], rules: Rules, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, partition_spec(axes, shape, self.mesh, rules))

    def apply(self, variables, arrays, prefix):
        """Hidden states and keys and values of packed rows (inside jit)."""
        trees = forest(arrays["positions"], arrays["ends"])
        return self.decoder.apply(variables, arrays["tokens"], arrays["positions"], trees, prefix)

    def statistics(self, table, hidden):
        with jax.named_scope("vocabulary"):
            return row_statistics(hidden, table, VOCAB_CHUNK, self._vocab_shards)

    def table(self, variables):
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
            return read_scores(hidden, self.table(variables), reads, self._vocab_shards)


def after(prefix: Prefix | None) -> str:
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
