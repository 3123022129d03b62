"""Frequencies of every scaling rule against closed forms, and the rotation against complex numbers."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.rope import Rope, inverse_frequencies, rotate, rotation, yarn_magnitude


def test_default_is_the_geometric_series():
    got = inverse_frequencies(Rope(theta=500000.0, dim=10))
    np.testing.assert_allclose(got, [500000.0 ** (-i / 5) for i in range(5)], rtol=1e-14)
    assert got.dtype == np.float64


def test_linear_divides_all():
    plain = inverse_frequencies(Rope(theta=1e4, dim=8))
    np.testing.assert_allclose(inverse_frequencies(Rope(theta=1e4, dim=8, scaling="linear", factor=2.5)), plain / 2.5)


def test_dynamic_depends_on_the_length():
    rope = Rope(theta=1e4, dim=8, scaling="dynamic", factor=2.0, original_length=100)
    plain = inverse_frequencies(Rope(theta=1e4, dim=8))
    for length in (None, 50, 100):
        np.testing.assert_array_equal(inverse_frequencies(rope, length), plain)
    # 300 tokens: theta * (2 * 300 / 100 - 1) ** (8 / 6), so the slowest component slows by 5 exactly, the fastest not
    longer = inverse_frequencies(rope, 300)
    np.testing.assert_allclose(longer / plain, [5 ** (-(i / 4) * 8 / 6) for i in range(4)], rtol=1e-12)
    assert longer[-1] / plain[-1] == pytest.approx(1 / 5)


def test_llama3_has_three_bands():
    rope = Rope(theta=5e5, dim=128, scaling="llama3", factor=8.0, original_length=8192, low=1.0, high=4.0)
    plain = inverse_frequencies(Rope(theta=5e5, dim=128))
    got = inverse_frequencies(rope)
    turns = 8192 * plain / (2 * math.pi)
    high, low = turns > 4, turns < 1
    assert (high.sum(), low.sum()) == (29, 29)
    np.testing.assert_allclose(got[high], plain[high], rtol=1e-14)
    np.testing.assert_allclose(got[low], plain[low] / 8, rtol=1e-14)
    middle = ~high & ~low
    blend = (turns[middle] - 1) / 3
    np.testing.assert_allclose(got[middle], plain[middle] * (blend + (1 - blend) / 8), rtol=1e-12)


def test_yarn_keeps_the_fast_and_stretches_the_slow():
    rope = Rope(theta=1e4, dim=128, scaling="yarn", factor=4.0, original_length=4096, low=1.0, high=32.0)
    plain = inverse_frequencies(Rope(theta=1e4, dim=128))
    ratio = inverse_frequencies(rope) / plain
    # 128 * ln(4096 / (2 pi turns)) / (2 ln 10000) is 20.94 at 32 turns and 45.03 at 1
    np.testing.assert_allclose(ratio[:21], 1, rtol=1e-12)
    np.testing.assert_allclose(ratio[46:], 1 / 4, rtol=1e-12)
    ramp = (np.arange(20, 47) - 20) / (46 - 20)
    np.testing.assert_allclose(ratio[20:47], 1 - ramp * 3 / 4, rtol=1e-12)


def test_yarn_untruncated_bounds():
    values = dict(theta=1e4, dim=128, scaling="yarn", factor=4.0, original_length=4096, low=1.0, high=32.0)
    ratio = inverse_frequencies(Rope(**values, truncate=False)) / inverse_frequencies(Rope(theta=1e4, dim=128))
    first, last = (64 * math.log(4096 / (2 * math.pi * turns)) / math.log(1e4) for turns in (32, 1))
    assert (first, last) == (pytest.approx(20.95, abs=0.02), pytest.approx(45.03, abs=0.02))
    np.testing.assert_allclose(ratio, 1 - np.clip((np.arange(64) - first) / (last - first), 0, 1) * 3 / 4, rtol=1e-12)


def test_yarn_magnitude():
    assert yarn_magnitude(1.0) == 1.0
    assert yarn_magnitude(0.5) == 1.0
    assert yarn_magnitude(math.e**10) == pytest.approx(2.0)
    assert yarn_magnitude(math.e**10, mscale=0.5) == pytest.approx(1.5)


def test_divisors():
    rope = Rope(theta=1e4, dim=4, scaling="divisors", divisors=(1.0, 8.0))
    np.testing.assert_allclose(inverse_frequencies(rope), [1.0, 0.01 / 8])


def test_rotation_turns_pairs_as_complex_numbers():
    """(x_i, x_{i + dim/2}) is one complex number; the components from dim on pass unchanged, and so does position 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 10)).astype(np.float32)
    positions = np.array([[0, 1, 977], [5, 6, 7]], np.int32)
    frequencies = inverse_frequencies(Rope(theta=1e4, dim=6))
    cos, sin = rotation(jnp.asarray(positions), jnp.asarray(frequencies, jnp.float32), 1.5)
    got = np.asarray(rotate(jnp.asarray(x), cos, sin))
    turned = (x[..., :3] + 1j * x[..., 3:6]) * 1.5 * np.exp(1j * positions[..., None, None] * frequencies)
    np.testing.assert_allclose(got[..., :3], turned.real, atol=1e-4)
    np.testing.assert_allclose(got[..., 3:6], turned.imag, atol=1e-4)
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(got[0, 0, :, :6], x[0, 0, :, :6] * np.float32(1.5))


def test_angles_stay_float32_in_bfloat16():
    """bfloat16 holds no odd integer above 256: position 4097 must not turn like 4096."""
    cos, sin = rotation(jnp.asarray([[4096, 4097]]), jnp.ones(1, jnp.float32), 1.0)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, :, 0], [math.cos(4096), math.cos(4097)], atol=1e-5)
    x = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    got = rotate(x, cos, sin)
    assert got.dtype == jnp.bfloat16
    want = [[math.cos(p) - math.sin(p), math.cos(p) + math.sin(p)] for p in (4096, 4097)]
    np.testing.assert_allclose(np.asarray(got[0, :, 0], np.float32), want, atol=1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scaling": "su"}, r"rope_type='su', supported are default, linear, dynamic, llama3, yarn, divisors"),
        ({"scaling": "linear"}, r"'linear' needs factor"),
        ({"scaling": "dynamic", "factor": 2.0}, r"'dynamic' needs original_length"),
        ({"scaling": "llama3", "factor": 2.0, "original_length": 64}, r"'llama3' needs low, high"),
        ({"scaling": "divisors"}, r"'divisors' needs divisors"),
        ({"scaling": "divisors", "divisors": (1.0,)}, r"got 1 divisors for 4 rotated pairs"),
        ({"dim": 7}, r"got 7 rotated components, expected an even number above 0"),
        ({"dim": 0}, r"got 0 rotated components"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Rope(**{"theta": 1e4, "dim": 8, **values})
