"""Associative recall: K pairs of a random key and a random symbol; which symbol went with this key?

Keys are unit vectors in d dimensions, and the queries are the keys themselves (with noise, keys near them). It
measures the capacity of a form's memory: where K is much larger than d, keys can no longer be told apart by a
linear memory of d columns.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab.scores import ACCURACY
from kvq_ref.lab.tasks.episodes import (
    Episodes,
    EpisodeTask,
    Predict,
    by_fitting,
    check_context,
    episodes,
    least_squares,
    one_hot,
)
from kvq_ref.types import Array

MOST_QUERIES = 16


@dataclass(frozen=True)
class Recall(EpisodeTask):
    """K pairs of keys in d dimensions and N symbols.

    Attributes
    ----------
    K, d, N : int
    noise : float
        A query is its key, plus a random vector of about this length.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> batch = Recall(K=4, d=8, N=3).sample(np.random.default_rng(0), batch=2)
    >>> bool((batch.y.argmax(-1) == batch.targets).all())
    True
    """

    K: int = 16
    d: int = 16
    N: int = 16
    noise: float = 0.0

    loss, score = "cross_entropy", ACCURACY

    def __post_init__(self) -> None:
        check_context(self.K, None, self.noise)
        for name, least in {"d": 2, "N": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.d

    @property
    def values_in(self) -> int:  # type: ignore[override]
        return self.N

    outputs = values_in

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        keys = rng.standard_normal((batch, self.K, self.d))
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        symbols = rng.integers(0, self.N, (batch, self.K))
        # early and late pairs alike: a recurrence forgets
        asked = np.linspace(0, self.K - 1, min(self.K, MOST_QUERIES)).round().astype(int)
        queries = keys[:, asked] + self.noise / np.sqrt(self.d) * rng.standard_normal((batch, len(asked), self.d))
        return episodes(keys, one_hot(symbols, self.N), queries, symbols[:, asked])

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        """To look it up; and two linear memories: of least squares, and the sum of outer products (Hebb's rule)."""
        from sklearn.neighbors import KNeighborsRegressor

        def hebb(x: Array, y: Array, queries: Array) -> Array:
            return np.asarray(queries @ (x.T @ y))

        return {
            "nearest neighbour": by_fitting(KNeighborsRegressor(1)),
            "linear memory, least squares": least_squares,
            "linear memory, outer products": hebb,
        }
