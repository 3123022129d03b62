"""The encoder: sizes, configs, positions, subsets of tokens, frames and clips, and where its parameters lie."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import as_float64, cut, encode

from medjax.models.vit import SIZES, Encoder, VitConfig, vit_config, with_aligned_keys
from medjax.nn.patches import patchify, token_leads, token_positions

ECG = VitConfig(patch=(5,), embed=24, layers=2, heads=3, mlp=40, lead_count=4, class_token=True, registers=2)
SHAPE = (4, 30)
RNG = np.random.default_rng(0)


def drawn(module, *arguments):
    """Parameters of a module, all of them random, so that nothing is right because it is zero."""
    shapes = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), *arguments)))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4, jnp.float32), shapes)


def tokens(signal, config=ECG):
    patches = patchify(jnp.asarray(signal, jnp.float32), config.patch)
    return patches, token_positions(SHAPE, config.patch), token_leads(SHAPE, config.patch)


@pytest.fixture(scope="module")
def ecg():
    """Parameters, and the jitted encoder (params, patches, positions, leads, valid, keep)."""
    signal = RNG.normal(size=(2, *SHAPE))
    params = drawn(Encoder(ECG), *tokens(signal), jnp.ones((2, 24), bool))

    @jax.jit
    def run(params, *arguments):
        return Encoder(ECG).apply({"params": params}, *arguments)

    return params, run


def test_the_oracle_agrees(ecg):
    """Against plain NumPy float64 on the tokens that are kept and valid, in their order."""
    params, run = ecg
    signal, valid = RNG.normal(size=(2, *SHAPE)), RNG.random((2, 24)) > 0.2
    keep = np.stack([RNG.permutation(24)[:10] for _ in range(2)]).astype(np.int32)
    hidden = np.asarray(run(params, *tokens(signal), jnp.asarray(valid), jnp.asarray(keep)))
    assert hidden.shape == (2, 3 + 10, 24)
    for row in range(2):
        own = [i for i in keep[row] if valid[row, i]]
        every = cut(signal[row], 5)
        want = encode(as_float64(params), [every[i] for i in own], 2, 1e-6)
        there = [0, 1, 2, *(3 + slot for slot, i in enumerate(keep[row]) if valid[row, i])]
        np.testing.assert_allclose(hidden[row, there], want, atol=1e-5)


def test_all_tokens_are_the_same_as_keeping_all(ecg):
    params, run = ecg
    signal, valid = RNG.normal(size=(2, *SHAPE)), jnp.ones((2, 24), bool)
    every = jnp.broadcast_to(jnp.arange(24), (2, 24))
    np.testing.assert_allclose(
        run(params, *tokens(signal), valid, every), run(params, *tokens(signal), valid, None), atol=1e-5
    )


def test_positions_and_leads_of_each_row(ecg):
    """[b, t, axes] and [b, t]: the same numbers as [t, axes] and [t]."""
    params, run = ecg
    patches, positions, leads = tokens(RNG.normal(size=(2, *SHAPE)))
    valid, keep = jnp.ones((2, 24), bool), jnp.asarray([[3, 1, 20], [23, 0, 7]], jnp.int32)
    by_row = jnp.asarray(np.stack([positions] * 2)), jnp.asarray(np.stack([leads] * 2))
    np.testing.assert_allclose(
        run(params, patches, *by_row, valid, keep), run(params, patches, positions, leads, valid, keep), atol=1e-5
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_a_token_that_is_not_valid_holds_is_never_seen(ecg, value):
    params, run = ecg
    patches, positions, leads = tokens(RNG.normal(size=(2, *SHAPE)))
    valid = np.ones((2, 24), bool)
    valid[0, 3:9] = valid[1] = False
    before = run(params, patches, positions, leads, jnp.asarray(valid), None)
    patches = jnp.where(jnp.asarray(valid)[..., None], patches, value)
    np.testing.assert_array_equal(run(params, patches, positions, leads, jnp.asarray(valid), None), before)


@pytest.mark.parametrize(
    ("shape", "patch", "channels"),
    [((8, 12, 3), (4, 6), 3), ((4, 8, 12, 1), (2, 4, 6), 1), ((4, 6, 6, 2), (4, 3, 3), 2)],
)
def test_frames_and_clips_run_through_the_same_blocks(shape, patch, channels):
    """Row-major order is only a name: tokens in another order, with their positions, give the same hidden states."""
    config = VitConfig(patch=patch, embed=24, layers=2, heads=3, mlp=40, channels=channels)
    x = jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32)
    patches, positions = patchify(x, patch), token_positions(shape, patch)
    valid = jnp.ones(patches.shape[:2], bool)
    params = drawn(Encoder(config), patches, positions, None, valid)
    assert params["embedding"]["kernel"].shape == (np.prod(patch) * channels, 24)
    run = jax.jit(lambda *a: Encoder(config).apply({"params": params}, a[0], a[1], None, a[2]))
    order = RNG.permutation(len(positions))
    one, other = (
        run(patches, jnp.asarray(positions), valid),
        run(patches[:, order], jnp.asarray(positions[order]), valid),
    )
    np.testing.assert_allclose(one[:, order], other, atol=1e-5)
    moved = run(patches, jnp.asarray(positions[order]), valid)
    assert np.abs(np.asarray(moved - one)).max() > 0.01


def test_drop_path_is_off_without_seeds_and_drawn_by_row(ecg):
    params, run = ecg
    config = replace(ECG, drop_path=0.6)
    arguments = *tokens(RNG.normal(size=(2, *SHAPE))), jnp.ones((2, 24), bool), None
    dropping = jax.jit(lambda *a: Encoder(config).apply({"params": params}, *a))
    np.testing.assert_allclose(dropping(*arguments, None), run(params, *arguments), atol=1e-6)
    # of eight seeds, a row's result depends on its own only
    found = [np.asarray(dropping(*arguments, jnp.asarray([seed, 99], jnp.uint32))) for seed in range(8)]
    assert len({row[0].tobytes() for row in found}) > 1
    assert len({row[1].tobytes() for row in found}) == 1


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_attention_of_every_layer_is_given_when_asked_for(ecg, remat):
    params, run = ecg
    arguments = *tokens(RNG.normal(size=(2, *SHAPE))), jnp.ones((2, 24), bool).at[0, 5].set(False), None
    apply = jax.jit(lambda p: Encoder(ECG, remat=remat).apply({"params": p}, *arguments, mutable=["attention"]))
    hidden, kept = apply(params)
    weights = kept["attention"]["layers"]["attention"]["weights"]
    assert weights.shape == (2, 2, 3, 27, 27)  # layers, rows, heads, queries, keys with three extra tokens
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert not weights[:, 0, ..., 3 + 5].any()
    np.testing.assert_allclose(hidden, run(params, *arguments), atol=1e-5)


def test_remat_changes_no_gradient(ecg):
    params, _ = ecg
    arguments = *tokens(RNG.normal(size=(2, *SHAPE))), jnp.ones((2, 24), bool)

    def gradient(remat):
        encoder = Encoder(ECG, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(encoder.apply({"params": p}, *arguments)))))(params)

    for leaves in zip(*(jax.tree.leaves(gradient(kind)) for kind in ("none", "dots")), strict=True):
        np.testing.assert_allclose(*leaves, atol=1e-5 * max(1.0, float(jnp.abs(leaves[1]).max())))


def test_sizes():
    assert set(SIZES) == {"nano", "Ti", "S", "B", "L", "H"}
    assert vit_config("H", (250,), lead_count=12) == VitConfig(
        patch=(250,), embed=1280, layers=32, heads=16, mlp=5120, lead_count=12
    )
    assert vit_config("B", (16, 16), channels=3).values == 768
    assert vit_config("nano", (25,), heads=8).heads == 8


def test_config_survives_json():
    config = replace(ECG, drop_path=0.1, activation="gelu_tanh")
    assert VitConfig.from_dict(config.to_dict()) == config
    for change, message in (({"depth": 3}, "run.json: got unknown depth"), ({"heads": None}, "run.json: got no heads")):
        values = {**config.to_dict(), **change}
        values = {key: value for key, value in values.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            VitConfig.from_dict(values, "run.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "vit.heads: got 5, expected a divisor of embed=24"),
        ({"patch": ()}, "vit.patch: got (), expected 1, 2 or 3 numbers above 0"),
        ({"patch": (0,)}, "vit.patch: got (0,)"),
        ({"channels": 2}, "vit.channels: got 2, expected 1"),
        ({"patch": (4, 4)}, "vit.lead_count: got 4 for frames or clips, expected 0"),
        ({"layers": 0}, "vit.layers: got 0, expected 1 or more"),
        ({"registers": -1}, "vit: got lead_count=4 and registers=-1"),
        ({"drop_path": 1.0}, "vit.drop_path: got 1.0, expected 0 or more and below 1"),
        ({"activation": "relu"}, "vit.activation: got 'relu', expected one of silu, gelu, gelu_tanh"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError) as error:
        replace(ECG, **change)
    assert message in str(error.value)


def test_calls_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"vit\.size: got 'XL', expected one of nano, Ti, S, B, L, H"):
        vit_config("XL", (250,))
    patches, positions, _ = tokens(np.zeros((1, *SHAPE)))
    run = partial(Encoder(ECG).init, jax.random.key(0))
    with pytest.raises(ValueError, match="encoder: got no leads of the tokens for lead_count=4"):
        jax.eval_shape(lambda: run(patches, positions, None, jnp.ones((1, 24), bool)))


def test_keys_that_begin_as_queries_attend_to_their_own_place_first():
    config = vit_config("nano", (8,), lead_count=2, position_base=50.0)
    encoder = Encoder(config)
    patches = jnp.zeros((1, 20, 8))
    positions, leads = np.arange(20)[:, None] % 10, np.repeat([0, 1], 10)
    arguments = patches, positions, leads, jnp.ones((1, 20), bool)
    params = nn.unbox(encoder.init(jax.random.key(0), *arguments))["params"]
    aligned = with_aligned_keys(params)
    kernels = aligned["layers"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernels[:, :, 1], kernels[:, :, 0])
    before = params["layers"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernels[:, :, ::2], before[:, :, ::2])
    _, found = encoder.apply({"params": aligned}, *arguments, mutable=["attention"])
    weights = np.asarray(found["attention"]["layers"]["attention"]["weights"][0][0]).mean(0)  # first layer, [t, t]
    same_place = (positions == positions.T) & ~np.eye(20, dtype=bool)
    # 20 tokens share the attention; one of another lead at the same place gets several times an equal share
    assert weights[same_place].mean() > 2 / 20
    _, found = encoder.apply({"params": params}, *arguments, mutable=["attention"])
    at_random = np.asarray(found["attention"]["layers"]["attention"]["weights"][0][0]).mean(0)
    assert weights[same_place].mean() > 1.5 * at_random[same_place].mean()
