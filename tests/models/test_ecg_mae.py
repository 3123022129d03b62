"""The masked autoencoder against plain NumPy on the same mask; what may influence what; sizes; meshes; bfloat16."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_vit import as_float64, autoencode

from medjax.models.ecg_mae import EcgMae, MaeConfig, abstract_variables, init_variables, mae_loss, random_mask
from medjax.models.vit import VitConfig, vit_config
from medjax.nn.patches import valid_tokens
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, shardings

VIT = VitConfig(patch=(5,), embed=24, layers=2, heads=4, mlp=40, lead_count=4, class_token=True, registers=2)
CONFIG = MaeConfig(VIT, decoder_embed=16, decoder_layers=2, decoder_heads=2)
SHAPE = (8, 4, 40)  # 4 leads of 8 tokens
SEEDS = jnp.asarray(np.arange(8) + 2**31, jnp.uint32)
KINDS = {
    "full": CONFIG,
    "lead": replace(CONFIG, masking="lead", decoder="lead", normalised_targets=True),
}


def batch():
    """Records with a missing lead, padded time, one token only, and nothing at all; NaN where not valid."""
    rng = np.random.default_rng(3)
    signal, valid = rng.normal(size=SHAPE).astype(np.float32), np.ones(SHAPE, bool)
    valid[1, 2] = False
    valid[2, :, 23:] = False
    valid[3, 1, 7] = False
    valid[4] = False
    valid[4, 0, 10:15] = True
    valid[5] = False
    valid[6, 1:] = False
    return jnp.asarray(np.where(valid, signal, np.nan)), jnp.asarray(valid)


def drawn(config):
    """Random parameters, biases and scales too."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)


def loss(config, variables, signal, valid, seeds, **options):
    return mae_loss(EcgMae(config, **options).apply(variables, signal, valid, seeds))


@cache
def compiled(kind):
    """config, variables, the jitted model, and loss and gradient as one jitted function of (variables, *batch)."""
    config = KINDS[kind]
    gradient = jax.jit(jax.value_and_grad(lambda v, *rows: loss(config, v, *rows), has_aux=True))
    return config, drawn(config), jax.jit(EcgMae(config).apply), gradient


@pytest.fixture(params=KINDS)
def case(request):
    return compiled(request.param)


def test_forward_and_loss_equal_numpy(case):
    config, variables, apply, gradient = case
    params, (signal, valid) = as_float64(variables["params"]), batch()
    made, ((total, sums), _) = apply(variables, signal, valid, SEEDS), gradient(variables, signal, valid, SEEDS)
    plain = {
        "patch": 5, "layers": 2, "decoder_layers": 2, "eps": 1e-6, "extra": 3,
        "by_lead": config.decoder == "lead", "normalised": config.normalised_targets,
    }  # fmt: skip
    mask = jax.tree.map(np.asarray, made.mask)
    expected = 0.0
    for row in range(8):
        predictions, own = autoencode(params, np.asarray(signal[row]), mask.shown[row], mask.masked[row], plain)
        expected += own
        assert sorted(predictions) == np.flatnonzero(mask.masked[row]).tolist()
        for token, prediction in predictions.items():
            np.testing.assert_allclose(made.predicted[row, token], prediction, atol=1e-5)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(sums["loss"]) == float(total)
    assert float(sums["counted"]) == mask.masked.sum()


def test_only_whole_valid_tokens_are_shown_or_targets(case):
    config, variables, apply, _ = case
    signal, valid = batch()
    made, known = apply(variables, signal, valid, SEEDS), np.asarray(valid_tokens(valid, (5,)))
    np.testing.assert_array_equal(made.mask.shown | made.mask.masked, known)
    assert known.sum(1).tolist() == [32, 24, 16, 31, 1, 0, 8, 32]
    assert np.asarray(made.mask.shown).sum(1).tolist() == [8, 6, 4, 7, 1, 0, 2, 8]
    mask = random_mask(SEEDS, jnp.asarray(known), config, leads=4)
    np.testing.assert_array_equal(mask.shown, made.mask.shown)


