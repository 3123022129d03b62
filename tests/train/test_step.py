"""One step on a loss that is computed by hand: parts of a batch, clipping, skipped steps, spikes, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax.train.state import TrainState
from medjax.train.step import make_evaluation, make_step

ROWS, SIZE = 12, 5
RATE = 0.1
RNG = np.random.default_rng(0)
WEIGHT, OFFSET = RNG.normal(size=SIZE).astype(np.float32), RNG.normal(size=SIZE).astype(np.float32)


def batch(seed=0, counted=(3, 0, 1, 7, 2, 0, 0, 5, 1, 1, 9, 2)):
    """x [rows, size], y [rows], and how much each row counts: uneven, some not at all."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(ROWS, SIZE)).astype(np.float32),
        "y": rng.normal(size=ROWS).astype(np.float32),
        "counted": np.asarray(counted, np.float32),
    }


def loss(variables, batch, key):
    """Sum of counted * (y - (trained + frozen) . x)^2 / 2; with a key the inputs are dropped by half."""
    x = batch["x"]
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.5, x.shape)
    error = batch["y"] - x @ (variables["lora"]["w"] + variables["params"]["w"])
    total = jnp.sum(batch["counted"] * error**2) / 2
    return total, {"loss": total, "counted": jnp.sum(batch["counted"])}


def by_hand(weight, batch):
    """Mean loss and its gradient, float64."""
    x, y, counted = (batch[name].astype(np.float64) for name in ("x", "y", "counted"))
    error = y - x @ (weight + OFFSET)
    return (counted * error**2).sum() / 2 / counted.sum(), -(counted * error) @ x / counted.sum()


def fresh(tx, weight=WEIGHT):
    trainable, zero = {"lora": {"w": jnp.asarray(weight)}}, jnp.zeros((), jnp.int32)
    return TrainState(zero, trainable, tx.init(trainable), jnp.zeros(()), zero)


FROZEN = {"params": {"w": jnp.asarray(OFFSET)}}


def stepper(tx, **options):
    step = jax.jit(make_step(loss, tx, **options))
    return lambda state, batch: step(state, FROZEN, batch)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 12])
def test_parts_equal_the_whole_batch(accumulation):
    """Loss, gradient norm and update are those of the mean over all counted targets, however they are spread."""
    tx = optax.sgd(RATE)
    state, metrics = stepper(tx, accumulation=accumulation)(fresh(tx), batch())
    mean, gradient = by_hand(WEIGHT.astype(np.float64), batch())
    assert float(metrics.means["loss"]) == pytest.approx(mean, rel=1e-6)
    assert float(metrics.grad_norm) == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    assert float(metrics.counted) == 31
    np.testing.assert_allclose(state.trainable["lora"]["w"], WEIGHT - RATE * gradient, rtol=1e-6, atol=1e-7)


def test_the_means_of_parts_would_not_do():
    """What a mean of the parts' means gives: far away, so the test above can see it."""
    parts = [{name: value[i::3] for name, value in batch().items()} for i in range(3)]
    gradient = np.mean([by_hand(WEIGHT.astype(np.float64), part)[1] for part in parts], axis=0)
    assert np.abs(gradient - by_hand(WEIGHT.astype(np.float64), batch())[1]).max() > 0.05


