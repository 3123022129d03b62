"""What two models on the same items differ by besides their means: effect sizes, and many tests at once.

Of n items that one of two models alone got right, b are the first's and c the second's. McNemar's test asks whether
b = c (`intervals.mcnemar`); how far they are apart say

  odds ratio   c / b, the odds that the second is right against the first, conditional on discordance; its exact
               interval is that of the binomial share c / n (Clopper and Pearson, Biometrika 26 (1934) 404), turned into
               odds (Breslow and Day, Statistical Methods in Cancer Research I, 1980, section 5.2)
  Cohen's g    c / n - 1/2, from -0.5 to 0.5; 0.05 is small, 0.15 medium, 0.25 large (Cohen, Statistical Power Analysis
               for the Behavioral Sciences, 1988, chapter 5)

A figure that belongs to a whole set, such as kappa or BLEU, is compared on resamples of the items, the same for both
models (statistics.bootstrap). `bootstrap_p` inverts the percentile interval of the difference: it is below 0.05 where
that of 95 % leaves out 0. One is added to both counts (Davison and Hinkley, Bootstrap Methods and their Application,
1997, section 4.2), so that it is never 0. Resamples of a few items vary less than new items would: below about 50 items
such a p-value is too small.

Several tests are corrected by Holm's step-down method (Scandinavian Journal of Statistics 6 (1979) 65-70), which bounds
the chance of any false finding and assumes nothing about how the tests depend on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_HALVINGS = 60  # of an interval of length 1: below the precision of float64


@dataclass(frozen=True)
class Discordance:
    """Effect sizes of the items that only one of two models got right; None: not defined, or without bound.

    odds_ratio      second against first, with its exact interval low to high
    cohen_g         above 0: the second is better
    """

    odds_ratio: float | None
    low: float | None
    high: float | None
    cohen_g: float | None


def discordance(only_first: int, only_second: int, *, level: float = 0.95) -> Discordance:
    """Effect sizes of a paired comparison of right and wrong.

    only_first, only_second  items that one of them alone got right

    Raises ValueError for a negative count, and for a level outside of 0 to 1.
    """
    items = only_first + only_second
    if only_first == only_second == 0:
        return Discordance(None, None, None, None)
    low, high = clopper_pearson(only_second, items, level=level)
    return Discordance(_odds(only_second / items), _odds(low), _odds(high), only_second / items - 0.5)


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial share: all shares that neither one-sided test at (1 - level) / 2 refuses.

    Raises ValueError unless 0 <= successes <= trials > 0 and 0 < level < 1.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"clopper_pearson: got {successes} of {trials}, expected 0 <= successes <= trials > 0.")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95.")
    outside = (1 - level) / 2
    low = 0.0 if successes == 0 else 1 - _share_with_tail(trials - successes, trials, outside)
    high = 1.0 if successes == trials else _share_with_tail(successes, trials, outside)
    return low, high


def bootstrap_p(differences: ArrayLike) -> float:
    """Two-sided p-value that a difference is 0, from its values on bootstrap resamples.

    differences  [resamples], finite

    Raises ValueError without any, and for a value that is not finite.
    """
    drawn = np.asarray(differences, dtype=np.float64)
    if drawn.ndim != 1 or not len(drawn) or not np.isfinite(drawn).all():
        raise ValueError(f"bootstrap_p: got an array of shape {drawn.shape}, expected one finite number a resample.")
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + beyond) / (1 + len(drawn)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method, in the order given.

    Raises ValueError for what is no p-value.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"holm: got a p-value of {wrong[0]}, expected numbers from 0 to 1.")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def _share_with_tail(successes: int, trials: int, tail: float) -> float:
    """The share p for which P(at most `successes`) of a binomial(trials, p) is `tail`, by bisection."""
    counts = np.arange(successes + 1)
    choices = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in counts])
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        if share in (low, high):
            break
        logs = choices + counts * math.log(share) + (trials - counts) * math.log1p(-share)
        low, high = (share, high) if np.exp(logs).sum() > tail else (low, share)
    return (low + high) / 2


def _odds(share: float) -> float | None:
    return share / (1 - share) if share < 1 else None
