"""Maps and their checks against closed forms, plain loops and models whose answer is known."""

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny_predictors import AGE, LVSD, config_of, facts_of, made_record, write_predictor

from medjax.data.ecg.leads import LEADS
from medjax.infer import soundness
from medjax.infer.attribution import (
    attention_rollout,
    integrated_gradients,
    over_record,
    over_samples,
    over_tokens,
)
from medjax.infer.ecg import EcgModel
from medjax.infer.explanation import explain
from medjax.infer.soundness import Deletion, Randomisation, deletion, randomisation, rank_correlation, shuffled
from medjax.nn.encoder import attention_weights

RNG = np.random.default_rng(0)
SIGNAL = RNG.normal(size=(2, 3, 40)).astype(np.float32)
VALID = np.ones(SIGNAL.shape, bool)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return EcgModel.load(write_predictor(tmp_path_factory.mktemp("run"), config_of(registers=2), facts_of()))


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_linear_models_are_explained_exactly(steps):
    weights = RNG.normal(size=SIGNAL.shape[1:])
    found = integrated_gradients(
        lambda signal, valid: (signal * weights).sum((1, 2)) + 3.0,
        lambda signal, valid: np.broadcast_to(weights, signal.shape),
        SIGNAL,
        VALID,
        steps=steps,
    )
    np.testing.assert_allclose(found.values, SIGNAL * weights, rtol=1e-12)
    np.testing.assert_allclose(found.explained, (SIGNAL * weights).sum((1, 2)), rtol=1e-12)
    assert found.gap < 1e-12


def test_a_cubic_has_its_closed_form():
    """(a . x)^3: the integral of 3 s^2 (a . x)^2 a_i x_i over s is a_i x_i (a . x)^2; two points are exact, one not."""
    a = RNG.normal(size=SIGNAL.shape[1:])

    def inner(signal):
        return (signal.astype(np.float64) * a).sum((1, 2))

    def found(steps):
        return integrated_gradients(
            lambda signal, valid: inner(signal) ** 3,
            lambda signal, valid: 3 * inner(signal)[:, None, None] ** 2 * a,
            SIGNAL,
            VALID,
            steps=steps,
        )

    np.testing.assert_allclose(found(2).values, SIGNAL * a * inner(SIGNAL)[:, None, None] ** 2, rtol=1e-5)
    assert found(2).gap < 1e-5 * np.abs(found(2).explained).max()
    assert found(1).gap == pytest.approx(np.abs(inner(SIGNAL) ** 3 / 4).max(), rel=1e-5)  # 3/4 of it at the middle
    with pytest.raises(ValueError, match=r"^steps: got 0, expected 1 or more; 32 serve most"):
        found(0)


