"""Few-shot classification of images: N classes never seen before, K examples of each.

A set of images says which of its classes are learned from, and which are held out for the test. The classes of an
episode are named anew, at random.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvq_ref.lab.scores import ACCURACY
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, Predict, by_fitting, chosen, episodes, one_hot
from kvq_ref.types import Array

QUERIES = 2  # of each class
PENALTIES = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class FewShot(EpisodeTask):
    """N-way K-shot classification; each set of images is a class of its own that says the rest.

    Attributes
    ----------
    N : int
        Classes of an episode.
    K : int
        Examples of each, in the context.
    to_learn, held_out : tuple of int
        The classes.
    fewest : int
        Images of a class, at least.

    Raises
    ------
    ValueError
    """

    N: int = 5
    K: int = 5

    to_learn: ClassVar[tuple[int, ...]]
    held_out: ClassVar[tuple[int, ...]]
    fewest: ClassVar[int]

    inputs = 64
    loss, score = "cross_entropy", ACCURACY

    def __post_init__(self) -> None:
        if not 2 <= self.N <= len(self.held_out):
            count = len(self.held_out)
            raise ValueError(f"N: expected 2 to {count} classes, for so many are held out, got {self.N}")
        if not 1 <= self.K <= self.fewest - QUERIES:
            raise ValueError(f"K: expected 1 to {self.fewest - QUERIES} examples of a class, got {self.K}")

    @classmethod
    def images(cls) -> tuple[Array, Array]:
        """Images from 0 to 1, shape (classes, most, 64), filled up with any; and how many there are of each class."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.N

    @property
    def values_in(self) -> int:  # type: ignore[override]
        return self.N

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        of_classes, counts = self.images()
        names = np.tile(self.held_out if held_out else self.to_learn, (batch, 1))
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
        # in any order, class by class in none: a recurrence remembers best what came last
        order = rng.permuted(np.tile(np.arange(len(labels)), (batch, 1)), axis=1)
        context = np.take_along_axis(context, order[..., None], axis=1)
        return episodes(context, one_hot(labels[order], self.N), queries, np.tile(targets, (batch, 1)))

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
