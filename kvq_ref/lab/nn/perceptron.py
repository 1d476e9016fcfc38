"""The two-layer perceptron of a block:   h = activation(x W1 + b1),   y = h W2 + b2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvq_ref.lab.nn.compiled import layer
from kvq_ref.lab.nn.layers import ACTIVATIONS, linear
from kvq_ref.types import Array


def perceptron_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The parameters of :func:`perceptron`."""
    return {"in.weight": (width, hidden), "in.bias": (hidden,), "out.weight": (hidden, width), "out.bias": (width,)}


@layer
def perceptron(
    p: Mapping[str, Array], x: Array, *, activation: str = "gelu"
) -> tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]:
    """Each token by itself.

    Parameters
    ----------
    p : mapping of str to array
        Named as in :func:`perceptron_shapes`.
    x : array, shape (..., width)
    activation : {"gelu", "relu"}

    Returns
    -------
    y : array, shape (..., width)
    pullback : callable
        dy to (dx, gradients of p).

    Examples
    --------
    >>> import numpy as np
    >>> p = {name: np.ones(shape) for name, shape in perceptron_shapes(2, 3).items()}
    >>> y, pullback = perceptron(p, np.zeros((5, 2)), activation="relu")
    >>> y[0], pullback(y)[1]["out.bias"]
    (array([4., 4.]), array([20., 20.]))
    """
    h, from_in = linear(x, p["in.weight"], p["in.bias"])
    h, from_activation = ACTIVATIONS[activation](h)
    y, from_out = linear(h, p["out.weight"], p["out.bias"])

    def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
        grads = {}
        dh, grads["out.weight"], grads["out.bias"] = from_out(dy)
        dx, grads["in.weight"], grads["in.bias"] = from_in(from_activation(dh))
        return dx, grads

    return y, pullback
