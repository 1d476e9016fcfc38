"""The few types that every room of the house shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

Array: TypeAlias = Any
"""An array of any library that follows the array API standard.

NumPy, CuPy, PyTorch and JAX arrays share no base class, so static typing can
say no more than ``Any``; ``arguments.py`` checks at run time.
"""


class Grads(NamedTuple):
    """Gradients of one call, in the shapes and dtype of its arguments.

    ``None`` stands where an argument was not given.

    >>> import numpy as np
    >>> Grads(q=np.zeros((3, 2)), k=np.zeros((4, 2)), v=np.zeros((4, 1))).bias is None
    True
    """

    q: Array
    k: Array
    v: Array
    bias: Array | None = None
    alpha: Array | None = None
    initial_state: tuple[Array, ...] | None = None
    beta: Array | None = None
    decay: Array | None = None


State = TypeVar("State", bound=tuple[Array, ...])


def map_state(function: Callable[[Array], Array], state: State) -> State:
    """Apply ``function`` to every array of a state (a named tuple of arrays)."""
    return type(state)(*map(function, state))
