"""A family of teachers in one environment: what they show of themselves, and how anyone does in their place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from kvq_ref.types import Array

CONTEXTS, QUERIES = range(2)  # of a teacher's pairs: they are of different episodes
WORLDS = 400  # seeds that these episodes start from: for each of the two, to learn from and held out
PAIRS, SHARES = range(2)  # streams of random numbers


class Teacher(Protocol):
    """A policy: what it means to do is a function of where the environment stands."""

    def act(self, env: Any) -> int:
        """The action."""
        ...


@dataclass(frozen=True, eq=False)
class Family:
    """Teachers who differ in goal, in skill or in both.

    Attributes
    ----------
    environment : str
        Its id.
    options : tuple of (str, value)
        What it is made with.
    renamed : callable, optional
        ``renamed(rng, n)``: n orders of the inputs that stand for the same state, shape (n, inputs).
    inputs, actions : int
        Numbers that describe a state; actions to choose from, 0 to actions - 1.
    to_learn, held_out : tuple of Teacher
    pairs : int
        So many does each teacher show for contexts, and so many for queries.
    see : callable
        ``see(env)`` describes where the environment stands, shape (inputs,).
    met : callable
        ``met(env, teacher, reward)`` after a step: what it adds to how well the goal is met, which is 0 to 1
        over an episode.
    fits : callable, optional
        ``fits(env, teacher)`` after a reset: whether what the environment rewards there is what the teacher wants.
        Without it all starts fit all teachers.
    """

    environment: str
    inputs: int
    actions: int
    to_learn: tuple[Teacher, ...]
    held_out: tuple[Teacher, ...]
    pairs: int
    see: Callable[[Any], Array]
    met: Callable[[Any, Any, float], float]
    fits: Callable[[Any, Any], bool] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    renamed: Callable[[np.random.Generator, int], Array] | None = None


class Shown(NamedTuple):
    """What teachers show: states, what was done there, and what the teacher meant to do, a row for each teacher.

    Attributes
    ----------
    states : array, shape (teachers, 2, pairs, inputs)
        For contexts, and for queries.
    done, meant : array of int64, shape (teachers, 2, pairs)
    """

    states: Array
    done: Array
    meant: Array


class Played(NamedTuple):
    """How episodes went.

    Attributes
    ----------
    returns : array, shape (n,)
        The environment's own rewards, summed.
    goal : array, shape (n,)
        How well the teacher's goal was met, 0 to 1.
    """

    returns: Array
    goal: Array


@functools.cache
def shown(family: Family, slips: float, held_out: bool) -> Shown:
    """What teachers show, always the same.

    Each teacher has a share of random actions of its own, up to ``slips``: it errs, and shows how it recovers.

    Parameters
    ----------
    family : Family
    slips : float
    held_out : bool

    Returns
    -------
    Shown
    """
    teachers = family.held_out if held_out else family.to_learn
    shares = slips * np.random.default_rng([SHARES, held_out]).random(len(teachers))
    found = []
    for number, (teacher, share) in enumerate(zip(teachers, shares, strict=True)):
        for part in (CONTEXTS, QUERIES):
            rng = np.random.default_rng([PAIRS, held_out, number, part])
            found.append(_pairs_of(family, teacher, share, 2 * held_out + part, rng))
    parts = (np.array(x).reshape(len(teachers), 2, family.pairs, -1) for x in zip(*found, strict=True))
    states, done, meant = parts
    return Shown(states, done[..., 0], meant[..., 0])


def _pairs_of(
    family: Family, teacher: Teacher, share: float, kind: int, rng: np.random.Generator
) -> tuple[list[Array], list[int], list[int]]:
    """One teacher's pairs, of as many episodes as that takes."""
    env = _environment(family, 0)
    states: list[Array] = []
    done: list[int] = []
    meant: list[int] = []
    is_over = True
    while len(states) < family.pairs:
        if is_over:
            seed = -1
            while seed < 0 or teacher not in _fitting(family, seed):
                seed = 4 * int(rng.integers(WORLDS)) + kind
            env.reset(seed=seed)
        meant.append(teacher.act(env))
        states.append(family.see(env))
        done.append(int(rng.integers(family.actions)) if rng.random() < share else meant[-1])
        _, _, terminated, truncated, _ = env.step(done[-1])
        is_over = terminated or truncated
    return states, done, meant


def starts(family: Family, rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """For each of n episodes: whose it is, of the teachers held out, and the seed to reset its environment with."""
    found: list[tuple[int, int]] = []
    while len(found) < n:
        seed = int(rng.integers(4 * WORLDS, 2**31))  # no world that anything was shown in
        fitting = [i for i, teacher in enumerate(family.held_out) if teacher in _fitting(family, seed)]
        if fitting:
            found.append((int(rng.choice(fitting)), seed))
    return found


def play(
    family: Family, begun: Sequence[tuple[int, int]], act: Callable[[Array, Sequence[Any]], Sequence[int] | Array]
) -> Played:
    """Episodes in lockstep, each to its end.

    Parameters
    ----------
    family : Family
    begun : sequence of (int, int)
        As :func:`starts` has them.
    act : callable
        ``act(rows, envs)``: actions of the episodes that go on, whose numbers are ``rows``.

    Returns
    -------
    Played
    """
    envs = [_environment(family, i) for i in range(len(begun))]
    for env, (_, seed) in zip(envs, begun, strict=True):
        env.reset(seed=seed)
    returns, goal = np.zeros((2, len(begun)))
    rows = np.arange(len(begun))
    while rows.size:
        goes_on = []
        for i, action in zip(rows.tolist(), act(rows, [envs[i] for i in rows]), strict=True):
            _, reward, terminated, truncated, _ = envs[i].step(int(action))
            returns[i] += reward
            goal[i] += family.met(envs[i], family.held_out[begun[i][0]], float(reward))
            goes_on.append(not (terminated or truncated))
        rows = rows[goes_on]
    return Played(returns, goal)


@functools.lru_cache(maxsize=4096)
def _fitting(family: Family, seed: int) -> frozenset[Teacher]:
    """The teachers whom a start fits."""
    teachers = (*family.to_learn, *family.held_out)
    if family.fits is None:
        return frozenset(teachers)
    env = _environment(family, 0)
    env.reset(seed=seed)
    return frozenset(teacher for teacher in teachers if family.fits(env, teacher))


@functools.lru_cache(maxsize=1024)
def _environment(family: Family, number: int) -> Any:
    """One of several; a reset with a seed leaves nothing of what was before."""
    import gymnasium

    if family.environment.startswith("MiniGrid"):
        import minigrid  # noqa: F401 (it registers its environments)
    return gymnasium.make(family.environment, disable_env_checker=True, **dict(family.options))
