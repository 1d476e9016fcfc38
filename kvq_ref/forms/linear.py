"""Linear attention.

    out_i = sum_j w_ij v_j,   w_ij = m_ij * scale * phi(q_i) . phi(k_j)

No exponential stands between q and k, so the sum over keys can be taken before
the query is known: out = scale * phi(Q) S with S = phi(K)^T V, a (d, dv) matrix
however long the sequence is. Where every query sees the same keys this file
does just that. A causal or a general mask is applied to the (Tq, Tk) weights
instead: slower and plainer.

``normalize`` divides each row by the sum of its weights; phi should be positive
then. That sum is one more output column, the one of a value that is always 1.

Recurrent use: S is all that the past leaves behind. The state given is added
before the first key, the state returned holds all the keys, and so a sequence
can be fed in pieces.

Cost: time O((Tq + Tk) d dv), memory O(d dv); with a causal or general mask
time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvq_ref.arrays import add_once, device, namespace, transpose
from kvq_ref.features import FEATURE_MAPS, FeatureMap
from kvq_ref.masks import hide_keys, is_key_mask, row_divisor, visible_pairs
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


class LinearState(NamedTuple):
    """What linear attention keeps of the keys and values that it has seen.

    Attributes
    ----------
    kv : array, shape (..., d, dv)
        sum_j phi(k_j) v_j^T
    k_sum : array, shape (..., d, 1)
        sum_j phi(k_j), a column, for ``normalize``.
    """

    kv: Array
    k_sum: Array


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    feature_map: FeatureMap = FEATURE_MAPS["identity"],
    normalize: bool = False,
    initial_state: LinearState | None = None,
) -> tuple[Array, Saved]:
    xp = namespace(q)
    scale = 1.0 if scale is None else scale
    visible = visible_pairs(mask, is_causal, q, k)

    phi_q = scale * feature_map.apply(q)
    phi_k = feature_map.apply(k)
    if is_key_mask(mask):
        (phi_k,) = hide_keys(mask, phi_k)
    v1 = xp.concat([v, xp.ones((*v.shape[:-1], 1), dtype=v.dtype, device=device(v))], axis=-1)
    s0 = None if initial_state is None else _join(initial_state)

    if is_key_mask(mask) and not is_causal:
        w = None
        s = transpose(phi_k) @ v1
        s = s if s0 is None else s0 + s
        out1 = phi_q @ s
    else:
        s = s0
        w = phi_q @ transpose(phi_k)
        w = xp.where(visible, w, xp.zeros_like(w))
        out1 = w @ v1 if s0 is None else phi_q @ s0 + w @ v1

    out, row_sum = out1[..., :-1], out1[..., -1:]
    divisor = row_divisor(row_sum) if normalize else None
    if normalize:
        out = out / divisor
    return out, (q, k, phi_q, phi_k, v1, s, w, visible, mask, out, divisor, scale, feature_map)


def backward(dout: Array, saved: Saved, dstate: LinearState | None = None) -> Grads:
    xp = namespace(dout)
    q, k, phi_q, phi_k, v1, s, w, visible, mask, out, divisor, scale, feature_map = saved
    if feature_map.vjp is None:
        raise TypeError("feature_map: no derivative was given, expected a pair (phi, dphi) or a FeatureMap with a vjp")

    # out = out1 / row_sum
    drow_sum = -xp.sum(dout * out, axis=-1, keepdims=True)
    dout1 = xp.concat([dout, drow_sum if divisor is not None else xp.zeros_like(drow_sum)], axis=-1)
    if divisor is not None:
        dout1 = dout1 / divisor

    if w is None:
        # out1 = phi_q (s0 + phi_k^T v1)
        dphi_q = dout1 @ transpose(s)
        ds = transpose(phi_q) @ dout1
        ds = ds if dstate is None else add_once(ds, _join(dstate))
        dphi_k = v1 @ transpose(ds)
        dv1 = phi_k @ ds
    else:
        # out1 = phi_q s0 + w v1
        dw = dout1 @ transpose(v1)
        dw = xp.where(visible, dw, xp.zeros_like(dw))
        dv1 = transpose(w) @ dout1
        # w = phi_q phi_k^T
        dphi_q = dw @ phi_k
        dphi_k = transpose(dw) @ phi_q
        ds = transpose(phi_q) @ dout1
        if s is not None:
            dphi_q = dphi_q + dout1 @ transpose(s)
        if dstate is not None:
            ds = add_once(ds, _join(dstate))
            dphi_k = add_once(dphi_k, v1 @ transpose(_join(dstate)))
            dv1 = add_once(dv1, phi_k @ _join(dstate))

    # phi_q = scale phi(q),  phi_k = phi(k); what was hidden was made zero
    if is_key_mask(mask):
        dphi_k, dv1 = hide_keys(mask, dphi_k, dv1)
    dq = feature_map.vjp(q, scale * dphi_q)
    dk = feature_map.vjp(k, dphi_k)
    return Grads(q=dq, k=dk, v=dv1[..., :-1], initial_state=_split(ds))


def final_state(saved: Saved, initial_state: LinearState | None) -> LinearState:
    """S after the last key; ``backward`` takes its gradient as ``dstate``."""
    _, _, _, phi_k, v1, *_ = saved
    s = transpose(phi_k) @ v1
    return _split(s if initial_state is None else _join(initial_state) + s)


def _join(state: LinearState) -> Array:
    return namespace(state.kv).concat([state.kv, state.k_sum], axis=-1)


def _split(s: Array) -> LinearState:
    return LinearState(kv=s[..., :-1], k_sum=s[..., -1:])
