"""Mesa attention: causal Intention that forgets.

    H_j   = decay_j H_{j-1} + k_j k_j^T            the two sums that ridge regression needs,
    W_j   = decay_j W_{j-1} + k_j v_j^T            of which the past fades
    out_i = q_i (H + alpha I)^-1 W                 fitted, and evaluated at the query

The least-squares fit of the keys that query i sees to their values, in their order, where a pair counts
with what is left of it: the product c_ij of the decays after it, between 0 and 1,

    argmin_W  sum_j c_ij |v_j - k_j W|^2 + alpha |W|^2

With all decays 1 this is Intention; the form's own step is the decay. alpha is that of Intention and does not fade:
this was chosen, so that it stays the penalty that was asked for, whatever is left of the keys.

The order of the keys matters. Those that query i sees are a sequence; it is read against (H, W) after the last
of them. Both are walked as in gated linear attention, and (H + alpha I)^-1 is that of Intention where K^T K is
all that is known: Cholesky, or the eigenvalues at alpha = 0 (minimum norm) and where Cholesky fails.

Recurrent use: (H, W) is all that the past leaves behind.

Cost: time O(Tk d (d + dv) + d^3 + Tq d (d + dv)), memory O(d (d + dv)), to be differentiated Tk times as much.
Causal: time O(T d^3 + T d dv), memory O(T d (d + dv)). A general mask: Tq walks and Tq regressions.
Source: von Oswald et al. 2023, the mesa layer (arXiv 2309.05858); 2025, "MesaNet" (arXiv 2506.05233).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvq_ref import recurrence, solve
from kvq_ref.arrays import namespace, sum_to_shape
from kvq_ref.forms.gated_linear import walk, walk_backward
from kvq_ref.masks import is_key_mask
from kvq_ref.recurrence import on_walks, per_key
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


class MesaState(NamedTuple):
    """What mesa attention keeps of the keys and values that it has seen.

    Attributes
    ----------
    kk : array, shape (..., d, d)
        H, the sum of k_j k_j^T with what is left of each.
    kv : array, shape (..., d, dv)
        W, the sum of k_j v_j^T with what is left of each.
    """

    kk: Array
    kv: Array


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    decay: Array | None = None,
    initial_state: MesaState | None = None,
) -> tuple[Array, Saved]:
    visible = recurrence.visible_on_walks(mask, is_causal, q, k)
    decay = per_key(decay, k)
    shapes = k.shape, decay.shape
    decay = on_walks(decay, visible, hidden=1.0)
    k, v = on_walks(k, visible, hidden=0.0), on_walks(v, visible)
    kk, kv = (None, None) if initial_state is None else initial_state

    walks = walk(k, k, decay, kk), walk(k, v, decay, kv)

    each_its_own = is_causal and is_key_mask(mask)
    h, w = (recurrence.states_read(states, each_its_own, q.shape[-2]) for states, _ in walks)
    q_star, fit = precondition(q, h, alpha)
    out = recurrence.read(q_star, w)
    return out, (visible, walks, q_star, w, fit, each_its_own, shapes)


def precondition(q: Array, h: Array, alpha: Array) -> tuple[Array, Saved]:
    """(H_i + alpha I)^-1 q_i for H of shape (..., Tq or 1, d, d): one system for all queries, or one for each."""
    no_more_keys = q[..., :0, :]
    if h.shape[-3] == 1:
        return solve.precondition(q, no_more_keys, alpha, gram=h[..., 0, :, :])
    each, none = q[..., None, :], no_more_keys[..., None, :, :]
    q_star, fit = solve.precondition(each, none, alpha[..., None], gram=h)
    return q_star[..., 0, :], fit


def precondition_backward(dq_star: Array, n_systems: int, fit: Saved) -> tuple[Array, Array, Array]:
    """(dq, dalpha, dH)."""
    if n_systems == 1:
        dq, _, dalpha, dh = solve.precondition_backward(dq_star, fit)
        return dq, dalpha, dh[..., None, :, :]
    dq, _, dalpha, dh = solve.precondition_backward(dq_star[..., None, :], fit)
    return dq[..., 0, :], namespace(dq).sum(dalpha, axis=-1), dh


def backward(dout: Array, saved: Saved, dstate: MesaState | None = None) -> Grads:
    visible, ((kk, kk_steps), (kv, kv_steps)), q_star, w, fit, each_its_own, shapes = saved
    dkk, dkv = (None, None) if dstate is None else dstate

    # out = q* W
    dq_star, dw = recurrence.read_backward(dout, q_star, w)
    # q* = (H + alpha I)^-1 q
    dq, dalpha, dh = precondition_backward(dq_star, w.shape[-3], fit)
    # H and W, each along its walk; a key is in H twice
    of_w = recurrence.states_read_backward(dw, kv, each_its_own)
    dk, dv, ddecay, dkv = walk_backward(of_w, kv, kv_steps, visible, dkv)
    of_h = recurrence.states_read_backward(dh, kk, each_its_own)
    dk_left, dk_right, ddecay_h, dkk = walk_backward(of_h, kk, kk_steps, visible, dkk)

    # Each walk has leading axes of its own: a sum over those that k and decay have not comes first.
    dk, ddecay = (
        sum_to_shape(of_w, shape) + sum_to_shape(of_h, shape)
        for of_w, of_h, shape in zip((dk, ddecay), (dk_left + dk_right, ddecay_h), shapes, strict=True)
    )
    return Grads(q=dq, k=dk, v=dv, alpha=dalpha, decay=ddecay, initial_state=MesaState(dkk, dkv))


def final_state(saved: Saved, initial_state: MesaState | None) -> MesaState:
    """(H, W) after the last key; ``backward`` takes its gradient as ``dstate``."""
    _, walks, *_ = saved
    kk, kv = (states[-1][..., 0, :, :] for states, _ in walks)
    return MesaState(kk, kv)
