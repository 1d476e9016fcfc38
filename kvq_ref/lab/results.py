"""Runs that have finished, and which of their settings differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from kvq_ref.lab.config import FIELDS, Config

Point = tuple[Any, ...]  # values of the settings that vary, but for the seed
T = TypeVar("T")


def varying(configs: Iterable[Config]) -> list[str]:
    """Settings that are not the same in all runs, but for the seed.

    Examples
    --------
    >>> varying([Config(tau=2), Config(tau=3, seed=1)])  # T follows from tau
    ['tau', 'T']
    """
    settings = [config.settings for config in configs]
    return [name for name in FIELDS if name != "seed" and len({x.get(name) for x in settings}) > 1]


def axes_of(configs: Sequence[Config], keep: Sequence[str] = ()) -> list[str]:
    """Settings that vary and do not follow from the others that do; ``keep`` are never said to follow.

    Examples
    --------
    >>> axes_of([Config(tau=2, form="linear"), Config(tau=3, form="linear"), Config(tau=2), Config(tau=3)])
    ['tau', 'form']
    """
    free = varying(configs)
    settings = [config.settings for config in configs]
    for name in sorted(free, key=lambda name: (name not in ("T", "alpha", "scale"), -list(FIELDS).index(name))):
        rest = [x for x in free if x != name]
        together = {tuple(x.get(other) for other in rest) for x in settings}
        if name not in keep and len(together) == len({(*(x.get(o) for o in rest), x.get(name)) for x in settings}):
            free.remove(name)
    return free


def grouped(items: Iterable[tuple[Config, T]], names: Sequence[str]) -> dict[Point, list[T]]:
    """What belongs to runs, by the runs' values of the settings, in order.

    Examples
    --------
    >>> grouped([(Config(tau=3), "a"), (Config(tau=2), "b"), (Config(tau=3, seed=1), "c")], ["tau"])
    {(2,): ['b'], (3,): ['a', 'c']}
    """
    found: dict[Point, list[T]] = {}
    for config, item in items:
        found.setdefault(tuple(config.settings.get(name) for name in names), []).append(item)
    return dict(sorted(found.items(), key=lambda pair: [_rank(value) for value in pair[0]]))


def _rank(value: Any) -> tuple[int, float, str]:
    """None, then numbers, then words."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, (int, float)) else (2, 0.0, str(value))
