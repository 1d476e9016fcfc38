"""Causal least squares in PyTorch: query t is preconditioned by H_t = alpha I + sum of k_j k_j^T over j <= t.

Either all H_t are written down and factored in one batch, or a loop over time
keeps H_t^-1 by the formula of Sherman and Morrison. Both are batched over batch
and heads; PyTorch has no scan that would compile the loop as a whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from kvq_ref.bench.jobs import ALPHA, Job

torch: Any = importlib.import_module("torch")

Tensor = Any
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Precondition = Callable[[Tensor, Tensor], Tensor]  # of q and k


def preconditioners(job: Job, wrap: Wrap) -> Iterator[tuple[str, Precondition, float]]:
    """Name, function of q and k, and the bytes that it needs."""
    batch, heads, T, d = job.shape
    matrices = batch * heads * T * d * d * job.itemsize
    step = wrap(_step)
    for name, solve in (("cholesky_solve", _by_cholesky), ("linalg.solve", _by_lu)):
        yield f"prefixes, {name}", wrap(_prefixes(solve)), matrices * (8 if job.what == "fb" else 3)
    kept = 2 * matrices if job.what == "fb" else 0
    yield "loop", lambda q, k: _loop(step, q, k), kept


def _prefixes(solve: Callable[[Tensor, Tensor], Tensor]) -> Precondition:
    def precondition(q: Tensor, k: Tensor) -> Tensor:
        outer = k.unsqueeze(-1) * k.unsqueeze(-2)
        h = outer.cumsum(-3) + ALPHA * torch.eye(k.shape[-1], dtype=k.dtype)
        return solve(h, q.unsqueeze(-1)).squeeze(-1)

    return precondition


def _by_cholesky(h: Tensor, b: Tensor) -> Tensor:
    return torch.cholesky_solve(b, torch.linalg.cholesky(h))


def _by_lu(h: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(h, b)


# ---- Loops over time -----------------------------------------------------------------


def _step(p: Tensor, k: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """H^-1 with one more key, and what it makes of q; k and q are columns."""
    pk = torch.bmm(p, k)
    gain = pk / (1 + torch.bmm(k.mT, pk))
    p = torch.baddbmm(p, gain, pk.mT, alpha=-1)
    return p, torch.bmm(p, q)


def weights_step(p: Tensor, w: Tensor, k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Recursive least squares: H^-1 and the weights with one more key and value, and the prediction at q."""
    pk = torch.bmm(p, k)
    gain = pk / (1 + torch.bmm(k.mT, pk))
    p = torch.baddbmm(p, gain, pk.mT, alpha=-1)
    w = torch.baddbmm(w, gain, v - torch.bmm(k.mT, w))
    return p, w, torch.bmm(q, w)


def _start(k: Tensor) -> Tensor:
    d = k.shape[-1]
    return (torch.eye(d, dtype=k.dtype) / ALPHA).expand(k.shape[0], d, d).contiguous()


def _loop(step: Callable[..., Any], q: Tensor, k: Tensor) -> Tensor:
    shape = q.shape
    q, k = (x.flatten(0, -3).unsqueeze(-1).unbind(-3) for x in (q, k))
    p, rows = _start(k[0].mT), []
    for k_t, q_t in zip(k, q, strict=True):
        p, y = step(p, k_t, q_t)
        rows.append(y)
    return torch.stack(rows, -3).reshape(shape)


def fit_and_predict(step: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal Intention by a loop that carries the weights along; ``step`` is weights_step, as it is or compiled."""
    shape = v.shape
    columns = k.flatten(0, -3).unsqueeze(-1).unbind(-3)
    rows_q, rows_v = (x.flatten(0, -3).unsqueeze(-2).unbind(-3) for x in (q, v))
    p, rows = _start(columns[0].mT), []
    w = p.new_zeros(p.shape[0], p.shape[1], shape[-1])
    for k_t, v_t, q_t in zip(columns, rows_v, rows_q, strict=True):
        p, w, out = step(p, w, k_t, v_t, q_t)
        rows.append(out)
    return torch.stack(rows, -3).reshape(shape)