def test_gradients_are_finite_and_rows_without_targets_have_none(case):
    _, variables, _, gradient = case
    signal, valid = batch()
    _, found = gradient(variables, signal, valid, SEEDS)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    no_targets = valid & (jnp.arange(8) == 4)[:, None, None]
    for nothing in (no_targets, jnp.zeros_like(valid)):
        (total, sums), found = gradient(variables, signal, nothing, SEEDS)
        assert (float(total), float(sums["counted"])) == (0.0, 0.0)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_parts_of_a_batch_add_up_to_the_whole(case):
    """Masks come from each row's seed, sums are sums: accumulation is exact, whatever rows stand together."""
    _, variables, _, gradient = case
    signal, valid = batch()
    (total, sums), whole = gradient(variables, signal, valid, SEEDS)
    order = np.random.default_rng(8).permutation(8)
    rows = [x[order] for x in (signal, valid, SEEDS)]
    parts = [
        gradient(variables, rows[0], rows[1] & ((jnp.arange(8) < 3) == first)[:, None, None], rows[2])
        for first in (True, False)
    ]
    assert sum(float(own) for (own, _), _ in parts) == pytest.approx(float(total), rel=1e-6)
    assert sum(float(own["counted"]) for (_, own), _ in parts) == float(sums["counted"])
    for one, two, both in zip(*(jax.tree.leaves(g) for g in (parts[0][1], parts[1][1], whole)), strict=True):
        np.testing.assert_allclose(one + two, both, atol=1e-5 * max(1.0, float(jnp.abs(both).max())))


