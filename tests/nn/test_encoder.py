"""The encoder's block: validity of keys, drop path, what is kept of its attention. Its numbers: tests/models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models.vit import VitConfig
from medjax.nn.encoder import EncoderBlock, attend, attention_weights, drop_factors

CONFIG = VitConfig(patch=(5,), embed=24, layers=1, heads=3, mlp=40)
RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def block():
    x, valid = jnp.zeros((1, 1, 24)), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(lambda: nn.unbox(EncoderBlock(CONFIG).init(jax.random.key(0), x, valid, None)))
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape) * 0.5, jnp.float32), shapes)


def run(block, x, valid, drops=None):
    return EncoderBlock(CONFIG).apply(block, jnp.asarray(x, jnp.float32), jnp.asarray(valid), drops)[0]


def test_attention_weights():
    q, k = RNG.normal(size=(2, 4, 3, 8)), RNG.normal(size=(2, 5, 3, 8))
    valid = np.array([[True, True, False, True, False], [False] * 5])
    got = attention_weights(jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32), jnp.asarray(valid))
    scores = np.exp(np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)) * valid[:, None, None]
    np.testing.assert_allclose(got[0], scores[0] / scores[0].sum(-1, keepdims=True), atol=1e-6)
    assert not got[0][..., ~valid[0]].any()
    np.testing.assert_allclose(got[1], 0.2, atol=1e-6)  # finite where nothing is valid


def test_attend_equals_the_plain_form_and_its_derivatives():
    q, k, v, dy = (jnp.asarray(RNG.normal(size=(2, 6, 3, 8)), jnp.float32) for _ in range(4))
    valid = jnp.asarray([[True, True, False, True, False, True], [True] * 6])

    def plain(q, k, v):
        return jnp.einsum("bnts,bsnh->btnh", attention_weights(q, k, valid), v)

    def fast(q, k, v):
        return attend(*(x.swapaxes(1, 2) for x in (q, k, v)), valid).swapaxes(1, 2)

    want, want_of = jax.vjp(plain, q, k, v)
    got, got_of = jax.vjp(fast, q, k, v)
    np.testing.assert_allclose(got, want, atol=1e-6)
    for one, other in zip(got_of(dy), want_of(dy), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        assert np.abs(other).max() > 0.1


def test_a_token_that_is_not_valid_reaches_no_other(block):
    x, valid = RNG.normal(size=(2, 6, 24)), np.ones((2, 6), bool)
    valid[0, [1, 4]] = False
    before = run(block, x, valid)
    x[0, [1, 4]] = 1e3
    after = run(block, x, valid)
    np.testing.assert_array_equal(before[valid], after[valid])
    alone = run(block, x[:1, [0, 2, 3, 5]], np.ones((1, 4), bool))
    np.testing.assert_allclose(alone[0], before[0, [0, 2, 3, 5]], atol=1e-5)


def test_drops_are_factors_of_both_branches(block):
    """Both 0: the block is the identity. Factors (a, 0) add a times what (1, 0) adds."""
    x, valid = RNG.normal(size=(2, 6, 24)).astype(np.float32), np.ones((2, 6), bool)
    np.testing.assert_array_equal(run(block, x, valid, jnp.zeros((2, 2))), x)
    np.testing.assert_allclose(run(block, x, valid, jnp.ones((2, 2))), run(block, x, valid), atol=1e-6)
    one = run(block, x, valid, jnp.asarray([[1.0, 1.0], [0.0, 0.0]])) - x
    many = run(block, x, valid, jnp.asarray([[2.0, 0.5], [0.0, 0.0]])) - x
    np.testing.assert_allclose(many[0], 2 * one[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many[1], 0.5 * one[1], rtol=1e-4, atol=1e-5)


def test_drop_factors():
    """Rates 0, 0.2, 0.4 over three layers, for 4,000 rows: means 1, shares of zeros as the rates."""
    seeds = jnp.arange(4000, dtype=jnp.uint32)
    got = np.asarray(drop_factors(seeds, 3, 0.4))
    assert got.shape == (3, 2, 4000)
    for layer, rate in enumerate((0.0, 0.2, 0.4)):
        np.testing.assert_allclose(sorted(set(got[layer].ravel().tolist()))[-1], 1 / (1 - rate), rtol=1e-6)
        assert abs(np.mean(got[layer] == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / 8000) + 1e-9
    assert (got[2, 0] != got[2, 1]).any()
    np.testing.assert_array_equal(drop_factors(seeds[5:7], 3, 0.4), got[:, :, 5:7])


def test_weights_are_given_when_asked_for(block):
    x, valid = jnp.asarray(RNG.normal(size=(2, 6, 24)), jnp.float32), jnp.ones((2, 6), bool).at[0, 2].set(False)
    (y, _), kept = EncoderBlock(CONFIG).apply(block, x, valid, None, mutable=["attention"])
    weights = kept["attention"]["attention"]["weights"]
    assert weights.shape == (2, 3, 6, 6)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert not weights[0, ..., 2].any()
    np.testing.assert_array_equal(y, run(block, x, valid))