def test_rollout_equals_the_plain_product_of_matrices():
    weights = RNG.random((3, 2, 4, 5, 5))
    weights /= weights.sum(-1, keepdims=True)
    found = attention_rollout(weights)
    for row in range(2):
        plain = np.eye(5)
        for layer in range(3):
            plain = (0.5 * np.mean([weights[layer, row, head] for head in range(4)], 0) + 0.5 * np.eye(5)) @ plain
        np.testing.assert_allclose(found[row], plain, rtol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    # even attention: each layer halves what is left of a token itself
    even = attention_rollout(np.full((4, 1, 1, 5, 5), 0.2))[0]
    np.testing.assert_allclose(even, 0.5**4 * np.eye(5) + (1 - 0.5**4) / 5, rtol=1e-12)


def test_windows_are_put_together_without_loss():
    maps = RNG.normal(size=(3, 2, 10))
    starts = np.array([0, 6, 13])
    whole = over_record(maps, starts, 23)
    assert whole.shape == (2, 23)
    assert whole.sum() == pytest.approx(maps.sum((1, 2)).mean())
    np.testing.assert_allclose(whole[:, 7], (maps[0, :, 7] + maps[1, :, 1]) / 3)
    np.testing.assert_allclose(over_record(maps[:1], np.array([0]), 8), maps[0, :, :8])  # padding is left out
    tokens = over_tokens(maps, 5)
    np.testing.assert_allclose(tokens[1, 0], [maps[1, 0, :5].sum(), maps[1, 0, 5:].sum()])
    np.testing.assert_allclose(over_tokens(over_samples(tokens, 5), 5), tokens)


def _worth(weights):
    """A model whose output is the sum of what its valid tokens are worth [leads, patches]."""
    return lambda signal, valid: (valid.reshape(len(valid), *weights.shape, -1).all(-1) * weights).sum((1, 2))


def test_deletion_follows_the_map_and_no_other():
    weights = RNG.normal(size=(3, 8))
    valid = VALID.copy()
    valid[:, 2, :20] = False  # half of a lead is missing
    importance = np.stack([weights, weights])

    def shown(mean):
        return 2 * mean

    found = deletion(_worth(weights), shown, SIGNAL, valid, importance, signed=True, orders=60, seed=3)
    there = valid.reshape(2, 3, 8, 5).all(-1)
    worth = np.sort(importance[there])[::-1]
    counts = [round(share * len(worth)) for share in (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)]
    np.testing.assert_allclose(found.shares, np.array(counts) / len(worth))
    # what is left once the most valuable are gone, over two windows
    np.testing.assert_allclose(found.ordered, [worth[count:].sum() for count in counts], rtol=1e-6)
    assert found.random.shape == (60, 7)
    areas = [np.trapezoid(row - found.ordered, found.shares) / found.shares[-1] for row in found.random]
    assert found.area == pytest.approx(np.mean(areas))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))
    assert found.low > 0
    assert found.passed
    again = deletion(_worth(weights), shown, SIGNAL, valid, importance, signed=True, orders=60, seed=3)
    np.testing.assert_array_equal(again.random, found.random)
    backwards = deletion(_worth(weights), shown, SIGNAL, valid, -importance, signed=True, orders=60, seed=3)
    assert backwards.high < 0
    noise = deletion(_worth(weights), shown, SIGNAL, valid, RNG.normal(size=(2, 3, 8)), signed=True, orders=60)
    assert not noise.passed


def test_deletion_by_a_map_without_signs_asks_for_change():
    """Tokens that lower the output count as much as those that raise it."""
    weights = np.zeros((3, 8))
    weights[0, :4] = -1.0
    found = deletion(_worth(weights), np.asarray, SIGNAL, VALID, np.stack([-weights] * 2), signed=False, orders=60)
    assert found.passed
    assert found.ordered[-1] == pytest.approx(0.0)  # from -4: all eight of them are gone
    other = deletion(_worth(weights), np.asarray, SIGNAL, VALID, np.stack([weights] * 2), signed=False, orders=60)
    assert other.high < 0
    with pytest.raises(ValueError, match=r"^valid: got no patch that is valid throughout, expected some; there is"):
        deletion(_worth(weights), np.asarray, SIGNAL, ~VALID, np.stack([weights] * 2), signed=False)


def test_patches_with_a_gap_are_not_among_what_is_taken_away():
    """The model cannot see them: in random orders they would cost nothing, which flatters the map."""
    valid = VALID.copy()
    patch = SIGNAL.shape[-1] // 8
    valid[:, :, :: 2 * patch] = False  # every other patch misses one sample
    weights = np.zeros((3, 8))
    weights[:, 1::2] = 1.0
    seen = []

    def score(signal, known):
        seen.append(known.reshape(len(known), 3, 8, patch).all(-1).sum((1, 2)))
        return np.zeros(len(known))

    found = deletion(score, np.asarray, SIGNAL, valid, np.stack([weights] * 2), signed=True, orders=3)
    whole = seen[0].max() * len(SIGNAL)  # tokens in all windows
    assert whole == 3 * 4 * len(SIGNAL)
    np.testing.assert_allclose(found.shares * whole, np.round(found.shares * whole), atol=1e-9)
    for counts in seen:
        assert counts.reshape(-1, len(found.shares), len(SIGNAL)).sum(2).tolist() == [
            (whole - np.round(found.shares * whole)).tolist()
        ] * (len(counts) // len(SIGNAL) // len(found.shares))


def test_rank_correlation_equals_scipys():
    for _ in range(5):
        first, second = RNG.normal(size=(2, 50)).round(1)  # with ties
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert rank_correlation(np.ones(4), np.arange(4)) == 0.0


def test_shuffling_goes_from_the_head_down_and_keeps_the_numbers(model):
    before = jax.tree.map(np.asarray, model.params)
    names, changed = [], []
    for name, params in shuffled(model.params, seed=0):
        names.append(name)
        pairs = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: (a, np.asarray(b)), before, params))
        flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
        moved = set()
        for key in {key.rpartition("/")[0] for key in flat}:
            old, new = flat[f"{key}/0"], flat[f"{key}/1"]
            layers = len(old) if "/layers/" in key else 1
            for layer, (a, b) in enumerate(zip(old.reshape(layers, -1), new.reshape(layers, -1), strict=True)):
                np.testing.assert_array_equal(np.sort(a), np.sort(b))
                if not np.array_equal(a, b):
                    moved.add(f"layer {layer + 1}" if "/layers/" in key else key)
        changed.append(moved)
    assert names == ["head", "layer 3", "layer 2", "layer 1", "embedding"]
    changed = [moved - {"thresholds"} for moved in changed]  # two numbers may stay in their places by chance
    head = {"head/kernel", "head/bias"}
    norm = {"encoder/norm/scale", "encoder/norm/bias"}
    assert changed[0] == head
    assert changed[1] == head | norm | {"layer 3"}
    assert changed[3] == head | norm | {"layer 3", "layer 2", "layer 1"}
    rest = {"encoder/embedding/kernel", "encoder/embedding/bias", "encoder/leads", "encoder/registers"}
    assert changed[4] == changed[3] | rest


