"""Scaling on paper: what models, slices and data cost, by formulas alone; numbers, which scaling_paper.py writes out.

Nothing is run, compiled or measured. Facts of chips are those of medjax.parallel.chips, shapes of models those of
medjax.models.published, operations those that medjax.train.flops counts.

Sources: J. Austin et al., "How to Scale Your Model", parts 1 to 5 (bounds of FSDP, tensor and data parallelism);
arXiv 2204.02311, appendix B (6 N); arXiv 2305.14314 (QLoRA).
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from medjax.config import load
from medjax.models.decoder import abstract_variables
from medjax.models.decoder_config import DecoderConfig
from medjax.models.published import published
from medjax.nn.lora import LoraConfig
from medjax.parallel.chips import Chip
from medjax.parallel.mesh import AXES
from medjax.parallel.sharding import PRESETS
from medjax.parallel.topology import Topology, topology
from medjax.plan.layout import Layout, tree_bytes
from medjax.plan.memory import memory
from medjax.train.ecg_program import mae_config
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.flops import TrainingFlops, attended_pairs, lora_params, vit_flops
from medjax.train.program import abstract_frozen

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "7B": "meta-llama/Llama-2-7b-hf",
    "8B": "meta-llama/Meta-Llama-3-8B",
    "13B": "meta-llama/Llama-2-13b-hf",
    "70B": "meta-llama/Llama-2-70b-hf",
}
LORA = LoraConfig(64, 16.0, ("query", "key", "value", "out", "gate", "up", "down"))
TRAINED_BYTES = 16  # a weight: float32 master, two moments of Adam, gradient
WIDTH = 2  # bytes of a number in bfloat16
_SLICES = tuple(2**power for power in range(14))
_ONE = AbstractMesh((1,) * len(AXES), AXES)


@dataclass(frozen=True)
class Way:
    """A way to train a decoder.

    quantisation  of the frozen base, of medjax.nn.quant; None: bfloat16
    """

    name: str
    full: bool = False
    quantisation: str | None = None

    @property
    def lora(self) -> LoraConfig | None:
        return None if self.full else LORA


FULL, LORA_BF16 = Way("full", full=True), Way("LoRA, bfloat16 base")
LORA_INT8, LORA_NF4 = Way("LoRA, int8 base", quantisation="int8"), Way("LoRA, NF4 base", quantisation="nf4")
WAYS = (FULL, LORA_BF16, LORA_INT8, LORA_NF4)


def model(size: str) -> DecoderConfig:
    """The decoder of a size of MODELS."""
    return published(MODELS[size])


@cache
def parameters(config: DecoderConfig) -> int:
    """Every number of the checkpoint."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(config)))


@cache
def base_bytes(config: DecoderConfig, quantisation: str | None, kernels_only: bool = False) -> int:
    """Bytes of a frozen base as it is loaded: bfloat16, projections as they are stored.

    kernels_only  the layers' projections alone, which are what FSDP gathers
    """
    params = abstract_variables(config, None, quantisation)["params"]
    frozen: Any = abstract_frozen({"params": params}, _ONE, PRESETS["default"], jnp.dtype(jnp.bfloat16))
    if not kernels_only:
        return tree_bytes(frozen)
    leaves = jax.tree_util.tree_leaves_with_path(frozen["params"]["layers"])
    return sum(tree_bytes(leaf) for path, leaf in leaves if any(getattr(key, "key", "") == "kernel" for key in path))


def held_bytes(config: DecoderConfig, way: Way) -> int:
    """What a step holds however small its batch: weights, optimiser, gradients; over all chips."""
    if way.full:
        return TRAINED_BYTES * parameters(config)
    return base_bytes(config, way.quantisation) + TRAINED_BYTES * lora_params(config, LORA)


def smallest_slice(chip: Chip, needed: float, share: float = 0.8) -> int | None:
    """The fewest chips, of a slice that exists (GPUs: 1, 2, 4, …), that hold so many bytes in a share of their HBM."""
    for count in _SLICES:
        try:
            topology(f"{chip.name}-{count}" if chip.is_tpu else f"gpu:{chip.name}:{count}")
        except ValueError:
            continue
        if needed <= share * count * chip.hbm_bytes:
            return count
    return None


def step_flops(config: DecoderConfig, way: Way, length: int, *, again: bool = False) -> float:
    """Operations a token of forward and backward, in documents of `length`; again: remat that keeps nothing."""
    cost = TrainingFlops(config, "full" if way.full else "lora", way.lora)
    pairs = attended_pairs(config, np.arange(length))
    return cost.per_token(length) + (cost.of_remat(length, pairs) / length if again else 0)


def attention_share(config: DecoderConfig, way: Way, length: int) -> float:
    """What share of a step's operations attention is, 0 to 1."""
    pairs = attended_pairs(config, np.arange(length))
    return 12 * config.heads * config.head_dim * pairs / length / step_flops(config, way, length)


