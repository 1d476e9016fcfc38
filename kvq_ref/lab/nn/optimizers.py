"""From gradients to steps. An optimiser keeps flat arrays beside the flat array of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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
        if self.weight_decay:
            g = g + self.weight_decay * x
        if self.momentum:
            m = self.state.setdefault("momentum", np.zeros_like(x))
            m *= self.momentum
            m += g
            g = m
        x -= rate * g


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
        if self.weight_decay:
            x *= 1 - rate * self.weight_decay
        mean += (1 - self.beta1) * (g - mean)
        square += (1 - self.beta2) * (g * g - square)
        # both began at zero: their expectation is short by these factors
        root = np.sqrt(square)
        root /= (1 - self.beta2**steps) ** 0.5
        root += self.eps
        x -= (rate / (1 - self.beta1**steps)) * (mean / root)


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}
