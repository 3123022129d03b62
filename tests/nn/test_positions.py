"""Sin-cos positions against their formula, number by number."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.positions import sin_cos


def plain(place, embed):
    """One position: for each axis sines, then cosines; zeros at the end."""
    half = embed // (2 * len(place))
    row = []
    for p in place:
        row += [math.sin(p / 10000 ** (i / half)) for i in range(half)]
        row += [math.cos(p / 10000 ** (i / half)) for i in range(half)]
    return row + [0.0] * (embed - len(row))


@pytest.mark.parametrize(("axes", "embed"), [(1, 8), (2, 16), (3, 18), (3, 20), (1, 9)])
def test_values(axes, embed):
    places = np.random.default_rng(0).integers(0, 200, (2, 5, axes))
    want = [[plain(place, embed) for place in row] for row in places]
    for given in (places, jnp.asarray(places)):
        got = sin_cos(given, embed)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=2e-5 if isinstance(given, jax.Array) else 1e-7)


def test_the_paper_s_width_in_three_dimensions():
    """1,280 is no multiple of 6: two components stay zero."""
    row = sin_cos(np.array([[3, 1, 2]]), 1280)[0]
    assert row.shape == (1280,)
    assert row[-2:].tolist() == [0.0, 0.0]
    assert abs(float(np.sum(row**2)) - 3 * 213) < 1e-4


def test_a_smaller_base_spreads_the_frequencies_over_fewer_positions():
    table = sin_cos(np.arange(20)[:, None], 8, 100.0)
    for position in (0, 3, 19):
        angles = [position / 100 ** (i / 4) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(table[position], expected, atol=1e-6)
