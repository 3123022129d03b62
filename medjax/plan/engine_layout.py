"""What a program of the engine needs of a device's memory and time, by arithmetic alone; plan.memory has the parts.

kept    prefill: keys and values of the row; decode: nothing, as the cache is written where it lies
layer   activations of a layer, and the largest kernel out of its quantised form
loss    logits of the rows that are read at one time, a chunk of the vocabulary
"""

from dataclasses import dataclass

from jax.sharding import Mesh

from medjax.infer.programs import VOCAB_CHUNK
from medjax.models.decoder_config import DecoderConfig
from medjax.parallel.sharding import Rules, partition_spec, ways


@dataclass(frozen=True)
class EngineLayout:
    """A program of the engine on one device of a mesh. Bytes are of one device.

    width        bytes of a number of the computation
    quantisation how projections are stored
    tokens       of a forward pass, on one device; passes: forward passes of a call
    keys         tokens that a token attends to, on average
    reads        rows whose logits are computed at one time
    kept         bytes that a pass keeps beside its arguments
    cache        bytes of keys and values that a pass reads
    held         bytes of weights, keys and values: the arguments
    weights      of these, weights
    model_flops  of a call on all devices
    """

    config: DecoderConfig
    mesh: Mesh
    rules: Rules
    width: int
    quantisation: str | None
    tokens: int
    passes: int
    keys: float
    reads: int
    kept: int
    cache: int
    held: int
    weights: int
    model_flops: float
    on_tpu: bool

    @property
    def gathered(self) -> int:
        """Into how many parts the weights are split that every device gathers before it uses them."""
        return ways(self.mesh, partition_spec(("embed",), (self.config.embed,), self.mesh, self.rules)[0])

    def ways(self, axis: str, size: int) -> int:
        return ways(self.mesh, partition_spec((axis,), (size,), self.mesh, self.rules)[0])

    @property
    def _parts(self) -> tuple[int, int, int]:
        """Numbers of a token on one device: queries, keys and values, one of the MLP's products."""
        c = self.config
        kv = 2 * c.kv_heads // self.ways("kv_heads", c.kv_heads)
        return c.heads // self.ways("heads", c.heads) * c.head_dim, kv * c.head_dim, c.mlp // self.ways("mlp", c.mlp)

    @property
    def layer(self) -> int:
        """Bytes while a layer runs."""
        c, (heads, kv, mlp) = self.config, self._parts
        kernel = c.embed * mlp * self.width if self.quantisation or self.gathered > 1 else 0
        return kernel + self.tokens * self.width * (3 * c.embed + 2 * heads + 2 * kv + (3 if c.gated else 2) * mlp)

    @property
    def loss(self) -> int:
        vocabulary = min(VOCAB_CHUNK, self.config.vocab_size // self.ways("vocab", self.config.vocab_size))
        return self.reads * (2 * vocabulary * 4 + self.config.embed * self.width)

    @property
    def flops(self) -> float:
        return self.model_flops / self.mesh.size

    @property
    def hbm_bytes(self) -> float:
        """Read and written in a call: weights and cache once a pass, expanded kernels twice more, activations."""
        c, (heads, kv, mlp) = self.config, self._parts
        expanded = 2 * c.layers * c.embed * (2 * heads + kv + (3 if c.gated else 2) * mlp) * self.width
        inside = 2 * (6 * c.embed + 2 * heads + 2 * kv + (4 if c.gated else 3) * mlp) * self.width
        again = expanded if (self.quantisation and self.tokens > 1024) or self.gathered > 1 else 0
        return self.passes * (self.weights + again + self.cache + self.tokens * c.layers * inside)

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that one device sends in a call, by mesh axis, with ring algorithms."""
        c, sizes, found = self.config, self.mesh.shape, {}
        if (n := sizes["tensor"]) > 1 and self.ways("mlp", c.mlp) > 1:
            found["tensor"] = 2 * (n - 1) / n * 2 * self.tokens * c.layers * c.embed * self.width * self.passes
        if (n := sizes["fsdp"]) > 1 and self.gathered > 1:
            found["fsdp"] = (n - 1) * self.weights * self.passes
        return found


def cached_bytes(config: DecoderConfig, mesh: Mesh, rules: Rules, tokens: int, width: int) -> int:
    """Bytes of one device's part of the keys and values of so many tokens of one row."""
    split = ways(mesh, partition_spec(("kv_heads",), (config.kv_heads,), mesh, rules)[0])
    return 2 * config.layers * tokens * config.kv_heads // split * config.head_dim * width
