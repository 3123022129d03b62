"""An encoder with a head: yes or no, a number, ordered classes, any number of them at once.

Every target has one score, a linear function of the pooled hidden state. What the outputs [b, width] are:

  kind          outputs of a target               meaning
  "binary"      1: a logit                        P(yes) = sigmoid
  "regression"  1: (value - mean) / sd            value in the target's unit
  "ordinal"     classes - 1: score - threshold_j  P(y > j) = sigmoid; thresholds rise, so these probabilities never do

Pooling takes valid tokens only, "class" the class token's. A row without any valid token has the outputs of a hidden
state of zeros (pooling "mean", "attention").

  params/encoder/…             of models.vit, as in models.ecg_mae: a pre-trained encoder is put here as it is
  params/pool/…                pooling "attention": query [heads, head_dim], key, value, out like a block's
  params/head/kernel           [embed, targets]    bias [targets]: the negative of an ordinal target's first threshold
  params/head/gaps             logarithms of the steps from one ordinal threshold to the next, target after target;
                               absent without ordinal targets

Sources: McCullagh, J. R. Stat. Soc. B 1980 (cumulative logits); arXiv 1810.00825 (attention pooling).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.vit import Encoder, VitConfig, check_keys
from medjax.nn.objectives import binary_cross_entropy, huber, ordinal_cross_entropy, ordinal_probabilities, weighted_sum
from medjax.nn.patches import patchify, token_leads, token_positions, valid_tokens
from medjax.nn.pooling import AttentionPool, mean_pool
from medjax.nn.transformer import Constrain, parameter, unconstrained

KINDS = ("binary", "regression", "ordinal")
POOLINGS = ("mean", "class", "attention")


@dataclass(frozen=True)
class Target:
    """One thing that is predicted.

    classes        names: of no and yes (may be left out), or of the ordered classes, lowest first
    mean, sd       of the training set, in the unit: regression only, where both are needed
    unit           "years"
    class_weights  factors on the loss, one a class; empty: 1. Binary (1, w): w times the weight for yes
    huber          regression: beyond so many sd the loss grows linearly; None: squared error
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    mean: float | None = None
    sd: float | None = None
    unit: str = ""
    class_weights: tuple[float, ...] = ()
    huber: float | None = None

    def __post_init__(self):
        for name in ("classes", "class_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        where = f"target {self.name!r}"
        if self.kind not in KINDS:
            raise ValueError(f"{where}: got kind={self.kind!r}, expected one of {', '.join(KINDS)}; choose one.")
        count = len(self.classes)
        if self.kind == "binary" and count not in (0, 2):
            raise ValueError(f"{where}: got {count} classes, expected the names of no and yes, or none; name both.")
        if self.kind == "ordinal" and count < 3:
            raise ValueError(
                f"{where}: got {count} classes, expected 3 or more in rising order; of two make kind binary."
            )
        is_number = self.kind == "regression"
        if is_number and (self.mean is None or self.sd is None or self.sd <= 0):
            raise ValueError(
                f"{where}: got mean={self.mean}, sd={self.sd}, expected both, sd above 0; take the training set's."
            )
        if is_number and (count or self.class_weights):
            raise ValueError(f"{where}: got classes or class_weights for a regression, expected none; leave them out.")
        if not is_number and (self.mean is not None or self.sd is not None or self.huber is not None):
            raise ValueError(
                f"{where}: got mean, sd or huber for kind={self.kind!r}, expected none; they belong to a regression."
            )
        if self.huber is not None and self.huber <= 0:
            raise ValueError(f"{where}: got huber={self.huber}, expected more than 0 sd, or none for squared error.")
        expected = 2 if self.kind == "binary" else count
        if self.class_weights and (len(self.class_weights) != expected or min(self.class_weights) <= 0):
            raise ValueError(
                f"{where}: got class_weights={self.class_weights}, expected {expected} numbers above 0, one a class."
            )

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of a regression; 0 and 1 otherwise."""
        return self.mean or 0.0, self.sd or 1.0

    @property
    def width(self) -> int:
        """Outputs of this target."""
        return len(self.classes) - 1 if self.kind == "ordinal" else 1


@dataclass(frozen=True)
class PredictorConfig:
    """An encoder, how its tokens are pooled, and what is predicted from them, in the order of EcgBatch.targets."""

    vit: VitConfig
    targets: tuple[Target, ...]
    pooling: str = "mean"

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        names = [target.name for target in self.targets]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"predictor.targets: got {names}, expected at least one, all of different names.")
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"predictor.pooling: got {self.pooling!r}, expected one of {', '.join(POOLINGS)}; choose one."
            )
        if self.pooling == "class" and not self.vit.class_token:
            raise ValueError(
                "predictor.pooling: got class for an encoder without class token, expected mean or attention; choose "
                "one, or pre-train with class_token."
            )

    @property
    def columns(self) -> dict[str, slice]:
        """Which outputs belong to each target."""
        ends = np.cumsum([target.width for target in self.targets]).tolist()
        return {t.name: slice(end - t.width, end) for t, end in zip(self.targets, ends, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        targets = [
            {**asdict(t), "classes": list(t.classes), "class_weights": list(t.class_weights)} for t in self.targets
        ]
        return {"vit": self.vit.to_dict(), "targets": targets, "pooling": self.pooling}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "predictor") -> "PredictorConfig":
        """The inverse of to_dict. Raises ValueError for keys that are unknown or missing; where: named by it."""
        check_keys(cls, values, where)
        for number, target in enumerate(values["targets"]):
            check_keys(Target, target, f"{where}.targets[{number}]")
        targets = tuple(Target(**target) for target in values["targets"])
        return cls(VitConfig.from_dict(values["vit"], f"{where}.vit"), targets, values["pooling"])


class Head(nn.Module):
    """Pooled hidden states [b, embed] -> outputs [b, width of all targets], float32."""

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, k = x.shape[-1], len(self.targets)
        # small, so that a fresh head starts near "not known" whatever the encoder's scale
        kernel = parameter(self, "kernel", nn.initializers.normal(0.01), (d, k), ("embed", None))
        scores = x.astype(jnp.float32) @ kernel + parameter(self, "bias", nn.initializers.zeros, (k,), (None,))
        count = sum(target.width - 1 for target in self.targets)
        gaps = parameter(self, "gaps", nn.initializers.zeros, (count,), (None,)) if count else jnp.zeros(0)
        outputs, used = [], 0
        for i, target in enumerate(self.targets):
            own = gaps[used : used + target.width - 1]
            used += target.width - 1
            outputs.append(scores[:, i, None] - jnp.pad(jnp.cumsum(jnp.exp(own)), (1, 0)))
        return jnp.concatenate(outputs, axis=-1)


class Predictor(nn.Module):
    """Signal -> outputs.

    dtype  compute dtype; parameters keep theirs, pooling and head are float32
    remat  of models.decoder.REMAT, what the backward pass may reuse
    """

    config: PredictorConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained

    def setup(self):
        c = self.config
        self.encoder = Encoder(c.vit, self.dtype, self.remat, self.constrain)
        if c.pooling == "attention":
            self.pool = AttentionPool(c.vit.embed, c.vit.heads)
        self.head = Head(c.targets)

    def __call__(
        self,
        signal: jax.Array,
        valid: jax.Array,
        seeds: jax.Array | None = None,
        *,
        leads: Sequence[int] | None = None,
    ) -> jax.Array:
        """Outputs [b, width of all targets] float32; see the module's docstring.

        signal  [b, leads, samples] float, normalised (or frames, clips as in nn.patches); not valid: anything
        valid   bool, the shape of signal
        seeds   [b] uint32, each row's randomness: drop path; None: off
        leads   which leads the signal has, as rows of the lead embedding; None: 0, 1, 2, …
        """
        return self.head(self.features(signal, valid, seeds, leads=leads))

    def features(
        self,
        signal: jax.Array,
        valid: jax.Array,
        seeds: jax.Array | None = None,
        *,
        leads: Sequence[int] | None = None,
    ) -> jax.Array:
        """Pooled hidden states [b, embed] float32; arguments as of __call__."""
        vit = self.config.vit
        shape = signal.shape[1:]
        known = valid_tokens(valid, vit.patch)
        own = token_leads(shape, vit.patch, leads) if vit.lead_count else None
        x = self.encoder(patchify(signal, vit.patch), token_positions(shape, vit.patch), own, known, None, seeds)
        x = x.astype(jnp.float32)
        if self.config.pooling == "class":
            return x[:, 0]
        tokens = x[:, vit.extra :]
        return mean_pool(tokens, known) if self.config.pooling == "mean" else self.pool(tokens, known)


def predictor_loss(
    outputs: jax.Array, targets: jax.Array, weights: jax.Array, config: PredictorConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of every known target, summed by weights.

    outputs  [b, width] of a Predictor
    targets  [b, targets] in their own units: 0 or 1, a number, the class from 0; anything where the weight is 0
    weights  [b, targets] float32, 0 where the target is not known
    returns  the sum, and float32 sums: "loss" (the same), "counted" (of weights), and by weights "right" (predictions
             on the right side of 1/2) when all targets are binary, "absolute_error" (in their units) when all are
             regressions
    """
    weights = weights.astype(jnp.float32)
    targets = jnp.where(weights > 0, targets, 0).astype(jnp.float32)  # NaN times 0 is NaN, in gradients too
    losses, errors = [], []
    for i, target in enumerate(config.targets):
        own, y = outputs[:, config.columns[target.name]].astype(jnp.float32), targets[:, i]
        if target.kind == "binary":
            losses.append(binary_cross_entropy(own[:, 0], y, target.class_weights or (1.0, 1.0)))
            errors.append((own[:, 0] > 0) == (y > 0.5))
        elif target.kind == "regression":
            mean, sd = target.scale
            losses.append(huber(own[:, 0], (y - mean) / sd, target.huber))
            errors.append(jnp.abs(own[:, 0] * sd + mean - y))
        else:
            losses.append(ordinal_cross_entropy(own, y, target.class_weights))
    loss = weighted_sum(jnp.stack(losses, axis=1), weights)
    sums = {"loss": loss, "counted": jnp.sum(weights)}
    kinds = {target.kind for target in config.targets}
    if len(kinds) == 1 and "ordinal" not in kinds:
        sums["right" if kinds == {"binary"} else "absolute_error"] = weighted_sum(jnp.stack(errors, axis=1), weights)
    return loss, sums


def interpret(outputs: jax.Array, config: PredictorConfig) -> dict[str, jax.Array]:
    """Outputs [b, width] by target: P(yes) [b], the value in its unit [b], or class probabilities [b, classes]."""
    found = {}
    for target in config.targets:
        own = outputs[:, config.columns[target.name]]
        if target.kind == "binary":
            found[target.name] = jax.nn.sigmoid(own[:, 0])
        elif target.kind == "regression":
            mean, sd = target.scale
            found[target.name] = own[:, 0] * sd + mean
        else:
            found[target.name] = ordinal_probabilities(own)
    return found


def abstract_variables(config: PredictorConfig) -> Any:
    """Shapes, logical axes and dtypes of the collection `params`, boxed as Linen metadata; nothing is allocated."""
    return jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))


def init_variables(config: PredictorConfig, key: jax.Array) -> Any:
    """Fresh parameters, a tree of float32 arrays; to be jitted with their shardings."""
    return nn.unbox(_init(config, key))


def _init(config: PredictorConfig, key: jax.Array) -> Any:
    # parameters do not depend on the size of the input: one patch will do
    vit = config.vit
    shape = (1, 1, *vit.patch) if len(vit.patch) == 1 else (1, *vit.patch, vit.channels)
    signal = jnp.zeros(shape)
    return {"params": Predictor(config).init(key, signal, jnp.ones(shape, bool))["params"]}
