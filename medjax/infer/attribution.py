"""Which part of an ECG a prediction rests on: maps over leads and time.

Integrated gradients (Sundararajan et al., ICML 2017, arXiv 1703.01365) share the difference between the output for a
signal and the output for the flat line out among the samples:

  map[c, n] = signal[c, n] * integral over a in 0..1 of d output(a * signal) / d signal[c, n]

Their sum is that difference (completeness); how far it is missed says whether the steps were enough. The flat line is
zero after normalisation: the mean of the signal, unless it was scaled otherwise.

Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928) follows attention through the layers, half of each
layer's token being itself by the residual stream, and gives tokens instead of samples. It has no sign, and it is the
same for every output of a model: it shows where the encoder looked, not what for.

Both are read together with infer.soundness, which tells a map that means something from one that does not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rows = np.ndarray
Score = Callable[[Rows, Rows], np.ndarray]  # signal and valid, both [b, leads, samples] -> output [b]
Gradient = Callable[[Rows, Rows], np.ndarray]  # the same -> d output / d signal [b, leads, samples]

STEPS = 32
_STEPS_TOGETHER = 32  # of the integral: what is held at once, whatever the steps


@dataclass(frozen=True)
class IntegratedGradients:
    """The map of one output.

    values    [windows, leads, samples] float64, in units of the output; their sum over a window is `explained`
    explained [windows] output for the signal minus output for the flat line
    gap       largest distance over the windows between the sum of a map and what it had to explain
    """

    values: np.ndarray
    explained: np.ndarray
    gap: float


def integrated_gradients(
    score: Score, gradient: Gradient, signal: np.ndarray, valid: np.ndarray, *, steps: int = STEPS
) -> IntegratedGradients:
    """Share an output out among the samples of each window.

    signal  [windows, leads, samples] float32, normalised, 0 where not valid
    valid   [windows, leads, samples] bool
    steps   points of Gauss and Legendre's rule on the way from the flat line; one is exact for a linear model

    Raises ValueError when steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected 1 or more; 32 serve most models.")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    shares, weights = (nodes + 1) / 2, weights / 2
    values = np.zeros(signal.shape)
    for start in range(0, steps, _STEPS_TOGETHER):
        part = slice(start, start + _STEPS_TOGETHER)
        rows = (shares[part, None, None, None] * signal).astype(np.float32)
        slopes = gradient(rows.reshape(-1, *signal.shape[1:]), np.concatenate([valid] * len(rows)))
        values += np.einsum("a,awcn->wcn", weights[part], slopes.reshape(rows.shape))
    values *= signal
    explained = np.asarray(score(signal, valid), np.float64) - score(np.zeros_like(signal), valid)
    return IntegratedGradients(values, explained, float(np.abs(values.sum((1, 2)) - explained).max()))


def attention_rollout(weights: np.ndarray) -> np.ndarray:
    """How much of each token of the input is in each token of the output, if attention were all that mixes them.

    weights  [layers, b, heads, t, s] attention after the softmax, first layer first; a token that is masked has 0
             as a key
    returns  [b, t, s] rows that sum to 1
    """
    layers, rows, _, tokens, _ = weights.shape
    mixed = np.broadcast_to(np.eye(tokens), (rows, tokens, tokens))
    for layer in range(layers):
        mean = np.asarray(weights[layer], np.float64).mean(1)
        step = 0.5 * (mean / mean.sum(-1, keepdims=True) + np.eye(tokens))
        mixed = step @ mixed
    return mixed


def over_record(maps: np.ndarray, starts: np.ndarray, samples: int) -> np.ndarray:
    """Put the maps of a record's windows together: what they say of one sample is added, each window having its share.

    maps     [windows, leads, window]
    starts   [windows] first sample of each window in the record
    samples  of the record; what a window has beyond is padding and left out
    returns  [leads, samples]; for maps that are complete the sum is that of the output averaged over the windows
    """
    whole = np.zeros((maps.shape[1], max(samples, int(starts.max()) + maps.shape[2])))
    for values, start in zip(maps, starts, strict=True):
        whole[:, start : start + maps.shape[2]] += values / len(maps)
    return whole[:, :samples]


def over_samples(tokens: np.ndarray, patch: int) -> np.ndarray:
    """Spread the map of tokens [..., leads, patches] evenly over their samples: [..., leads, patches * patch]."""
    return np.repeat(tokens / patch, patch, axis=-1)


def over_tokens(values: np.ndarray, patch: int) -> np.ndarray:
    """Sum a map [..., leads, samples] over the samples of each token: [..., leads, samples // patch]."""
    return values.reshape(*values.shape[:-1], -1, patch).sum(-1)
