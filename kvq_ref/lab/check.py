"""A claim that a run can refute: a measured number, and the bar it must not pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One claim.

    Parameters
    ----------
    name : str
        The claim, in words.
    value : float
        What was measured.
    bar : float
        The claim holds if value <= bar, so a NaN refutes it.
    note : str
        What else there is to say, such as the exception that took the place of a value.

    Examples
    --------
    >>> Check("forward", 2e-16, 1e-12).holds
    True
    >>> Check("forward", float("nan"), 1e-12).holds
    False
    """

    name: str
    value: float
    bar: float
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.bar

    def sentence(self) -> str:
        """The claim and its number in one line.

        >>> Check("forward", 2e-3, 1e-12).sentence()
        'forward: 2.0e-03 > 1.0e-12'
        """
        if self.note:
            return f"{self.name}: {self.note}"
        sign = "<=" if self.holds else ">" if self.value > self.bar else "is not <="
        return f"{self.name}: {self.value:.1e} {sign} {self.bar:.1e}"


def measure(name: str, bar: float, function: Callable[..., float], *arguments: Any) -> Check:
    """The check of ``function(*arguments)``; an exception refutes the claim, and is kept as its note.

    Examples
    --------
    >>> measure("a square root", 2.0, math.sqrt, 4.0).holds
    True
    >>> measure("a square root", 2.0, math.sqrt, -4.0).note.partition(":")[0]
    'raised ValueError'
    """
    try:
        return Check(name, float(function(*arguments)), bar)
    except Exception as error:
        return failed(name, bar, error)


def failed(name: str, bar: float, error: Exception) -> Check:
    """The claim that an exception refutes."""
    return Check(name, math.inf, bar, f"raised {type(error).__name__}: {error}")
