"""Linear regression in context:   y = x . w + noise, from K pairs.

w ~ N(0, I/d) anew for each episode, x ~ N(0, I), so that y has variance 1 without its noise. What is asked for has
no noise. The best that any model can do is Bayes' posterior mean, which is ridge regression with
alpha = d noise^2: untrained Intention without an encoder. Tested as well where training never was: another
noise, longer and shorter contexts, and weights of which only half are not zero.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kvq_ref.lab.scores import ERROR
from kvq_ref.lab.tasks.episodes import (
    Episodes,
    EpisodeTask,
    Predict,
    by_fitting,
    check_context,
    episodes,
    least_squares,
)

QUERIES = 10


@dataclass(frozen=True)
class LinearRegression(EpisodeTask):
    """Linear functions of d variables, seen at K points.

    Attributes
    ----------
    K, d : int
        Pairs in the context; dimensions of x.
    noise : float
        Standard deviation of what is added to y in the context.
    K_least : int, optional
        Training draws the number of pairs from K_least to K, anew for each batch.
    active : int, optional
        Only so many entries of x, the first, are not zero: a problem of fewer dimensions. All, by default.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> task = LinearRegression(K=8, d=4, noise=0.25)
    >>> task.kinds
    ('', 'noise=0.5', 'K=4', 'K=16', 'd=2')
    >>> task.bayes_alpha
    0.25
    """

    K: int = 16
    d: int = 8
    noise: float = 0.25
    K_least: int | None = None
    active: int | None = None

    values_in = outputs = 1
    loss, score = "squared", ERROR

    def __post_init__(self) -> None:
        check_context(self.K, self.K_least, self.noise)
        if self.d < 1:
            raise ValueError(f"d: expected at least 1, got {self.d}")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.d

    @property
    def bayes_alpha(self) -> float:
        """Variance of the noise over that of a weight: with it, ridge regression is the posterior mean."""
        return self.d * self.noise**2

    @functools.cached_property
    def variants(self) -> Mapping[str, EpisodeTask]:
        if self.K_least is None:
            return {"": self}
        numbers = sorted({self.K_least, (self.K_least + self.K) // 2, self.K})
        return {f"K={n}": replace(self, K=n, K_least=None) for n in numbers}

    @functools.cached_property
    def shifts(self) -> Mapping[str, EpisodeTask]:
        fixed = replace(self, K_least=None)
        found = {f"noise={2 * self.noise:g}": replace(fixed, noise=2 * self.noise)} if self.noise else {}
        shorter, longer = (self.K_least or self.K) // 2, 2 * self.K
        found |= {f"K={K}": replace(fixed, K=K) for K in (shorter, longer) if K}
        return found | ({f"d={self.d // 2}": replace(fixed, active=self.d // 2)} if self.d > 1 else {})

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        K = self.K if self.K_least is None else int(rng.integers(self.K_least, self.K + 1))
        x = rng.standard_normal((batch, K + QUERIES, self.d))
        x[..., self.active or self.d :] = 0
        w = rng.standard_normal((batch, self.d, 1)) / np.sqrt(self.d)
        y = x @ w
        seen = y[:, :K] + self.noise * rng.standard_normal((batch, K, 1))
        return episodes(x[:, :K], seen, x[:, K:], y[:, K:])

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """Ridge regression at the alpha that is best for the training, and least squares, of minimum norm."""
        from sklearn.linear_model import Ridge

        if not self.noise:
            return {"least squares": least_squares}
        ridge = by_fitting(Ridge(self.bayes_alpha, fit_intercept=False))
        return {f"ridge (alpha {self.bayes_alpha:.3g})": ridge, "least squares": least_squares}

    @functools.cached_property
    def optimum(self) -> Mapping[str, Predict]:
        """The posterior mean, of whoever is told of the noise."""
        (predict, *_) = self.yardsticks.values()
        return {"Bayes, told of every shift": predict}
