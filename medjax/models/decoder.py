"""The language model: embed, run the stacked blocks under scan, normalise; logits are left to who needs them.

`Decoder(config).apply({"params": params}, …)` is a pure function. It returns hidden states, not logits: a vocabulary of
128 k over a long row would be gigabytes, and a score needs a few rows of it. `unembedding(params)` is the other half.

  params/embedding                      [vocab, embed]
  params/layers/attention/query/kernel  [layers, embed, heads, head_dim]   key, value: kv_heads; out: [l, n, h, d]
  params/layers/mlp/up/kernel           [layers, embed, mlp]               gate the same; down: [layers, mlp, embed]
  params/layers/attention_norm/scale    [layers, embed]                    mlp_norm, …
  params/norm/scale                     [embed]
  params/unembedding                    [vocab, embed]                     absent when tied
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import Cache, Forest, Prefix
from medjax.nn.rope import inverse_frequencies, rotation
from medjax.nn.transformer import Block, Norm, parameter

KeyValues = tuple[jax.Array, jax.Array]
_NO_WINDOW = 2**30


class Decoder(nn.Module):
    """A decoder-only transformer of any family that DecoderConfig describes.

    dtype    compute dtype; parameters keep theirs
    backend  of nn.attention
    length   total tokens, for checkpoints whose RoPE depends on it (dynamic); None: within the original context
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    backend: str = "blockwise"
    length: int | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, where: Forest | Cache, prefix: Prefix | None = None
    ) -> tuple[jax.Array, KeyValues]:
        """Hidden states after the final norm, and this call's keys and values.

        tokens     [b, t] int32
        positions  [b, t] int32, prefix included
        where      Forest: packed rows; Cache: one new token a row (t = 1), k and v [layers, b, kv_heads, s, head_dim]
        prefix     k, v [layers, p, kv_heads, head_dim] and its length, shared by all rows
        returns    hidden [b, t, embed]; k, v [layers, b, t, kv_heads, head_dim]
        """
        c = self.config
        table = nn.initializers.normal(0.02), (c.vocab_size, c.embed), ("vocab", "embed")
        x = parameter(self, "embedding", *table)[tokens].astype(self.dtype)
        x = x * jnp.asarray(c.embed_scale, self.dtype)
        if not c.tied:
            parameter(self, "unembedding", *table)
        angles = [
            rotation(positions, jnp.asarray(inverse_frequencies(rope, self.length), jnp.float32), rope.magnitude)
            for rope in c.ropes
        ]

        def layer(block, x, inputs):
            kind, own, shared = inputs
            angle, window = angles[c.rope_index[0]], None
            if c.is_mixed:  # layers differ in reach or frequencies: choose by data, so that one block serves all
                angle = jax.tree.map(lambda *options: jnp.stack(options)[kind["rope"]], *angles)
                window = kind["window"]
            elif c.windows[0]:
                window = c.windows[0]
            place = Cache(own[0], own[1], where.lengths) if isinstance(where, Cache) else where
            before = Prefix(shared[0], shared[1], prefix.length) if prefix else None
            return block(x, angle, window, place, before)

        kinds = {
            "window": jnp.asarray([w or _NO_WINDOW for w in c.windows], jnp.int32),
            "rope": jnp.asarray(c.rope_index, jnp.int32),
        }
        own = (where.k, where.v) if isinstance(where, Cache) else None
        shared = (prefix.k, prefix.v) if prefix else None
        scan = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "lora": True},
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        # a frozen dataclass has all that BlockConfig asks for; only mypy also wants it settable
        block = Block(c, self.backend, name="layers")  # type: ignore[arg-type]
        x, kv = scan(block, x, (kinds, own, shared))
        return Norm(c.norm, c.norm_eps, c.norm_offset, "embed", name="norm")(x), kv


def unembedding(params) -> jax.Array:
    """The matrix [vocab, embed] that turns hidden states into logits: its own, or the tied embedding."""
    return params["unembedding"] if "unembedding" in params else params["embedding"]


def abstract_params(config: DecoderConfig):
    """Shapes, logical axes and dtypes of all parameters, boxed as Linen metadata; nothing is allocated."""
    row = jnp.zeros((1, 1), jnp.int32)
    kv = jnp.zeros((config.layers, 1, config.kv_heads, 1, config.head_dim))
    where = Cache(kv, kv, jnp.zeros(1, jnp.int32))
    return jax.eval_shape(lambda key: Decoder(config).init(key, row, row, where), jax.random.key(0))["params"]
