"""Drawn tokens: nuclei against sorting, frequencies against the softmax, and draws that know nothing of their slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.infer.sampling import GREEDY, Sampling, draw, draws, in_nucleus

V = 50


def probabilities(seed: int, rows: int = 6) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(rows, V)) * 3
    return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_is_the_fewest_most_probable(top_p):
    """By sorting: tokens are taken in order until their sum reaches top_p."""
    p = probabilities(0)
    found = np.asarray(in_nucleus(jnp.asarray(p), jnp.full(len(p), top_p, jnp.float32)))
    for row, inside in zip(p, found, strict=True):
        order = np.argsort(-row)
        count = int(np.searchsorted(np.cumsum(row[order].astype(np.float64)), top_p)) + 1
        assert set(np.flatnonzero(inside)) == set(order[:count])


def test_all_tokens_are_in_a_nucleus_of_one():
    p = np.array([[0.5, 0.5, 0.0, 0.0]], np.float32)
    assert np.asarray(in_nucleus(jnp.asarray(p), jnp.ones(1, jnp.float32))).all()


def test_frequencies_are_those_of_the_softmax():
    """20,000 seeds: chi-square below its 99.9 % point, at two temperatures, with and without a nucleus."""
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)
    run = jax.jit(draw)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        count = 20_000
        how = draws([Sampling(temperature, top_p, seed) for seed in range(count)], [3] * count)
        found = np.bincount(np.asarray(run(jnp.tile(logits, (count, 1)), how)), minlength=6)
        p = np.exp(logits / temperature)
        p /= p.sum()
        kept = np.asarray(in_nucleus(jnp.asarray(p[None], jnp.float32), jnp.asarray([top_p], jnp.float32)))[0]
        p = np.where(kept, p, 0) / p[kept].sum()
        assert found[~kept].sum() == 0
        assert ((found[kept] - count * p[kept]) ** 2 / (count * p[kept])).sum() < 20.5  # five degrees of freedom


def test_a_draw_depends_on_seed_and_place_alone():
    logits = np.random.default_rng(1).normal(size=(5, V)).astype(np.float32)
    how = [Sampling(1.0, 0.9, seed) for seed in (7, 8, 9, 10, 2**32 - 1)]
    together = np.asarray(draw(jnp.asarray(logits), draws(how, range(5))))
    order = [3, 0, 4]
    apart = np.asarray(draw(jnp.asarray(logits[order]), draws([how[i] for i in order], order)))
    np.testing.assert_array_equal(apart, together[order])
    flat = jnp.zeros((40, V))
    again = np.asarray(draw(flat, draws([Sampling(1.0, 1.0, 5)] * 40, range(40))))
    assert len(set(again.tolist())) > 15  # the same seed, other places


def test_a_temperature_of_zero_is_greedy_and_broken_logits_are_told():
    logits = np.random.default_rng(2).normal(size=(3, V)).astype(np.float32)
    logits[2, 4] = np.nan
    found = np.asarray(draw(jnp.asarray(logits), draws([GREEDY, GREEDY, Sampling(1.0)], [0, 0, 0])))
    assert found.tolist() == [int(logits[0].argmax()), int(logits[1].argmax()), -1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "temperature: got -1, expected 0 or more"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_p": 0}, "top_p: got 0, expected more than 0 and at most 1"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**given)
