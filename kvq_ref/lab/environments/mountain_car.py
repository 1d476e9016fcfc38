"""MountainCar-v0 (Moore 1990): a car too weak for the hill gets up by rocking; every step costs 1, of 200 at most.

    push right if   dx/dt > slack - tilt,    left if   dx/dt < -slack - tilt,    else not at all

Whoever pushes the way the car moves gains energy all the time: that is slack = tilt = 0, at about -115. Teachers
differ in skill: with slack they coast where they might push, with a tilt they push against the movement now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.lab.environments.family import Family
from kvq_ref.types import Array

SLACK, TILT = 0.012, 0.01  # at most; the car's speed is at most 0.07


@dataclass(frozen=True)
class Rock:
    """A teacher.

    Examples
    --------
    >>> [Rock(slack=0.01, tilt=0.0).means(speed) for speed in (-0.02, 0.0, 0.02)]
    [0, 1, 2]
    """

    slack: float
    tilt: float

    def means(self, speed: float) -> int:
        """What to do at a speed: 0 is left, 1 nothing, 2 right."""
        return 1 + (speed > self.slack - self.tilt) - (speed < -self.slack - self.tilt)

    def act(self, env: Any) -> int:
        return self.means(float(env.unwrapped.state[1]))


def see(env: Any) -> Array:
    """Place and speed."""
    return np.array(env.unwrapped.state, np.float64)


def met(env: Any, teacher: Rock, reward: float) -> float:
    """Whether it is up."""
    return float(env.unwrapped.state[0] >= env.unwrapped.goal_position)


def teachers(seed: int, n: int) -> tuple[Rock, ...]:
    """Drawn at random."""
    rng = np.random.default_rng(seed)
    return tuple(Rock(*row) for row in np.stack([rng.uniform(0, SLACK, n), rng.uniform(-TILT, TILT, n)], 1).tolist())


MOUNTAIN_CAR = Family("MountainCar-v0", 2, 3, teachers(0, 160), teachers(1, 40), pairs=200, see=see, met=met)
