"""The predictor: subsets of leads, pooling, outputs and losses of every kind of target, what is refused."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_vit import as_float64, cut, encode

from medjax.models import ecg_mae
from medjax.models.predictor import (
    Predictor,
    PredictorConfig,
    Target,
    abstract_variables,
    init_variables,
    interpret,
    predictor_loss,
)
from medjax.models.vit import VitConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, Rules, shardings

VIT = VitConfig(patch=(5,), embed=24, layers=2, heads=4, mlp=40, lead_count=12, class_token=True, registers=1)
TARGETS = (
    Target("low EF", "binary", classes=("no", "yes"), class_weights=(1.0, 3.0)),
    Target("age", "regression", mean=60.0, sd=16.0, unit="years", huber=1.0),
    Target("grade", "ordinal", classes=("none", "mild", "moderate", "severe")),
)
CONFIG = PredictorConfig(VIT, TARGETS)
SHAPE = (4, 12, 30)
SUBSETS = {"8": (0, 1, 6, 7, 8, 9, 10, 11), "limb": (0, 1, 2, 3, 4, 5), "wearable": (1,), "any order": (7, 0, 4)}


def batch():
    """Padded time, a missing lead, and a record with nothing valid; NaN where not valid."""
    rng = np.random.default_rng(3)
    signal, valid = rng.normal(size=SHAPE), np.ones(SHAPE, bool)
    valid[1, :, 17:] = valid[1, 4] = valid[3] = False
    return jnp.asarray(np.where(valid, signal, np.nan), jnp.float32), jnp.asarray(valid)


def drawn(config):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)


@pytest.fixture(scope="module")
def mean():
    """Variables and the jitted predictor (variables, signal, valid, leads=) with mean pooling."""
    return drawn(CONFIG), jax.jit(Predictor(CONFIG).apply, static_argnames="leads")


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_outputs_equal_numpy(pooling, mean):
    config, (variables, run) = replace(CONFIG, pooling=pooling), mean
    if pooling == "class":
        run = jax.jit(Predictor(config).apply)
    signal, valid = batch()
    got = run(variables, signal, valid)
    assert got.shape == (4, 1 + 1 + 3)
    p = as_float64(variables["params"])
    for row in range(3):
        every = zip(cut(np.asarray(signal[row]), 5), np.asarray(valid[row]).reshape(-1, 5), strict=True)
        hidden = encode(p["encoder"], [token for token, known in every if known.all()], 2, 1e-6)
        scores = (hidden[0] if pooling == "class" else hidden[2:].mean(0)) @ p["head"]["kernel"] + p["head"]["bias"]
        first, second = np.exp(p["head"]["gaps"])
        want = [*scores, scores[2] - first, scores[2] - first - second]
        np.testing.assert_allclose(got[row], want, atol=1e-5)
    if pooling == "mean":  # nothing valid: the head of zeros
        np.testing.assert_allclose(got[3, :2], p["head"]["bias"][:2], atol=1e-6)


@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_of_leads_is_the_full_layout_with_the_others_not_valid(name, mean):
    variables, run = mean
    leads = SUBSETS[name]
    signal, valid = batch()
    some = valid & jnp.isin(jnp.arange(12), jnp.asarray(leads))[None, :, None]
    full = run(variables, signal, some)
    own = np.asarray(leads)
    np.testing.assert_allclose(run(variables, signal[:, own], valid[:, own], leads=leads), full, atol=1e-5)
    assert np.abs(np.asarray(full - run(variables, signal, valid))[0]).max() > 1e-4


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_short_record_is_a_padded_one(pooling):
    config = replace(CONFIG, pooling=pooling)
    variables, run = drawn(config), jax.jit(Predictor(config).apply)
    signal, valid = batch()
    padded = run(variables, signal, valid & (jnp.arange(30) < 15))
    np.testing.assert_allclose(run(variables, signal[..., :15], valid[..., :15]), padded, atol=1e-5)


def test_a_pretrained_encoder_fits():
    config = ecg_mae.MaeConfig(VIT, decoder_embed=16, decoder_layers=1, decoder_heads=2)
    shapes = jax.eval_shape(lambda: ecg_mae.init_variables(config, jax.random.key(0)))["params"]["encoder"]
    own = jax.eval_shape(lambda: init_variables(CONFIG, jax.random.key(0)))["params"]["encoder"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), own) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)


def test_frames_and_clips():
    """A predictor of clips: the same module, other patches."""
    vit = VitConfig(patch=(2, 4, 4), embed=24, layers=1, heads=3, mlp=40, channels=2)
    config = PredictorConfig(vit, (TARGETS[1],))
    variables = init_variables(config, jax.random.key(0))
    clip = jax.random.normal(jax.random.key(1), (2, 4, 8, 8, 2))
    run = jax.jit(Predictor(config).apply)
    valid = jnp.ones(clip.shape, bool)
    assert run(variables, clip, valid).shape == (2, 1)
    half = run(variables, clip, valid & (jnp.arange(4) < 2)[:, None, None, None])
    np.testing.assert_allclose(half, run(variables, clip[:, :2], valid[:, :2]), atol=1e-5)


def outputs_and_targets():
    rng = np.random.default_rng(4)
    outputs = rng.normal(size=(6, 5)) * 2
    outputs[:, 2:] = np.sort(outputs[:, 2:], axis=-1)[:, ::-1]
    targets = np.stack([rng.integers(0, 2, 6), rng.normal(60, 30, 6), rng.integers(0, 4, 6)], axis=1).astype(float)
    weights = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0.5, 2, 1], [0, 0, 0]], float)
    targets[weights == 0] = np.nan
    return outputs, targets, weights


def test_loss_of_all_kinds_equals_plain_python():
    outputs, targets, weights = outputs_and_targets()
    want = 0.0
    for own, y, w in zip(outputs, targets, weights, strict=True):
        p = [1 / (1 + math.exp(-z)) for z in own]
        if w[0]:
            want -= w[0] * (3 * math.log(p[0]) if y[0] else math.log(1 - p[0]))
        if w[1]:
            error = abs(own[1] - (y[1] - 60) / 16)
            want += w[1] * (error**2 / 2 if error < 1 else error - 0.5)
        if w[2]:
            want -= w[2] * sum(math.log(p[2 + j] if y[2] > j else 1 - p[2 + j]) for j in range(3))
    arguments = [jnp.asarray(x, jnp.float32) for x in (outputs, targets, weights)]
    (total, sums), slope = jax.value_and_grad(lambda *a: predictor_loss(*a, CONFIG), has_aux=True)(*arguments)
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert {name: float(value) for name, value in sums.items()} == {"loss": float(total), "counted": weights.sum()}
    assert np.isfinite(slope).all()
    assert not slope[5].any()
    assert not slope[1, 1]


def test_sums_for_the_log():
    config = PredictorConfig(VIT, (Target("a", "binary"), Target("b", "binary")))
    outputs, targets = jnp.asarray([[2.0, -1.0], [-3.0, 4.0]]), jnp.asarray([[1.0, 1.0], [0.0, jnp.nan]])
    _, sums = predictor_loss(outputs, targets, jnp.asarray([[1.0, 1.0], [0.5, 0.0]]), config)
    assert float(sums["right"]) == 1.5
    years = PredictorConfig(VIT, (Target("age", "regression", mean=60.0, sd=10.0),))
    _, sums = predictor_loss(jnp.asarray([[1.0], [-1.0]]), jnp.asarray([[65.0], [52.0]]), jnp.ones((2, 1)), years)
    assert float(sums["absolute_error"]) == 5 + 2
    assert float(sums["loss"]) == pytest.approx(0.5**2 + 0.2**2)


def test_interpret():
    found = interpret(jnp.asarray([[0.0, -0.5, math.log(9), 0.0, -math.log(3)]]), CONFIG)
    assert list(found) == ["low EF", "age", "grade"]
    assert found["low EF"].tolist() == [0.5]
    assert found["age"].tolist() == [52.0]
    np.testing.assert_allclose(found["grade"], [[0.1, 0.4, 0.25, 0.25]], atol=1e-6)
    assert CONFIG.columns == {"low EF": slice(0, 1), "age": slice(1, 2), "grade": slice(2, 5)}


HEAD = {
    "head/kernel": ("fsdp", None),
    "head/bias": (None,),
    "head/gaps": (None,),
    **{f"pool/{name}/kernel": ("fsdp", "tensor", None) for name in ("key", "value")},
    **{f"pool/{name}/bias": ("tensor", None) for name in ("key", "value")},
    "pool/query": ("tensor", None),
    "pool/out/kernel": ("tensor", None, "fsdp"),
    "pool/out/bias": ("fsdp",),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_specs_of_head_and_pool(preset):
    """Those of the encoder: tests/models/test_ecg_mae.py."""
    abstract = abstract_variables(replace(CONFIG, pooling="attention"))["params"]
    tree = shardings(abstract, make_mesh("data=2,fsdp=2,tensor=2"), PRESETS[preset])
    found = {
        "/".join(key.key for key in path): tuple(sharding.spec)
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree)
        if path[0].key != "encoder"
    }
    assert found == (HEAD if preset == "default" else {name: (None,) * len(spec) for name, spec in HEAD.items()})


def test_eight_devices_equal_one():
    config = replace(CONFIG, pooling="attention")
    variables, (signal, valid) = drawn(config), batch()
    targets = jnp.asarray([[1, 70, 2], [0, 50, 0], [1, 44, 3], [0, 0, 0]], jnp.float32)
    weights = jnp.ones((4, 3)).at[3].set(0.0)

    def run(constrain):
        def loss(v, signal, valid, targets, weights):
            return predictor_loss(Predictor(config, **constrain).apply(v, signal, valid), targets, weights, config)[0]

        return jax.jit(jax.value_and_grad(loss))

    mesh, rules = make_mesh("data=2,fsdp=2,tensor=2"), Rules()
    places = shardings(abstract_variables(config), mesh, rules)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    one, whole = run({})(variables, signal, valid, targets, weights)
    arguments = [jax.device_put(x, rows) for x in (signal, valid, targets, weights)]
    split, found = run({"constrain": Constraint(mesh, rules)})(jax.device_put(variables, places), *arguments)
    assert float(split) == pytest.approx(float(one), rel=1e-5)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-5 * max(1.0, float(jnp.abs(other).max())))
        assert np.isfinite(leaf).all()


def test_config_survives_json():
    assert PredictorConfig.from_dict(CONFIG.to_dict()) == CONFIG
    values = CONFIG.to_dict()
    values["targets"][1]["cutoff"] = 40
    with pytest.raises(ValueError, match=r"RUN/medjax\.json\.targets\[1\]: got unknown cutoff"):
        PredictorConfig.from_dict(values, "RUN/medjax.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Target("a", "multi"), "target 'a': got kind='multi', expected one of binary, regression, ordinal"),
        (lambda: Target("a", "binary", classes=("x",)), "target 'a': got 1 classes, expected the names of no and yes"),
        (lambda: Target("a", "ordinal", classes=("x", "y")), "target 'a': got 2 classes, expected 3 or more"),
        (lambda: Target("a", "regression", mean=1.0), "target 'a': got mean=1.0, sd=None, expected both"),
        (lambda: Target("a", "regression", mean=1.0, sd=0.0), "sd=0.0, expected both, sd above 0"),
        (lambda: Target("a", "regression", mean=1.0, sd=1.0, classes=("x",)), "for a regression, expected none"),
        (lambda: Target("a", "regression", mean=1.0, sd=1.0, huber=0.0), "got huber=0.0, expected more than 0 sd"),
        (lambda: Target("a", "binary", sd=1.0), "got mean, sd or huber for kind='binary', expected none"),
        (lambda: Target("a", "binary", class_weights=(1.0,)), "got class_weights=(1.0,), expected 2 numbers above 0"),
        (lambda: PredictorConfig(VIT, ()), "predictor.targets: got [], expected at least one"),
        (lambda: PredictorConfig(VIT, TARGETS[:1] * 2), "got ['low EF', 'low EF'], expected at least one, all of diff"),
        (
            lambda: PredictorConfig(VIT, TARGETS, "max"),
            "predictor.pooling: got 'max', expected one of mean, class, att",
        ),
        (
            lambda: PredictorConfig(replace(VIT, class_token=False), TARGETS, "class"),
            "predictor.pooling: got class for an encoder without class token",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
