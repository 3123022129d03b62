"""Losses of encoders against closed forms and plain NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.objectives import (
    binary_cross_entropy,
    huber,
    masked_patch_error,
    normalised_patches,
    ordinal_cross_entropy,
    ordinal_probabilities,
    weighted_sum,
)

RNG = np.random.default_rng(7)


def test_masked_patch_error():
    predicted, targets = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
    masked = np.array([[True, False, True], [False, False, False]])
    want = sum(np.mean((predicted[0, i] - targets[0, i]) ** 2) for i in (0, 2))
    arguments = jnp.asarray(predicted, jnp.float32), jnp.asarray(targets, jnp.float32), jnp.asarray(masked)
    assert float(masked_patch_error(*arguments)) == pytest.approx(want, rel=1e-6)
    gradient = np.asarray(jax.grad(masked_patch_error)(*arguments))
    np.testing.assert_allclose(gradient[0, 0], 2 * (predicted - targets)[0, 0] / 4, rtol=1e-5)
    assert not gradient[0, 1].any()
    assert not gradient[1].any()


def test_normalised_patches():
    x = RNG.normal(3, 5, (4, 50))
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalised_patches(jnp.asarray(x, jnp.float32)), want, atol=1e-5)
    assert not normalised_patches(jnp.full((1, 10), 7.0)).any()


def test_binary_cross_entropy():
    logits, targets = RNG.normal(size=50) * 4, RNG.integers(0, 2, 50)
    p = 1 / (1 + np.exp(-logits))
    want = np.where(targets == 1, -3.0 * np.log(p), -0.5 * np.log(1 - p))
    got = binary_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), (0.5, 3.0))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(
        binary_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets)),
        np.where(targets == 1, -np.log(p), -np.log(1 - p)),
        rtol=1e-5,
    )
    ends = binary_cross_entropy(jnp.asarray([1000.0, -1000.0, 1000.0]), jnp.asarray([0.0, 1.0, 1.0]))
    assert ends.tolist() == [1000.0, 1000.0, 0.0]
    slope = jax.grad(lambda z: jnp.sum(binary_cross_entropy(z, jnp.asarray([1.0, 0.0]), (1.0, 2.0))))(jnp.zeros(2))
    assert slope.tolist() == [-1.0, 0.5]  # w (p - y)


def test_huber():
    error = np.array([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 10.0])
    zero = jnp.zeros(7)
    assert huber(jnp.asarray(error), zero, None).tolist() == (error**2).tolist()
    assert huber(jnp.asarray(error), zero, 1.0).tolist() == [2.5, 0.5, 0.125, 0.0, 0.03125, 0.5, 9.5]
    assert huber(jnp.asarray(error), zero, 0.5).tolist() == [1.375, 0.375, 0.125, 0.0, 0.03125, 0.375, 4.875]
    slope = jax.grad(lambda e: jnp.sum(huber(e, jnp.zeros(3), 2.0)))(jnp.asarray([-9.0, 0.3, 9.0]))
    np.testing.assert_allclose(slope, [-2.0, 0.3, 2.0], rtol=1e-6)


def test_ordinal_cross_entropy():
    logits = np.sort(RNG.normal(size=(20, 3)) * 2, axis=-1)[:, ::-1]
    classes = RNG.integers(0, 4, 20)
    above = 1 / (1 + np.exp(-logits))
    want = np.zeros(20)
    for row, y in enumerate(classes):
        for j in range(3):
            want[row] -= math.log(above[row, j] if y > j else 1 - above[row, j])
    arguments = jnp.asarray(logits, jnp.float32), jnp.asarray(classes, jnp.float32)
    np.testing.assert_allclose(ordinal_cross_entropy(*arguments), want, rtol=1e-5)
    weights = (1.0, 2.0, 0.5, 4.0)
    weighted = want * np.asarray(weights)[classes]
    np.testing.assert_allclose(ordinal_cross_entropy(*arguments, weights), weighted, rtol=1e-5)


def test_ordinal_probabilities():
    got = ordinal_probabilities(jnp.log(jnp.asarray([[9.0, 1.0, 1 / 3]])))  # P(y > 0, 1, 2) = 0.9, 0.5, 0.25
    np.testing.assert_allclose(got, [[0.1, 0.4, 0.25, 0.25]], atol=1e-6)


def test_weighted_sum():
    assert float(weighted_sum(jnp.asarray([[1.0, 5.0], [7.0, 2.0]]), jnp.asarray([[2.0, 0.0], [1.0, 0.5]]))) == 10.0


def test_losses_of_bfloat16_are_float32():
    x = jnp.asarray([0.5, 257.0], jnp.bfloat16)
    losses = [binary_cross_entropy(x, x), huber(x, x * 0, None), normalised_patches(x)]
    losses.append(masked_patch_error(x[None, None], x[None, None], jnp.ones((1, 1), bool)))
    assert [loss.dtype for loss in losses] == [jnp.float32] * 4
