"""Norms, activations and the chunked vocabulary reduction against NumPy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn import ops

RNG = np.random.default_rng(3)


def test_rms_norm():
    x, scale = RNG.normal(3, 5, (4, 7)), RNG.normal(size=7)
    for offset in (0.0, 1.0):
        want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5) * (offset + scale)
        got = ops.rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32), 0.5, offset)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_layer_norm():
    x, scale, bias = RNG.normal(300, 5, (4, 7)), RNG.normal(size=7), RNG.normal(size=7)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.5) * scale + bias
    got = ops.layer_norm(*(jnp.asarray(a, jnp.float32) for a in (x, scale, bias)), 0.5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_norms_reduce_in_float32():
    """A mean square of 1 plus 2^-12 is lost in bfloat16; both norms keep the input's dtype all the same."""
    x = jnp.asarray([[1.0] * 4095 + [64.0]], jnp.bfloat16)
    got = ops.rms_norm(x, jnp.ones(4096), 0.0)
    assert got.dtype == jnp.bfloat16
    assert float(got[0, 0]) == pytest.approx((4095 / 4096 + 1) ** -0.5, rel=4e-3)
    assert ops.layer_norm(x, jnp.ones(4096), jnp.zeros(4096), 0.0).dtype == jnp.bfloat16


def test_activations():
    x = np.linspace(-4, 4, 41)
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    want = {
        "silu": x / (1 + np.exp(-x)),
        "gelu": x * (1 + erf) / 2,
        "gelu_tanh": x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }
    assert set(want) == set(ops.ACTIVATIONS)
    for name, values in want.items():
        np.testing.assert_allclose(ops.ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), values, atol=1e-6)
    assert np.abs(want["gelu"] - want["gelu_tanh"]).max() > 1e-4  # the two are not the same function


def test_gradients_written_by_hand():
    """layer_norm and gelu against the derivatives that JAX finds of their plain forms, in float32 and bfloat16."""

    def plain_norm(x, scale, bias):
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        return y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 0.5) * scale + bias

    def plain_gelu(x):
        x = x.astype(jnp.float32)
        return x * jax.scipy.stats.norm.cdf(x)

    x, dy = RNG.normal(2, 3, (4, 3, 7)), RNG.normal(size=(4, 3, 7))
    scale, bias = (jnp.asarray(RNG.normal(size=7), jnp.float32) for _ in range(2))
    for dtype, tolerance in ((jnp.float32, 2e-5), (jnp.bfloat16, 2e-2)):
        x, dy = jnp.asarray(x, dtype), jnp.asarray(dy, dtype)
        got = jax.vjp(lambda *a: ops.layer_norm(*a, 0.5), x, scale, bias)[1](dy)
        want = jax.vjp(plain_norm, x, scale, bias)[1](dy.astype(jnp.float32))
        for one, other in zip(
            (*got, jax.vjp(ops.gelu, x)[1](dy)[0]),
            (*want, jax.vjp(plain_gelu, x)[1](dy.astype(jnp.float32))[0]),
            strict=True,
        ):
            assert one.dtype == other.dtype
            one, other = (np.asarray(a, np.float32) for a in (one, other))
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 10, 32, 96, 97, 1000])
def test_row_statistics_in_any_chunks(chunk):
    """97 entries: chunks that divide, that overlap the last one, and that are larger than the vocabulary."""
    hidden, table = RNG.normal(size=(5, 6)), RNG.normal(size=(97, 6)) * 4
    logits = hidden @ table.T
    want = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    got = ops.row_statistics(jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32), chunk)
    np.testing.assert_allclose(got.logsumexp, want, rtol=1e-5)
    np.testing.assert_array_equal(got.argmax, logits.argmax(-1))
    assert got.logsumexp.dtype == jnp.float32
    assert got.argmax.dtype == jnp.int32


@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_ties_go_to_the_lowest_id(chunk):
    table = jnp.asarray([[0.0], [3.0], [1.0], [3.0], [3.0]])
    got = ops.row_statistics(jnp.ones((2, 1)), table, chunk)
    assert got.argmax.tolist() == [1, 1]


@pytest.mark.parametrize("shards", [2, 4, 12])
def test_row_statistics_in_parts(shards):
    """Parts that are reduced alone and merged; a tie between two parts goes to the lower id. 5 parts do not divide."""
    hidden, table = RNG.normal(size=(5, 6)).astype(np.float32), RNG.normal(size=(96, 6)).astype(np.float32) * 4
    table[[30, 70]] = hidden[0] * 9
    logits = hidden.astype(np.float64) @ table.T
    want = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    for parts in (shards, 5):
        got = ops.row_statistics(jnp.asarray(hidden), jnp.asarray(table), 7, parts)
        np.testing.assert_allclose(got.logsumexp, want, rtol=1e-5)
        np.testing.assert_array_equal(got.argmax, logits.argmax(-1))
    assert int(got.argmax[0]) == 30


def test_row_statistics_of_large_logits():
    """Logits near 1e4 overflow exp; in bfloat16 the sum still runs in float32."""
    table = jnp.asarray([[10000.0], [10000.0], [-10000.0]])
    got = ops.row_statistics(jnp.ones((1, 1)), table, 2)
    assert float(got.logsumexp[0]) == pytest.approx(10000 + math.log(2), abs=1e-2)
    flat = ops.row_statistics(jnp.zeros((1, 4), jnp.bfloat16), jnp.zeros((5000, 4), jnp.bfloat16), 512)
    assert float(flat.logsumexp[0]) == pytest.approx(math.log(5000), abs=1e-4)


def test_target_logits():
    hidden, table = RNG.normal(size=(3, 6)), RNG.normal(size=(11, 6))
    targets = np.array([10, 0, 4])
    got = jax.jit(ops.target_logits)(jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32), targets)
    np.testing.assert_allclose(got, (hidden @ table.T)[np.arange(3), targets], rtol=1e-5, atol=1e-6)
