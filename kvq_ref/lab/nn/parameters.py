"""All parameters of a model in one flat array, with names for its parts.

An optimiser then needs a handful of operations for a step, whatever the number
of layers; and gradients have the same names as what they are gradients of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from kvq_ref.lab.nn.compiled import empty_like
from kvq_ref.types import Array

Shapes = Mapping[str, tuple[int, ...]]


class Parameters(Mapping[str, Array]):
    """Named views of one flat array.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The parts, in their order in the array.
    flat : array, shape (n,)
        As many numbers as the parts have together. It is not copied.

    Raises
    ------
    ValueError
        If ``flat`` has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> p = Parameters({"weight": (2, 3), "bias": (3,)}, np.zeros(9))
    >>> p["bias"][:] = 1
    >>> p.flat
    array([0., 0., 0., 0., 0., 0., 1., 1., 1.])
    """

    def __init__(self, shapes: Shapes, flat: Array) -> None:
        ends = list(itertools.accumulate(map(math.prod, shapes.values()), initial=0))
        if flat.shape != (ends[-1],):
            raise ValueError(f"flat: expected shape ({ends[-1]},), got {tuple(flat.shape)}")
        self.shapes = dict(shapes)
        self.flat = flat
        places = zip(shapes.items(), itertools.pairwise(ends), strict=True)
        self._views = {name: flat[begin:end].reshape(shape) for (name, shape), (begin, end) in places}

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def empty_like(self) -> Parameters:
        """The same names over a new array whose numbers are yet to be written."""
        return Parameters(self.shapes, empty_like(self.flat))
