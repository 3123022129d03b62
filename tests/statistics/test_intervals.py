"""Intervals and tests against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from medjax.statistics.intervals import (
    difference_interval,
    mcnemar,
    mean_interval,
    ratio_interval,
    share_interval,
    wilson,
    wilson_interval,
)


def test_mean_interval_agrees_with_the_normal_approximation():
    values = np.arange(2000) < 1500
    interval = mean_interval(values, resamples=20_000)
    half = 1.959964 * math.sqrt(0.75 * 0.25 / 2000)
    assert interval.estimate == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=1e-3)
    assert interval.high == pytest.approx(0.75 + half, abs=1e-3)
    narrow = mean_interval(values, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674490 * math.sqrt(0.75 * 0.25 / 2000), abs=1e-3)


def test_mean_interval_is_the_binomial_quantile_for_few_items():
    # the bootstrap of 7 right of 10 draws from the binomial (10, 0.7): P(X <= 3) = 0.011, P(X = 10) = 0.028
    interval = mean_interval([1] * 7 + [0] * 3)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.7, 0.4, 1.0))


def test_ratio_interval_agrees_with_the_delta_method():
    rng = np.random.default_rng(5)
    worth = rng.choice([1.0, 3.0], size=3000, p=[0.875, 0.125])
    won = worth * (rng.random(3000) < 0.6)
    ratio = won.sum() / worth.sum()
    half = 1.959964 * math.sqrt(((won - ratio * worth) ** 2).mean() / 3000) / worth.mean()
    interval = ratio_interval(won, worth, resamples=20_000)
    assert interval.estimate == pytest.approx(ratio)
    assert (interval.low, interval.high) == pytest.approx((ratio - half, ratio + half), abs=1.5e-3)
    # equal weights: a ratio is a mean, on the same resamples
    assert ratio_interval(won > 0, np.ones(3000)) == mean_interval(won > 0)


def test_resampling_in_chunks_changes_nothing_but_memory(monkeypatch):
    values = np.arange(50.0)
    whole = mean_interval(values, seed=3)
    monkeypatch.setattr("medjax.statistics.intervals._CHUNK", 170)
    assert mean_interval(values, seed=3) == whole
    assert mean_interval(values, seed=4) != whole


def test_pairing_removes_what_both_models_share():
    rng = np.random.default_rng(0)
    first = rng.random(4000) < 0.6
    second = first ^ (rng.random(4000) < 0.05)  # differs on one item in twenty
    difference = first.astype(float) - second
    half = 1.959964 * difference.std() / math.sqrt(4000)
    interval = difference_interval(first, second, resamples=20_000)
    assert interval.estimate == pytest.approx(first.mean() - second.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)
    unpaired = math.sqrt(first.var() / 4000 + second.var() / 4000) * 1.959964
    assert half < unpaired / 2


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # 2 * P(X <= smaller) for X ~ binomial(n, 1/2), by hand: 2 * 56 / 1024, 2 * 1 / 32, 1, and nothing discordant
    [(8, 2, 0.109375), (0, 5, 0.0625), (3, 3, 1.0), (0, 0, 1.0), (1, 0, 1.0), (15, 5, 0.04138946533203125)],
)
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second, p_value):
    both, neither = 7, 4
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(p_value, abs=1e-15)


def test_mcnemar_with_many_items_approaches_the_continuity_corrected_chi_square():
    first = np.array([True] * 1100 + [False] * 1000)
    result = mcnemar(first, ~first)
    assert result.p_value == pytest.approx(math.erfc((100 - 1) / math.sqrt(2100) / math.sqrt(2)), rel=2e-3)


def test_wilson_interval():
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3: 81 of 263 and 0 of 20
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=5e-5)


@pytest.mark.parametrize("right", [0, 1])
def test_a_share_of_nothing_or_all_is_not_without_doubt(right):
    found = share_interval([right] * 20)
    oracle = binomtest(20 * right, 20).proportion_ci(method="wilson")
    assert (found.estimate, found.low, found.high) == pytest.approx((right, oracle.low, oracle.high), abs=1e-12)
    assert share_interval([0.5] * 20) == mean_interval([0.5] * 20)


@pytest.mark.parametrize("right", range(9))
def test_a_share_of_few_items_is_wilsons_whatever_the_share(right):
    oracle = binomtest(right, 8).proportion_ci(method="wilson")
    found = share_interval([True] * right + [False] * (8 - right))
    assert (found.estimate, found.low, found.high) == pytest.approx((right / 8, oracle.low, oracle.high), abs=1e-12)


def test_shares_of_several_answers_to_an_item_are_drawn_again():
    shares = np.random.default_rng(5).integers(0, 6, 60) / 5
    assert share_interval(shares, resamples=300, seed=2) == mean_interval(shares, resamples=300, seed=2)


@pytest.mark.parametrize("right", [0, 1])
def test_points_of_items_that_are_all_alike_are_worth_as_many_items_as_their_weights(right):
    worth = np.array([1.0] * 30 + [3.0] * 10)
    found = ratio_interval(right * worth, worth)
    # 60^2 / 120 = 30 items of one weight
    oracle = wilson(30 * right, 30)
    assert (found.estimate, found.low, found.high) == pytest.approx((right, oracle.low, oracle.high), abs=1e-12)
    # items that are worth nothing tell nothing; of one weight it is the share of right answers
    padded = ratio_interval([*(right * worth), 0, 0], [*worth, 0, 0])
    assert padded == found
    assert ratio_interval([2 * right] * 20, [2] * 20) == share_interval([right] * 20)
    # an item more, of which half is won: the bootstrap again, whose one end is that half
    drawn = ratio_interval([*(right * worth), 1], [*worth, 2], resamples=50)
    assert {drawn.low, drawn.high} & {float(right)}
    assert drawn.high - drawn.low < 0.1 < found.high - found.low


@pytest.mark.parametrize("share", [0.03, 0.97, 0.99])
def test_how_often_the_interval_of_points_holds_the_share(share):
    """Weights of 1 and 3, as in a licensing exam; few items, so that all are alike in half of the samples."""
    rng = np.random.default_rng(1)
    worth = np.array([1.0] * 18 + [3.0] * 6)
    held = alike = 0
    for number in range(300):
        right = rng.random(24) < share
        alike += right.all() or not right.any()
        found = ratio_interval(worth * right, worth, resamples=200, seed=number)
        held += found.low <= share <= found.high
    assert alike > 120
    assert held / 300 > 0.93


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="values: got an array of shape"):
        mean_interval([])
    with pytest.raises(ValueError, match="got 2 and 3 values"):
        mcnemar([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="level: got 95"):
        mean_interval([0, 1], level=95)
    with pytest.raises(ValueError, match="denominators: got a sum of 0"):
        ratio_interval([0, 0], [0, 0])
    with pytest.raises(ValueError, match="resamples: got 0"):
        mean_interval([0, 1], resamples=0)
    with pytest.raises(ValueError, match="got 3 successes in 2 trials"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=r"wilson_interval: got a share of 1\.5 of 2 trials"):
        wilson_interval(1.5, 2)
