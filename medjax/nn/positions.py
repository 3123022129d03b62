"""Fixed sin-cos position embeddings in any number of dimensions.

With a axes, each gets 2 * floor(embed / 2a) components, sines first, then cosines; what is left over (embed not a
multiple of 2a) is zero. One axis: the embedding of arXiv 1706.03762 with its halves put together; two axes: as MAE's
reference (arXiv 2111.06377, appendix A.1) has it. Positions outside those of training have embeddings too.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sin_cos(positions: np.ndarray | jax.Array, embed: int, base: float = 10000.0) -> np.ndarray | jax.Array:
    """Embeddings of integer positions.

    positions  [..., axes]; a NumPy array is embedded at once, a traced one inside the program
    base       the lowest frequency is about 1 / base; of a few dozen positions a smaller one than the usual 10000 uses
               more of the embedding to tell them apart
    returns    [..., embed] float32
    """
    xp = np if isinstance(positions, np.ndarray) else jnp
    axes = positions.shape[-1]
    half = embed // (2 * axes)
    frequencies = base ** -(np.arange(half, dtype=np.float64) / half)
    angles = positions[..., None] * frequencies.astype(np.float64 if xp is np else np.float32)  # [..., axes, half]
    both = xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=-1).reshape(*positions.shape[:-1], axes * 2 * half)
    rest = xp.zeros((*positions.shape[:-1], embed - axes * 2 * half), both.dtype)
    return xp.concatenate([both, rest], axis=-1).astype(xp.float32)
