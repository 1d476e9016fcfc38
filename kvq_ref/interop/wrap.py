"""What the wrappers share: which arguments are arrays, and a function that looks like the form it wraps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kvq_ref.arguments import check_dtypes, check_same_library
from kvq_ref.arrays import is_array, library

ARRAYS = ("mask", "bias", "alpha", "beta", "decay")
LEFT_OUT = ("initial_state", "output_final_state", "out")

Function = Callable[..., Any]
Call = Callable[[Function, dict[str, Any], dict[str, Any]], Any]


def wrap(form: Function, call: Call, name: str, words: str) -> Function:
    """A function with the name and the keywords of ``form``, on arrays of the library ``name``.

    Parameters
    ----------
    form : callable
        A form of kvq_ref.
    call : callable
        ``call(form, arrays, options)``, with the arrays by name (q, k and v at least) and what is no array.
    name : str
        The library, as :func:`kvq_ref.arrays.library` names it.
    words : str
        What to call its arrays.

    Returns
    -------
    callable
        ``function(q, k, v, **options)``. It takes no state and no ``out``.
    """
    parameters = [p for p in inspect.signature(form).parameters.values() if p.name not in LEFT_OUT]
    signature = inspect.Signature(parameters)

    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = ", ".join(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
            raise TypeError(f"{form.__name__}: {error}; its options here are {known}") from None
        bound.apply_defaults()
        given = bound.arguments
        arrays = {x: given.pop(x) for x in ("q", "k", "v")}
        arrays |= {x: given.pop(x) for x in ARRAYS if is_array(given.get(x))}
        check_arrays(arrays, name, words)
        return call(form, arrays, given)

    function.__name__ = function.__qualname__ = form.__name__
    function.__module__ = f"kvq_ref.interop.{name}"
    summary = (form.__doc__ or "").partition("\n")[0]
    function.__doc__ = f"""{summary}

    :func:`kvq_ref.{form.__name__}` on {words}s. What it takes, gives and raises is written there;
    what is different here, in :mod:`{function.__module__}`.
    """
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def check_arrays(arrays: Mapping[str, Any], name: str, words: str) -> None:
    """All of the library, of one dtype and on one device.

    >>> import numpy as np
    >>> check_arrays({"q": np.ones((1, 1))}, "torch", "PyTorch tensor")
    Traceback (most recent call last):
    TypeError: q: expected a PyTorch tensor, got numpy
    """
    for x_name, x in arrays.items():
        if not is_array(x) or library(x) != name:
            got = library(x) if is_array(x) else type(x).__name__
            raise TypeError(f"{x_name}: expected a {words}, got {got}")
    check_same_library(arrays)
    check_dtypes({x_name: x for x_name, x in arrays.items() if x_name != "mask"})
