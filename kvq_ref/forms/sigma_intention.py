"""sigma-Intention: softmax attention of preconditioned queries.

    q*_i  = (sum_j m_ij k_j k_j^T + alpha I)^-1 q_i          the query, in units of the keys that it sees
    z_ij  = scale * q*_i . k_j
    out_i = sum_j softmax_j(z_ij + b_ij) v_j

It stands to softmax attention as Intention stands to linear attention: as
alpha grows, q* tends to q / alpha, and with scale = alpha * s the form tends to
softmax attention of scale s.

Causal: token t is preconditioned by the keys 0..t alone. To mask the scores of
the non-causal form would leak the future through K^T K.

A choice made here: the abstract states that Intention has a variant which
generalises softmax attention; that the softmax runs over the scores of
preconditioned queries is this package's reading of it. scale defaults to 1,
for q*.k has no factor of d to take out.

Cost: softmax attention's, and O(Tk d^2 + d^3 + Tq d^2) for the
preconditioner; causal O(T d^3), with O(T d^2) memory.
Source: Garnelo & Czarnecki 2023 (arXiv 2305.10203).
"""

from __future__ import annotations

from typing import Any

from kvq_ref import solve
from kvq_ref.forms import softmax
from kvq_ref.types import Array, Grads

Saved = tuple[Any, softmax.Saved]


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    solver: str = "auto",
) -> tuple[Array, Saved]:
    scale = 1.0 if scale is None else scale
    q_star, fit = solve.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver)
    out, attend = softmax.forward(q_star, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale)
    return out, (fit, attend)


def backward(dout: Array, saved: Saved) -> Grads:
    fit, attend = saved
    # out = softmax_attention(q*, k, v)
    through = softmax.backward(dout, attend)
    # q* = precondition(q, k): the keys have had a second part to play
    dq, dk, dalpha, _ = solve.precondition_backward(through.q, fit)
    return Grads(q=dq, k=through.k + dk, v=through.v, bias=through.bias, alpha=dalpha)
