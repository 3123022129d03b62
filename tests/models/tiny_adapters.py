"""Random adapters of the tiny decoders: rank 5, which is no other size, and b far from zero."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_decoders import CONFIGS, TOKENS

from medjax.models.decoder import Decoder, unembedding
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.attention import BLOCK, forest
from medjax.nn.lora import LoraConfig
from medjax.store.adapters import Adapter, leaf_shapes, model_sizes, tree_of
from medjax.store.loading import LoadedDecoder

CONFIG_OF = {name: from_hugging_face(config) for name, config in CONFIGS.items()}
RANK = 5


def adapter_of(name: str, targets: tuple[str, ...], seed: int = 1, **options) -> Adapter:
    """An adapter of tiny decoder `name`; options of LoraConfig."""
    lora = LoraConfig(**{"rank": RANK, "alpha": 8.0, "targets": targets} | options)
    rng = np.random.default_rng(seed)
    named = {
        leaf: (rng.standard_normal(shape) * (0.1 if leaf.endswith("/b") else 0.2)).astype(np.float32)
        for leaf, shape in leaf_shapes(lora, CONFIG_OF[name]).items()
    }
    return Adapter(lora, tree_of(named), "tiny", "b" * 64, "t" * 64, model_sizes(CONFIG_OF[name]))


def flat(tree, path="") -> dict:
    """Nested dicts -> leaves by "/"-joined path, in order of the names."""
    found = {}
    for key in sorted(tree):
        name = f"{path}/{key}" if path else key
        found |= flat(tree[key], name) if isinstance(tree[key], dict) else {name: tree[key]}
    return found


def adapted_logits(model: LoadedDecoder, adapter: Adapter, tokens: list[int] = TOKENS) -> np.ndarray:
    """Logits [tokens, vocab] of the base with the adapter beside it, not merged."""
    padded = -(-len(tokens) // BLOCK) * BLOCK
    row = np.zeros((1, padded), np.int32)
    row[0, : len(tokens)] = tokens
    index = jnp.arange(padded)[None]
    ends = jnp.where(index < len(tokens), len(tokens), index + 1)
    decoder = Decoder(model.config, lora=adapter.lora)
    variables = {"params": model.params, "lora": adapter.leaves}
    run = jax.jit(lambda variables: decoder.apply(variables, row, index, forest(index, ends))[0][0])
    return np.asarray(run(variables).astype(jnp.float32) @ unembedding(model.params).T)[: len(tokens)]
