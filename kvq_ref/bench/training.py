"""Training steps: what is measured, and the same numbers to begin with in every process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.bench.jobs import Job
from kvq_ref.lab.nn.model import Transformer
from kvq_ref.lab.nn.parameters import Parameters

VOCABULARY = 8
RATE = 1e-3
POSITIONS = ("none", "alibi")


@dataclass(frozen=True)
class Step:
    """A training step: forward, cross-entropy, backward, AdamW.

    Attributes
    ----------
    model : str
        A key of MODELS.
    layers, width, heads, batch, T : int
    positions : str
        Of POSITIONS.
    dtype : str
        "float32" or "float64".
    """

    model: str
    layers: int
    width: int
    heads: int
    batch: int
    T: int
    positions: str = "none"
    dtype: str = "float32"

    def transformer(self) -> Transformer:
        """The model; softmax attention."""
        sizes = {name: getattr(self, name) for name in ("layers", "width", "heads", "positions")}
        return Transformer(VOCABULARY, VOCABULARY, context=self.T, **sizes)

    def __str__(self) -> str:
        sizes = f"{self.layers} layers, width {self.width}, {self.heads} heads, batch {self.batch}, T {self.T}"
        return f"{sizes}, {self.positions}" if self.positions != "none" else sizes


MODELS = {"small": (2, 32, 2, 64, 12), "large": (4, 128, 4, 32, 64)}
QUICK_MODELS = ("small",)


def steps(models: Iterable[str] = tuple(MODELS), positions: str = "none", dtype: str = "float32") -> list[Step]:
    """The steps of these models.

    Examples
    --------
    >>> [str(step) for step in steps(["small"])]
    ['2 layers, width 32, 2 heads, batch 64, T 12']
    """
    return [Step(name, *MODELS[name], positions, dtype) for name in models]


def as_job(fields: dict[str, Any]) -> Job | Step:
    """A job that was plain data for a while.

    Examples
    --------
    >>> step = steps(["small"])[0]
    >>> as_job(vars(step)) == step
    True
    """
    return Step(**fields) if "layers" in fields else Job.from_fields(fields)


def inputs(step: Step, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Tokens, targets, and the parameters to begin with, in one flat array.

    Examples
    --------
    >>> {name: x.shape for name, x in inputs(steps(["small"])[0], 0).items()}
    {'tokens': (64, 12), 'targets': (64, 12), 'parameters': (25992,)}
    """
    rng = np.random.default_rng([seed, step.layers, step.width, step.batch, step.T])
    tokens, targets = rng.integers(0, VOCABULARY, (2, step.batch, step.T))
    return {"tokens": tokens, "targets": targets, "parameters": step.transformer().init(rng, step.dtype).flat}


def parameters(step: Step, flat: np.ndarray[Any, Any]) -> Parameters:
    """Parameters of one's own, to be trained."""
    return Parameters(step.transformer().shapes(), flat.copy())
