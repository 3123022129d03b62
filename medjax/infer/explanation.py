"""A map of what one output of one record rests on, with the checks that say whether it may be read.

Gradients are integrated for the output; attention rollout is the same for all outputs (infer.attribution). Both are
tested on the tokens of the model (infer.soundness), over all windows of the record together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord
from medjax.infer import soundness
from medjax.infer.attribution import (
    STEPS,
    IntegratedGradients,
    attention_rollout,
    integrated_gradients,
    over_record,
    over_samples,
    over_tokens,
)
from medjax.infer.ecg import EcgModel, Windows
from medjax.infer.soundness import ORDERS, Deletion, Randomisation
from medjax.models.predictor import Target

METHODS = ("gradients", "rollout")
_MOST_TIMES = 16
_PEAK = 0.995  # quantile of the magnitudes that is drawn in full colour


@dataclass(frozen=True)
class Explanation:
    """What was found.

    method            of METHODS
    target            whose output it explains
    values            [12, samples] float64 over the leads of data.ecg.leads, NaN where the model saw nothing; of
                      gradients in units of the output (log odds for a binary target), of rollout the share of each
                      sample in what the encoder gives
    sampling_rate_hz  of values
    output, baseline  the output for the record and for the flat line; gradients only
    gap               by how much the sum of values misses their difference; gradients only
    deletion          what taking away by the map does
    randomisation     what shuffled weights do to the map
    verdict           one sentence on the two
    """

    method: str
    target: str
    values: np.ndarray
    sampling_rate_hz: float
    output: float | None
    baseline: float | None
    gap: float | None
    deletion: Deletion
    randomisation: Randomisation
    verdict: str

    @property
    def sound(self) -> bool:
        """Whether both checks were passed."""
        return self.deletion.passed and self.randomisation.passed

    @property
    def weights(self) -> np.ndarray:
        """The values scaled to [-1, 1] for drawing, float64 [12, samples]; 1 is the 99.5th percentile of magnitudes."""
        known = np.abs(self.values[~np.isnan(self.values)])
        peak = np.quantile(known, _PEAK) or known.max() if known.size else 0.0
        return np.clip(self.values / (peak or 1.0), -1, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the checks, and the share of each lead in the magnitude of the map."""
        total = np.nansum(np.abs(self.values)) or 1.0
        shares = {
            lead: float(np.nansum(np.abs(row)) / total)
            for lead, row in zip(LEADS, self.values, strict=True)
            if not np.isnan(row).all()
        }
        return {
            "method": self.method,
            "target": self.target,
            "sound": self.sound,
            "verdict": self.verdict,
            "output": self.output,
            "baseline": self.baseline,
            "gap": self.gap,
            "leads": shares,
            "deletion": self.deletion.to_json(),
            "randomisation": self.randomisation.to_json(),
        }