def test_what_is_hidden_has_no_influence_on_any_prediction(case):
    """Other samples in masked and in invalid tokens: the same predictions, bit by bit."""
    _, variables, apply, _ = case
    signal, valid = batch()
    made = apply(variables, signal, valid, SEEDS)
    hidden = jnp.repeat(~made.mask.shown.reshape(8, 4, 8), 5, axis=-1)
    noise = jnp.asarray(np.random.default_rng(5).normal(size=SHAPE) * 100, jnp.float32)
    other = apply(variables, jnp.where(hidden, noise, signal), valid, SEEDS)
    seen = np.asarray(made.mask.shown | made.mask.masked)
    np.testing.assert_array_equal(np.asarray(other.predicted)[seen], np.asarray(made.predicted)[seen])
    assert (np.asarray(other.targets) != np.asarray(made.targets)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_by_lead_sees_its_own_lead_only(kind):
    """Given the encoder's output, other output for lead 2's visible tokens moves predictions of lead 2 alone."""
    config = KINDS[kind]
    variables, model = drawn(config), EcgMae(config)
    known = valid_tokens(batch()[1], (5,))
    mask = random_mask(SEEDS, known, config, leads=4)
    encoded = jnp.asarray(np.random.default_rng(2).normal(size=(8, mask.keep.shape[1], 24)), jnp.float32)
    decode = jax.jit(lambda encoded: model.apply(variables, encoded, mask, (4, 40), method="decode"))
    before = np.asarray(decode(encoded)).reshape(8, 4, 8, 5)
    after = np.asarray(decode(jnp.where((mask.keep // 8 == 2)[..., None], 9.0, encoded))).reshape(8, 4, 8, 5)
    others = [0, 1, 3]
    assert np.abs(after - before)[0, 2].max() > 0.01
    if kind == "lead":
        np.testing.assert_array_equal(after[:, others], before[:, others])
    else:
        assert np.abs(after - before)[0, others].max() > 0.01


def test_drop_path_in_training_only():
    """Without training the model is that of no drop path; the mask is the same in both."""
    _, variables, apply, _ = compiled("full")
    config, (signal, valid) = replace(CONFIG, vit=replace(VIT, drop_path=0.5)), batch()
    run = jax.jit(EcgMae(config).apply, static_argnames="training")
    plain, moved = apply(variables, signal, valid, SEEDS), run(variables, signal, valid, SEEDS, training=True)
    assert np.abs(np.asarray(moved.predicted - plain.predicted)[0]).max() > 1e-3
    np.testing.assert_array_equal(moved.mask.shown, plain.mask.shown)
    programs = [
        str(jax.make_jaxpr(EcgMae(one).apply)(variables, signal, valid, SEEDS).jaxpr) for one in (config, CONFIG)
    ]
    assert programs[0] == programs[1]


def test_the_paper_s_huge_model():
    """ViT-H on 12 x 5,000 samples in patches of 250: 240 tokens, 60 encoded, 630 million parameters in the encoder."""
    config = MaeConfig(vit_config("H", (250,), lead_count=12), decoder_embed=512, decoder_layers=8, decoder_heads=16)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))["params"]

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    layer = 4 * 1280 * 1280 + 4 * 1280 + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280
    assert count(shapes["encoder"]) == 32 * layer + (250 + 1) * 1280 + 12 * 1280 + 2 * 1280 == 630_017_280
    layer = 4 * 512 * 512 + 4 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    ends = 1280 * 512 + 512 + 512 + 12 * 512 + 2 * 512 + 512 * 250 + 250
    assert count(shapes["decoder"]) == 8 * layer + ends
    row = jax.ShapeDtypeStruct((64, 12, 5000), jnp.float32)
    arguments = row, jax.ShapeDtypeStruct(row.shape, bool), jax.ShapeDtypeStruct((64,), jnp.uint32)
    made = jax.eval_shape(EcgMae(config).apply, {"params": shapes}, *arguments)
    assert made.predicted.shape == (64, 240, 250)
    assert made.mask.keep.shape == (64, 60)


def test_bfloat16_keeps_the_loss_in_float32():
    _, variables, apply, _ = compiled("full")
    variables = jax.tree.map(lambda a: a * 0.3, variables)
    exact, _ = mae_loss(apply(variables, *batch(), SEEDS))
    made = jax.jit(EcgMae(CONFIG, dtype=jnp.bfloat16).apply)(variables, *batch(), SEEDS)
    rough, sums = mae_loss(made)
    assert [made.predicted.dtype, made.targets.dtype] == [jnp.bfloat16, jnp.float32]
    assert [rough.dtype, sums["counted"].dtype] == [jnp.float32] * 2
    assert float(rough) == pytest.approx(float(exact), rel=1e-2)
    assert float(rough) != float(exact)


SPLIT = {
    "attention/out/bias": (None, "fsdp"),
    "attention/out/kernel": (None, "tensor", None, "fsdp"),
    "attention/qkv/bias": (None, None, "tensor", None),
    "attention/qkv/kernel": (None, "fsdp", None, "tensor", None),
    "attention_norm/bias": (None, "fsdp"),
    "attention_norm/scale": (None, "fsdp"),
    "mlp/down/bias": (None, "fsdp"),
    "mlp/down/kernel": (None, "tensor", "fsdp"),
    "mlp/up/bias": (None, "tensor"),
    "mlp/up/kernel": (None, "fsdp", "tensor"),
    "mlp_norm/bias": (None, "fsdp"),
    "mlp_norm/scale": (None, "fsdp"),
}
SHARDED = {
    **{f"{part}/layers/{name}": spec for part in ("encoder", "decoder") for name, spec in SPLIT.items()},
    **{f"{part}/norm/{name}": ("fsdp",) for part in ("encoder", "decoder") for name in ("scale", "bias")},
    **{f"{part}/leads": (None, "fsdp") for part in ("encoder", "decoder")},
    "encoder/class_token": ("fsdp",),
    "encoder/registers": (None, "fsdp"),
    "encoder/embedding/kernel": (None, "fsdp"),
    "encoder/embedding/bias": ("fsdp",),
    "decoder/embedding/kernel": ("fsdp", None),
    "decoder/embedding/bias": (None,),
    "decoder/mask_token": ("fsdp",),
    "decoder/head/kernel": ("fsdp", None),
    "decoder/head/bias": (None,),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_specs_of_every_parameter(preset):
    tree = shardings(abstract_variables(CONFIG)["params"], make_mesh("data=2,fsdp=2,tensor=2"), PRESETS[preset])
    found = {
        "/".join(key.key for key in path): tuple(sharding.spec)
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree)
    }
    whole = {name: (None,) * len(spec) for name, spec in SHARDED.items()}
    assert found == (SHARDED if preset == "default" else whole)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_equal_one(kind):
    """data=2, fsdp=2, tensor=2: loss, and for the whole decoder its gradients, of the same batch."""
    config, variables, _, gradient = compiled(kind)
    (total, _), whole = gradient(variables, *batch(), SEEDS)
    mesh, rules = make_mesh("data=2,fsdp=2,tensor=2"), Rules()
    places = shardings(abstract_variables(config), mesh, rules)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    arguments = jax.device_put(variables, places), *(jax.device_put(x, rows) for x in (*batch(), SEEDS))

    def run(v, *rows):
        return loss(config, v, *rows, constrain=Constraint(mesh, rules))[0]

    if kind == "lead":
        assert float(jax.jit(run)(*arguments)) == pytest.approx(float(total), rel=1e-5)
        return
    split, found = jax.jit(jax.value_and_grad(run))(*arguments)
    assert float(split) == pytest.approx(float(total), rel=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, float(jnp.abs(other).max())))


def test_config_survives_json():
    config = KINDS["lead"]
    assert MaeConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"RUN/medjax\.json\.vit: got unknown depth"):
        MaeConfig.from_dict({**config.to_dict(), "vit": {**VIT.to_dict(), "depth": 3}}, "RUN/medjax.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masked": 1.0}, "mae.masked: got 1.0, expected a share between 0 and 1"),
        ({"masking": "block"}, "mae.masking: got 'block', expected one of random, lead"),
        ({"decoder": "none"}, "mae.decoder: got 'none', expected one of full, lead"),
        ({"vit": replace(VIT, lead_count=0)}, "mae.vit: got patch=(5,) and lead_count=0"),
        (
            {"decoder_heads": 3},
            "mae.decoder_embed, decoder_layers, decoder_heads: vit.heads: got 3, expected a divisor",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError) as error:
        replace(CONFIG, **change)
    assert message in str(error.value)
