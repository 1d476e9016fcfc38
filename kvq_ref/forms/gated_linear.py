"""Gated linear attention: linear attention that forgets.

    S_j   = diag(decay_j) S_{j-1} + k_j v_j^T      what is there fades, then the pair is added
    out_i = scale * S^T q_i                        read at the query

A decay for each coordinate of the keys, between 0 (what came before is gone) and 1 (all of it stays: linear
attention). A decay that the coordinates share is RetNet's, where it is fixed, or Mamba-2's, where it follows
from the token. The weight of key j for query i is what is left of it:

    w_ij = scale * sum_c q_ic k_jc prod_l decay_lc      over the keys l that query i sees after j

The order of the keys matters. Those that query i sees, in their order, are a sequence; it is read against
the state after the last of them. Recurrent use: S is all that the past leaves behind.

Written as a walk along the keys. The weights at once, as (q_i / b_i) . (k_j b_j) with b the running product
of the decays, divide by what may have underflowed: with decays of 0.5 after 1,100 keys in float64.

Cost: time O(Tk d dv + Tq d dv), memory O(d dv); to be differentiated, or causal, memory O(Tk d dv). A
general mask: both times Tq.
Source: Yang et al. 2023, "Gated linear attention transformers with hardware-efficient training" (arXiv 2312.06635).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvq_ref import recurrence
from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import is_key_mask
from kvq_ref.recurrence import gather, on_walks, one_by_one, per_key
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


class GatedLinearState(NamedTuple):
    """What gated linear attention keeps of the keys and values that it has seen.

    Attributes
    ----------
    kv : array, shape (..., d, dv)
        S, the sum of k_j v_j^T with what is left of each.
    """

    kv: Array


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    decay: Array | None = None,
    initial_state: GatedLinearState | None = None,
) -> tuple[Array, Saved]:
    scale = 1.0 if scale is None else scale
    visible = recurrence.visible_on_walks(mask, is_causal, q, k)
    decay = on_walks(per_key(decay, k), visible, hidden=1.0)
    k, v = on_walks(k, visible, hidden=0.0), on_walks(v, visible)

    states, steps = walk(k, v, decay, None if initial_state is None else initial_state.kv)

    each_its_own = is_causal and is_key_mask(mask)
    s = recurrence.states_read(states, each_its_own, q.shape[-2])
    out = scale * recurrence.read(q, s)
    return out, (q, visible, states, steps, s, each_its_own, scale)


def walk(k: Array, v: Array, decay: Array, past: Array | None) -> tuple[list[Array], list[Saved]]:
    """The states before the first key and after each, and what each step was made of; rows as on their walks."""
    s = recurrence.beginning(past, k, v, decay)
    states, steps = [s], []
    for k_j, v_j, decay_j in zip(one_by_one(k), one_by_one(v), one_by_one(decay), strict=True):
        s = transpose(decay_j) * s + transpose(k_j) * v_j
        states.append(s)
        steps.append((k_j, v_j, decay_j))
    return states, steps


def backward(dout: Array, saved: Saved, dstate: GatedLinearState | None = None) -> Grads:
    q, visible, states, steps, s, each_its_own, scale = saved

    # out = scale q S
    dq, ds = recurrence.read_backward(scale * dout, q, s)
    reads = recurrence.states_read_backward(ds, states, each_its_own)
    dk, dv, ddecay, dpast = walk_backward(reads, states, steps, visible, None if dstate is None else dstate.kv)
    return Grads(q=dq, k=dk, v=dv, decay=ddecay, initial_state=GatedLinearState(dpast))


def walk_backward(
    reads: list[Array | float], states: list[Array], steps: list[Saved], visible: Array | None, dlast: Array | None
) -> tuple[Array, Array, Array, Array]:
    """(dk, dv, ddecay, dpast) from the gradients of the states; dlast is that of the last as it is handed on."""
    xp = namespace(states[0])
    ds = xp.zeros_like(states[0]) if dlast is None else dlast[..., None, :, :]
    dk, dv, ddecay = [], [], []
    for j, (k_j, v_j, decay_j) in reversed(list(enumerate(steps))):
        ds = ds + reads[j + 1]
        # S_j = decay_j^T S_{j-1} + k_j^T v_j
        dk.append(v_j @ transpose(ds))
        dv.append(k_j @ ds)
        ddecay.append(transpose(xp.sum(ds * states[j], axis=-1, keepdims=True)))
        ds = transpose(decay_j) * ds
    return gather(dk[::-1], visible), gather(dv[::-1], visible), gather(ddecay[::-1], visible), xp.sum(ds, axis=-3)


def final_state(saved: Saved, initial_state: GatedLinearState | None) -> GatedLinearState:
    """S after the last key; ``backward`` takes its gradient as ``dstate``."""
    _, _, states, *_ = saved
    return GatedLinearState(states[-1][..., 0, :, :])
