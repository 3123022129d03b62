"""Effect sizes and corrections against scipy and tables made by hand."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from medjax.statistics.intervals import mcnemar
from medjax.statistics.paired import bootstrap_p, clopper_pearson, discordance, holm


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (1, 0), (3, 9), (40, 12), (0, 7), (130, 171)])
def test_discordant_items_against_scipy(only_first, only_second):
    items = only_first + only_second
    oracle = binomtest(only_second, items, 0.5)
    right = [True] * only_first + [False] * only_second + [True] * 5
    other = [False] * only_first + [True] * only_second + [True] * 5
    assert mcnemar(right, other).p_value == pytest.approx(oracle.pvalue, rel=1e-12)
    low, high = oracle.proportion_ci(0.95, method="exact")
    assert clopper_pearson(only_second, items) == pytest.approx((low, high), abs=1e-12)
    found = discordance(only_first, only_second)
    assert found.odds_ratio == (pytest.approx(only_second / only_first) if only_first else None)
    assert found.low == pytest.approx(low / (1 - low), abs=1e-10)
    assert found.high == (pytest.approx(high / (1 - high)) if high < 1 else None)
    assert found.cohen_g == pytest.approx(only_second / items - 0.5)


def test_exact_interval_at_other_levels_and_sizes():
    for successes, trials, level in ((0, 1, 0.9), (5, 5, 0.99), (1000, 2000, 0.95), (7, 1999, 0.8)):
        outside = (1 - level) / 2
        low = beta.ppf(outside, successes, trials - successes + 1) if successes else 0
        high = beta.ppf(1 - outside, successes + 1, trials - successes) if successes < trials else 1
        assert clopper_pearson(successes, trials, level=level) == pytest.approx((low, high), abs=1e-12)


def test_no_discordant_item_says_nothing():
    found = discordance(0, 0)
    assert (found.odds_ratio, found.low, found.high, found.cohen_g) == (None, None, None, None)


def test_holm_by_hand():
    # four tests: 4 x 0.01, 3 x 0.02 raised to no less, 2 x 0.03, 0.04 raised to 0.06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert math.isclose(holm([0.001] * 5)[3], 0.005)


def test_bootstrap_p_by_hand_and_against_the_normal_it_estimates():
    # 1 of 9 resamples is at or below 0: 2 (1 + 1) / (1 + 9)
    assert bootstrap_p([-0.1, *[0.2] * 8]) == pytest.approx(0.4)
    assert bootstrap_p([0.1, *[-0.2] * 8]) == pytest.approx(0.4)
    assert bootstrap_p([0.2] * 999) == pytest.approx(2 / 1000)
    assert bootstrap_p([0.0] * 50) == 1.0  # the same answers
    assert bootstrap_p([0.0, 0.0, 0.1, 0.2]) == 1.0
    drawn = np.random.default_rng(0).normal(0.5, 0.25, 200_000)
    assert bootstrap_p(drawn) == pytest.approx(2 * norm.cdf(-2), rel=0.03)
    # below 0.05 where the percentile interval leaves out 0
    for shift in (0.47, 0.51):
        moved = drawn - 0.5 + shift
        assert (bootstrap_p(moved) < 0.05) == (np.quantile(moved, 0.025) > 0) == (shift > 0.49)


def test_what_is_refused():
    for wrong in ([], [0.1, math.nan], [[0.1]]):
        with pytest.raises(ValueError, match=r"bootstrap_p: got an array of shape .* one finite number a resample"):
            bootstrap_p(wrong)
    with pytest.raises(ValueError, match=r"got a p-value of 1\.5, expected numbers from 0 to 1"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match=r"got 3 of 2, expected 0 <= successes <= trials > 0"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match=r"got -1 of 1"):
        discordance(2, -1)
    with pytest.raises(ValueError, match="level: got 95"):
        discordance(2, 1, level=95)
