"""A perceptron of any number of hidden layers:   h = activation(h W + b) in each of them, then y = h W + b."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from kvq_ref.lab.nn.layers import ACTIVATIONS, linear
from kvq_ref.types import Array


def encoder_shapes(inputs: int, width: int, depth: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The parameters of :func:`encode`: ``depth`` hidden layers of ``width`` units.

    >>> list(encoder_shapes(1, 64, 2, 64).values())
    [(1, 64), (64,), (64, 64), (64,), (64, 64), (64,)]
    """
    sizes = [inputs, *[width] * depth, outputs]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{i}.weight": (n, m), f"{i}.bias": (m,)}
    return shapes


def encode(
    p: Mapping[str, Array], x: Array, *, activation: str = "gelu"
) -> tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]:
    """Each row by itself.

    Parameters
    ----------
    p : mapping of str to array
        Named as in :func:`encoder_shapes`; it has two for each layer.
    x : array, shape (..., inputs)
    activation : {"gelu", "relu"}

    Returns
    -------
    y : array, shape (..., outputs)
    pullback : callable
        dy to (dx, gradients of p).

    Examples
    --------
    >>> import numpy as np
    >>> p = {name: np.ones(shape) for name, shape in encoder_shapes(2, 3, 1, 1).items()}
    >>> y, pullback = encode(p, np.zeros((5, 2)), activation="relu")
    >>> y[0], pullback(y)[1]["1.bias"]
    (array([4.]), array([20.]))
    """
    layers = len(p) // 2
    pullbacks = []
    for i in range(layers):
        x, from_linear = linear(x, p[f"{i}.weight"], p[f"{i}.bias"])
        pullbacks.append(from_linear)
        if i < layers - 1:
            x, from_activation = ACTIVATIONS[activation](x)
            pullbacks.append(from_activation)

    def pullback(dx: Array) -> tuple[Array, dict[str, Array]]:
        grads = {}
        for i in reversed(range(layers)):
            if i < layers - 1:
                dx = pullbacks[2 * i + 1](dx)
            dx, grads[f"{i}.weight"], grads[f"{i}.bias"] = pullbacks[2 * i](dx)
        return dx, grads

    return x, pullback
