"""Whether an attribution map means anything: two checks that a map of noise, or of the signal alone, does not pass.

Deletion: take tokens away from the most to the least attributed and watch the output, beside taking them away in random
orders (Samek et al., IEEE TNNLS 2017, arXiv 1509.06321). If the map knows what the output rests on, the output changes
sooner. What is taken away is marked as not measured, which is how a model is told of a missing lead.

Model randomisation: make the map again with weights that are shuffled, from the head down to the embedding (Adebayo et
al., NeurIPS 2018, arXiv 1810.03292). A map that stays as it is shows the signal, not what the model learnt.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from medjax.infer.attribution import Score

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the tokens that are taken away, one after the other
ORDERS = 40
_TOGETHER = 8  # orders whose windows are held at once
ALIKE = 0.5  # rank correlation from which a map counts as the same map


@dataclass(frozen=True)
class Deletion:
    """The output as tokens are taken away.

    shares         of the tokens, from 0
    ordered        output when the most attributed go first
    random         [orders, shares] output when they go in random order
    area           mean over the random orders of the area between the two curves, divided by the largest share: the
                   mean difference of the output, positive when the map does better
    low, high      2.5 % and 97.5 % quantile of that area over the random orders
    """

    shares: np.ndarray
    ordered: np.ndarray
    random: np.ndarray
    area: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the map does better than 97.5 % of the random orders."""
        return self.low > 0

    def to_json(self) -> dict[str, Any]:
        return {
            "shares": self.shares.tolist(),
            "ordered": self.ordered.tolist(),
            "random": self.random.tolist(),
            "area": self.area,
            "low": self.low,
            "high": self.high,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Randomisation:
    """Rank correlation of a map with the maps of ever more shuffled weights.

    stages        what was shuffled, besides all that is named before it
    correlations  one a stage, of the maps as they are drawn: signed where they have a sign
    magnitudes    the same without signs; a map that is multiplied with the signal, as integrated gradients are, is
                  strong where the signal is, whatever the weights
    """

    stages: tuple[str, ...]
    correlations: tuple[float, ...]
    magnitudes: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether the map of wholly shuffled weights is another map."""
        return abs(self.correlations[-1]) < ALIKE

    def to_json(self) -> dict[str, Any]:
        return {
            "stages": list(self.stages),
            "correlations": list(self.correlations),
            "magnitudes": list(self.magnitudes),
            "passed": self.passed,
        }


def deletion(
    score: Score,
    shown: Callable[[np.ndarray], np.ndarray],
    signal: np.ndarray,
    valid: np.ndarray,
    importance: np.ndarray,
    *,
    signed: bool,
    orders: int = ORDERS,
    seed: int = 0,
) -> Deletion:
    """Take the tokens of a record away by a map's order and by random orders.

    score       output before it is shown; its mean over the windows is the record's
    shown       from that mean to what is compared: a probability, years
    signal      [windows, leads, samples] float32, normalised; valid the same, bool
    importance  [windows, leads, patches] the map, summed over each token
    signed      whether importance says in which direction a token pulls: then what raises the output goes first and
                the output must fall; if not, it must change

    Raises ValueError when no token is valid.
    """
    patch = signal.shape[-1] // importance.shape[-1]
    # as the model counts them: a patch with a gap is none
    there = valid.reshape(*importance.shape, patch).all(-1).ravel()
    tokens = np.flatnonzero(there)
    if not len(tokens):
        raise ValueError("valid: got no patch that is valid throughout, expected some; there is nothing to take away.")
    shares = np.array([0.0, *SHARES])
    counts = np.minimum(np.round(shares * len(tokens)).astype(int), len(tokens) - 1)

    def curves(some: np.ndarray) -> np.ndarray:
        """Output after each count of tokens was taken away, in each of some orders [n, tokens]: [n, shares]."""
        kept = np.repeat(there[None, None], len(some), 0).repeat(len(counts), 1)
        for row, order in zip(kept, some, strict=True):
            for place, count in enumerate(counts):
                row[place, order[:count]] = False
        mask = valid & np.repeat(kept.reshape(*kept.shape[:2], *importance.shape), patch, axis=-1)
        rows = np.where(mask, signal, 0).astype(np.float32)
        outputs = score(rows.reshape(-1, *signal.shape[1:]), mask.reshape(-1, *signal.shape[1:]))
        return shown(np.asarray(outputs, np.float64).reshape(len(some), len(counts), -1).mean(-1))

    generator = np.random.default_rng(seed)
    shuffles = np.stack([generator.permutation(tokens) for _ in range(orders)])
    ordered = curves(tokens[np.argsort(-importance.ravel()[tokens], kind="stable")][None])[0]
    random = np.concatenate([curves(shuffles[i : i + _TOGETHER]) for i in range(0, orders, _TOGETHER)])
    better = random - ordered if signed else np.abs(ordered - ordered[0]) - np.abs(random - random[:, :1])
    areas = np.trapezoid(better, counts / len(tokens), axis=1) / max(counts[-1] / len(tokens), 1e-9)
    low, high = np.quantile(areas, [0.025, 0.975])
    return Deletion(counts / len(tokens), ordered, random, float(areas.mean()), float(low), float(high))


def randomisation(
    make_map: Callable[[Any], np.ndarray], params: Mapping[str, Any], valid: np.ndarray, *, seed: int = 0
) -> Randomisation:
    """Make the map again with ever more of the weights shuffled.

    make_map  parameters -> map [windows, leads, n]
    params    of models.predictor.Predictor
    valid     [windows, leads, n] what of the map is compared
    """
    where = valid.ravel()
    original = make_map(params).ravel()[where]
    stages, correlations, magnitudes = [], [], []
    for name, other in shuffled(params, seed):
        found = make_map(other).ravel()[where]
        stages.append(name)
        correlations.append(rank_correlation(original, found))
        magnitudes.append(rank_correlation(np.abs(original), np.abs(found)))
    return Randomisation(tuple(stages), tuple(correlations), tuple(magnitudes))


def shuffled(params: Mapping[str, Any], seed: int, groups: int = 3) -> Iterator[tuple[str, Any]]:
    """Parameters in which ever more is shuffled, from the head down; each stage keeps what the stages before did.

    Each array keeps its numbers, each layer's its own, and loses their places: what was learnt is gone, the scale is
    not.
    groups  into how many stages the layers are cut
    """
    import jax

    generator = np.random.default_rng(seed)
    current = jax.tree.map(np.asarray, dict(params))

    def mixed(leaf: np.ndarray) -> np.ndarray:
        return generator.permutation(leaf.ravel()).reshape(leaf.shape)

    def put() -> Any:
        return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), current, dict(params))

    encoder = current["encoder"]
    current |= {name: jax.tree.map(mixed, tree) for name, tree in current.items() if name != "encoder"}
    yield "head", put()
    layers = len(jax.tree.leaves(encoder["layers"])[0])
    bounds = np.unique(np.linspace(layers, 0, groups + 1).round().astype(int))[::-1]
    encoder["norm"] = jax.tree.map(mixed, encoder["norm"])
    for last, first in pairwise(bounds):

        def mixed_layers(leaf: np.ndarray, first: int = first, last: int = last) -> np.ndarray:
            new = leaf.copy()
            for layer in range(first, last):
                new[layer] = mixed(leaf[layer])
            return new

        encoder["layers"] = jax.tree.map(mixed_layers, encoder["layers"])
        yield f"layers {first + 1} to {last}" if last > first + 1 else f"layer {last}", put()
    rest = [name for name in encoder if name not in ("layers", "norm")]
    encoder |= {name: jax.tree.map(mixed, encoder[name]) for name in rest}
    yield "embedding", put()


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors; 0 where one of them is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / norm) if norm else 0.0


def verdict(deletion: Deletion, randomisation: Randomisation, unit: str = "") -> str:
    """One sentence on whether the map may be read.

    unit  of the output, "" for a probability
    """
    change = f"{deletion.area:+.3g}{' ' + unit if unit else ''} against random order"
    change += f", 95 % of the orders {deletion.low:+.3g} to {deletion.high:+.3g}"
    alike = f"rank correlation {randomisation.correlations[-1]:.2f} with the map of shuffled weights"
    faults = []
    if not deletion.passed:
        faults.append(f"taking away what is marked moves the output no sooner than taking away at random ({change})")
    if not randomisation.passed:
        faults.append(f"a model of shuffled weights gives much the same map ({alike})")
    if faults:
        return f"Do not rest on this map: {', and '.join(faults)}."
    caution = ""
    if randomisation.magnitudes[-1] >= ALIKE:
        caution = f" Read its colours, not its strength, which follows the signal ({randomisation.magnitudes[-1]:.2f})."
    return f"Both checks passed: taking away what is marked moves the output sooner ({change}); {alike}.{caution}"