def test_a_map_of_the_signal_alone_is_found_out(model):
    """It is the same for any weights; one that follows the weights is not."""
    there = np.ones((1, 3, 40), bool)
    blind = randomisation(lambda params: SIGNAL[:1], model.params, there)
    assert blind.correlations == pytest.approx([1.0] * 5)
    assert not blind.passed

    def follows(params):
        kernel = np.asarray(params["encoder"]["embedding"]["kernel"]).ravel()
        return np.resize(kernel, (1, 3, 40))

    sound = randomisation(follows, model.params, there)
    assert sound.correlations[:4] == pytest.approx([1.0] * 4)
    assert abs(sound.correlations[4]) < 0.4
    assert sound.passed


def test_verdicts():
    curve = np.zeros(3)
    passed = Deletion(curve, curve, curve[None], 0.123, 0.05, 0.2)
    failed = Deletion(curve, curve, curve[None], -0.01, -0.05, 0.2)
    other, weak = Randomisation(("head",), (0.1,), (0.2,)), Randomisation(("head",), (-0.02,), (0.61,))
    same = Randomisation(("head", "all"), (0.2, -0.8), (0.2, 0.9))
    assert soundness.verdict(passed, other) == (
        "Both checks passed: taking away what is marked moves the output sooner (+0.123 against random order, 95 % of "
        "the orders +0.05 to +0.2); rank correlation 0.10 with the map of shuffled weights."
    )
    assert soundness.verdict(passed, weak).endswith(
        "weights. Read its colours, not its strength, which follows the signal (0.61)."
    )
    assert soundness.verdict(failed, same, "years") == (
        "Do not rest on this map: taking away what is marked moves the output no sooner than taking away at random "
        "(-0.01 years against random order, 95 % of the orders -0.05 to +0.2), and a model of shuffled weights gives "
        "much the same map (rank correlation -0.80 with the map of shuffled weights)."
    )


def test_gradients_of_the_model_are_its_slopes(model):
    seen = model.windows([made_record(1)])[0]
    direction = np.array([1.0, -2.0, 0.5, 0.0])
    slopes = model.gradients(seen.signal, seen.valid, direction)
    for lead, sample in ((0, 30), (7, 200), (11, 399)):
        ends = []
        for step in (0.01, -0.01):
            moved = seen.signal.copy()
            moved[0, lead, sample] += step
            ends.append((model.outputs(moved, seen.valid) @ direction)[0])
        assert slopes[0, lead, sample] == pytest.approx((ends[0] - ends[1]) / 0.02, abs=2e-4)
    assert np.abs(slopes).max() > 2e-3


