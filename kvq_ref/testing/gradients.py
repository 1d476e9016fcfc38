"""Derivatives by central differences, to hold a backward pass against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_ref.attention import vjp

F64 = NDArray[np.float64]


def numerical_vjp(function: Callable[[F64], F64], x: F64, dout: F64, step: float = 1e-4) -> F64:
    """The gradient of sum(dout * function(x)), one entry of x at a time.

    Parameters
    ----------
    function : callable
        From an array like ``x`` to an array like ``dout``.
    x : array of float64
        Where to differentiate.
    dout : array of float64
        The gradient that comes in.
    step : float
        The function is evaluated at one, two and three steps to either side;
        the combination cancels the step^2 and step^4 terms of the series,
        which leaves an error of about step^6 from the series (times the
        seventh derivative) and eps/step from rounding. A kink within three
        steps of x spoils the result.

    Returns
    -------
    array, shape of ``x``

    Examples
    --------
    >>> import numpy as np
    >>> numerical_vjp(np.square, np.array([3.0]), np.array([1.0])).round(6)
    array([6.])
    """
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        d1, d2, d3 = (
            np.sum(dout * (function(_moved(x, index, h)) - function(_moved(x, index, -h))))
            for h in (step, 2 * step, 3 * step)
        )
        gradient[index] = (45 * d1 - 9 * d2 + d3) / (60 * step)
    return gradient


def _moved(x: F64, index: tuple[int, ...], by: float) -> F64:
    y = x.copy()
    y[index] += by
    return y


def check_vjp(
    form: Callable[..., Any], q: F64, k: F64, v: F64, *, seed: int = 0, step: float = 1e-4, **options: Any
) -> dict[str, float]:
    """Compare a form's backward with central differences, under a random gradient from above.

    Parameters
    ----------
    form : callable
        A form of this package.
    q, k, v : array of float64
        Where to differentiate.
    seed : int
        Of the random ``dout``.
    step : float
        Of the differences; see :func:`numerical_vjp`.
    **options
        The form's keyword arguments; ``bias``, ``alpha``, ``beta`` and ``decay`` are differentiated too.

    Returns
    -------
    dict
        For each argument, the largest error relative to its largest gradient.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 2))
    >>> max(check_vjp(kvq.intention, q, k, v, alpha=0.5).values()) < 1e-7
    True
    """
    out, pullback = vjp(form, q, k, v, **options)
    dout = np.random.default_rng(seed).standard_normal(out.shape)
    grads = pullback(dout)
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v} | {
        name: np.asarray(options[name], np.float64)
        for name in ("bias", "alpha", "beta", "decay")
        if options.get(name) is not None
    }
    expected = {}
    for name, x in arguments.items():

        def moved(y: F64, name: str = name) -> F64:
            moved_to = float(y) if name in ("beta", "decay") and y.ndim == 0 else y  # one number is no row for a key
            result: F64 = form(**({"q": q, "k": k, "v": v} | options | {name: moved_to}))
            return result

        expected[name] = numerical_vjp(moved, x, dout, step)
    largest = {name: float(np.max(np.abs(x), initial=0.0)) for name, x in expected.items()}
    # A gradient that is zero in truth comes out as rounding: compare with a part of the largest of all at least.
    floor = 1e-4 * max(largest.values()) or 1.0
    return {
        name: float(np.max(np.abs(getattr(grads, name) - x), initial=0.0)) / max(largest[name], floor)
        for name, x in expected.items()
    }
