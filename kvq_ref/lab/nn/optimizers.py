"""From gradients to steps. An optimiser keeps flat arrays beside the flat array of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvq_ref.lab.nn.compiled import function
from kvq_ref.types import Array


@dataclass
class SGD:
    """Gradient descent with momentum: m <- momentum m + g, x <- x - rate m.

    Attributes
    ----------
    momentum : float
    weight_decay : float
        Added to the gradient, times the parameters.
    state : dict of array
        What it remembers between steps.

    Examples
    --------
    >>> x = np.array([1.0])
    >>> SGD().step(x, np.array([2.0]), rate=0.1)
    >>> x
    array([0.8])
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    state: dict[str, Array] = field(default_factory=dict)

    def step(self, x: Array, g: Array, rate: float) -> None:
        """Change x, given its gradient g; both flat."""
        m = self.state.setdefault("momentum", np.zeros_like(x)) if self.momentum else None
        sgd(x, g, m, rate=rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass
class AdamW:
    """Adam with decay of the weights apart from the gradient (Loshchilov & Hutter 2017).

    Attributes
    ----------
    beta1, beta2 : float
        How much of the mean gradient and the mean square is kept in a step.
    eps : float
    weight_decay : float
    state : dict of array
        "mean", "square", and the number of "steps".

    Examples
    --------
    >>> x = np.array([1.0, 1.0])
    >>> AdamW().step(x, np.array([5.0, -0.1]), rate=0.1)
    >>> x.round(6)
    array([0.9, 1.1])
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    state: dict[str, Array] = field(default_factory=dict)

    def step(self, x: Array, g: Array, rate: float) -> None:
        """Change x, given its gradient g; both flat."""
        mean = self.state.setdefault("mean", np.zeros_like(x))
        square = self.state.setdefault("square", np.zeros_like(x))
        steps = self.state["steps"] = self.state.get("steps", 0) + 1
        # mean and square began at zero: their expectation is short by these factors
        short1, short2 = 1 - self.beta1**steps, 1 - self.beta2**steps
        adamw(
            *(x, g, mean, square),
            rate=rate / short1,
            unbias=short2**-0.5,
            keep=1 - rate * self.weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
        )


@function
def sgd(x: Array, g: Array, m: Array | None, *, rate: float, momentum: float, weight_decay: float) -> bool:
    """A step of :class:`SGD`: x, and m if there is one, are changed."""
    if weight_decay:
        g = g + weight_decay * x
    if m is not None:
        m *= momentum
        m += g
        g = m
    x -= rate * g
    return True


@function
def adamw(
    x: Array,
    g: Array,
    mean: Array,
    square: Array,
    *,
    rate: float,
    unbias: float,
    keep: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> bool:
    """A step of :class:`AdamW`: x becomes keep x - rate mean / (unbias sqrt(square) + eps); mean and square are new."""
    mean += (1 - beta1) * (g - mean)
    square += (1 - beta2) * (g * g - square)
    x *= keep
    x -= rate * (mean / (unbias * np.sqrt(square) + eps))
    return True


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}
