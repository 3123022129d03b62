"""Rotary position embeddings: the frequencies a checkpoint asks for, and the rotation itself.

A pair (x_i, x_{i + dim/2}) of a head turns by the angle position * inv_freq_i. Only the rotate-half layout is
computed; checkpoints that store interleaved pairs (GGUF llama, llama2.c) have their Q and K rows put in this order
while they are read. Nothing here has a numeric default: theta and every scaling constant come from the checkpoint.

Scaling rules, by the names that checkpoints use:
  default   inv_freq_i = theta ** (-2 i / dim)
  linear    all frequencies divided by `factor`                              arXiv 2306.15595
  dynamic   theta grows with the sequence length beyond `original_length`    NTK-aware, depends on the length
  llama3    low frequencies divided by `factor`, high kept, blend between    Llama 3.1 release
  yarn      blend by the number of turns, and cos/sin scaled                 arXiv 2309.00071
  divisors  each frequency divided by its own number, stored in the file     GGUF's rope_freqs tensor
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "divisors")


@dataclass(frozen=True)
class Rope:
    """What a checkpoint says about its rotary embedding.

    theta            base of the geometric frequencies
    dim              rotated leading components of a head (head_dim, or less for partial rotary)
    scaling          one of SCALINGS
    factor           stretch of the context (linear, dynamic, llama3, yarn)
    original_length  context before stretching, tokens (dynamic, llama3, yarn)
    low, high        llama3: low_freq_factor, high_freq_factor; yarn: beta_slow, beta_fast
    divisors         divisors: one number a rotated pair
    truncate         yarn: round the blend's bounds to whole components
    magnitude        factor on cos and sin (yarn's attention factor; 1 elsewhere)
    """

    theta: float
    dim: int
    scaling: str = "default"
    factor: float | None = None
    original_length: int | None = None
    low: float | None = None
    high: float | None = None
    divisors: tuple[float, ...] | None = None
    truncate: bool = True
    magnitude: float = 1.0

    def __post_init__(self):
        needed = {
            "default": (),
            "linear": ("factor",),
            "dynamic": ("factor", "original_length"),
            "llama3": ("factor", "original_length", "low", "high"),
            "yarn": ("factor", "original_length", "low", "high"),
            "divisors": ("divisors",),
        }
        if self.scaling not in needed:
            raise ValueError(
                f"rope: got rope_type={self.scaling!r}, supported are {', '.join(SCALINGS)}; "
                "convert the checkpoint to one of these or add the rule in medjax/nn/rope.py."
            )
        missing = [name for name in needed[self.scaling] if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"rope: rope_type={self.scaling!r} needs {', '.join(missing)}, which the checkpoint does not give."
            )
        if self.dim <= 0 or self.dim % 2:
            raise ValueError(f"rope: got {self.dim} rotated components, expected an even number above 0.")
        if self.divisors is not None and len(self.divisors) != self.dim // 2:
            raise ValueError(f"rope: got {len(self.divisors)} divisors for {self.dim // 2} rotated pairs.")


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """The factor on cos and sin that YaRN uses when a checkpoint states none (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(rope: Rope, length: int | None = None) -> np.ndarray:
    """Angular frequencies in radians a token.

    length   total tokens of the sequence; only `dynamic` looks at it (None: within the original context)
    returns  [dim / 2] float64
    """
    # __post_init__ saw to it that what a rule reads is there; `or 0` is for the type checker
    factor, original, low, high = rope.factor or 0, rope.original_length or 0, rope.low or 0, rope.high or 0
    theta = float(rope.theta)
    if rope.scaling == "dynamic" and length is not None and length > original:
        theta *= (factor * length / original - (factor - 1)) ** (rope.dim / (rope.dim - 2))
    inverse = theta ** -(np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.scaling == "linear":
        return inverse / factor
    if rope.scaling == "divisors":
        return inverse / np.asarray(rope.divisors, np.float64)
    if rope.scaling == "llama3":
        turns = original * inverse / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - blend) * inverse / factor + blend * inverse
    if rope.scaling == "yarn":

        def component(turns: float) -> float:  # the component that turns this often over the original context
            return rope.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = component(high), component(low)
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rope.dim - 1)
        ramp = np.clip((np.arange(rope.dim // 2) - first) / max(last - first, 0.001), 0, 1)
        return inverse / factor * ramp + inverse * (1 - ramp)
    return inverse


def rotation(positions: jax.Array, frequencies: jax.Array, magnitude: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every token's angles, each times `magnitude`.

    positions    [batch, t] int32
    frequencies  [dim / 2] float32
    returns      two arrays [batch, t, dim / 2] float32; angles are float32 at every compute dtype, because bfloat16
                 and float16 cannot hold positions in the thousands
    """
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the leading components of every head, rotate-half layout.

    x         [batch, t, heads, head_dim], any float dtype
    cos, sin  [batch, t, dim / 2] float32, dim <= head_dim; components from dim on pass unchanged
    returns   like x
    """
    half = cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([part.astype(x.dtype) for part in turned] + [x[..., 2 * half :]], axis=-1)
