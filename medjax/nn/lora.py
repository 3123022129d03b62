"""Low-rank adapters: y = x W + ((x A) B) * scale, where W stays as it is and only A and B are trained.

A and B live in the collection `lora`, beside `params`, stacked over layers and sharded by the axes of W:

  params/layers/mlp/up/kernel [layers, embed, mlp]
  lora/layers/mlp/up/a        [layers, embed, rank]       lora/layers/mlp/up/b [layers, rank, mlp]

B starts at zero, so at step 0 every projection equals the base model's. GPT-NeoX computes query, key and value in one
projection; its target `query_key_value` has one A for the three, and b [layers, rank, 3, heads, head_dim].

Source: arXiv 2106.09685; the rank-stabilised scale alpha / sqrt(rank): arXiv 2312.03732.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

TARGETS = ("query", "key", "value", "query_key_value", "out", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """Which projections have an adapter, and of what size.

    targets           names in TARGETS
    dropout           share of an adapter's inputs that is dropped in training
    rank_stabilised   scale by alpha / sqrt(rank) instead of alpha / rank
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank: got {self.rank}, expected 1 or more; 8 to 64 are usual.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 or more and below 1; 0.05 is usual.")
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise ValueError(
                f"targets: got {', '.join(unknown) or 'none'}, expected some of {', '.join(TARGETS)}; name those."
            )
        if "query_key_value" in self.targets and {"query", "key", "value"} & set(self.targets):
            raise ValueError("targets: got query_key_value beside one of its parts; name either it or the parts.")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def merging_pays(tokens: int, kernel: jax.Array, dtype: jnp.dtype) -> bool:
    """Whether x (W + A B) costs less than x W + (x A) B.

    Adding A B to W costs as much as `rank` tokens, and saves two thin products and a pass over the output for each
    token. In bfloat16 the sum would lose what A B is smaller than W's last bit, so there the parts stay apart.
    """
    into, out = kernel.shape
    return dtype == jnp.float32 and kernel.dtype == jnp.float32 and tokens * (into + out) > into * out


@jax.custom_vjp
def merged_matmul(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """x (W + A B * scale), float32, with gradients in the factored form.

    x [t, in], kernel [in, out], a [in, r], b [r, out] -> [t, out]. The gradient of A and B takes four thin products;
    that of x takes one full product, like the output itself.
    """
    return x @ (kernel + (a * scale) @ b)


def _merged_forward(x, kernel, a, b, scale):
    return x @ (kernel + (a * scale) @ b), (x, kernel, a, b, scale)


def _merged_backward(residuals, dy):
    x, kernel, a, b, scale = residuals
    dx = jnp.einsum("to,io->ti", dy, kernel + (a * scale) @ b)
    # as [r, in], which XLA's CPU product writes far faster than [in, r]
    da = jnp.einsum("tr,ti->ri", jnp.einsum("to,ro->tr", dy, b * scale), x).T
    db = jnp.einsum("tr,to->ro", x @ (a * scale), dy)
    # the kernel's own gradient is dropped by the compiler where the kernel is frozen
    return dx, jnp.einsum("ti,to->io", x, dy), da, db, None


merged_matmul.defvjp(_merged_forward, _merged_backward)
