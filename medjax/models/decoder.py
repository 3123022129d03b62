"""The language model: embed, run the stacked blocks under scan, normalise; logits are left to who needs them.

`Decoder(config).apply({"params": params}, …)` is a pure function. It returns hidden states, not logits: a vocabulary of
128 k over a long row would be gigabytes, and a score needs a few rows of it. `unembedding(params)` is the other half.

  params/embedding                      [vocab, embed]
  params/layers/attention/query/kernel  [layers, embed, heads, head_dim]   key, value: kv_heads; out: [l, n, h, d]
  params/layers/mlp/up/kernel           [layers, embed, mlp]               gate the same; down: [layers, mlp, embed]
  params/layers/attention_norm/scale    [layers, embed]                    mlp_norm, …
  params/norm/scale                     [embed]
  params/unembedding                    [vocab, embed]                     absent when tied

With `quantisation` a kernel is a dict of arrays in its place (nn.quant). With `lora` every target has factors in the
collection `lora` (nn.lora), and `apply` takes {"params": params, "lora": lora}:

  lora/layers/attention/query/a         [layers, embed, rank]              b: [layers, rank, heads, head_dim]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.attention import BLOCK, Forest, Prefix, forest
from medjax.nn.cache import Cache
from medjax.nn.lora import LoraConfig
from medjax.nn.rope import inverse_frequencies, rotation
from medjax.nn.transformer import Block, Constrain, Norm, parameter, unconstrained

KeyValues = tuple[jax.Array, jax.Array]
_NO_WINDOW = 2**30

# What of a layer is kept for its backward pass; the rest is computed again. A layer's input is kept by all, as the loop
# over layers carries it. Names are given where the values are made: "input" and "projection" in nn.transformer and
# nn.encoder, "attention" (output and log-sum-exp) by every back end of nn.attention.
REMAT: Mapping[str, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("attention", "projection"),
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
    # As attention, but in the host's memory. Outputs of projections are not worth it, as PCIe takes longer than
    # computing them again (Llama 3 8B on v5e, 16 GB/s: 5.4 us a token and layer against 2.2; input and attention 1.0).
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["input", "attention"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Decoder(nn.Module):
    """A decoder-only transformer of any family that DecoderConfig describes.

    dtype         compute dtype; parameters keep theirs
    backend       of nn.attention
    length        total tokens, for checkpoints whose RoPE depends on it (dynamic); None: within the original context
    lora          adapters of the projections; with the rng "dropout" their dropout is on
    quantisation  how the kernels of all projections are stored, of nn.quant.KINDS; None: as they are
    remat         of REMAT, what the backward pass may reuse
    constrain     holds activations to the sharding of their logical axes (parallel.sharding.Constraint)
    context       of nn.context: how attention treats rows that the mesh splits; with gather and ring, tokens and
                  positions come in its zig-zag order, a Forest in the order of the rows
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    backend: str = "blockwise"
    length: int | None = None
    lora: LoraConfig | None = None
    quantisation: str | None = None
    remat: str = "none"
    constrain: Constrain = unconstrained
    context: str = "heads"

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, trees: Forest, prefix: Prefix | None = None
    ) -> tuple[jax.Array, KeyValues]:
        """Hidden states of packed rows after the final norm, and this call's keys and values.

        tokens     [b, t] int32
        positions  [b, t] int32, prefix included
        prefix     k, v [layers, p, kv_heads, head_dim] and its length, shared by all rows
        returns    hidden [b, t, embed]; k, v [layers, b, t, kv_heads, head_dim]
        """
        c = self.config
        table = nn.initializers.normal(0.02), (c.vocab_size, c.embed), ("vocab", "embed")
        x = self.embedded(parameter(self, "embedding", *table), tokens)
        if not c.tied:
            parameter(self, "unembedding", *table)
        angles = self.angles(positions)

        def layer(block, x, inputs):
            kind, shared = inputs
            angle, window = angles[c.rope_index[0]], None
            if c.is_mixed:  # layers differ in reach or frequencies: choose by data, so that one block serves all
                angle = jax.tree.map(lambda *options: jnp.stack(options)[kind["rope"]], *angles)
                window = kind["window"]
            elif c.windows[0]:
                window = c.windows[0]
            before = Prefix(shared[0], shared[1], prefix.length) if prefix else None
            return block(x, angle, window, trees, before)

        kinds = {
            "window": jnp.asarray([w or _NO_WINDOW for w in c.windows], jnp.int32),
            "rope": jnp.asarray(c.rope_index, jnp.int32),
        }
        shared = (prefix.k, prefix.v) if prefix else None
        scan = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "lora": True, "dropout": True},
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        remat: Any = Block
        if self.remat != "none":
            remat = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
        block = remat(c, self.backend, self.lora, self.quantisation, self.constrain, self.context, name="layers")
        x, kv = scan(block, x, (kinds, shared))
        return Norm(c.norm, c.norm_eps, c.norm_offset, "embed", name="norm")(x), kv

    @nn.nowrap
    def embedded(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        return table[tokens].astype(self.dtype) * jnp.asarray(self.config.embed_scale, self.dtype)

    @nn.nowrap
    def angles(self, positions: jax.Array) -> list[Any]:
        """Cosines and sines of every kind of RoPE that the layers have."""
        return [
            rotation(positions, jnp.asarray(inverse_frequencies(rope, self.length), jnp.float32), rope.magnitude)
            for rope in self.config.ropes
        ]


def continued(
    decoder: Decoder,
    variables: Mapping[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    caches: Sequence[Cache],
    prefix: Prefix | None = None,
) -> tuple[jax.Array, list[Cache]]:
    """Hidden states of one new token a sequence, and the caches with it. Not a loop over layers, where each one's part
    of the weights and of the cache would be copied before it is used.

    variables          as `Decoder.apply` takes them; `layers` may also be a sequence, a tree a layer
    tokens, positions  [b] int32, prefix included in positions
    caches             one a layer
    prefix             as in `Decoder.__call__`
    returns            hidden [b, embed], after the final norm
    """
    c, params = decoder.config, variables["params"]
    kind: Any = Block
    block = kind(c, decoder.backend, decoder.lora, decoder.quantisation, decoder.constrain)
    x: Any = decoder.embedded(params["embedding"], tokens[:, None])
    angles = decoder.angles(positions[:, None])
    new: list[Any] = []
    for number, cache in enumerate(caches):
        own = {name: _of_layer(tree["layers"], number) for name, tree in variables.items()}
        before = Prefix(prefix.k[number], prefix.v[number], prefix.length) if prefix else None
        with jax.named_scope("layers"):
            x, after = block.apply(own, x, angles[c.rope_index[number]], c.windows[number] or None, cache, before)
        new.append(after)
    x = Norm(c.norm, c.norm_eps, c.norm_offset, "embed").apply({"params": params["norm"]}, x)
    return x[:, 0], new


def _of_layer(layers: Any, number: int) -> Any:
    return layers[number] if isinstance(layers, Sequence) else jax.tree.map(lambda x: x[number], layers)


def unembedding(params) -> jax.Array:
    """The matrix [vocab, embed] that turns hidden states into logits: its own, or the tied embedding."""
    return params["unembedding"] if "unembedding" in params else params["embedding"]


def abstract_variables(config: DecoderConfig, lora: LoraConfig | None = None, quantisation: str | None = None):
    """Shapes, logical axes and dtypes of the collections `params` and, with adapters, `lora`; nothing is allocated.

    Every leaf is boxed as Linen metadata, which parallel.sharding reads.
    """
    return jax.eval_shape(lambda key: _init(config, lora, quantisation, key), jax.random.key(0))


def abstract_params(config: DecoderConfig, quantisation: str | None = None):
    """The collection `params` of abstract_variables."""
    return abstract_variables(config, None, quantisation)["params"]


def init_lora(config: DecoderConfig, lora: LoraConfig, key: jax.Array):
    """Fresh adapters, a tree of float32 arrays: A drawn, B zero. Under jit nothing else of the model is computed."""
    return nn.unbox(_init(config, lora, None, key)["lora"])


def _init(config, lora, quantisation, key):
    row = jnp.zeros((1, BLOCK), jnp.int32)
    decoder = Decoder(config, lora=lora, quantisation=quantisation)
    return decoder.init({"params": key, "lora": key}, row, row, forest(row, row))
