"""Registration of point clouds: recover an affine map from K correspondences, and say where further points go.

    y = x A + b + noise          A = I + N(0, 1/d) entry by entry, b ~ N(0, I), x ~ N(0, I) in d dimensions

With outliers, a share of the context's y are points drawn at random, of the same spread. x has a 1 appended, so
that an affine map is a linear one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab.scores import ERROR
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, Predict, by_fitting, check_context, episodes

QUERIES = 10
RESIDUAL = 3.0  # in units of the noise: RANSAC takes what is farther for an outlier


@dataclass(frozen=True)
class Registration(EpisodeTask):
    """Affine maps of d dimensions, seen at K points.

    Attributes
    ----------
    K, d : int
    noise : float
        Standard deviation of what is added to each coordinate of y in the context.
    outlier_share : float
        So much of the context tells nothing; 0 to less than 1.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> batch = Registration(K=5, d=3).sample(np.random.default_rng(0), batch=2)
    >>> batch.x.shape, batch.y.shape, batch.x[0, 0, -1].item()
    ((2, 5, 4), (2, 5, 3), 1.0)
    """

    K: int = 16
    d: int = 3
    noise: float = 0.05
    outlier_share: float = 0.0

    loss, score = "squared", ERROR

    def __post_init__(self) -> None:
        check_context(self.K, None, self.noise)
        if self.d < 1:
            raise ValueError(f"d: expected at least 1, got {self.d}")
        if not 0 <= self.outlier_share < 1:
            raise ValueError(f"outlier_share: expected 0 to less than 1, got {self.outlier_share}")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.d + 1

    @property
    def values_in(self) -> int:  # type: ignore[override]
        return self.d

    outputs = values_in

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        d, K = self.d, self.K
        A = np.eye(d) + rng.standard_normal((batch, d, d)) / np.sqrt(d)
        b = rng.standard_normal((batch, 1, d))
        x = rng.standard_normal((batch, K + QUERIES, d))
        y = x @ A + b
        seen = y[:, :K] + self.noise * rng.standard_normal((batch, K, d))
        anywhere = np.sqrt(3.0) * rng.standard_normal((batch, K, d))  # the variance of y: 1 + 1 of A, 1 of b
        wrong = rng.random((batch, K, 1)) < self.outlier_share
        points = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
        return episodes(points[:, :K], np.where(wrong, anywhere, seen), points[:, K:], y[:, K:])

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """Least squares, and least squares of what RANSAC takes for no outlier (Fischler & Bolles 1981)."""
        from sklearn.linear_model import LinearRegression, RANSACRegressor

        found = {"least squares": by_fitting(LinearRegression(fit_intercept=False))}
        if self.outlier_share and self.K > self.d + 1:
            limit = max(RESIDUAL * self.noise, 1e-3) * self.d  # the residual is summed over coordinates
            how = {"min_samples": self.d + 1, "residual_threshold": limit, "random_state": 0}
            found["RANSAC"] = by_fitting(RANSACRegressor(LinearRegression(fit_intercept=False), **how))
        return found
