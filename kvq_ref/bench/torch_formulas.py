"""Each form as a PyTorch user would write it: several ways, of which the fastest counts.

``wrap`` is the identity, or torch.compile: of a whole formula, or of one step
where a formula is a loop over time, which compiled as a whole would be unrolled.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kvq_ref.bench.jobs import ALPHA, Job
from kvq_ref.bench.torch_causal import Precondition, fit_and_predict, preconditioners, weights_step

torch: Any = importlib.import_module("torch")
F: Any = importlib.import_module("torch.nn.functional")
attention: Any = importlib.import_module("torch.nn.attention")

Tensor = Any
Function = Callable[[Tensor, Tensor, Tensor], Tensor]
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
CHUNKS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Formula:
    """A function of q, k, v; the bytes that it needs between inputs and results; the SDPA backend to force."""

    name: str
    function: Function
    needs: float = 0.0
    backend: Any = None


def formulas(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    """Formulations of a job."""
    make = {
        "softmax": _softmax,
        "expressive": _expressive,
        "linear": _causal_linear if job.causal else _linear,
        "intention": _causal_intention if job.causal else _intention,
        "sigma_intention": _sigma_intention,
    }[job.form]
    yield from make(job, wrap, compiled)


def _area(job: Job, copies: int) -> float:
    """Bytes of so many T x T arrays, and of as many again for their gradients."""
    batch, heads, T, _ = job.shape
    return batch * heads * T * T * job.itemsize * copies * (2 if job.what == "fb" else 1)


def _softmax(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    T, d = job.shape[2:]
    causal, scale = job.causal, 1 / math.sqrt(d)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None

    def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        z = (q * scale) @ k.mT
        if hidden is not None:
            z = z.masked_fill(hidden, -math.inf)
        return z.softmax(-1) @ v

    if not compiled:
        yield Formula("SDPA", product)
        for name, backend in attention.SDPBackend.__members__.items():
            if name != "ERROR" and _can(backend, job):
                needs = _area(job, 2) if name == "MATH" else 0.0
                yield Formula(f"SDPA {name.lower().removesuffix('_attention')}", product, needs, backend)
    yield Formula("formula", wrap(formula), _area(job, 2))


def _can(backend: Any, job: Job) -> bool:
    """Whether this installation has that backend for such arrays."""
    x = torch.zeros(1, 1, 2, job.shape[3], dtype=getattr(torch, job.dtype))
    try:
        with attention.sdpa_kernel(backend):
            F.scaled_dot_product_attention(x, x, x, is_causal=job.causal)
    except RuntimeError:
        return False
    return True


def _expressive(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    causal = job.causal

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        z = q @ k.mT
        z2 = z * z
        w = z2 / (1 + z2)
        if causal:
            w = w.tril()
        return (w @ v) / w.sum(-1, keepdim=True)

    def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        z2 = (q @ k.mT).square_()
        w = z2.div_(z2 + 1)
        if causal:
            w = w.tril_()
        return (w @ v).div_(w.sum(-1, keepdim=True))

    yield Formula("formula", wrap(formula), _area(job, 3))
    if job.what == "f" and not compiled:
        yield Formula("in place", in_place, _area(job, 2))


def _linear(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    def by_state(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ (k.mT @ v)

    def by_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT) @ v

    yield Formula("state", wrap(by_state))
    if job.shape[2] <= job.shape[3]:
        yield Formula("scores", wrap(by_scores))


def causal_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention by its T x T scores."""
    return (q @ k.mT).tril() @ v


def _chunked(chunk: int) -> Function:
    """Scores within a chunk of time; what is before it, by the sum of k v^T."""

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = v.shape
        q, k, v = (x.unflatten(-2, (-1, chunk)) for x in (q, k, v))
        states = k.mT @ v
        before = states.cumsum(-3) - states
        return (causal_product(q, k, v) + q @ before).reshape(shape)

    return formula


def _causal_linear(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    T = job.shape[2]
    yield Formula("scores", wrap(causal_product), _area(job, 2))
    for chunk in CHUNKS:
        if chunk < T and T % chunk == 0:
            yield Formula(f"chunks of {chunk}", wrap(_chunked(chunk)))


# ---- Least squares -------------------------------------------------------------------


def _ridge(k: Tensor) -> Tensor:
    return k.mT @ k + ALPHA * torch.eye(k.shape[-1], dtype=k.dtype)


def _by_cholesky(k: Tensor, b: Tensor) -> Tensor:
    return torch.cholesky_solve(b, torch.linalg.cholesky(_ridge(k)))


def _by_lu(k: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(_ridge(k), b)


def _by_triangles(k: Tensor, b: Tensor) -> Tensor:
    lower = torch.linalg.cholesky(_ridge(k))
    half = torch.linalg.solve_triangular(lower, b, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)


SOLVERS = {"cholesky_solve": _by_cholesky, "linalg.solve": _by_lu, "solve_triangular": _by_triangles}


def _intention(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    for name, solve in SOLVERS.items():

        def formula(q: Tensor, k: Tensor, v: Tensor, solve: Any = solve) -> Tensor:
            return q @ solve(k, k.mT @ v)

        yield Formula(name, wrap(formula))


def _after(precondition: Precondition, attend: Function) -> Function:
    return lambda q, k, v: attend(precondition(q, k), k, v)


def _causal_intention(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    for name, precondition, needs in preconditioners(job, wrap):
        yield Formula(name, _after(precondition, causal_product), needs + _area(job, 1))
    step = wrap(weights_step)
    yield Formula("loop with weights", lambda q, k, v: fit_and_predict(step, q, k, v), needs)


def _sigma_intention(job: Job, wrap: Wrap, compiled: bool) -> Iterator[Formula]:
    """Softmax attention, by SDPA, of preconditioned queries."""
    causal = job.causal

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)

    if causal:
        for name, precondition, needs in preconditioners(job, wrap):
            yield Formula(name, _after(precondition, attend), needs)
        return
    for name, solve in SOLVERS.items():

        def formula(q: Tensor, k: Tensor, v: Tensor, solve: Any = solve) -> Tensor:
            return attend(solve(k, q.mT).mT, k, v)

        yield Formula(name, wrap(formula))
