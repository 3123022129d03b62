"""Chunked cross-entropy against the plain one: values, gradients, shards, chunks that do not divide, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.loss import cross_entropy

B, T, D, V = 4, 96, 24, 300


def inputs(seed=0, dtype=jnp.float32, share=0.4):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    table = jnp.asarray(rng.normal(size=(V, D)) * 0.5, dtype)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    # uneven over rows, and not only 0 and 1
    weights = (rng.random((B, T)) < share * np.arange(B)[:, None] / (B - 1)) * rng.choice([1.0, 0.5], (B, T))
    return hidden, table, targets, jnp.asarray(weights, jnp.float32)


def plain(hidden, table, targets, weights, z_weight=0.0):
    """The definition: every logit, float32."""
    logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
    logs = jax.nn.log_softmax(logits)
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = -jnp.sum(weights * jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0])
    z = z_weight * jnp.sum(weights * total**2)
    right = jnp.sum((weights != 0) & (jnp.argmax(logits, axis=-1) == targets))
    return nll + z, (nll, z, right)


def both(arguments, z_weight=0.0, **options):
    """(total, sums), (d hidden, d table) of the chunked and of the plain loss."""
    hidden, table, targets, weights = arguments

    def chunked(hidden, table):
        return cross_entropy(hidden, table, targets, weights, z_weight=z_weight, **options)

    def slow(hidden, table):
        return plain(hidden, table, targets, weights, z_weight)

    runs = (jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)) for loss in (chunked, slow))
    return [run(hidden, table) for run in runs]


@pytest.mark.parametrize(
    ("shards", "chunk"), [((1, 1), 512), ((1, 1), 50), ((1, 1), 1), ((2, 1), 64), ((4, 2), 7), ((1, 3), 32)]
)
def test_values_and_gradients(shards, chunk):
    """Sums, gradient of the hidden states and of the table; chunks that do not divide, shards of rows and of tokens."""
    found, expected = both(inputs(), 1e-2, shards=shards, chunk=chunk, trains_table=True)
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-6)
    for one, other in zip(found[0][1], expected[0][1], strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


def test_the_gradient_is_scaled_by_what_follows():
    """The mean of the loss: as in a training step that divides by the count."""
    hidden, table, targets, weights = inputs(1)

    def mean(loss):
        return jax.jit(jax.grad(lambda hidden: loss(hidden, table, targets, weights)[0] / -7.0))(hidden)

    expected = mean(plain)
    np.testing.assert_allclose(mean(cross_entropy), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_the_table_of_a_frozen_embedding_gets_no_gradient():
    (_, (_, table)), (_, (_, expected)) = both(inputs(2))
    assert not np.any(table)
    assert np.any(expected)


@pytest.mark.parametrize("share", [0.0, 1e9])
def test_nothing_and_everything_counts(share):
    hidden, table, targets, weights = inputs(3, share=0.0)
    weights = jnp.ones_like(weights) if share else weights
    found, expected = both((hidden, table, targets, weights), trains_table=True, chunk=40)
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-6)
    np.testing.assert_allclose(found[1][0], expected[1][0], atol=1e-5)
    if not share:
        assert float(found[0][0]) == 0.0
        assert not np.any(found[1][0])


def test_bfloat16_hidden_states():
    """Logits and sums are float32: as near to float32 as rounding the inputs allows."""
    hidden, table, targets, weights = inputs(4, jnp.bfloat16)
    found, expected = both((hidden, table, targets, weights), 1e-3, trains_table=True)
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-5)
    assert found[0][0].dtype == jnp.float32
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.dtype == jnp.bfloat16
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        assert np.abs(one - other).max() < 0.02 * np.abs(other).max()


def test_large_logits_do_not_overflow():
    hidden, table, targets, weights = inputs(5)
    found, expected = both((hidden * 100, table, targets, weights))
    assert np.isfinite(float(found[0][0]))
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-6)


def test_a_hidden_state_that_is_not_finite_is_told():
    """A NaN in a token that counts is in the loss; one in a prompt is not."""
    hidden, table, targets, weights = inputs(6)
    row, token = (int(i) for i in np.argwhere(np.asarray(weights) > 0)[0])
    run = jax.jit(lambda hidden: cross_entropy(hidden, table, targets, weights)[0])
    assert np.isnan(float(run(hidden.at[row, token].set(jnp.nan))))


def temporary_bytes(loss, b, t, d, v) -> int:
    shapes = [(b, t, d), (v, d), (b, t), (b, t)]
    dtypes = [jnp.bfloat16, jnp.bfloat16, jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    run = jax.jit(jax.grad(lambda hidden, *rest: loss(hidden, *rest)[0]))
    return run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_the_logits_are_never_there_in_full():
    """[8, 2048, 16384] float32 is 1 GiB: the compiled gradient needs a small part of it, the plain one all of it."""
    sizes = 8, 2048, 64, 16384
    logits = 4 * 8 * 2048 * 16384
    assert temporary_bytes(plain, *sizes) > logits
    # one chunk of 512 tokens: logits, their exponentials, and the same in bfloat16
    assert temporary_bytes(cross_entropy, *sizes) < 0.15 * logits
