"""Patches of n-dimensional input as tokens, and back.

  ECG     [b, leads, samples]                    patch (p,)          token: p samples of one lead
  frames  [b, height, width, channels]           patch (ph, pw)      token: ph x pw pixels
  clips   [b, frames, height, width, channels]   patch (pt, ph, pw)  token: pt x ph x pw voxels

Tokens are in row-major order of the grid: an ECG's lead-major, all of lead I first. A token's values keep the order of
the input too. An ECG is cut as an image of leads x samples with patches of 1 x p, so one rule serves all three.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def patchify(x: jax.Array, patch: Sequence[int]) -> jax.Array:
    """Cut an array into patches.

    x        [b, leads, samples], [b, h, w, channels] or [b, t, h, w, channels], any dtype
    patch    size along each cut axis: 1, 2 or 3 numbers
    returns  [b, tokens, values]; values: product of patch, times channels for frames and clips

    Raises ValueError when the axes do not fit the patch or it does not divide them.
    """
    sizes, patch, channels = _cut(x.shape[1:], patch)
    split = [part for size, p in zip(sizes, patch, strict=True) for part in (size // p, p)]
    n = len(patch)
    x = x.reshape(x.shape[0], *split, channels)
    x = x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(x.shape[0], math.prod(grid((*sizes, channels), patch)), math.prod(patch) * channels)


def unpatchify(patches: jax.Array, patch: Sequence[int], shape: Sequence[int]) -> jax.Array:
    """Put patches together again, the inverse of patchify.

    patches  [b, tokens, values]
    shape    of one input, without the batch axis: (leads, samples), (h, w, channels) or (t, h, w, channels)
    returns  [b, *shape]

    Raises ValueError when tokens and values are not those of the shape.
    """
    sizes, patch, channels = _cut(shape, patch)
    counts = [size // p for size, p in zip(sizes, patch, strict=True)]
    expected = math.prod(counts), math.prod(patch) * channels
    if patches.shape[1:] != expected:
        raise ValueError(
            f"unpatchify: got {patches.shape[1]} tokens of {patches.shape[2]} values, expected {expected[0]} of "
            f"{expected[1]} for an input of shape {tuple(shape)}; give the shape that was cut."
        )
    n = len(patch)
    x = patches.reshape(patches.shape[0], *counts, *patch, channels)
    order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 2 * n + 1]
    return x.transpose(order).reshape(patches.shape[0], *shape)


def grid(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Tokens along each axis of one input (without the batch axis): (leads, patches of a lead), (rows, columns), …"""
    sizes, patch, _ = _cut(shape, patch)
    return tuple(size // p for size, p in zip(sizes, patch, strict=True))


def token_positions(shape: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """Place of every token along the cut axes, int32 [tokens, axes]; an ECG has one such axis, time, in every lead."""
    places = np.indices(grid(shape, patch)).reshape(len(grid(shape, patch)), -1).T
    return places[:, -len(patch) :].astype(np.int32)


def token_leads(shape: Sequence[int], patch: Sequence[int], leads: Sequence[int] | None = None) -> np.ndarray:
    """Lead of every token of an ECG (leads, samples), int32 [tokens]; leads: which ones are there, None: 0, 1, 2, …"""
    count, times = grid(shape, patch)
    if leads is not None and (len(leads) != count or len(set(leads)) != count):
        raise ValueError(
            f"leads: got {tuple(leads)} for a signal of {count} leads, expected {count} different numbers; name each "
            "lead of the signal once."
        )
    return np.repeat(np.arange(count) if leads is None else np.asarray(leads), times).astype(np.int32)


def valid_tokens(valid: jax.Array, patch: Sequence[int]) -> jax.Array:
    """Which tokens have only valid samples: bool array like the input of patchify -> bool [b, tokens]."""
    return jnp.all(patchify(valid, patch), axis=-1)


def _cut(shape: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Cut axes, patch and channels; an ECG has the axes leads and samples, patch (1, p) and one channel."""
    shape, patch = tuple(shape), tuple(patch)
    sizes, channels = (shape, 1) if len(patch) == 1 else (shape[:-1], shape[-1])
    patch = (1, *patch) if len(patch) == 1 else patch
    if len(sizes) != len(patch):
        raise ValueError(
            f"patchify: got an input of shape {shape} and a patch of {len(patch)} axes, expected [leads, samples] for "
            "a patch (p,), [h, w, channels] for (ph, pw), [t, h, w, channels] for (pt, ph, pw); give one of these."
        )
    for size, p in zip(sizes, patch, strict=True):
        if size % p or not size:
            raise ValueError(
                f"patchify: got {size} samples along an axis, expected a multiple of the patch's {p}; crop to "
                f"{size // p * p} or pad to {-(-size // p) * p}, or choose a patch that divides."
            )
    return sizes, patch, channels
