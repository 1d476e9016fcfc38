"""A training step of kvq_ref.lab.nn, as a loop over batches makes it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.bench.peers import Arrays, Variant
from kvq_ref.bench.training import RATE, Step, parameters
from kvq_ref.kernels import missing
from kvq_ref.lab.nn.losses import cross_entropy
from kvq_ref.lab.nn.optimizers import AdamW


def prepare(step: Step, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """The formulas in NumPy, and the kernels."""
    variants = {"reference": _variant(step, arrays, "reference")}
    if missing is not None:
        return variants, {"compiled": f"the compiled kernels are not installed ({missing})"}
    return variants | {"compiled": _variant(step, arrays, None)}, {}


def _variant(step: Step, arrays: Arrays, implementation: str | None) -> Variant:
    model, p = step.transformer(), parameters(step, arrays["parameters"])
    optimizer = AdamW()

    def call() -> Any:
        logits, pullback = model.apply(p, arrays["tokens"])
        loss, dlogits = cross_entropy(logits, arrays["targets"])
        g = pullback(dlogits)
        optimizer.step(p.flat, g.flat, RATE)
        return loss, g

    def around() -> contextlib.AbstractContextManager[Any]:
        return kvq.use_implementation(implementation)

    return Variant(call, _results, around)


def _results(returned: Any) -> Arrays:
    loss, g = returned
    return {"loss": np.asarray(loss), **{name: np.array(x) for name, x in g.items()}}
