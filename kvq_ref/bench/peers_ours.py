"""kvq_ref itself, called as its users call it; results are allocated by the library."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import kvq_ref as kvq
from kvq_ref import kernels
from kvq_ref.bench.jobs import ALPHA, FORMS, Job
from kvq_ref.bench.peers import Arrays, Variant


def prepare(job: Job, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """The readable reference, and the public call as the kernels serve it, where they do."""
    variants = {"reference": Variant(_call(job, arrays, "reference"), _results)}  # first: it is what others must equal
    left_out: dict[str, str] = {}
    try:
        _call(job, {name: x[..., :1, :] for name, x in arrays.items()}, "compiled")()
        variants["compiled"] = Variant(_call(job, arrays, None), _results)
    except ValueError as error:  # no kernel for this form, this option or this installation
        left_out["compiled"] = str(error)
    return variants, left_out


def _call(job: Job, arrays: Arrays, implementation: str | None) -> Callable[[], Any]:
    form = getattr(kvq, FORMS[job.form])
    q, k, v, dout = (arrays[name] for name in ("q", "k", "v", "dout"))
    options: dict[str, Any] = {"implementation": implementation} if implementation else {}
    options |= ({"is_causal": True} if job.causal else {}) | ({"alpha": ALPHA} if job.is_solved else {})

    def forward() -> Any:
        return form(q, k, v, **options)

    def keep() -> Any:
        return kvq.vjp(form, q, k, v, **options)

    def both() -> Any:
        out, pullback = kvq.vjp(form, q, k, v, **options)
        return out, pullback(dout)

    return {"f": forward, "vjp": keep, "fb": both}[job.what]


def _results(returned: Any) -> Arrays:
    if not isinstance(returned, tuple):
        return {"out": returned}
    out, rest = returned
    return {"out": out} if callable(rest) else {"out": out, "dq": rest.q, "dk": rest.k, "dv": rest.v}


def versions() -> dict[str, str]:
    """Of the package, its libraries and its kernels."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", "scipy")}
    level = f"SIMD level {kernels.simd_level()}" if kernels.missing is None else f"none ({kernels.missing})"
    return {"kvq_ref": kvq.__version__, **found, "kernels": level}
