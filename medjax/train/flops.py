"""What a training step costs in floating-point operations, and what share of the devices' peak that is (MFU).

Conventions, the same for every number that medjax prints:

  a multiplication and an addition count 2; only matrix products count (no norms, softmax, optimiser, dequantisation)
  kernels       of the layers, N: forward 2 N a token, gradient of the input 2 N, gradient of the kernel 2 N. So 6 N
                when all is trained, and 4 N with LoRA, as a frozen kernel needs no gradient of its own
  adapters      6 N_lora a token
  attention     q.k and weights.v: 4 heads head_dim for each pair of a token and one that it sees; causal, so half of
                the square, within documents only: n (n + 1) / 2 pairs in a document of n tokens, fewer with a window.
                Backward costs twice the forward, with LoRA too
  unembedding   2 vocab embed forward where logits are computed: 6 when trained, 4 with LoRA
  embedding     a look-up: 0
  MFU           these operations of real (non-padding) tokens / (seconds x devices x peak). What is computed again to
                save memory (remat) does not count; with it the share is called HFU

With head-only training no gradient passes the layers: 2 N and the attention's forward, 6 for the unembedding.

LoRA's 4 N is the usual figure. It counts the gradients of the first layer's inputs, which nothing needs: at most
1/layers of 2 N too much.

Sources: Chowdhery et al., arXiv 2204.02311, appendix B (MFU, 6 N; that appendix counts the full square of attention);
peaks: `medjax.parallel.chips`.
"""

import functools
import time
from dataclasses import dataclass

import numpy as np

from medjax.models.decoder_config import DecoderConfig
from medjax.models.vit import VitConfig
from medjax.nn.lora import LoraConfig
from medjax.parallel.chips import chip_of

TRAINED = ("full", "lora", "head")


@dataclass(frozen=True)
class TrainingFlops:
    """The operations of training a decoder, by the conventions above.

    trained  "full": all weights; "lora": adapters of `lora` beside frozen weights; "head": the unembedding alone
    """

    config: DecoderConfig
    trained: str = "full"
    lora: LoraConfig | None = None

    def __post_init__(self):
        if self.trained not in TRAINED or (self.trained == "lora") != (self.lora is not None):
            raise ValueError(
                f"flops: got trained={self.trained!r} with lora={self.lora}, expected one of {', '.join(TRAINED)}, and "
                "a LoraConfig with lora only; pass what the run trains."
            )

    @property
    def adapter_params(self) -> int:
        """Weights of the adapters that every token meets."""
        return lora_params(self.config, self.lora) if self.lora else 0

    def of_step(self, tokens: float, pairs: float, logits: float) -> float:
        """Model operations of forward and backward.

        tokens  real ones
        pairs   of a token and one that it sees, over all layers: `attended_pairs`
        logits  positions where logits are computed: those with a target if the loss computes no others, else `tokens`
        """
        kernels, attention = {"full": (6, 3), "lora": (4, 3), "head": (2, 1)}[self.trained]
        unembedding = self.config.vocab_size * self.config.embed * (4 if self.trained == "lora" else 6)
        return (
            tokens * (kernels * self.config.matmul_params + 6 * self.adapter_params)
            + attention * self._attention(pairs)
            + logits * unembedding
        )

    def of_remat(self, tokens: float, pairs: float) -> float:
        """Operations of one more forward pass through all layers: what remat that keeps nothing adds, for HFU.

        A little too many: nothing in the backward pass needs what a layer's last projection gave, and compilers leave
        that product out (2 embed mlp a token and layer; plan.estimate does not count it).
        """
        return tokens * 2 * (self.config.matmul_params + self.adapter_params) + self._attention(pairs)

    def per_token(self, length: int, logits_share: float = 1.0) -> float:
        """Model operations a token of documents of `length` tokens, logits being computed for a share of them."""
        pairs = attended_pairs(self.config, np.arange(length))
        return self.of_step(length, pairs, length * logits_share) / length

    def _attention(self, pairs: float) -> float:
        return 4 * self.config.heads * self.config.head_dim * pairs


def lora_params(config: DecoderConfig, lora: LoraConfig) -> int:
    """Count the weights of all adapters: rank * (inputs + outputs) a projection."""
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "query": (config.embed, heads),
        "key": (config.embed, kv_heads),
        "value": (config.embed, kv_heads),
        "query_key_value": (config.embed, 3 * heads),
        "out": (heads, config.embed),
        "gate": (config.embed, config.mlp),
        "up": (config.embed, config.mlp),
        "down": (config.mlp, config.embed),
    }
    return config.layers * lora.rank * sum(sum(sizes[target]) for target in lora.targets)


def real_tokens(positions: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which tokens of a batch belong to a document: [batch, window] bool.

    positions, ends  [batch, window] int32 of a batch: padding has position 0 and ends at the next index
    A document of a single token cannot be told from padding; nothing is learnt from it.
    """
    return (positions > 0) | (ends > np.arange(ends.shape[-1]) + 1)


def vit_flops(vit: VitConfig, tokens: int) -> float:
    """Operations of one forward pass of the blocks of a vision transformer over `tokens` tokens of one record.

    Every token meets every other. Patch embedding and head are left out; forward and backward are three times this.
    """
    d = vit.embed
    kernels = 4 * d * d + 2 * d * vit.mlp
    return float(vit.layers * (tokens * 2 * kernels + 4 * d * tokens * tokens))


def attended_pairs(config: DecoderConfig, positions: np.ndarray) -> float:
    """Pairs of a token and one that it sees (itself included), summed over layers.

    positions  of real tokens within their documents, any shape, from 0
    """
    seen = np.asarray(positions, dtype=np.int64) + 1
    windows, layers = np.unique(config.windows, return_counts=True)
    return float(
        sum(
            count * np.minimum(seen, window).sum() if window else count * seen.sum()
            for window, count in zip(windows.tolist(), layers.tolist(), strict=True)
        )
    )


def peak_flops() -> float | None:
    """Peak operations a second of one device of this run; None for a device that the table does not know.

    The table has no CPUs: there it is the rate of a float32 matrix product of 1024 x 1024, the best of a third of a
    second on this machine, measured once and shared by the process's fake devices. Other load makes it smaller.
    """
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return _cpu_rate() / jax.local_device_count()
    return peak_of(device.device_kind)


def peak_of(device_kind: str) -> float | None:
    """The peak of a JAX device of a kind as in `jax.devices()[0].device_kind`; None for one that the table lacks."""
    found = chip_of(device_kind)
    return found.device.bf16_flops if found else None


def mfu(flops: float, seconds: float, devices: int, peak: float | None) -> float | None:
    """Share of the peak that was used, 0 to 1; None where the peak is not known or no time has passed."""
    return flops / (seconds * devices * peak) if peak and seconds > 0 else None


@functools.cache
def _cpu_rate(size: int = 1024, most_seconds: float = 0.3) -> float:
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul).lower(*2 * [jax.ShapeDtypeStruct((size, size), jnp.float32)]).compile()
    matrix = jnp.ones((size, size), jnp.float32)
    began, best = time.perf_counter(), float("inf")
    while time.perf_counter() - began < most_seconds:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
