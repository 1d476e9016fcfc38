"""Time several functions against each other, fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LONG = 0.05  # seconds


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed call of one function, in order."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    min_rounds: int = 3,
    budget: float = 1.0,
    rest: float = 0.02,
) -> dict[str, Timing]:
    """Time functions in turns, so that a slow spell of the machine falls on all of them.

    In each round every function has one turn: a short rest, in which worker
    threads of the one before go to sleep, and a call. A call shorter than LONG
    is taken as a warm-up, of caches and of the function's own threads, and
    followed by the one that counts. Every round begins with another function.

    Parameters
    ----------
    functions : mapping of str to callable
        What to time, without arguments.
    rounds : int
        How many timed calls each function gets.
    min_rounds : int
        How many it gets even if the budget is spent.
    budget : float
        Seconds after which no further round begins.
    rest : float
        Seconds before each turn.

    Returns
    -------
    dict of Timing

    Examples
    --------
    >>> timings = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, rest=0)
    >>> timings["long"].median > timings["short"].median, len(timings["long"].seconds)
    (True, 7)
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= min_rounds and time.perf_counter() - start > budget:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            taken = _seconds(functions[name])
            seconds[name].append(taken if taken > LONG else _seconds(functions[name]))
    return {name: Timing(taken) for name, taken in seconds.items()}


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
