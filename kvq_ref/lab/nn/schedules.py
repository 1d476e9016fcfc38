"""How fast to learn, at each step."""

from __future__ import annotations

import math


def warm_up(step: int, steps: int) -> float:
    """The share of the rate at a step: up to 1 in a straight line, then 1.

    Parameters
    ----------
    step : int
        From 0.
    steps : int
        How many of them are slower.

    Examples
    --------
    >>> [warm_up(t, 2) for t in range(4)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (steps + 1))


def cosine(step: int, steps: int, floor: float = 0.0) -> float:
    """The share of the rate at a step: from 1 down to ``floor`` along half a wave.

    Parameters
    ----------
    step : int
        From 0.
    steps : int
        When the floor is reached.
    floor : float

    Examples
    --------
    >>> [round(cosine(t, 4), 3) for t in (0, 2, 4, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """
    along = min(step / max(steps, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2
