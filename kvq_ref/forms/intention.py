"""Intention: attention by least squares.

    W_i   = argmin_W  sum_j m_ij |v_j - k_j W|^2 + alpha |W|^2      ridge regression, keys to values
    out_i = q_i W_i                                                 evaluated at the query

Solved: W = (K^T K + alpha I)^-1 K^T V. Two ways to bracket Q (K^T K + alpha I)^-1 K^T V
are the two ways to see it:

    Q [(K^T K + alpha I)^-1 K^T V]      fit once, predict at every query: used where all see the same keys
    [Q (K^T K + alpha I)^-1] K^T V      linear attention of preconditioned queries q*: used where
                                        each query has a regression of its own (causal: keys 0..i)

As alpha grows, alpha * out tends to linear attention; at alpha = 0 it is the
minimum-norm least-squares fit, which returns v_j at q = k_j if the keys are
independent.

Recurrent use: (K^T K, K^T V) is all that the past leaves behind. Its inverse could be carried along
instead, one key after the other: recursive least squares, by the Sherman-Morrison formula

    (H + k k^T)^-1 = H^-1 - H^-1 k k^T H^-1 / (1 + k^T H^-1 k)

It is the same in exact arithmetic, but rounding adds up from step to step: what is solved here is solved afresh.

Cost: time O(Tk d^2 + d^3 + (Tq + Tk) d dv), memory O(d (d + dv)); dual form, for Tk < d,
with Tk and d exchanged. Causal: time O(T d^3 + T^2 (d + dv)), memory O(T d^2 + T^2).
Source: Garnelo & Czarnecki 2023, "Exploring the space of key-value-query models
with Intention" (arXiv 2305.10203); causal: von Oswald et al. 2023, the mesa layer (arXiv 2309.05858).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvq_ref import solve
from kvq_ref.arrays import add_once, namespace, transpose
from kvq_ref.forms import linear
from kvq_ref.masks import hide_keys, is_key_mask
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


class IntentionState(NamedTuple):
    """What Intention keeps of the keys and values that it has seen.

    Attributes
    ----------
    gram : array, shape (..., d, d)
        sum_j k_j k_j^T
    kv : array, shape (..., d, dv)
        sum_j k_j v_j^T
    """

    gram: Array
    kv: Array


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    solver: str = "auto",
    initial_state: IntentionState | None = None,
) -> tuple[Array, Saved]:
    if is_key_mask(mask):
        k, v = hide_keys(mask, k, v)

    if is_key_mask(mask) and not is_causal and initial_state is None:
        w, fit = solve.ridge(k, v, alpha, solver=solver)
        return q @ w, (q, k, v, mask, w, fit, None)

    gram, past = None, None
    if initial_state is not None:
        gram, kv = initial_state
        past = linear.LinearState(kv=kv, k_sum=namespace(kv).sum(kv, axis=-1, keepdims=True))  # a column nobody reads
    q_star, fit = solve.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver, gram=gram)
    out, weigh = linear.forward(q_star, k, v, mask=mask, is_causal=is_causal, initial_state=past)
    return out, (q, k, v, mask, None, fit, weigh)


def backward(dout: Array, saved: Saved, dstate: IntentionState | None = None) -> Grads:
    q, k, v, mask, w, fit, weigh = saved

    if w is not None:
        # out = q w,  w = ridge(k, v)
        dq = dout @ transpose(w)
        dk, dv, dalpha = solve.ridge_backward(transpose(q) @ dout, fit)
        dgram = dkv = None
    else:
        # out = linear(q*, k, v),  q* = precondition(q, k)
        through = linear.backward(dout, weigh)
        dq, dk, dalpha, dgram = solve.precondition_backward(through.q, fit)
        dk = dk + through.k
        dv, dkv = through.v, through.initial_state[0] if through.initial_state else None

    if dstate is not None:
        # state = (gram + k^T k, kv + k^T v)
        dk = add_once(dk, k @ (dstate.gram + transpose(dstate.gram)) + v @ transpose(dstate.kv))
        dv = add_once(dv, k @ dstate.kv)
        dgram = add_once(dgram, dstate.gram) if dgram is not None else None
        dkv = add_once(dkv, dstate.kv) if dkv is not None else None

    # a hidden key was made zero: it changed nothing
    if is_key_mask(mask):
        dk, dv = hide_keys(mask, dk, dv)
    return Grads(q=dq, k=dk, v=dv, alpha=dalpha, initial_state=None if dgram is None else IntentionState(dgram, dkv))


def final_state(saved: Saved, initial_state: IntentionState | None) -> IntentionState:
    """(K^T K, K^T V) after the last key; ``backward`` takes its gradient as ``dstate``."""
    _, k, v, *_ = saved
    gram, kv = transpose(k) @ k, transpose(k) @ v
    if initial_state is None:
        return IntentionState(gram, kv)
    return IntentionState(initial_state.gram + gram, initial_state.kv + kv)
