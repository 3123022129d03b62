"""Schedules against their closed forms, AdamW against a step in NumPy, Adafactor's small state, the decay mask."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models.predictor import PredictorConfig, Target, abstract_variables
from medjax.models.vit import VitConfig
from medjax.train.optimizer import decays, optimizer, schedule
from medjax.train.settings import OptimizerSettings
from medjax.train.state import path_name

RATE, STEPS = 3e-4, 100


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_against_its_closed_form(kind, warmup, final):
    """The rate of step i, counted from 0; a warm-up of 0.1 is a tenth of 100 steps."""
    rise = 10 if warmup else 0
    rate = schedule(OptimizerSettings(learning_rate=RATE, schedule=kind, warmup=warmup, final=final), STEPS)

    def expected(i):
        if i < rise:
            return RATE * (i + 1) / rise
        along = (i - rise) / (STEPS - rise)
        return {
            "cosine": RATE * (final + (1 - final) * (1 + math.cos(math.pi * along)) / 2),
            "linear": RATE * (1 - along * (1 - final)),
            "constant": RATE,
        }[kind]

    found = [float(rate(i)) for i in range(STEPS + 1)]
    np.testing.assert_allclose(found, [expected(i) for i in range(STEPS + 1)], rtol=1e-5, atol=1e-10)
    assert found[rise] == pytest.approx(RATE)
    assert found[STEPS] == pytest.approx(RATE if kind == "constant" else RATE * final, abs=1e-10)


def test_a_warm_up_of_one_step_and_one_that_takes_all():
    assert float(schedule(OptimizerSettings(learning_rate=RATE, warmup=1.0), 5)(0)) == pytest.approx(RATE)
    with pytest.raises(ValueError, match=r"^optimizer.warmup: got 5 steps of 5, expected fewer; lower it or train"):
        schedule(OptimizerSettings(warmup=5.0), 5)


def parameters():
    rng = np.random.default_rng(1)
    return {
        "mlp": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)},
        "norm": {"scale": rng.normal(size=6)},
    }


def as_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_adamw_against_numpy():
    """Five steps in float64: clip, moments with bias correction, decoupled decay of the kernel alone, the schedule."""
    s = OptimizerSettings(
        learning_rate=RATE, schedule="linear", warmup=2.0, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6, clip=1.5
    )
    tx, rate = optimizer(s, 5), schedule(s, 5)
    expected, first, second = parameters(), None, None
    value = as_jax(expected)
    state = tx.init(value)
    for i in range(5):
        rng = np.random.default_rng(10 + i)
        gradient = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape), expected)
        updates, state = tx.update(as_jax(gradient), state, value)
        value = jax.tree.map(jnp.add, value, updates)
        norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        assert norm > 1.5
        gradient = jax.tree.map(lambda g, norm=norm: g * 1.5 / norm, gradient)
        first = first or jax.tree.map(np.zeros_like, gradient)
        second = second or jax.tree.map(np.zeros_like, gradient)
        first = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, second, gradient)

        def move(path, x, m, v, i=i):
            step = (m / (1 - 0.8 ** (i + 1))) / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-6)
            return x - float(rate(i)) * (step + (0.1 * x if path[-1].key == "kernel" else 0.0))

        expected = jax.tree_util.tree_map_with_path(move, expected, first, second)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7), value, expected)


def test_weight_decay_is_of_matrices_only():
    tree = {
        "params": {"embedding": 0, "layers": {"query": {"kernel": 0, "bias": 0}, "norm": {"scale": 0, "bias": 0}}},
        "lora": {"layers": {"up": {"a": 0, "b": 0}}},
    }
    assert decays(tree) == {
        "params": {
            "embedding": True,
            "layers": {"query": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}},
        },
        "lora": {"layers": {"up": {"a": True, "b": True}}},
    }


def test_neither_learned_tokens_nor_steps_between_thresholds_decay():
    """Of a predictor of ordered classes that pools by attention: a step that decays goes to 1, a query to nothing."""
    targets = (Target("grade", "ordinal", classes=("none", "mild", "severe")),)
    vit = VitConfig((5,), 8, 1, 2, 16, lead_count=2, class_token=True, registers=1)
    found = decays(nn.unbox(abstract_variables(PredictorConfig(vit, targets, "attention"))))["params"]
    names = {path_name(path): kept for path, kept in jax.tree_util.tree_leaves_with_path(found)}
    stay = {name for name, decayed in names.items() if not decayed}
    assert {"head/gaps", "head/bias", "pool/query", "encoder/class_token", "encoder/registers"} <= stay
    assert {name.rpartition("/")[2] for name in set(names) - stay} == {"kernel"}


def test_the_first_moment_may_be_bfloat16():
    tx = optimizer(OptimizerSettings(moment_dtype="bfloat16"), 5)
    (moments,) = [part for part in jax.tree.leaves(tx.init(as_jax(parameters())), is_leaf=_is_adam) if _is_adam(part)]
    assert {leaf.dtype for leaf in jax.tree.leaves(moments.mu)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(moments.nu)} == {jnp.dtype("float32")}


def _is_adam(part):
    return hasattr(part, "mu")


def test_adafactor_keeps_rows_and_columns_and_reduces_a_loss():
    """A factored second moment of a [256, 384] matrix is 640 numbers, not 98,304."""
    tx = optimizer(OptimizerSettings(name="adafactor", learning_rate=0.05, warmup=0.0, schedule="constant"), 100)
    target = np.random.default_rng(2).normal(size=(256, 384)).astype(np.float32)
    value = {"kernel": jnp.zeros_like(target)}
    state = tx.init(value)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 + 384 + 10

    @jax.jit
    def step(value, state):
        updates, state = tx.update({"kernel": value["kernel"] - target}, state, value)
        return jax.tree.map(jnp.add, value, updates), state

    for _ in range(40):
        value, state = step(value, state)
    assert float(jnp.mean((value["kernel"] - target) ** 2)) < 0.1 * float(np.mean(target**2))
