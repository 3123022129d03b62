"""How the next token is chosen: the most probable one, or one drawn by temperature and nucleus, on the device.

A draw depends on the seed of its request and on how many tokens the answer has, on nothing else: not on the slot that
the request got, nor on what else was decoded at the same time. It adds noise of the Gumbel distribution to the scaled
logits and takes the largest, which draws from their softmax (Gumbel, 1954; Maddison et al., arXiv 1411.0030).

A nucleus (arXiv 1904.09751) is the fewest most probable tokens that have `top_p` of the probability together. It is
found without sorting: the least probability inside it is searched for by bisection over the bits of a float32, whose
order as whole numbers is that of the positive numbers that they stand for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 30  # of a probability as float32: sign and the highest bit of its exponent are 0 up to 1.0 (0x3F800000)


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen.

    temperature  0: the most probable token, always; 1: as the model says
    top_p        draw from the nucleus of this probability; 1: from all tokens
    seed         of the draws, 0 to 2**32 - 1

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more; 0 takes the likeliest token.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected more than 0 and at most 1; 1 leaves out no token.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed}, expected a whole number from 0 to {2**32 - 1}.")

    @property
    def draws(self) -> bool:
        return self.temperature > 0


GREEDY = Sampling()


class Draws(NamedTuple):
    """What a program needs to draw a token for each of its slots.

    temperature, top_p  [slots] float32
    seeds               [slots] uint32
    made                [slots] int32: tokens that each answer has already
    """

    temperature: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    seeds: jax.Array | np.ndarray
    made: jax.Array | np.ndarray


def draws(of: Sequence[Sampling], made: Sequence[int]) -> Draws:
    """Host arrays of the slots' samplings and of the tokens that they have."""
    return Draws(
        np.asarray([one.temperature for one in of], np.float32),
        np.asarray([one.top_p for one in of], np.float32),
        np.asarray([one.seed for one in of], np.uint32),
        np.asarray(made, np.int32),
    )


def greedy(logits: jax.Array) -> jax.Array:
    """The most probable token, the first of equals: logits [slots, v] float32 -> [slots] int32; -1 where not finite."""
    top = jnp.max(logits, axis=-1, keepdims=True)  # NaN where one is
    # two plain reductions: a CPU takes several times as long for an argmax, which is not vectorised
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    first = jnp.min(jnp.where(logits == top, index, logits.shape[1]), axis=-1)
    return jnp.where(jnp.isfinite(top[:, 0]), first, -1)


def draw(logits: jax.Array, how: Draws) -> jax.Array:
    """Choose a token a slot: logits [slots, v] float32 -> [slots] int32, greedy where the temperature is 0.

    Logits that are not finite give -1.
    """
    scaled = logits / jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]
    kept = jnp.where(in_nucleus(jax.nn.softmax(scaled), jnp.asarray(how.top_p)), scaled, -jnp.inf)
    keys = jax.vmap(lambda seed, made: jax.random.fold_in(jax.random.key(seed), made))(how.seeds, how.made)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    drawn = jnp.argmax(kept + noise, axis=-1).astype(jnp.int32)
    chosen = jnp.where(how.temperature > 0, drawn, greedy(logits))
    return jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), chosen, -1)


def in_nucleus(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """Which tokens are in each row's nucleus: [rows, v] float32, [rows] -> [rows, v] bool; all where top_p is 1.

    Tokens as probable as the least one inside are inside too.
    """
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

    def narrow(i, least):
        """Raise the bound by a bit where what is at or above it still has enough."""
        higher = least | (1 << (_BITS - 1 - i))
        mass = jnp.sum(jnp.where(bits >= higher[:, None], probabilities, 0.0), axis=-1)
        return jnp.where(mass >= top_p, higher, least)

    least = jax.lax.fori_loop(0, _BITS, narrow, jnp.zeros(bits.shape[0], jnp.int32))
    return (bits >= least[:, None]) | (top_p >= 1.0)[:, None]
