"""Few-shot regression of sinusoids:   y = A sin(x + phase), from K points.

Amplitude U(0.1, 5), phase U(0, pi), x U(-5, 5): the task of Finn, Abbeel & Levine 2017 (MAML,
arXiv 1703.03400). Two points determine it for whoever knows that it is a sinusoid of period 2 pi.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kvq_ref.lab.scores import ERROR
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, Predict, by_fitting, check_context, chosen, episodes
from kvq_ref.types import Array

QUERIES = 10
REACH = 5.0  # of x
AMPLITUDES = (0.1, 5.0)
LENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1)
WAVES = (3, 4, 6, 10)
NEIGHBOURS = (1, 2, 3)
LADDER = (2, 3, 5, 10, 20, 40)  # of K, for the test of a range


@dataclass(frozen=True)
class Sinusoid(EpisodeTask):
    """Sinusoids, seen at K points.

    Attributes
    ----------
    K : int
        Pairs in the context.
    K_least : int, optional
        Training draws their number from K_least to K, anew for each batch.
    noise : float
        Standard deviation of what is added to y in the context.

    Raises
    ------
    ValueError
        For no pairs, a range that is none, or a negative noise.

    Examples
    --------
    >>> batch = Sinusoid(K=3).sample(np.random.default_rng(0), batch=2)
    >>> batch.x.shape, batch.queries.shape
    ((2, 3, 1), (2, 10, 1))
    >>> Sinusoid(K=40, K_least=4).kinds
    ('K=4', 'K=5', 'K=10', 'K=20', 'K=40')
    """

    K: int = 10
    K_least: int | None = None
    noise: float = 0.0

    inputs = values_in = outputs = 1
    loss, score = "squared", ERROR

    def __post_init__(self) -> None:
        check_context(self.K, self.K_least, self.noise)

    @functools.cached_property
    def variants(self) -> Mapping[str, EpisodeTask]:
        if self.K_least is None:
            return {"": self}
        numbers = sorted({self.K_least, self.K} | {n for n in LADDER if self.K_least < n < self.K})
        return {f"K={n}": replace(self, K=n, K_least=None) for n in numbers}

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        K = self.K if self.K_least is None else int(rng.integers(self.K_least, self.K + 1))
        amplitude = rng.uniform(*AMPLITUDES, (batch, 1, 1))
        phase = rng.uniform(0, np.pi, (batch, 1, 1))
        x = rng.uniform(-REACH, REACH, (batch, K + QUERIES, 1))
        y = amplitude * np.sin(x + phase)
        seen = y[:, :K] + self.noise * rng.standard_normal((batch, K, 1))
        return episodes(x[:, :K], seen, x[:, K:], y[:, K:])

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """A Gaussian process that knows the period, one that knows smoothness alone, and simpler methods."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct
        from sklearn.linear_model import Ridge
        from sklearn.neighbors import KNeighborsRegressor

        low, high = AMPLITUDES
        # A sin(x + phase) = a sin x + b cos x, with E a^2 = E b^2 = variance and E ab = 0
        variance = (low**2 + low * high + high**2) / 6
        known = max(self.noise**2, 1e-10)

        def process(kernel: object) -> Predict:
            return by_fitting(GaussianProcessRegressor(kernel, alpha=known, optimizer=None))

        exact = ConstantKernel(variance) * DotProduct(0.0, "fixed")
        informed = by_fitting(GaussianProcessRegressor(exact, alpha=known, optimizer=None), _one_wave)
        length, smooth = chosen(self, {n: process(ConstantKernel(variance) * RBF(n)) for n in LENGTHS})
        (n, penalty), ridge = chosen(
            self,
            {(n, a): by_fitting(Ridge(a), functools.partial(_waves, n=n)) for n in WAVES for a in PENALTIES},
        )
        fewest = min(task.K for task in self.variants.values() if isinstance(task, Sinusoid))
        numbers = [n for n in NEIGHBOURS if n <= fewest]
        k, nearest = chosen(self, {n: by_fitting(KNeighborsRegressor(n)) for n in numbers})
        return {
            "GP, sinusoids of this period": informed,
            f"GP, RBF (length {length:g})": smooth,
            f"ridge on Fourier features ({n} waves, penalty {penalty:g})": ridge,
            f"nearest neighbours ({k})": nearest,
        }


def _one_wave(x: Array) -> Array:
    return np.concatenate([np.sin(x), np.cos(x)], axis=-1)


def _waves(x: Array, n: int) -> Array:
    """Sines and cosines of n frequencies, none of them that of the task: period 4 REACH and its harmonics."""
    angles = x * (np.arange(1, n + 1) * np.pi / (2 * REACH))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
