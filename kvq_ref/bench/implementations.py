"""Each form's compiled kernel against its readable reference."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.bench.timing import interleaved

Shape = tuple[int, int, int, int]

SHAPES: tuple[Shape, ...] = ((1, 8, 1024, 64), (8, 8, 128, 32), (32, 4, 16, 16), (256, 1, 64, 64))
IMPLEMENTATIONS = ("reference", "compiled")


@dataclass(frozen=True)
class Comparison:
    """Median milliseconds of one form at one shape (batch, heads, T, d).

    Attributes
    ----------
    form : str
    shape : tuple of int
    forward, both : dict of float
        By implementation: forward alone, and forward followed by backward.
    rounds : int
        The fewest timed calls that a median is of.
    """

    form: str
    shape: Shape
    forward: dict[str, float]
    both: dict[str, float]
    rounds: int

    def ratio(self, what: str) -> float:
        """How many times as long the reference takes, for "forward" or "both"."""
        times: dict[str, float] = getattr(self, what)
        return times["reference"] / times["compiled"]


def compare(
    forms: Iterable[str], shapes: Iterable[Shape] = SHAPES, *, budget: float = 0.5, seed: int = 0
) -> Iterator[Comparison]:
    """Time both implementations of some forms, in float32, with nothing masked, on one thread each.

    One thread, because the thread pools of NumPy, SciPy and the kernels would
    otherwise fight, and the ratio be that of their manners.

    Parameters
    ----------
    forms : iterable of str
        Names of forms that have a kernel.
    shapes : iterable of (batch, heads, T, d)
    budget : float
        Seconds for each of forward and forward with backward, at each shape.
    seed : int
        Of the random inputs.

    Yields
    ------
    Comparison
    """
    for form in forms:
        for shape in shapes:
            with _one_thread():
                comparison = _compare(form, shape, budget, seed)
            yield comparison


def _compare(form: str, shape: Shape, budget: float, seed: int) -> Comparison:
    rng = np.random.default_rng([seed, *shape])
    q, k, v, dout = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
    options: dict[str, Any] = {"alpha": 1.0} if "alpha" in inspect.signature(getattr(kvq, form)).parameters else {}
    forward, both = (
        interleaved({name: make(form, name, q, k, v, dout, options) for name in IMPLEMENTATIONS}, budget=budget)
        for make in (_forward, _forward_and_backward)
    )
    return Comparison(
        form,
        shape,
        {name: 1e3 * timing.median for name, timing in forward.items()},
        {name: 1e3 * timing.median for name, timing in both.items()},
        min(len(timing.seconds) for timing in (*forward.values(), *both.values())),
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For the BLAS libraries, and for the kernels."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), kvq.use_num_threads(1):
        yield


def _forward(
    form: str, implementation: str, q: Any, k: Any, v: Any, dout: Any, options: dict[str, Any]
) -> Callable[[], Any]:
    return lambda: getattr(kvq, form)(q, k, v, implementation=implementation, **options)


def _forward_and_backward(
    form: str, implementation: str, q: Any, k: Any, v: Any, dout: Any, options: dict[str, Any]
) -> Callable[[], Any]:
    def run() -> Any:
        _, pullback = kvq.vjp(getattr(kvq, form), q, k, v, implementation=implementation, **options)
        return pullback(dout)

    return run
