"""What every task in context is: episodes, each a context of pairs (x_j, y_j) and queries to answer from it alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from scipy import linalg

from kvq_ref.lab.scores import Score, marks
from kvq_ref.types import Array

Predict = Callable[[Array, Array, Array], Array]
Read = Callable[[Array, Array], Callable[[Array, Array], Array]]
"""Of contexts (x, y), shape (n, K, ...): ``read(x, y)(rows, queries)`` answers queries of some of them."""


class Episodes(NamedTuple):
    """Episodes to learn from, one a row.

    Attributes
    ----------
    x : array, shape (batch, K, inputs)
    y : array, shape (batch, K, values)
        The context.
    queries : array, shape (batch, M, inputs)
    targets : array, shape (batch, M, outputs)
        Or of int64: (batch, M) for classes, (batch,) for which of the queries it is.
    kinds : array of int64, shape (batch,)
        Which of the task's kinds a row is of.
    """

    x: Array
    y: Array
    queries: Array
    targets: Array
    kinds: Array

    @property
    def inputs(self) -> tuple[Array, Array, Array]:
        """What the model sees."""
        return self.x, self.y, self.queries

    @property
    def determined(self) -> None:
        """Every query counts."""
        return None


def episodes(x: Array, y: Array, queries: Array, targets: Array) -> Episodes:
    """A batch of one kind.

    >>> x = np.zeros((2, 3, 1))
    >>> episodes(x, x, x, x).kinds
    array([0, 0])
    """
    return Episodes(x, y, queries, targets, np.zeros(len(x), np.int64))


class EpisodeTask:
    """What tasks in context share; each of them is a frozen dataclass that says the rest.

    Attributes
    ----------
    inputs, values_in, outputs : int
        Dimensions of x, of a context's y, and of an answer.
    loss : {"squared", "cross_entropy", "choice"}
        Choice: cross-entropy over the queries of an episode.
    score : Score
    variants : mapping of str to EpisodeTask
        What training draws from, each held out as a kind of its own.
    shifts : mapping of str to EpisodeTask
        What training does not draw from: tested, but no part of the score.
    yardsticks : mapping of str to callable
        ``predict(x, y, queries)`` of one episode: what a simple method answers. What was chosen for it is in brackets.
    acting_yardsticks : mapping of str to callable
        The yardsticks, by name, that :meth:`act` can be asked about.
    packages : tuple of str
        What it needs besides the lab.
    optimum : mapping of str to callable
        The same of the best that there is, where it is known: of whoever is told how these episodes are made, so each
        kind has its own.
    """

    inputs: int
    values_in: int
    outputs: int
    loss: str
    score: Score
    packages: ClassVar[tuple[str, ...]] = ()

    @functools.cached_property
    def variants(self) -> Mapping[str, EpisodeTask]:
        return {"": self}

    @functools.cached_property
    def shifts(self) -> Mapping[str, EpisodeTask]:
        return {}

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        return {}

    @functools.cached_property
    def acting_yardsticks(self) -> Mapping[str, Read]:
        return {}

    @functools.cached_property
    def optimum(self) -> Mapping[str, Predict]:
        return {}

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*self.variants, *self.shifts)

    @property
    def trained(self) -> int:
        """So many of the kinds, the first, are what training draws from."""
        return len(self.variants)

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        """Fresh episodes, in float64, all with equally many pairs; ``held_out``: of what is kept for the test."""
        raise NotImplementedError

    def test(self, rng: np.random.Generator, n: int) -> list[Episodes]:
        """Held-out episodes, equally many of each kind in a batch: n, or a few more, of what training draws from."""
        each = math.ceil(n / self.trained)
        tasks = [*self.variants.values(), *self.shifts.values()]
        batches = [task.sample(rng, each, held_out=True) for task in tasks]
        return [batch._replace(kinds=np.full(each, kind)) for kind, batch in enumerate(batches)]

    def act(self, read: Read, seed: Sequence[int], n: int) -> dict[str, float]:
        """What comes of a model that acts on its answers, at the end of a run: nothing, where a task is no policy.

        Parameters
        ----------
        read : callable
        seed : sequence of int
            Of contexts and starts.
        n : int
            Episodes, at most.

        Returns
        -------
        dict
            Numbers for result.json.
        """
        return {}


def check_context(K: int, K_least: int | None, noise: float) -> None:
    """Raise for a context that cannot be.

    Raises
    ------
    ValueError
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 pair, got {K}")
    if K_least is not None and not 1 <= K_least <= K:
        raise ValueError(f"K_least: expected 1 to K, {K}, got {K_least}")
    if noise < 0:
        raise ValueError(f"noise: expected at least 0, got {noise}")


def one_hot(labels: Array, classes: int) -> Array:
    """Rows of 0 and a 1, float64.

    >>> one_hot(np.array([1]), 3)
    array([[0., 1., 0.]])
    """
    return np.eye(classes)[labels]


def predictions(predict: Predict, batch: Episodes) -> Array:
    """A yardstick's answers, episode by episode."""
    return np.stack([predict(x, y, queries) for x, y, queries in zip(*batch.inputs, strict=True)])


def least_squares(x: Array, y: Array, queries: Array) -> Array:
    """The linear map of least squares, of minimum norm where there are many: a yardstick.

    >>> least_squares(np.array([[2.0]]), np.array([[1.0]]), np.array([[4.0]]))
    array([[2.]])
    """
    return np.asarray(queries @ linalg.lstsq(x, y)[0])


class Fits(Protocol):
    """What scikit-learn's regressors have in common."""

    def fit(self, x: Array, y: Array) -> object: ...
    def predict(self, x: Array) -> Array: ...


def by_fitting(regressor: Fits, features: Callable[[Array], Array] = np.asarray) -> Predict:
    """A yardstick that fits a regressor of scikit-learn to the context, of some features of x."""

    def predict(x: Array, y: Array, queries: Array) -> Array:
        regressor.fit(features(x), y)
        return np.asarray(regressor.predict(features(queries))).reshape(len(queries), y.shape[-1])

    return predict


T = TypeVar("T")


def chosen(task: EpisodeTask, candidates: Mapping[T, Predict], n: int = 32) -> tuple[T, Predict]:
    """The candidate with the best score on ``n`` episodes of those to learn from, never of those held out.

    What a yardstick leaves open, such as the width of a kernel, is chosen so, always by the same episodes.
    """
    rng = np.random.default_rng(0)
    batches = [variant.sample(rng, max(1, n // task.trained)) for variant in task.variants.values()]

    def merit(predict: Predict) -> float:
        pairs = [marks(task.score, predictions(predict, batch), batch) for batch in batches]
        return task.score.sign * float(sum(sums.sum() / counts.sum() for sums, counts in pairs))

    name = max(candidates, key=lambda name: merit(candidates[name]))
    return name, candidates[name]
