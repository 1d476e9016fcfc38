"""Who is measured, and what a peer has to offer: variants, ways to do one job."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvq_ref.bench.jobs import Job

PEERS = ("ours", "torch", "jax")
NEEDS = {"torch": "torch", "jax": "jax"}  # what must be importable for it
MEMORY_LIMIT = 4e9  # bytes that a formulation of a peer may need for what lies between inputs and results
LONG = 10.0  # windows

Arrays = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Variant:
    """One way to do a job.

    Attributes
    ----------
    call : callable
        What is timed.
    results : callable
        From what ``call`` returned: out, and for "fb" also dq, dk, dv, as NumPy arrays.
    around : callable
        A context for a whole window, such as the mode without gradients.
    """

    call: Callable[[], Any]
    results: Callable[[Any], Arrays]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


class Peer(Protocol):
    """A module that is one."""

    def prepare(self, job: Job, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
        """Variants by name, and by name why others are left out."""

    def versions(self) -> dict[str, str]:
        """Of the libraries that it uses."""


def load(name: str, what: str = "peers") -> Any:
    """The module of a peer, or ("training") of its training steps; imports its library."""
    return importlib.import_module(f"kvq_ref.bench.{what}_{name}")


def why_not_installed(name: str) -> str:
    """Why a peer cannot take part, or nothing.

    >>> why_not_installed("ours")
    ''
    """
    library = NEEDS.get(name)
    return "" if library is None or importlib.util.find_spec(library) is not None else f"{library} is not installed"


def too_large(needed: float) -> str:
    """Why a formulation that needs so many bytes is left out, or nothing.

    >>> too_large(1e6), too_large(8e9)
    ('', 'needs about 8 GB')
    """
    return f"needs about {needed / 1e9:.0f} GB" if needed > MEMORY_LIMIT else ""


def window(variant: Variant, seconds: float, warm: float = 0.0) -> tuple[float, int]:
    """Call it for about so many seconds, at least once, after a call that is not timed.

    A call that is much longer than the window is its own warm-up.

    Parameters
    ----------
    variant : Variant
    seconds : float
    warm : float
        For so many seconds, too, calls are not timed: a processor that was idle may take a while to come back.

    Returns
    -------
    total : float
        Seconds of all timed calls together.
    calls : int

    Examples
    --------
    >>> total, calls = window(Variant(lambda: None, dict), 1e-3)
    >>> total > 0, calls > 1
    (True, True)
    """
    with variant.around():
        estimate = _total(variant.call, 1)
        if estimate > LONG * seconds:
            return estimate, 1
        if warm > estimate:
            estimate = _total(variant.call, round(warm / estimate)) / round(warm / estimate)
        while True:
            calls = max(1, round(seconds / estimate))
            total = _total(variant.call, calls)
            if calls == 1 or total > seconds / 2:  # else the first call was a slow one
                return total, calls
            estimate = total / calls


def _total(call: Callable[[], Any], calls: int) -> float:
    repeat = range(calls)
    begin = time.perf_counter()
    for _ in repeat:
        call()
    return max(time.perf_counter() - begin, 1e-9)


def errors(found: Arrays, expected: Arrays) -> dict[str, float]:
    """The largest error of each result, relative to its largest entry.

    >>> errors({"out": np.array([1.0, 2.5])}, {"out": np.array([1.0, 2.0])})
    {'out': 0.25}
    """
    worst = {}
    for name, wanted in expected.items():
        x = found.get(name)
        same = x is not None and x.shape == wanted.shape
        worst[name] = float(np.max(np.abs(x - wanted)) / np.max(np.abs(wanted))) if same else float("inf")
    return worst
