"""One optimiser step as a pure function: gradients part by part, one update, or none when something is not finite.

  batch [batch, …] --split into `accumulation` parts--> sums of loss and gradient --/ counted--> clip, optimiser

Loss and gradient are sums over counted targets, divided once at the end, so that a batch in parts equals the whole
batch however the counted targets are spread over the parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from medjax.train.state import TrainState, Tree, join

# (variables, batch, dropout key or None) -> (sum that is minimised, sums for the log), both float32; the sums have at
# least `counted`, by which everything is divided, and `loss`
Loss = Callable[[Tree, Any, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]

_MEMORY = 0.95  # of the running mean of the loss


class StepMetrics(NamedTuple):
    """What one step tells, on the device.

    means      the loss function's sums over `counted`
    counted    targets of the loss
    grad_norm  global norm before clipping
    taken      whether the update was applied
    bad_steps  skipped steps in a row
    """

    means: dict[str, jax.Array]
    counted: jax.Array
    grad_norm: jax.Array
    taken: jax.Array
    bad_steps: jax.Array


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    spike: float = 0.0,
    dropout_seed: int | None = None,
) -> Callable[[TrainState, Tree, Any], tuple[TrainState, StepMetrics]]:
    """The step (state, frozen, batch) -> (state, metrics), for jit with the state donated.

    accumulation  parts of the batch; its arrays are [batch, …] with batch a multiple of it
    spike         a loss above so many times its running mean is not applied; 0: any finite one is
    dropout_seed  None: the loss gets no key
    """

    def gradient(trainable, frozen, batch, key):
        def total(trainable):
            return loss(join(trainable, frozen), batch, key)

        (_, sums), grads = jax.value_and_grad(total, has_aux=True)(trainable)
        return sums, grads

    def step(state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
        if accumulation == 1:
            sums, grads = gradient(state.trainable, frozen, batch, key)
        else:
            parts = jax.tree.map(lambda x: _parts(x, accumulation), batch)

            def add(carry, part):
                number, part = part
                own = None if key is None else jax.random.fold_in(key, number)
                return jax.tree.map(jnp.add, carry, gradient(state.trainable, frozen, part, own)), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(gradient, state.trainable, frozen, first, key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (sums, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation), parts))
        counted = sums.pop("counted")
        by = 1.0 / jnp.maximum(counted, 1.0)
        means = {name: value * by for name, value in sums.items()}
        grads = jax.tree.map(lambda g: g * by, grads)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(norm) & jnp.isfinite(means["loss"]) & (counted > 0)
        average = state.loss_average
        if spike:
            good &= (average == 0) | (means["loss"] <= spike * average)
        updates, optimizer = tx.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        new_average = jnp.where(average == 0, means["loss"], _MEMORY * average + (1 - _MEMORY) * means["loss"])
        bad_steps = jnp.where(good, 0, state.bad_steps + 1)
        state = TrainState(
            step=state.step + 1,
            trainable=keep(trainable, state.trainable),
            optimizer=keep(optimizer, state.optimizer),
            loss_average=keep(new_average, average),
            bad_steps=bad_steps,
        )
        return state, StepMetrics(means, counted, norm, good, bad_steps)

    return step


def _parts(x: jax.Array, count: int) -> jax.Array:
    """[batch, …] -> [count, batch / count, …], every device keeping its own rows: part i takes rows i, i + count, …"""
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def make_evaluation(loss: Loss) -> Callable[[Tree, Tree, Any], dict[str, jax.Array]]:
    """The function (trainable, frozen, batch) -> the loss function's sums, without dropout."""

    def evaluate(trainable: Tree, frozen: Tree, batch: Any) -> dict[str, jax.Array]:
        return loss(join(trainable, frozen), batch, None)[1]

    return evaluate
