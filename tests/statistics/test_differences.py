"""Score intervals of differences: published worked examples, closed forms, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from medjax.statistics.differences import independent, paired
from medjax.statistics.intervals import difference_interval

Z2 = 1.959963984540054**2


def test_tangos_worked_example():
    # Tango 1998, section 6.1: of 44 lenses one was disinfected by the standard alone; 90 %, lower limit -0.096
    assert paired(1, 0, 44, level=0.9).low == pytest.approx(-0.096, abs=5e-4)
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13 (2013) 91 and Statistics in Medicine 33 (2014)
    # 2850: airway hyper-responsiveness before and after, 1 and 7 discordant of 21 children
    found = paired(7, 1, 21)
    assert (found.estimate, found.low, found.high) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("items", [1, 8, 400])
def test_items_that_are_all_alike_leave_doubt(items):
    found = paired(0, 0, items)
    half = Z2 / (items + Z2)
    assert (found.estimate, found.low, found.high) == pytest.approx((0, -half, half), abs=1e-12)
    lost = paired(items, 0, items)
    assert (lost.estimate, lost.low) == (-1, -1)
    # under a difference d all items are discordant still: n^2 (1 + d)^2 = z^2 n (1 - d^2)
    assert lost.high == pytest.approx((Z2 - items) / (Z2 + items), abs=1e-12)


def test_ends_are_where_the_test_refuses_and_sides_are_alike():
    b, c, n = 3, 9, 40  # only the first, only the second
    found = paired(b, c, n)
    for end, sign in ((found.low, 1), (found.high, -1)):
        # the likeliest shares under this difference, by search
        grid = np.linspace(max(0, -end), (1 - end) / 2, 2_000_001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = b * np.log(grid) + c * np.log(grid + end) + (n - b - c) * np.log(1 - 2 * grid - end)
        share = grid[likelihood.argmax()]
        score = (c - b - n * end) / math.sqrt(n * (2 * share + end - end**2))
        assert score == pytest.approx(sign * math.sqrt(Z2), abs=1e-4)
    other = paired(c, b, n)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_of_many_items_it_is_the_bootstrap():
    rng = np.random.default_rng(0)
    first = rng.random(3000) < 0.6
    second = first ^ (rng.random(3000) < 0.1)
    found = paired(int((first & ~second).sum()), int((second & ~first).sum()), 3000)
    drawn = difference_interval(second, first, resamples=4000)
    assert found.estimate == pytest.approx(drawn.estimate)
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=1.5e-3)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.02, 0.02), (0.05, 0.15), (0.3, 0.3), (0.0, 0.1)])
@pytest.mark.parametrize("items", [8, 30])
def test_how_often_the_paired_interval_holds_the_difference(items, only_first, only_second):
    """Exactly, over all tables that can come."""
    held = 0.0
    shares = [only_first, only_second, 1 - only_first - only_second]
    for b in range(items + 1):
        for c in range(items + 1 - b):
            chance = multinomial.pmf([b, c, items - b - c], items, shares)
            if chance > 1e-9:
                found = paired(b, c, items)
                held += chance * (found.low <= only_second - only_first <= found.high)
    assert held > 0.93
    assert held > (1 - only_first - only_second) ** items  # which alone a bootstrap misses


def test_newcombes_examples_of_independent_shares():
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II, method 10
    for first, second, low, high in (
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 10), (10, 10), 0.6075, 1.0000),
    ):
        found = independent(first, second)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.estimate == pytest.approx(second[0] / second[1] - first[0] / first[1])
    alike = independent((5, 5), (20, 20))
    assert (alike.low, alike.high) == pytest.approx((-Z2 / (20 + Z2), Z2 / (5 + Z2)))


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="got 3 and 2 of 4 items that one model alone got right"):
        paired(3, 2, 4)
    with pytest.raises(ValueError, match="level: got 95"):
        paired(1, 2, 4, level=95)
    with pytest.raises(ValueError, match="got 3 right of 2 items"):
        independent((3, 2), (1, 2))
    with pytest.raises(ValueError, match="got 0 right of 0 items"):
        independent((1, 2), (0, 0))