def explain(
    model: EcgModel,
    record: EcgRecord,
    target: str,
    method: str = "gradients",
    *,
    steps: int = STEPS,
    tolerance: float = 0.01,
    orders: int = ORDERS,
    seed: int = 0,
) -> Explanation:
    """Explain one output of a record and check the explanation.

    target     by name
    method     of METHODS
    steps      of the integral; doubled, up to 16 times as many, until the map's sum misses what it has to explain by
               no more than `tolerance` of it
    orders     random ones to compare with; seed: of them and of the shuffled weights

    Raises ValueError for an unknown target or method, a target of several outputs, and a record that cannot be judged.
    """
    wanted = {each.name: each for each in model.config.targets}.get(target)
    if wanted is None or method not in METHODS:
        names = ", ".join(each.name for each in model.config.targets)
        raise ValueError(
            f"explain: got target {target!r} by {method!r}, expected one of {names} by {' or '.join(METHODS)}; "
            "choose from these."
        )
    if wanted.kind == "ordinal":
        raise ValueError(f"explain: got the ordered classes of {target!r}, expected a binary target or a number.")
    seen = model.windows([record])[0]
    if isinstance(seen, str):
        raise ValueError(f"record {record.id} of {record.source}: {seen}")
    direction, most = _direction(model, wanted), _MOST_TIMES * steps
    patch = model.config.vit.patch[0]

    def score(signal: np.ndarray, valid: np.ndarray, params: Any = None) -> np.ndarray:
        return model.outputs(signal, valid, params=params) @ direction

    def gradients(params: Any) -> np.ndarray:
        return integrated(params).values

    def integrated(params: Any, steps: int = steps) -> IntegratedGradients:
        return integrated_gradients(
            lambda signal, valid: score(signal, valid, params),
            lambda signal, valid: model.gradients(signal, valid, direction, params=params),
            seen.signal,
            seen.valid,
            steps=steps,
        )

    def rollout(params: Any) -> np.ndarray:
        return _rollout(model, seen, params)

    known = _known_tokens(seen, patch)
    output = baseline = gap = None
    missed = ""
    make: Callable[[Any], np.ndarray]
    if method == "gradients":
        found = integrated(model.params)
        while found.gap > tolerance * np.abs(found.explained).max() and steps < most:
            steps *= 2
            found = integrated(model.params, steps)
        if found.gap > tolerance * np.abs(found.explained).max():
            missed = f" Its sum misses what it explains by {found.gap:.2g}: {steps} steps were too few."
        output, gap = float(score(seen.signal, seen.valid).mean()), found.gap
        baseline = output - float(found.explained.mean())
        values, importance, make = found.values, over_tokens(found.values, patch), gradients
        compared = np.repeat(known, patch, axis=-1)
    else:
        importance = rollout(model.params)
        values, make, compared = over_samples(importance, patch), rollout, known
    scale = wanted.sd if wanted.kind == "regression" and wanted.sd else 1.0
    deletion = soundness.deletion(
        score,
        lambda mean: model.reading.shown(wanted, mean / scale),
        seen.signal,
        seen.valid,
        importance,
        signed=method == "gradients",
        orders=orders,
        seed=seed,
    )
    randomisation = soundness.randomisation(make, model.params, compared, seed=seed)
    return Explanation(
        method,
        target,
        _on_leads(values, np.repeat(known, patch, axis=-1), seen, model),
        model.preprocessing.sampling_rate_hz,
        output,
        baseline,
        gap,
        deletion,
        randomisation,
        soundness.verdict(deletion, randomisation, wanted.unit) + missed,
    )


def _direction(model: EcgModel, target: Target) -> np.ndarray:
    """What outputs are multiplied with to give what is explained: the logit, or the value but for its mean."""
    direction = np.zeros(sum(each.width for each in model.config.targets))
    direction[model.config.columns[target.name]] = target.sd if target.kind == "regression" else 1.0
    return direction


def _rollout(model: EcgModel, seen: Windows, params: Any) -> np.ndarray:
    """Share of each token in what is pooled: [windows, leads, patches], 0 where not valid."""
    vit = model.config.vit
    known = _known_tokens(seen, vit.patch[0])
    mixed = attention_rollout(model.attention(seen.signal, seen.valid, params=params))
    if model.config.pooling == "class":
        pooled = mixed[:, 0]
    else:
        rows = known.reshape(len(known), -1)
        pooled = np.einsum("wt,wts->ws", rows / rows.sum(1, keepdims=True), mixed[:, vit.extra :])
    return pooled[:, vit.extra :].reshape(known.shape) * known


def _known_tokens(seen: Windows, patch: int) -> np.ndarray:
    """[windows, leads, patches] bool: tokens whose samples are all valid, as the model counts them."""
    return np.asarray(seen.valid.reshape(*seen.valid.shape[:2], -1, patch).all(axis=-1))


def _on_leads(values: np.ndarray, known: np.ndarray, seen: Windows, model: EcgModel) -> np.ndarray:
    """A map of windows [windows, leads of the model, samples] on the record: [12, samples], NaN where not valid."""
    whole = over_record(values, seen.starts, seen.samples)
    there = over_record(known.astype(float), seen.starts, seen.samples) > 0
    placed = np.full((len(LEADS), seen.samples), np.nan)
    for row, lead in enumerate(model.preprocessing.leads):
        placed[LEADS.index(lead)] = np.where(there[row], whole[row], np.nan)
    return placed
