"""What a training step of a decoder needs of a device's memory, by arithmetic alone: a second, not minutes.

  arguments     trained parameters, optimiser, frozen weights, batch: exact, from shapes and shardings
  kept          what the forward pass keeps of each layer for the backward pass; train.remat says what
  layer         the weights of one layer as they meet the tokens (gathered over fsdp, out of their quantised form), and
                its activations with their gradients, while its backward pass runs
  gradients     float32, of what is trained, and once more where a batch comes in parts
  vocabulary    logits of a chunk of tokens, the table as it meets them, and the gradient of the hidden states

The step's peak is arguments + kept + gradients + the larger of layer and vocabulary. Rough so far: what the compiler
needs to expand NF4 weights is missing, and `medjax.plan` prints how far it was from the compiler.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from medjax.models.decoder_config import DecoderConfig
from medjax.nn.loss import CHUNK
from medjax.parallel.sharding import ways
from medjax.plan.program import PlannedStep
from medjax.train.language_program import LanguageProgram

_LANES = 128  # to which TPU pads the last axis of an array


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device, by part."""

    arguments: int
    kept: int
    layer: int
    gradients: int
    vocabulary: int

    @property
    def temporary(self) -> int:
        return self.kept + self.gradients + max(self.layer, self.vocabulary)

    @property
    def peak(self) -> int:
        return self.arguments + self.temporary


def estimate(step: PlannedStep) -> Estimate | None:
    """The estimate of a step; None for what is no decoder."""
    program = step.program
    if step.config is None or not isinstance(program, LanguageProgram):
        return None
    config, width = step.config, jnp.dtype(program.dtype).itemsize
    tokens = local_tokens(program)
    tensor = ways(program.mesh, program.rules.heads)
    groups = tree_bytes((program.state, program.frozen, program.batch))
    trained = tree_bytes(program.state.trainable)
    return Estimate(
        arguments=groups,
        kept=config.layers * tokens * _kept(config, program.steps.remat, tensor, width),
        layer=_layer_weights(program, config, tensor, width) + 2 * tokens * _inside(config, tensor, width),
        gradients=trained * (2 if program.steps.accumulation > 1 else 1),
        vocabulary=_vocabulary(program, config, tokens, width),
    )


def local_tokens(program: LanguageProgram) -> int:
    """Tokens of one device that are computed at one time."""
    rows, window = program.batch.tokens.shape
    return (
        rows
        // program.steps.accumulation
        * window
        // (ways(program.mesh, program.rules.batch) * ways(program.mesh, program.rules.seq))
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of one device: jax.ShapeDtypeStructs with shardings."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    bits = 4 if leaf.dtype.name in ("int4", "uint4") else leaf.dtype.itemsize * 8
    return prod(shape) * bits // 8


def _kept(config: DecoderConfig, remat: str, tensor: int, width: int) -> int:
    """Bytes a token and layer."""
    heads, kv = config.heads * config.head_dim // tensor, config.kv_heads * config.head_dim // tensor
    carry = config.embed * width
    attention = heads * width + config.heads // tensor * 4
    mlp = (2 if config.gated else 1) * config.mlp // tensor
    projections = (heads + 2 * kv + config.embed + mlp + config.embed) * width
    if remat == "full":
        return carry
    if remat == "attention":
        return carry + attention
    if remat == "dots":
        return carry + attention + projections
    return carry + attention + projections + _inside(config, tensor, width)


def _inside(config: DecoderConfig, tensor: int, width: int) -> int:
    """Bytes a token of what a layer makes on its way besides what it may keep: norms, rotated heads, gated product."""
    heads, kv = config.heads * config.head_dim // tensor, config.kv_heads * config.head_dim // tensor
    mlp = (3 if config.gated else 2) * config.mlp // tensor
    return (3 * config.embed + 2 * heads + 2 * kv + mlp) * width


def _layer_weights(program: LanguageProgram, config: DecoderConfig, tensor: int, width: int) -> int:
    """Bytes of one layer's kernels where they are not used as they are stored: this layer's and the next one's."""
    gathered = ways(program.mesh, program.rules.embed) > 1
    quantised = program.settings.model.quantisation is not None
    if not gathered and not quantised:
        return 0
    return (2 if gathered else 1) * config.matmul_params // config.layers // tensor * width


def _vocabulary(program: LanguageProgram, config: DecoderConfig, tokens: int, width: int) -> int:
    vocabulary = config.vocab_size // ways(program.mesh, program.rules.vocab)
    logits = min(CHUNK, tokens) * vocabulary * (4 + width)
    table = vocabulary * config.embed * width if ways(program.mesh, program.rules.embed) > 1 else 0
    own = "params/embedding" if config.tied else "params/unembedding"
    gradient = vocabulary * config.embed * 4 if own in program.chosen else 0
    return logits + table + gradient + 2 * tokens * config.embed * width
