"""Few-shot classification of images: N classes never seen before, K examples of each.

The images are the 1797 handwritten digits of 8 x 8 pixels that scikit-learn bundles. Classes 0, 2, 4, 6, 8 are
learned from; 1, 3, 5, 7, 9 are held out for the test. The classes of an episode are named anew, at random.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab import data
from kvq_ref.lab.scores import ACCURACY
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, Predict, by_fitting, chosen, episodes, one_hot
from kvq_ref.types import Array

TO_LEARN, HELD_OUT = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
FEWEST = 174  # images of a class, the eights
BRIGHTEST = 16.0
QUERIES = 2  # of each class
PENALTIES = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Digits(EpisodeTask):
    """N-way K-shot classification.

    Attributes
    ----------
    N : int
        Classes of an episode: 2 to 5.
    K : int
        Examples of each, in the context.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> batch = Digits(N=3, K=2).sample(np.random.default_rng(0), batch=4)
    >>> batch.x.shape, batch.y.shape, batch.targets.shape
    ((4, 6, 64), (4, 6, 3), (4, 6))
    """

    N: int = 5
    K: int = 5

    inputs = 64
    loss, score = "cross_entropy", ACCURACY

    def __post_init__(self) -> None:
        if not 2 <= self.N <= len(HELD_OUT):
            raise ValueError(f"N: expected 2 to {len(HELD_OUT)} classes, for so many are held out, got {self.N}")
        if not 1 <= self.K <= FEWEST - QUERIES:
            raise ValueError(f"K: expected 1 to {FEWEST - QUERIES} examples of a class, got {self.K}")

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.N

    @property
    def values_in(self) -> int:  # type: ignore[override]
        return self.N

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        of_classes, counts = _images()
        names = np.tile(HELD_OUT if held_out else TO_LEARN, (batch, 1))
        classes = rng.permuted(names, axis=1)[:, : self.N]
        # the images with the least of random numbers: so many of each class, none of them twice
        lots = rng.random((batch, self.N, of_classes.shape[1]))
        lots[np.arange(lots.shape[-1]) >= counts[classes][..., None]] = 2
        drawn = lots.argsort(axis=-1)[..., : self.K + QUERIES]
        images = of_classes[classes[..., None], drawn]
        context = images[:, :, : self.K].reshape(batch, -1, self.inputs)
        queries = images[:, :, self.K :].reshape(batch, -1, self.inputs)
        labels = np.repeat(np.arange(self.N), self.K)
        targets = np.repeat(np.arange(self.N), QUERIES)
        y = np.broadcast_to(one_hot(labels, self.N), (batch, len(labels), self.N))
        return episodes(context, np.ascontiguousarray(y), queries, np.tile(targets, (batch, 1)))

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """On the pixels as they are."""
        from sklearn.linear_model import Ridge
        from sklearn.neighbors import KNeighborsRegressor

        def nearest_mean(x: Array, y: Array, queries: Array) -> Array:
            means = (y.T @ x) / y.sum(axis=0)[:, None]
            return -np.square(queries[:, None] - means).sum(axis=-1)

        penalty, ridge = chosen(self, {a: by_fitting(Ridge(a)) for a in PENALTIES})
        return {
            "nearest neighbour on pixels": by_fitting(KNeighborsRegressor(1)),
            "nearest class mean on pixels": nearest_mean,
            f"ridge on pixels (penalty {penalty:g})": ridge,
        }


@functools.cache
def _images() -> tuple[Array, Array]:
    """Images from 0 to 1, a row for each digit, filled up with empty ones; and how many there are of each."""
    digits = data.digits()
    counts = np.bincount(digits.target.astype(int))
    found = np.zeros((len(counts), counts.max(), digits.features.shape[1]))
    for n, count in enumerate(counts):
        found[n, :count] = digits.features[digits.target == n] / BRIGHTEST
    return found, counts
