"""Intervals of the difference of two shares of right answers that stay honest where items are few, or all alike.

A bootstrap of items that are all alike draws the same sample every time and gives an interval of width 0: two models
that are both right on 8 of 8 items would differ by exactly nothing. A score interval holds every difference that its
test does not refuse, and so keeps a width:

  paired       two models on the same items. The test of a difference d is (c - b - n d) over its standard error under
               d, where of n items b are those that only the first got right and c those of the second (Tango,
               Statistics in Medicine 17 (1998) 891-908, equations 24 to 26); at d = 0 it is McNemar's without
               continuity correction. 8 of 8 alike: 0 (-0.32 to 0.32)
  independent  one model on different items. The ends are made from the Wilson intervals of both shares, as the
               hypotenuse of what lies between share and end (Newcombe, Statistics in Medicine 17 (1998) 873-890,
               method 10)

Neither draws random numbers.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

from medjax.statistics.intervals import Interval, wilson_interval

_HALVINGS = 60  # of an interval of length 2: below the precision of float64


def paired(only_first: int, only_second: int, items: int, *, level: float = 0.95) -> Interval:
    """Tango's score interval of the difference of two models on the same items, second minus first.

    only_first, only_second  items that one of them alone got right
    items                    all items, those that both or none got right too

    Raises ValueError for counts that cannot be, and for a level outside of 0 to 1.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > items or items < 1:
        raise ValueError(
            f"paired: got {only_first} and {only_second} of {items} items that one model alone got right, expected no "
            "negative number and a sum of at most all items, of which there is one or more."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95.")
    z = NormalDist().inv_cdf(level / 2 + 0.5)
    estimate = (only_second - only_first) / items

    def test(difference: float) -> float:
        """The score statistic of a difference other than the estimate; it falls as the difference grows."""
        linear = (2 * items - only_second + only_first) * difference - only_first - only_second
        constant = -only_first * difference * (1 - difference)
        # the share that only the first gets right, likeliest under this difference
        share = (math.sqrt(max(0.0, linear**2 - 8 * items * constant)) - linear) / (4 * items)
        variance = items * (2 * share + difference * (1 - difference))
        distance = only_second - only_first - items * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    low = estimate if estimate == -1 else _crossing(test, -1.0, estimate, z)
    high = estimate if estimate == 1 else _crossing(test, estimate, 1.0, -z)
    return Interval(estimate, low, high)


def independent(first: tuple[int, int], second: tuple[int, int], *, level: float = 0.95) -> Interval:
    """Newcombe's interval of the difference of two shares of different items, second minus first.

    first, second  right answers and items, of each

    Raises ValueError where either has no items or more right answers than items, and for a level outside of 0 to 1.
    """
    for right, items in (first, second):
        if not 0 <= right <= items or items == 0:
            raise ValueError(f"independent: got {right} right of {items} items, expected 0 <= right <= items > 0.")
    one, two = (wilson_interval(right / items, items, level=level) for right, items in (first, second))
    estimate = two.estimate - one.estimate
    low = estimate - math.hypot(two.estimate - two.low, one.high - one.estimate)
    high = estimate + math.hypot(two.high - two.estimate, one.estimate - one.low)
    return Interval(estimate, low, high)


def _crossing(test: Callable[[float], float], low: float, high: float, value: float) -> float:
    """Where a falling function takes a value, by bisection; its ends are never asked."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if test(middle) > value else (low, middle)
    return (low + high) / 2
