"""The delta rule (DeltaNet).

    u_j   = v_j - S_{j-1}^T k_j                    what the memory S would say for key j, and by how much it is wrong
    S_j   = S_{j-1} + beta_j k_j u_j^T             one step towards what is right, key after key
    out_i = scale * S^T q_i                        read at the query

Linear attention writes v_j whatever is in S already; the delta rule writes the difference. It is one
step of gradient descent, of size beta_j, on |v_j - S^T k_j|^2 / 2 for each pair in turn: the least-squares
problem that Intention solves in full. With |k_j| = 1 and beta_j = 1 the step is exact: S^T k_j = v_j
afterwards, so a key that comes again overwrites its value. A step is stable for 0 <= beta_j |k_j|^2 <= 2;
beyond that S grows from key to key, and nothing here prevents it: normalise the keys, or choose beta.

The order of the keys matters. Those that query i sees, in their order, are a sequence; it is read against
the state after the last of them. Recurrent use: S is all that the past leaves behind.

Written as a walk along the keys, and not as the triangular system U = (I + tril(diag(beta) K K^T, -1))^-1
diag(beta) V that gives all u_j at once (the WY or UT transform of the second source): a general solver
pivots, so that a later key would change the rounding of an earlier output, and the array API has no
triangular one; the products with U also carry what overflows in a later row into earlier ones, as 0 * inf.

Cost: time O(Tk d dv + Tq d dv), memory O(d dv); to be differentiated, or causal, memory O(Tk d dv). A
general mask: both times Tq.
Source: Schlag, Irie & Schmidhuber 2021, "Linear transformers are secretly fast weight programmers"
(arXiv 2102.11174); Yang et al. 2024, "Parallelizing linear transformers with the delta rule" (arXiv 2406.06484).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvq_ref import recurrence
from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import is_key_mask
from kvq_ref.recurrence import gather, on_walks, one_by_one, per_key
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


class DeltaRuleState(NamedTuple):
    """What the delta rule keeps of the keys and values that it has seen.

    Attributes
    ----------
    kv : array, shape (..., d, dv)
        S, the matrix that maps keys to values.
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
    beta: Array | None = None,
    initial_state: DeltaRuleState | None = None,
) -> tuple[Array, Saved]:
    scale = 1.0 if scale is None else scale
    visible = recurrence.visible_on_walks(mask, is_causal, q, k)
    beta = on_walks(per_key(beta, k), visible, hidden=0.0)
    k, v = on_walks(k, visible, hidden=0.0), on_walks(v, visible)

    s = recurrence.beginning(None if initial_state is None else initial_state.kv, k, v, beta)
    states, steps = [s], []
    for k_j, v_j, beta_j in zip(one_by_one(k), one_by_one(v), one_by_one(beta), strict=True):
        u_j = v_j - k_j @ s
        s = s + transpose(k_j) * (beta_j * u_j)
        states.append(s)
        steps.append((k_j, beta_j, u_j))

    each_its_own = is_causal and is_key_mask(mask)
    s = recurrence.states_read(states, each_its_own, q.shape[-2])
    out = scale * recurrence.read(q, s)
    return out, (q, visible, states, steps, s, each_its_own, scale)


def backward(dout: Array, saved: Saved, dstate: DeltaRuleState | None = None) -> Grads:
    xp = namespace(dout)
    q, visible, states, steps, s, each_its_own, scale = saved

    # out = scale q S
    dq, ds = recurrence.read_backward(scale * dout, q, s)
    reads = recurrence.states_read_backward(ds, states, each_its_own)
    ds = xp.zeros_like(states[0]) if dstate is None else dstate.kv[..., None, :, :]
    dk, dv, dbeta = [], [], []
    for j, (k_j, beta_j, u_j) in reversed(list(enumerate(steps))):
        ds = ds + reads[j + 1]
        # S_j = S_{j-1} + k_j^T (beta_j u_j)
        dstep = k_j @ ds
        du = beta_j * dstep
        dbeta.append(xp.sum(dstep * u_j, axis=-1, keepdims=True))
        # u_j = v_j - k_j S_{j-1}
        dv.append(du)
        dk.append((beta_j * u_j) @ transpose(ds) - du @ transpose(states[j]))
        ds = ds - transpose(k_j) * du

    return Grads(
        q=dq,
        k=gather(dk[::-1], visible),
        v=gather(dv[::-1], visible),
        beta=gather(dbeta[::-1], visible),
        initial_state=DeltaRuleState(xp.sum(ds, axis=-3)),
    )


def final_state(saved: Saved, initial_state: DeltaRuleState | None) -> DeltaRuleState:
    """S after the last key; ``backward`` takes its gradient as ``dstate``."""
    _, _, states, *_ = saved
    return DeltaRuleState(states[-1][..., 0, :, :])
