"""Find the outlier: K points (x, y) of which all but one follow y = x . w + noise, for a w that is not known.

w ~ N(0, I/d) anew for each set, x ~ N(0, I). The outlier's y follows a w of its own, so it has the spread of the
others and lies among them: only the regression gives it away. The set is the context, as keys and as values,
and its points are the queries; the answer is a number for each, and the largest one is the choice.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from kvq_ref.lab.scores import ACCURACY
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, Predict, check_context, episodes, least_squares
from kvq_ref.types import Array

RESIDUAL = 3.0  # in units of the noise: RANSAC takes what is farther for an outlier


@dataclass(frozen=True)
class Outliers(EpisodeTask):
    """Sets of K points, with x of d dimensions.

    Attributes
    ----------
    K, d : int
        At least d + 2 points: with fewer, none of them is out of line.
    noise : float
        Standard deviation of what is added to every y; more than 0.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> batch = Outliers(K=8, d=2).sample(np.random.default_rng(0), batch=3)
    >>> batch.x.shape, batch.targets.shape
    ((3, 8, 3), (3,))
    """

    K: int = 16
    d: int = 4
    noise: float = 0.1

    outputs = 1
    loss, score = "choice", ACCURACY

    def __post_init__(self) -> None:
        check_context(self.K, None, self.noise)
        if self.d < 1:
            raise ValueError(f"d: expected at least 1, got {self.d}")
        if self.K < self.d + 2:
            raise ValueError(f"K: expected at least d + 2, {self.d + 2} points, got {self.K}")
        if not self.noise:
            raise ValueError("noise: expected more than 0")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.d + 1

    values_in = inputs

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        x = rng.standard_normal((batch, self.K, self.d))
        w, of_its_own = rng.standard_normal((2, batch, self.d, 1)) / np.sqrt(self.d)
        odd = rng.integers(0, self.K, batch)
        is_odd = (np.arange(self.K) == odd[:, None])[..., None]
        y = np.where(is_odd, x @ of_its_own, x @ w) + self.noise * rng.standard_normal((batch, self.K, 1))
        points = np.concatenate([x, y], axis=-1)
        return episodes(points, points, points, odd)

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """The largest residual of a fit, and who looks at distances alone (Breunig et al. 2000)."""
        from sklearn.linear_model import LinearRegression, RANSACRegressor
        from sklearn.neighbors import LocalOutlierFactor

        how = {"min_samples": self.d, "residual_threshold": RESIDUAL * self.noise, "random_state": 0}
        ransac = RANSACRegressor(LinearRegression(fit_intercept=False), **how)
        factor = LocalOutlierFactor(n_neighbors=min(5, self.K - 1))

        def by_least_squares(x: Array, y: Array, queries: Array) -> Array:
            return np.abs(queries[:, -1:] - least_squares(x[:, :-1], x[:, -1:], queries[:, :-1]))

        def by_ransac(x: Array, y: Array, queries: Array) -> Array:
            ransac.fit(x[:, :-1], x[:, -1:])
            return np.abs(queries[:, -1:] - ransac.predict(queries[:, :-1]))

        def by_distance(x: Array, y: Array, queries: Array) -> Array:
            return -factor.fit(x).negative_outlier_factor_[:, None]

        return {
            "residual of least squares": by_least_squares,
            "residual of RANSAC": by_ransac,
            "local outlier factor": by_distance,
        }

    @functools.cached_property
    def optimum(self) -> Mapping[str, Predict]:
        """For each point, how likely the set is if this is the odd one: the largest is right most often.

        That is p(the others) p(this one, of a w of its own); and p(the others) is p(all) / p(this one, given the
        others), where the conditional density is that of Gaussian processes (Rasmussen & Williams 2006, section 5.4.2).
        """

        def predict(x: Array, y: Array, queries: Array) -> Array:
            x, y = x[:, :-1], x[:, -1]
            covariance = x @ x.T / self.d + self.noise**2 * np.eye(len(x))
            precision = linalg.solve(covariance, np.eye(len(x)), assume_a="pos")
            variance = 1 / np.diag(precision)
            off = variance * (precision @ y)
            alone = stats.norm.logpdf(y, scale=np.sqrt(np.diag(covariance)))
            return np.asarray(alone - stats.norm.logpdf(off, scale=np.sqrt(variance)))[:, None]

        return {"Bayes": predict}
