"""Pooling over valid tokens against plain NumPy on the valid tokens alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medjax.nn.pooling import AttentionPool, mean_pool

RNG = np.random.default_rng(1)
VALID = np.array([[True, False, True, True, False], [True] * 5, [False] * 5])
X = np.where(VALID[..., None], RNG.normal(size=(3, 5, 8)), np.nan)  # what is not valid may hold anything


def test_mean():
    got = mean_pool(jnp.asarray(X, jnp.float32), jnp.asarray(VALID))
    np.testing.assert_allclose(got[:2], [X[i][VALID[i]].mean(0) for i in range(2)], rtol=1e-5)
    assert not got[2].any()


def test_attention():
    pool = AttentionPool(embed=8, heads=2)
    x, valid = jnp.asarray(X, jnp.float32), jnp.asarray(VALID)
    fresh = nn.unbox(pool.init(jax.random.key(0), x, valid))
    drawn = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), fresh)
    got = pool.apply(drawn, x, valid)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), drawn["params"])
    for row in range(2):
        tokens, want = X[row][VALID[row]], np.zeros(8) + p["out"]["bias"]
        for head in range(2):
            k = tokens @ p["key"]["kernel"][:, head] + p["key"]["bias"][head]
            v = tokens @ p["value"]["kernel"][:, head] + p["value"]["bias"][head]
            weights = np.exp(k @ p["query"][head] / 2.0)
            want += weights / weights.sum() @ v @ p["out"]["kernel"][head]
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-5)
    assert not got[2].any()
    gradient = jax.grad(lambda v: jnp.sum(pool.apply(v, x, valid)))(drawn)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
