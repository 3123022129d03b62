"""Optimiser and schedule from settings, as Optax transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medjax.train.settings import OptimizerSettings

_NO_DECAY = ("scale", "bias", "class_token", "mask_token", "registers", "leads", "query", "gaps")


def schedule(settings: OptimizerSettings, steps: int) -> Callable[[Any], Any]:
    """The learning rate at a step: linear rise over the warm-up, then cosine, linear or constant to the last step.

    Raises ValueError when the warm-up takes all steps.
    """
    s = settings
    rise = round(s.warmup * steps) if s.warmup < 1 else int(s.warmup)
    if rise >= steps:
        raise ValueError(
            f"optimizer.warmup: got {rise} steps of {steps}, expected fewer; lower it or train for longer."
        )
    fall = max(steps - rise, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(s.learning_rate, fall, alpha=s.final),
        "linear": optax.linear_schedule(s.learning_rate, s.learning_rate * s.final, fall),
        "constant": optax.constant_schedule(s.learning_rate),
    }[s.schedule]
    if not rise:
        return after
    # the first step already learns a little: its rate is 1 / rise of the highest
    return optax.join_schedules(
        [optax.linear_schedule(s.learning_rate / rise, s.learning_rate, max(rise - 1, 1)), after], [rise]
    )


def optimizer(settings: OptimizerSettings, steps: int, shares: Any = None) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv 1711.05101) or Adafactor (arXiv 1804.04235), with the schedule.

    shares  tree of the trained leaves: the share of the learning rate that each has, of a shape that broadcasts to it
    """
    s = settings
    parts = [optax.clip_by_global_norm(s.clip)] if s.clip else []
    rate = schedule(s, steps)
    if s.name == "adamw":
        parts.append(
            optax.adamw(
                rate,
                b1=s.beta1,
                b2=s.beta2,
                eps=s.eps,
                weight_decay=s.weight_decay,
                mask=decays,
                mu_dtype=jnp.dtype(s.moment_dtype),
            )
        )
    else:
        # Optax's own decay of Adafactor is not scaled by the rate; its updates come out negated
        parts.append(optax.adafactor(None, multiply_by_parameter_scale=False, clipping_threshold=1.0))
        if s.weight_decay:
            parts.append(optax.add_decayed_weights(-s.weight_decay, decays))
        parts.append(optax.scale_by_schedule(rate))
    if shares is not None:
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, shares)))
    return optax.chain(*parts)


def decays(tree: Any) -> Any:
    """True for the leaves that weight decay applies to: all but scales, biases and learned tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _NO_DECAY, tree)
