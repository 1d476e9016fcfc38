"""CartPole-v1 (Barto, Sutton & Anderson 1983): push a cart left or right, so that the pole on it stays up.

    push right if   p (x - goal) + v dx/dt + angle + s d(angle)/dt > 0

Teachers differ in goal, the place where they hold the cart, and in skill: with a small s a teacher looks little at
how fast the pole turns, and drops it after a while. The environment pays 1 a step, wherever the cart is, up to 500.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.lab.environments.family import Family
from kvq_ref.types import Array

REACH = 1.0  # of goals; the track ends at 2.4
PLACE, SPEED, SKILL = (0.04, 0.1), (1.5, 2.5), (0.1, 0.3)  # p; v / p; s, of which 0.2 is enough for all 500 steps
NEAR = 0.25
MOST_STEPS = 500


@dataclass(frozen=True)
class Balance:
    """A teacher: its goal, and the weights p, v, 1 and s.

    Examples
    --------
    >>> teacher = Balance(0.5, (0.1, 0.2, 1.0, 0.3))
    >>> teacher.means(np.array([0.0, 0.0, 0.0, 0.0])), teacher.means(np.array([1.0, 0.0, 0.0, 0.0]))
    (0, 1)
    """

    goal: float
    weights: tuple[float, float, float, float]

    def means(self, state: Array) -> int:
        """What to do in a state (x, dx/dt, angle, d(angle)/dt)."""
        x, dx, angle, turn = state.tolist()
        p, v, a, s = self.weights
        return int(p * (x - self.goal) + v * dx + a * angle + s * turn > 0)

    def act(self, env: Any) -> int:
        return self.means(see(env))


def see(env: Any) -> Array:
    """The state."""
    return np.array(env.unwrapped.state, np.float64)


def met(env: Any, teacher: Balance, reward: float) -> float:
    """The share of all 500 steps that the pole is up and the cart near its place."""
    return float(abs(see(env)[0] - teacher.goal) < NEAR) / MOST_STEPS


def teachers(seed: int, n: int) -> tuple[Balance, ...]:
    """Drawn at random."""
    rng = np.random.default_rng(seed)
    goal = rng.uniform(-REACH, REACH, n)
    p, s = rng.uniform(*PLACE, n), rng.uniform(*SKILL, n)
    v = p * rng.uniform(*SPEED, n)
    rows = np.stack([goal, p, v, s], axis=1).tolist()
    return tuple(Balance(goal, (p, v, 1.0, s)) for goal, p, v, s in rows)


CARTPOLE = Family("CartPole-v1", 4, 2, teachers(0, 160), teachers(1, 40), pairs=200, see=see, met=met)
