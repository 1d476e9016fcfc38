"""Expressive Intention: expressive attention of preconditioned queries.

    q*_i  = (sum_j m_ij k_j k_j^T + alpha I)^-1 q_i          the query, in units of the keys that it sees
    z_ij  = scale * q*_i . k_j
    out_i = sum_j w_ij v_j / sum_j w_ij,   w_ij = m_ij * exp(b_ij) * z_ij^2 / (1 + z_ij^2)

The sixth place of the grid: what a query becomes (q*, as in Intention) and what
a score becomes (f, as in expressive attention) are independent choices. We know
of no paper that has it.

At small alpha z_ij is the weight that ridge regression gives to example j when
it predicts at q_i (a row of the hat matrix, if the queries are the keys), so
this is a kernel smoother whose kernel is the squared influence of each example.

Causal: token t is preconditioned by the keys 0..t alone.

Cost: expressive attention's, and O(Tk d^2 + d^3 + Tq d^2) for the
preconditioner; causal O(T d^3), with O(T d^2) memory.
Source: this package, from Garnelo & Czarnecki 2023 (arXiv 2305.10203) and Gros 2024 (arXiv 2407.18601).
"""

from __future__ import annotations

from typing import Any

from kvq_ref import solve
from kvq_ref.forms import expressive
from kvq_ref.types import Array, Grads

Saved = tuple[Any, expressive.Saved]


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
    q_star, fit = solve.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver)
    out, attend = expressive.forward(q_star, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale)
    return out, (fit, attend)


def backward(dout: Array, saved: Saved) -> Grads:
    fit, attend = saved
    # out = expressive_attention(q*, k, v)
    through = expressive.backward(dout, attend)
    # q* = precondition(q, k): the keys have had a second part to play
    dq, dk, dalpha, _ = solve.precondition_backward(through.q, fit)
    return Grads(q=dq, k=through.k + dk, v=through.v, bias=through.bias, alpha=dalpha)
