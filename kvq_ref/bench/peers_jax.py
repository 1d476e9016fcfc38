"""JAX on the CPU, each formulation under jit as a whole."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from typing import Any

from kvq_ref.bench.jobs import ALPHA, Job
from kvq_ref.bench.peers import Arrays, Variant, too_large

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)  # float32 in is float32 out all the same

Function = Callable[[Any, Any, Any], Any]


def prepare(job: Job, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """Every formulation, under jit whatever ``compiled`` says."""
    variants: dict[str, Variant] = {}
    left_out: dict[str, str] = {}
    if job.what == "vjp":
        return variants, {"formula": "under jit, forward and backward are one function"}
    for name, function, needs in _formulas(job):
        if reason := too_large(needs):
            left_out[name] = reason
        else:
            variants[name] = _variant(job, function, arrays)
    return variants, left_out


def _variant(job: Job, function: Function, arrays: Arrays) -> Variant:
    q, k, v, dout = (jnp.asarray(arrays[name]) for name in ("q", "k", "v", "dout"))

    def both(q: Any, k: Any, v: Any, dout: Any) -> Any:
        out, pullback = jax.vjp(function, q, k, v)
        return out, *pullback(dout)

    if job.what == "fb":
        jitted = jax.jit(both)
        return Variant(lambda: jax.block_until_ready(jitted(q, k, v, dout)), _results)
    jitted = jax.jit(lambda q, k, v: (function(q, k, v),))
    return Variant(lambda: jax.block_until_ready(jitted(q, k, v)), _results)


def _results(returned: Any) -> Arrays:
    numpy: Any = importlib.import_module("numpy")
    return {name: numpy.asarray(x) for name, x in zip(("out", "dq", "dk", "dv"), returned, strict=False)}


def versions() -> dict[str, str]:
    """Of JAX and its compiler."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


# ---- Formulations --------------------------------------------------------------------


def _formulas(job: Job) -> Iterator[tuple[str, Function, float]]:
    """Name, function of q, k and v, and the bytes that it needs."""
    batch, heads, T, d = job.shape
    twice = 2 if job.what == "fb" else 1
    area = batch * heads * T * T * job.itemsize * 2.0 * twice
    matrices = batch * heads * T * d * d * job.itemsize * 4.0 * twice
    scores = {"softmax": _softmax(job), "expressive": _expressive(job), "sigma_intention": _softmax(job, scale=1.0)}
    if job.form in ("softmax", "expressive"):
        yield "formula", scores[job.form], area
        if job.form == "softmax" and job.dtype == "float32":  # it takes the softmax in float32 whatever it is given
            yield "dot_product_attention", _dot_product(job), area
    elif job.form == "linear" and job.causal:
        yield "scores", _causal_product, area
        for chunk in (64, 128):
            if chunk < T and T % chunk == 0:
                yield f"chunks of {chunk}", _chunked(chunk), 0.0
    elif job.form == "linear":
        yield "state", lambda q, k, v: q @ (k.mT @ v), 0.0
    elif job.causal:
        finish = scores.get(job.form, _causal_product)
        yield "loop", lambda q, k, v: finish(_loop(q, k), k, v), area + (matrices if job.what == "fb" else 0.0)
        yield "prefixes", lambda q, k, v: finish(_prefixes(q, k), k, v), area + matrices
    elif job.form == "intention":
        yield "cho_solve", lambda q, k, v: q @ _ridge(k, k.mT @ v), 0.0
    else:
        finish = scores[job.form]
        yield "cho_solve", lambda q, k, v: finish(_ridge(k, q.mT).mT, k, v), area


def _softmax(job: Job, scale: float | None = None) -> Function:
    factor = 1 / math.sqrt(job.shape[-1]) if scale is None else scale

    def formula(q: Any, k: Any, v: Any) -> Any:
        z = (q * q.dtype.type(factor)) @ k.mT
        return jax.nn.softmax(jnp.where(_seen(job), z, -jnp.inf) if job.causal else z, axis=-1) @ v

    return formula


def _dot_product(job: Job) -> Function:
    def formula(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # it wants time before heads
        return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=job.causal), 1, 2)

    return formula


def _expressive(job: Job) -> Function:
    def formula(q: Any, k: Any, v: Any) -> Any:
        z = q @ k.mT
        z2 = z * z
        w = z2 / (1 + z2)
        w = jnp.where(_seen(job), w, 0) if job.causal else w
        return (w @ v) / w.sum(-1, keepdims=True)

    return formula


def _seen(job: Job) -> Any:
    return jnp.tri(job.shape[2], dtype=bool)


def _causal_product(q: Any, k: Any, v: Any) -> Any:
    return jnp.tril(q @ k.mT) @ v


def _chunked(chunk: int) -> Function:
    def formula(q: Any, k: Any, v: Any) -> Any:
        shape = v.shape
        q, k, v = (x.reshape(*x.shape[:-2], -1, chunk, x.shape[-1]) for x in (q, k, v))
        states = k.mT @ v
        before = jnp.cumsum(states, -3) - states
        return (_causal_product(q, k, v) + q @ before).reshape(shape)

    return formula


def _solve(h: Any, b: Any) -> Any:
    linalg: Any = importlib.import_module("jax.scipy.linalg")
    return linalg.cho_solve((jnp.linalg.cholesky(h), True), b)


def _ridge(k: Any, b: Any) -> Any:
    return _solve(k.mT @ k + ALPHA * jnp.eye(k.shape[-1], dtype=k.dtype), b)


def _prefixes(q: Any, k: Any) -> Any:
    outer = k[..., :, None] * k[..., None, :]
    h = jnp.cumsum(outer, -3) + ALPHA * jnp.eye(k.shape[-1], dtype=k.dtype)
    return _solve(h, q[..., None])[..., 0]


def _loop(q: Any, k: Any) -> Any:
    """The formula of Sherman and Morrison, one key at a time."""

    def step(p: Any, row: Any) -> Any:
        k, q = row
        pk = jnp.einsum("...ij,...j->...i", p, k)
        gain = pk / (1 + jnp.sum(k * pk, -1, keepdims=True))
        p = p - gain[..., :, None] * pk[..., None, :]
        return p, jnp.einsum("...ij,...j->...i", p, q)

    d = k.shape[-1]
    start = jnp.broadcast_to(jnp.eye(d, dtype=k.dtype) / ALPHA, (*k.shape[:-2], d, d))
    _, rows = jax.lax.scan(step, start, (jnp.moveaxis(k, -2, 0), jnp.moveaxis(q, -2, 0)))
    return jnp.moveaxis(rows, 0, -2)