@pytest.mark.parametrize("leads", [LEADS, ("I", "II", "V2")])
def test_integrated_gradients_of_a_record_are_complete(model, leads):
    record = made_record(2, seconds=9, leads=leads, age_years=50)
    for target in ("lvsd", "age"):
        found = explain(model, record, target, orders=4)
        (prediction,) = model.predict([record])
        raw = prediction.outputs[target].raw[0] * (AGE.sd if target == "age" else 1)
        assert found.output == pytest.approx(raw, abs=1e-4)
        assert np.nansum(found.values) == pytest.approx(found.output - found.baseline, abs=1e-3)
        assert found.gap < 1e-3
        assert found.values.shape == (12, 900)
        assert [not np.isnan(row).all() for row in found.values] == [lead in leads for lead in LEADS]
        assert np.nanmax(np.abs(found.weights)) == 1
    flat = np.zeros_like(model.windows([record])[0].signal)
    start = (model.outputs(flat, model.windows([record])[0].valid)[:, 1] * AGE.sd).mean()
    assert found.baseline == pytest.approx(start, abs=1e-4)
    shares = found.to_json()["leads"]
    assert list(shares) == list(leads)
    assert sum(shares.values()) == pytest.approx(1)


def test_attention_of_the_model_equals_that_of_its_first_layer(model):
    """Recomputed from query and key; keys that are missing get nothing."""
    seen = model.windows([made_record(3, leads=("I", "II", "V5"))])[0]
    found = model.attention(seen.signal, seen.valid)
    assert found.shape == (3, 1, 1, 2 + 12 * 8, 2 + 12 * 8)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    known = np.concatenate([[True] * 2, np.isin(np.repeat(np.arange(12), 8), [0, 1, 10])])
    assert np.abs(found[..., ~known]).max() == 0
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params["encoder"])
    patches = seen.signal[0].reshape(96, 50) * known[2:, None]
    time = np.tile(np.arange(8), 12)[:, None] / 10000 ** (np.arange(8) / 8)
    x = patches @ p["embedding"]["kernel"] + p["embedding"]["bias"] + np.concatenate([np.sin(time), np.cos(time)], 1)
    x = np.concatenate([p["registers"], x + np.repeat(p["leads"], 8, 0)])
    norm = p["layers"]["attention_norm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * norm["scale"][0] + norm["bias"][0]
    qkv = np.einsum("td,dcnh->tcnh", x, p["layers"]["attention"]["qkv"]["kernel"][0])
    qkv += p["layers"]["attention"]["qkv"]["bias"][0]
    plain = attention_weights(*(qkv[None, :, i].astype(np.float32) for i in range(2)), known[None])
    np.testing.assert_allclose(found[0, 0, 0], np.asarray(plain).mean(1)[0], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_rollout_of_a_record(tmp_path, pooling):
    config = config_of((LVSD,), pooling=pooling, class_token=pooling == "class")
    facts = facts_of() | {"rules": {}, "errors": {}}
    model = EcgModel.load(write_predictor(tmp_path, config, facts))
    record = made_record(4, seconds=6, leads=("II", "V1", "V2"))
    found = explain(model, record, "lvsd", "rollout", orders=4)
    seen = model.windows([record])[0]
    total = []
    for window in range(2):
        mixed = attention_rollout(model.attention(seen.signal[window : window + 1], seen.valid[window : window + 1]))[0]
        known = seen.valid[window].reshape(96, 50).all(-1)
        total.append(mixed[0, 1:] if pooling == "class" else mixed[known].mean(0) * known)
    assert np.nansum(found.values) == pytest.approx(np.mean([part.sum() for part in total]))
    row = found.values[LEADS.index("V1")]
    np.testing.assert_allclose(row[:200], np.repeat(total[0].reshape(12, 8)[6, :4], 50) / 100)
    np.testing.assert_allclose(row[200:250], (total[0].reshape(12, 8)[6, 4] + total[1].reshape(12, 8)[6, 0]) / 100)
    assert np.isnan(found.values[0]).all()
    # it does not look at the head
    assert found.randomisation.correlations[0] == pytest.approx(1)
    assert (found.output, found.gap) == (None, None)


def test_what_cannot_be_explained(model):
    for target, method in (("ef", "gradients"), ("lvsd", "occlusion")):
        with pytest.raises(ValueError, match=rf"got target '{target}' by '{method}', expected one of lvsd, age, grade"):
            explain(model, made_record(0), target, method)
    with pytest.raises(ValueError, match=r"got the ordered classes of 'grade', expected a binary target or a number"):
        explain(model, made_record(0), "grade")
    with pytest.raises(
        ValueError, match=r"^record r0 of made/0: got no usable lead, expected at least one of I II III"
    ):
        explain(model, made_record(0, leads=()), "lvsd")
