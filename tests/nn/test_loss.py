"""Chunked cross-entropy against log-softmax written out, its gradients, and the memory it does not take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.loss import cross_entropy

B, T, D, V = 4, 24, 16, 50


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    return {
        "hidden": jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
        "table": jnp.asarray(rng.normal(size=(V, D)), jnp.float32),
        "targets": jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        "weights": jnp.asarray(rng.integers(0, 3, (B, T)) * (rng.random((B, T)) < 0.4), jnp.float32),
    }


def plain(hidden, table, targets, weights, z_weight=0.0):
    """The whole logits, float32."""
    logits = hidden.astype(jnp.float32) @ table.astype(jnp.float32).T
    total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (total - at_target + z_weight * total**2))


def both_gradients(function, case, **options):
    def scaled(hidden, table):
        found = function(hidden, table, case["targets"], case["weights"], **options)
        return 3.0 * (found[0] if isinstance(found, tuple) else found)

    return jax.value_and_grad(scaled, argnums=(0, 1))(case["hidden"], case["table"])


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
@pytest.mark.parametrize(("shards", "chunk"), [((1, 1), 7), ((2, 1), 8), ((2, 2), 5), ((4, 1), 512)])
def test_value_and_gradients_are_those_of_the_whole_logits(case, z_weight, shards, chunk):
    expected, (d_hidden, d_table) = both_gradients(plain, case, z_weight=z_weight)
    options = {"z_weight": z_weight, "shards": shards, "chunk": chunk, "trains_table": True}
    value, gradients = both_gradients(cross_entropy, case, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], d_hidden, atol=2e-5)
    np.testing.assert_allclose(gradients[1], d_table, atol=2e-5)


def test_a_frozen_table_has_no_gradient(case):
    _, (d_hidden, d_table) = both_gradients(cross_entropy, case, chunk=7)
    np.testing.assert_allclose(d_hidden, both_gradients(plain, case)[1][0], atol=2e-5)
    assert not np.any(d_table)


def test_parts_of_the_sum(case):
    total, sums = cross_entropy(**case, z_weight=0.1, chunk=7)
    logits = np.asarray(case["hidden"]) @ np.asarray(case["table"]).T
    weights, logsumexp = np.asarray(case["weights"]), np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(sums.z, 0.1 * np.sum(weights * logsumexp**2), rtol=1e-5)
    np.testing.assert_allclose(sums.nll + sums.z, total, rtol=1e-6)
    assert sums.right == np.sum((logits.argmax(-1) == np.asarray(case["targets"])) & (weights != 0))


def test_nothing_counted_is_zero_with_a_zero_gradient(case):
    value, (d_hidden, d_table) = both_gradients(
        cross_entropy, case | {"weights": jnp.zeros((B, T))}, trains_table=True, chunk=7
    )
    assert value == 0
    assert not np.any(d_hidden)
    assert not np.any(d_table)


def test_bfloat16_hidden_states(case):
    hidden, table = case["hidden"].astype(jnp.bfloat16), case["table"].astype(jnp.bfloat16)
    expected = plain(hidden, table, case["targets"], case["weights"])
    value, _ = cross_entropy(hidden, table, case["targets"], case["weights"], chunk=7)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # products of bfloat16 are summed in float32


def test_no_logits_of_the_whole_batch_exist():
    b, t, d, v = 8, 256, 32, 4096
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((b, t, d), "float32"), ((v, d), "float32"), ((b, t), "int32"), ((b, t), "float32"))
    ]

    def temporaries(function):
        compiled = jax.jit(jax.value_and_grad(function)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = b * t * v * 4
    assert temporaries(lambda *x: cross_entropy(*x, chunk=128)[0]) < 0.2 * logits
    assert temporaries(plain) > 0.9 * logits