def kept_bytes(config: DecoderConfig, remat: str) -> int:
    """Bytes a token of activations that the forward pass keeps for the backward pass, all layers, one chip."""
    of = Layout(
        config=config,
        mesh=_ONE,
        rules=PRESETS["default"],
        rows=1,
        window=1,
        accumulation=1,
        remat=remat,
        width=WIDTH,
        quantisation=None,
        backend="splash",
        context="heads",
        lora=LORA,
        trains="lora",
        trains_table=False,
        trained=0,
        optimizer=0,
        frozen=0,
        batch=0,
        on_tpu=True,
    )
    return memory(of).kept


def kernel_flops(config: DecoderConfig, way: Way) -> float:
    """Operations a token in the layers' projections and adapters, nothing computed again: 6 N, or 4 N and 6 N_lora."""
    return 6 * config.matmul_params if way.full else 4 * config.matmul_params + 6 * lora_params(config, LORA)


def gathered_bytes(config: DecoderConfig, way: Way) -> float:
    """Bytes that FSDP moves in a step, before the factor (n - 1) / n.

    Weights twice, for forward and backward, as they are stored where the base is quantised, else in bfloat16, and their
    float32 gradients once; adapters and the sums of their gradients (two passes of a ring) in bfloat16.
    """
    if way.full:
        return 2 * WIDTH * config.matmul_params + 4 * config.matmul_params
    weights = base_bytes(config, way.quantisation, kernels_only=True)
    return 2 * weights + 4 * WIDTH * lora_params(config, LORA)


def link_bandwidth(place: Topology) -> float:
    """Bytes/s that a chip sends, one way, when one mesh axis takes the whole slice: all links of all its torus axes."""
    if not place.chip.is_tpu:
        return place.chip.ici_bytes_per_s if place.chips <= place.chip.host_chips else place.chip.dcn_bytes_per_s
    ways = sum(2 if ring and size > 2 else 1 for size, ring in zip(place.shape, place.rings, strict=True) if size > 1)
    return place.chip.ici_bytes_per_s * ways


def tokens_to_hide(flops: float, sent: float, peak: float, bandwidth: float, chips: float = float("inf")) -> float:
    """Tokens a chip and step below which sending takes longer than computing.

    flops      a token
    sent       bytes a step, before the factor (chips - 1) / chips of a ring
    peak       operations/s of a chip;  bandwidth  bytes/s of a chip
    """
    return (1 - 1 / chips) * sent / bandwidth * peak / flops


def fsdp_tokens(config: DecoderConfig, way: Way, place: Topology) -> float:
    """Tokens a chip below which a slice, all of it one FSDP axis, waits for its links."""
    flops, sent = kernel_flops(config, way), gathered_bytes(config, way)
    return tokens_to_hide(flops, sent, place.chip.bf16_flops, link_bandwidth(place), place.chips)


def tensor_ways(flops: float, sums: float, embed: int, peak: float, bandwidth: float) -> float:
    """The largest tensor axis whose sums of activations take no longer than its products.

    flops  a token and layer;  sums  of [tokens, embed] a token and layer, each 2 (n - 1) / n times its bfloat16 bytes
    """
    return 1 + flops * bandwidth / (2 * sums * WIDTH * embed * peak)


def tensor_axis(config: DecoderConfig, way: Way, chip: Chip, bandwidth: float) -> float:
    """`tensor_ways` of a training step: two sums forward, two backward."""
    return tensor_ways(kernel_flops(config, way) / config.layers, 4, config.embed, chip.bf16_flops, bandwidth)


def dcn_tokens(config: DecoderConfig, way: Way, chip: Chip, slices: int = 2) -> float:
    """Tokens of a slice (or node) and step below which summing gradients between slices takes longer than computing."""
    trained = parameters(config) if way.full else lora_params(config, LORA)
    sent = 2 * 4 * trained * (slices - 1) / slices
    return tokens_to_hide(kernel_flops(config, way), sent, chip.bf16_flops, chip.dcn_bytes_per_s)


def days(flops: float, place: Topology, mfu: float) -> float:
    """Days that a slice takes for so many operations at a share of its peak."""
    return flops / (place.chips * place.chip.bf16_flops * mfu) / 86_400


@cache
def pretraining(size: str) -> EcgTrainSettings:
    """The recipe of configs/ecg/mae_huge_paper.toml with another size of encoder."""
    return load(EcgTrainSettings, ROOT / "configs" / "ecg" / "mae_huge_paper.toml", {"--encoder.size": size})


def record_flops(size: str) -> float:
    """Operations of pre-training on a record: visible tokens in the encoder, all in the decoder, three passes."""
    settings = pretraining(size)
    config = mae_config(settings)
    tokens = len(settings.signal.leads) * settings.signal.samples // settings.encoder.patch
    shown = tokens - round(tokens * config.masked)
    return 3 * (vit_flops(config.vit, shown) + vit_flops(config.decoder_vit, tokens))


def records_per_s(size: str, place: Topology, mfu: float) -> float:
    """Records that a slice trains on at a share of its peak."""
    return place.chips * place.chip.bf16_flops * mfu / record_flops(size)


def record_bytes(width: int) -> int:
    """Of a stored record whose samples have so many bytes."""
    signal = pretraining("H").signal
    return len(signal.leads) * signal.samples * width
