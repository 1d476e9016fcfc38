"""What a few seeds can tell: intervals and paired tests, by SciPy.

A run that does not reach its target is taken to need more steps than any run that
does (inf): medians and signs are then right without a guess of how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which is NaN where there are too few values for one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """To three digits after the point.

        >>> str(Estimate(0.5, 0.25, 0.75)), str(Estimate(1.0, math.nan, math.nan))
        ('0.500 [0.250, 0.750]', '1.000')
        """
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def share(successes: int, n: int) -> Estimate:
    """A share of n, with Wilson's interval.

    Examples
    --------
    >>> print(share(8, 10))
    0.800 [0.490, 0.943]
    """
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high))


def mean(values: Sequence[float]) -> Estimate:
    """A mean, with Student's interval. One value has none, nor has an infinite mean; equal ones have one of no width.

    Examples
    --------
    >>> print(mean([0.9, 1.0, 0.8]))
    0.900 [0.652, 1.148]
    """
    x = np.asarray(values, np.float64)
    centre = float(x.mean())
    if len(x) < 2 or not math.isfinite(centre):
        return Estimate(centre, math.nan, math.nan)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(centre, centre - reach, centre + reach)


def median(values: Sequence[float]) -> float:
    """The median; inf if the middle is, or half of it.

    Examples
    --------
    >>> median([100, 300]), median([100, math.inf]), median([100, 200, math.inf])
    (200.0, inf, 200.0)
    """
    return float(np.median(values))


@dataclass(frozen=True)
class Signs:
    """Pairs in which the first of two is better, as good, and worse; p is the sign test's, ties left out.

    >>> Signs(8, 1, 1).p
    0.0390625
    """

    wins: int
    ties: int
    losses: int

    @property
    def p(self) -> float:
        decided = self.wins + self.losses
        return float(stats.binomtest(self.wins, decided).pvalue) if decided else 1.0

    def __str__(self) -> str:
        return f"{self.wins}/{self.ties}/{self.losses}"


def signs(first: Sequence[float], second: Sequence[float]) -> Signs:
    """How often the first of a pair is larger, equal and smaller.

    Examples
    --------
    >>> str(signs([3, 2, 1, 5], [1, 2, 4, 1]))
    '2/1/1'
    """
    pairs = list(zip(first, second, strict=True))
    return Signs(sum(a > b for a, b in pairs), sum(a == b for a, b in pairs), sum(a < b for a, b in pairs))


def wilcoxon(differences: Sequence[float]) -> float:
    """The p-value of Wilcoxon's signed-rank test, two-sided, differences of zero left out.

    Exact where no two differences are of one size and there are at most 50, by SciPy's choice.

    Examples
    --------
    >>> wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), wilcoxon([0.0, 0.0])
    (0.03125, 1.0)
    """
    nonzero = [x for x in differences if x != 0]
    return float(stats.wilcoxon(nonzero).pvalue) if nonzero else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for there being several of them, by Holm (1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [1.0] * len(p)
    so_far = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = so_far
    return adjusted