@pytest.mark.parametrize("limit", [0.2, 1e3])
def test_clip_by_global_norm(limit):
    """The reported norm is the one before; the update has the limit's length, or is left alone below it."""
    tx = optax.chain(optax.clip_by_global_norm(limit), optax.sgd(1.0))
    state, metrics = stepper(tx)(fresh(tx), batch())
    _, gradient = by_hand(WEIGHT.astype(np.float64), batch())
    length = np.linalg.norm(gradient)
    assert float(metrics.grad_norm) == pytest.approx(length, rel=1e-6)
    np.testing.assert_allclose(
        WEIGHT - np.asarray(state.trainable["lora"]["w"]), gradient * min(1.0, limit / length), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("bad", ["nan", "inf", "nothing counts"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_bad_batch_changes_nothing_but_the_counters(bad, accumulation):
    tx = optax.adamw(RATE)
    step = stepper(tx, accumulation=accumulation)
    before, _ = step(fresh(tx), batch(1))
    damaged = batch(2) if bad != "nothing counts" else batch(2, np.zeros(ROWS))
    if bad != "nothing counts":
        damaged["x"][7, 2] = float(bad)
    after, metrics = step(before, damaged)
    assert not metrics.taken
    for name in ("trainable", "optimizer", "loss_average"):
        for old, new in zip(*map(jax.tree.leaves, (getattr(before, name), getattr(after, name))), strict=True):
            np.testing.assert_array_equal(old, new)
    assert (int(after.step), int(after.bad_steps), int(metrics.bad_steps)) == (2, 1, 1)
    again, _ = step(after, damaged)
    assert int(again.bad_steps) == 2
    good, metrics = step(again, batch(3))
    straight, _ = step(before, batch(3))
    assert metrics.taken
    assert int(good.bad_steps) == 0
    np.testing.assert_array_equal(good.trainable["lora"]["w"], straight.trainable["lora"]["w"])


def test_a_spike_is_skipped_and_the_running_mean_keeps_its_value():
    tx = optax.sgd(0.0)  # the loss is that of the batch alone
    step = stepper(tx, spike=3.0)
    state, first = step(fresh(tx), batch(1))
    assert float(state.loss_average) == pytest.approx(float(first.means["loss"]))
    usual, second = step(state, batch(2))
    mean = 0.95 * float(first.means["loss"]) + 0.05 * float(second.means["loss"])
    assert second.taken
    assert float(usual.loss_average) == pytest.approx(mean, rel=1e-6)
    large = batch(3)
    large["y"] = large["y"] * 30
    skipped, third = step(usual, large)
    assert float(third.means["loss"]) > 3 * mean
    assert not third.taken
    assert float(skipped.loss_average) == float(usual.loss_average)
    assert stepper(tx)(usual, large)[1].taken  # without the option any finite loss is


def test_dropout_depends_on_seed_and_step_only():
    tx = optax.sgd(RATE)

    start, later = fresh(tx), fresh(tx)._replace(step=jnp.int32(1))
    steps = {seed: stepper(tx, dropout_seed=seed) for seed in (1, 2, None)}

    def run(seed, state):
        return float(steps[seed](state, batch())[1].means["loss"])

    assert run(1, start) == run(1, start)
    assert len({run(1, start), run(2, start), run(1, later), run(None, start)}) == 4
    assert run(None, start) == run(None, later)


def test_each_part_of_a_batch_has_a_dropout_key_of_its_own():
    """Two equal halves: with one key for both the loss would be that of a half alone."""
    tx = optax.sgd(RATE)
    halves = {name: np.repeat(value[:6], 2, axis=0) for name, value in batch().items()}
    half = {name: value[:6] for name, value in batch().items()}
    both = stepper(tx, dropout_seed=1, accumulation=2)(fresh(tx), halves)[1].means["loss"]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 0)
    first, sums = loss({"lora": {"w": WEIGHT}, "params": {"w": OFFSET}}, half, key)
    assert float(both) != pytest.approx(float(first / sums["counted"]), rel=1e-3)


def test_frozen_is_no_part_of_the_state_and_the_evaluation_has_no_dropout():
    tx = optax.sgd(RATE)
    assert jax.tree.structure(fresh(tx).trainable) == jax.tree.structure({"lora": {"w": 0}})
    sums = jax.jit(make_evaluation(loss))(fresh(tx).trainable, FROZEN, batch())
    mean, _ = by_hand(WEIGHT.astype(np.float64), batch())
    assert float(sums["loss"] / sums["counted"]) == pytest.approx(mean, rel=1e-6)
