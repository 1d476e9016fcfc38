"""Policy distillation in context: K pairs (state, action) of one teacher are shown; act as it would in new states.

The teachers are families in real environments (:mod:`kvq_ref.lab.environments`), who differ in goal or in skill; those
of the test were never learned from. What is shown is what a teacher did, slips included; the targets are what
it means to do, in states of other episodes. At the end of a run the model acts in the environment itself, in the place
of held-out teachers, each of whom it knows by one context.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import linalg

from kvq_ref.lab.environments.cartpole import CARTPOLE
from kvq_ref.lab.environments.family import CONTEXTS, QUERIES, Family, Played, play, shown, starts
from kvq_ref.lab.environments.fetch import FETCH
from kvq_ref.lab.environments.mountain_car import MOUNTAIN_CAR
from kvq_ref.lab.scores import ACCURACY
from kvq_ref.lab.tasks.episodes import (
    Episodes,
    EpisodeTask,
    Predict,
    Read,
    check_context,
    chosen,
    episodes,
    one_hot,
)
from kvq_ref.types import Array

ASKED = 16  # queries of an episode
EPISODES = 100  # in the environment, at the end of a run, or as many as are held out if these are fewer
PENALTIES = (0.01, 0.1, 1.0, 10.0)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse penalties
CONTEXT, START, CHANCE = range(3)  # streams of random numbers

Fit = Callable[[Array, Array], Callable[[Array], Array]]


@dataclass(frozen=True)
class Policies(EpisodeTask):
    """Teachers of one family, each seen at K of its states.

    Attributes
    ----------
    K : int
        Pairs in the context.
    noise : float
        The largest share of random actions; a teacher has one of its own, from 0 to this.

    Raises
    ------
    ValueError
    """

    K: int = 32
    noise: float = 0.2

    family: ClassVar[Family]
    loss, score = "cross_entropy", ACCURACY

    def __post_init__(self) -> None:
        check_context(self.K, None, self.noise)
        if self.K > self.family.pairs:
            raise ValueError(f"K: expected 1 to {self.family.pairs} pairs, which a teacher shows, got {self.K}")
        if self.noise > 1:
            raise ValueError(f"noise: expected a share of actions, 0 to 1, got {self.noise}")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """A state is standardised, and has a 1 appended."""
        return self.family.inputs + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.family.actions

    values_in = outputs

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Episodes:
        seen = shown(self.family, self.noise, held_out)
        return self.episodes_of(rng, rng.integers(len(seen.states), size=batch), held_out)[0]

    def episodes_of(
        self, rng: np.random.Generator, teachers: Array, held_out: bool
    ) -> tuple[Episodes, Callable[[Array, Array], Array]]:
        """An episode of each of some teachers.

        Parameters
        ----------
        rng : numpy.random.Generator
        teachers : array of int64, shape (n,)
            Their numbers.
        held_out : bool
            Of the teachers held out, or of those to learn from.

        Returns
        -------
        episodes : Episodes
        features : callable
            ``features(rows, states)``: what the model is to see of states, shape (len(rows), M, family.inputs), of some
            of the episodes.
        """
        seen, rows = shown(self.family, self.noise, held_out), teachers[:, None]
        n = len(teachers)
        order = self.family.renamed(rng, n) if self.family.renamed else np.tile(np.arange(self.family.inputs), (n, 1))
        mean, spread = self._usual

        def features(rows: Array, states: Array) -> Array:
            usual = np.take_along_axis((states - mean) / spread, order[rows][:, None], axis=-1)
            return np.concatenate([usual, np.ones_like(usual[..., :1])], axis=-1)

        lots = rng.random((2, n, self.family.pairs)).argsort(axis=-1)
        context, queries = lots[0, :, : self.K], lots[1, :, :ASKED]
        every = np.arange(n)
        return episodes(
            features(every, seen.states[rows, CONTEXTS, context]),
            one_hot(seen.done[rows, CONTEXTS, context], self.outputs),
            features(every, seen.states[rows, QUERIES, queries]),
            seen.meant[rows, QUERIES, queries],
        ), features

    @functools.cached_property
    def _usual(self) -> tuple[Array, Array]:
        """Mean and standard deviation over what the teachers to learn from show."""
        states = shown(self.family, self.noise, False).states.reshape(-1, self.family.inputs)
        spread = states.std(axis=0)
        return states.mean(axis=0), np.where(spread > 0, spread, 1.0)

    # ---- Simple methods ----

    @functools.cached_property
    def yardsticks(self) -> Mapping[str, Predict]:
        return {name: _answers(fit) for name, fit in self._fits.items()}

    @functools.cached_property
    def acting_yardsticks(self) -> Mapping[str, Read]:
        return {name: functools.partial(_reads, fit) for name, fit in self._fits.items()}

    @functools.cached_property
    def _fits(self) -> dict[str, Fit]:
        """Of the context alone: its nearest state, and linear maps of the state."""
        ridges: dict[float, Fit] = {a: functools.partial(_ridge, penalty=a) for a in PENALTIES}
        logistics: dict[float, Fit] = {a: functools.partial(_logistic, strength=a) for a in STRENGTHS}
        penalty, _ = chosen(self, {a: _answers(fit) for a, fit in ridges.items()})
        strength, _ = chosen(self, {a: _answers(fit) for a, fit in logistics.items()})
        return {
            "nearest state": _nearest,
            f"ridge on states (penalty {penalty:g})": ridges[penalty],
            f"logistic regression on states (penalty {1 / strength:g})": logistics[strength],
        }

    # ---- In the environment ----

    def act(self, read: Read, seed: Sequence[int], n: int) -> dict[str, float]:
        """As :meth:`EpisodeTask.act` has it: the means over 100 episodes, or n if these are fewer.

        Returns
        -------
        dict
            ``return``, the environment's own; ``goal``, how well the goal of the teacher was met, 0 to 1; and ``gap``,
            by how much the return of an episode is off the teacher's from the same start. The same of the
            teachers themselves, without slips, and of random actions.
        """
        n = min(n, EPISODES)
        begun, teacher, chance = _to_compare(self.family, tuple(seed), n)
        whose = np.array([i for i, _ in begun])
        context, features = self.episodes_of(np.random.default_rng([*seed, CONTEXT]), whose, True)
        answer = read(context.x, context.y)

        def answered(rows: Array, envs: Sequence[Any]) -> Array:
            states = np.array([self.family.see(env) for env in envs])
            return answer(rows, features(rows, states[:, None]))[:, 0].argmax(axis=-1)

        own = play(self.family, begun, answered)
        found = {"": own, "teacher_": teacher, "random_": chance}
        numbers = {f"{who}{k}": v for who, played in found.items() for k, v in _numbers(played, teacher).items()}
        del numbers["teacher_gap"]
        return numbers


@functools.lru_cache(maxsize=64)
def _to_compare(family: Family, seed: tuple[int, ...], n: int) -> tuple[list[tuple[int, int]], Played, Played]:
    """Starts, and how their teachers and random actions do from there: the same for every model."""
    begun = starts(family, np.random.default_rng([*seed, START]), n)
    rng = np.random.default_rng([*seed, CHANCE])
    teacher = play(
        family,
        begun,
        lambda rows, envs: [family.held_out[begun[i][0]].act(env) for i, env in zip(rows, envs, strict=True)],
    )
    chance = play(family, begun, lambda rows, envs: rng.integers(family.actions, size=len(rows)))
    return begun, teacher, chance


def _numbers(played: Played, teacher: Played) -> dict[str, float]:
    return {
        "return": float(played.returns.mean()),
        "goal": float(played.goal.mean()),
        "gap": float(np.abs(played.returns - teacher.returns).mean()),
    }


class CartPole(Policies):
    """Poles kept up by teachers who hold the cart at places of their own, with more skill or less.

    Examples
    --------
    >>> CartPole().inputs, CartPole().outputs
    (5, 2)
    """

    family = CARTPOLE
    packages = ("gymnasium",)


class MountainCar(Policies):
    """Cars rocked up a hill, with more skill or less.

    Examples
    --------
    >>> MountainCar().inputs, MountainCar().outputs
    (3, 3)
    """

    family = MOUNTAIN_CAR
    packages = ("gymnasium",)


class Fetch(Policies):
    """Things fetched, of the kind that a teacher likes.

    Examples
    --------
    >>> Fetch().inputs, Fetch().outputs
    (25, 4)
    """

    family = FETCH
    packages = ("gymnasium", "minigrid")


# ---- What fits a context, and then answers ------------------------------------------------


def _nearest(x: Array, y: Array) -> Callable[[Array], Array]:
    def answer(queries: Array) -> Array:
        return y[np.square(queries[:, None] - x).sum(axis=-1).argmin(axis=1)]

    return answer


def _ridge(x: Array, y: Array, penalty: float) -> Callable[[Array], Array]:
    weights = linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y, assume_a="pos")
    return lambda queries: queries @ weights


def _logistic(x: Array, y: Array, strength: float) -> Callable[[Array], Array]:
    from sklearn.linear_model import LogisticRegression

    labels = y.argmax(axis=1)
    there = np.unique(labels)
    if len(there) == 1:
        return lambda queries: one_hot(np.broadcast_to(there, len(queries)), y.shape[1])
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000).fit(x, labels)
    weights = np.zeros((x.shape[1], y.shape[1]))
    weights[:, there] = model.coef_.T if len(there) > 2 else np.concatenate([-model.coef_, model.coef_]).T / 2
    absent = np.where(np.isin(np.arange(y.shape[1]), there), 0.0, -np.inf)
    return lambda queries: queries @ weights + absent


def _answers(fit: Fit) -> Predict:
    return lambda x, y, queries: fit(x, y)(queries)


def _reads(fit: Fit, x: Array, y: Array) -> Callable[[Array, Array], Array]:
    """Each context is fitted once."""
    fitted = [fit(*pair) for pair in zip(x, y, strict=True)]
    return lambda rows, queries: np.stack([fitted[i](asked) for i, asked in zip(rows, queries, strict=True)])
