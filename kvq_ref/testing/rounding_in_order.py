r"""How far two correct evaluations of the delta rule may be apart: the error of a state goes on from key to key.

In norms of columns, with g_j = max(1, |1 - beta_j |k_j|^2|) the largest factor by which a step can stretch a column,
and m_j the size of what is summed in it,

    m_j  = |S_{j-1}| + |beta_j| |k_j| (|v_j| + |k_j| |S_{j-1}|)
    e_j  = g_j e_{j-1} + u (m_j + |S_j|)                                    error of a state
    unit = |scale| |q_i| (e_i + u |S_i|)

Gradients: the same on the way back. The gradient D_j of a state is bounded by the sum of what the queries that read it,
or one after it, send back; so that nothing depends on the order in which these are added.
"""

from __future__ import annotations

import numpy as np

from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.walks import Walk

ByName = dict[str, F64]


def units_in_order(call: Call, u: float, dout: F64 | None) -> tuple[ByName, ByName, ByName]:
    """Units, sizes and counts of underflows, as in :mod:`kvq_ref.testing.rounding`."""
    walk = Walk.of("delta_rule", call)
    k, v, beta = np.linalg.norm(walk.k, axis=-1, keepdims=True), np.abs(walk.v), np.abs(walk.beta)
    stretch = np.maximum(1.0, np.abs(1 - walk.beta * k**2))
    Tk, d = walk.k.shape[-2:]
    size = [np.linalg.norm(s, axis=-2) for s in walk.states()]  # of each column of S: (..., R, dv)
    error, lost = [np.zeros(size[0].shape)], [np.zeros(size[0].shape)]
    for j in range(Tk):
        k_j, beta_j, g_j = k[..., j, :], beta[..., j, :], stretch[..., j, :]
        added = beta_j * k_j * (v[..., j, :] + k_j * size[j])
        error.append(g_j * error[j] + u * (size[j] + added + size[j + 1]))
        lost.append(g_j * lost[j] + d**0.5 + beta_j * k_j)

    read_size, read_error, read_lost = (walk.of_queries(x, axis=-2) for x in (size, error, lost))
    q = abs(walk.scale) * np.linalg.norm(call.q, axis=-1, keepdims=True)
    units = {"out": q * (read_error + u * read_size)}
    sizes = {"out": q * read_size}
    counts = {"out": 1 + q * read_lost}
    if dout is None:
        return units, sizes, counts

    d_abs = abs(walk.scale) * np.abs(dout)
    everywhere = np.ones(call.q.shape)
    units["q"] = _sum((read_error + u * read_size) * d_abs) * everywhere
    sizes["q"], counts["q"] = _sum(read_size * d_abs) * everywhere, (1 + _sum(read_lost * d_abs)) * everywhere

    sent = q * np.abs(dout)  # by each query to the state that it reads
    rows: dict[str, list[tuple[F64, F64, F64]]] = {"k": [], "v": [], "beta": []}
    d_size, d_error, d_lost = (np.zeros(size[0].shape) for _ in range(3))
    for j in reversed(range(Tk)):
        here = sent[..., [n == j + 1 for n in walk.reads], :]
        here = np.sum(here, axis=-2, keepdims=True) if walk.is_shared or j + 1 < Tk else here
        d_size, d_error, d_lost = d_size + here, d_error + u * (d_size + here), d_lost + d**0.5 * (here > 0)
        k_j, beta_j, g_j = k[..., j, :], beta[..., j, :], stretch[..., j, :]
        wrong = v[..., j, :] + k_j * size[j]  # v_j - S^T k_j, and its error
        e_wrong, lost_wrong = k_j * error[j] + u * wrong, 1 + k_j * lost[j]
        step = k_j * d_size  # the gradient of what is written, and its error
        e_step, lost_step = k_j * d_error + u * step, 1 + k_j * d_lost
        rows["v"].append((beta_j * (e_step + u * step), beta_j * step, 1 + beta_j * lost_step))
        dk = _sum(wrong * d_size + step * size[j])
        e_dk = _sum(e_wrong * d_size + wrong * d_error + e_step * size[j] + step * error[j]) + u * dk
        lost_dk = _sum(lost_wrong * d_size + wrong * d_lost + lost_step * size[j] + step * lost[j])
        rows["k"].append((beta_j * e_dk, beta_j * dk, 1 + beta_j * lost_dk))
        e_dbeta, lost_dbeta = e_step * wrong + step * e_wrong + u * step * wrong, lost_step * wrong + step * lost_wrong
        rows["beta"].append((_sum(e_dbeta), _sum(step * wrong), 1 + _sum(lost_dbeta)))
        d_error = g_j * d_error + u * d_size * (1 + beta_j * k_j**2)
        d_size, d_lost = g_j * d_size, g_j * d_lost + d**0.5 + beta_j * k_j

    for name in ("k", "v", *(["beta"] if "beta" in call.options else [])):
        shape = np.shape(call.arrays[name])
        for i, found in enumerate((units, sizes, counts)):
            on_walks = np.stack([row[i] for row in rows[name][::-1]], axis=-2)
            of_key = np.sum(np.where(walk.sees, on_walks, 0.0), axis=-3)
            found[name] = np.broadcast_to(of_key, (*of_key.shape[:-1], shape[-1]))
    return units, sizes, counts


def _sum(x: F64) -> F64:
    return np.asarray(np.sum(x, axis=-1, keepdims=True))
