"""Low-rank adapters: the merged product against the plain form, when it is used, and what the config refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.lora import LoraConfig, low_rank, merged_matmul, merging_pays


def test_merged_product_and_its_gradients_are_those_of_the_two_paths():
    rng = np.random.default_rng(0)
    x, kernel, a, b, dy = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((40, 12), (12, 20), (12, 3), (3, 20), (40, 20))
    )

    def two_paths(x, kernel, a, b):
        return x @ kernel + ((x @ a) @ b) * 0.7

    expected, backward = jax.vjp(two_paths, x, kernel, a, b)
    found, merged_backward = jax.vjp(lambda *args: merged_matmul(*args, 0.7), x, kernel, a, b)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for got, want in zip(merged_backward(dy), backward(dy), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_low_rank_part():
    x, a, b = np.array([[1.0, 2.0]]), np.array([[1.0], [10.0]]), np.array([[1.0, 0.0, -1.0]])
    np.testing.assert_array_equal(low_rank(jnp.asarray(x), jnp.asarray(a), jnp.asarray(b), 2.0), [[42.0, 0.0, -42.0]])


def test_merging_pays_for_many_tokens_in_float32_only():
    kernel = jax.ShapeDtypeStruct((576, 1536), jnp.float32)
    assert merging_pays(512, kernel, jnp.float32)  # 576 x 1536 / (576 + 1536) = 418.9 tokens
    assert merging_pays(419, kernel, jnp.float32)
    assert not merging_pays(418, kernel, jnp.float32)
    assert not merging_pays(4096, kernel, jnp.bfloat16)
    assert not merging_pays(4096, jax.ShapeDtypeStruct((576, 1536), jnp.bfloat16), jnp.float32)


def test_scale():
    config = {"rank": 16, "alpha": 32.0, "targets": ("query",)}
    assert LoraConfig(**config).scale == 2.0
    assert LoraConfig(**config, rank_stabilised=True).scale == 8.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank: got 0, expected 1 or more"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 or more and below 1"),
        ({"targets": ("query", "q_proj")}, "targets: got q_proj, expected some of query, key"),
        ({"targets": ()}, "targets: got none"),
        ({"targets": ("query_key_value", "key")}, "targets: got query_key_value beside one of its parts"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**{"rank": 4, "alpha": 8.0, "targets": ("query",)} | change)
