"""Patches: exact round trips in one, two and three dimensions, each token the samples that a slice gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.patches import grid, patchify, token_leads, token_positions, unpatchify, valid_tokens

SHAPES = {
    "ecg": ((3, 20), (5,)),
    "ecg of one lead": ((1, 12), (4,)),
    "frames": ((6, 8, 3), (2, 4)),
    "clips": ((4, 6, 8, 2), (2, 3, 4)),
    "one patch": ((4, 6, 1), (4, 6)),
    "single pixels": ((2, 3, 2), (1, 1)),
}


def values(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_is_exact(name):
    shape, patch = SHAPES[name]
    x = values(shape)
    cut = jax.jit(patchify, static_argnums=1)(x, patch)
    np.testing.assert_array_equal(unpatchify(cut, patch, shape), x)
    np.testing.assert_array_equal(patchify(unpatchify(cut, patch, shape), patch), cut)
    assert cut.shape[1:] == (np.prod(grid(shape, patch)), x[0].size // np.prod(grid(shape, patch)))


def test_tokens_are_slices():
    x = values((3, 20))
    cut = patchify(x, (5,))
    for token, (time, lead) in enumerate(
        zip(token_positions((3, 20), (5,))[:, 0], token_leads((3, 20), (5,)), strict=True)
    ):
        np.testing.assert_array_equal(cut[:, token], x[:, lead, 5 * time : 5 * time + 5])
    x = values((4, 6, 8, 2))
    cut = patchify(x, (2, 3, 4))
    for token, (t, i, j) in enumerate(token_positions((4, 6, 8, 2), (2, 3, 4))):
        want = x[:, 2 * t : 2 * t + 2, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4]
        np.testing.assert_array_equal(cut[:, token], want.reshape(2, -1))


def test_places_of_tokens():
    """The paper's ECG: 12 x 5,000 in patches of 250 are 240 tokens, lead-major."""
    assert grid((12, 5000), (250,)) == (12, 20)
    assert token_positions((12, 5000), (250,)).shape == (240, 1)
    assert token_positions((2, 6), (3,)).tolist() == [[0], [1], [0], [1]]
    assert token_leads((2, 6), (3,)).tolist() == [0, 0, 1, 1]
    assert token_leads((2, 6), (3,), (7, 1)).tolist() == [7, 7, 1, 1]
    assert token_positions((2, 4, 1), (1, 2)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_token_needs_all_its_samples():
    valid = np.ones((1, 2, 6), bool)
    valid[0, 0, 2] = valid[0, 1, 3:] = False
    assert valid_tokens(jnp.asarray(valid), (3,)).tolist() == [[False, True, True, False]]
    assert valid_tokens(jnp.asarray(valid), (2,)).tolist() == [[True, False, True, True, False, False]]
    pixels = np.ones((1, 2, 2, 3), bool)
    pixels[0, 1, 0, 2] = False
    assert valid_tokens(jnp.asarray(pixels), (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: patchify(values((3, 21)), (5,)),
            "patchify: got 21 samples along an axis, expected a multiple of the patch's 5; crop to 20 or pad to 25, or "
            "choose a patch that divides.",
        ),
        (lambda: patchify(values((3, 0)), (5,)), "patchify: got 0 samples"),
        (lambda: patchify(values((3, 20)), (5, 5)), "patchify: got an input of shape (3, 20) and a patch of 2 axes"),
        (
            lambda: unpatchify(values((12, 5)), (5,), (3, 25)),
            "unpatchify: got 12 tokens of 5 values, expected 15 of 5 for an input of shape (3, 25); give the shape "
            "that was cut.",
        ),
        (lambda: token_leads((3, 20), (5,), (0, 1)), "leads: got (0, 1) for a signal of 3 leads, expected 3 different"),
        (lambda: token_leads((2, 20), (5,), (1, 1)), "leads: got (1, 1) for a signal of 2 leads, expected 2 different"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
