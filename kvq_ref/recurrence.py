"""Keys one after the other: what the sequential forms share.

The keys that a query sees, in their order, are a sequence. A sequential form walks along it with
a state, a matrix S of shape (d, n), and the query is read against the state after the last of them.

    every query sees the same keys       one walk, and all read its end
    causal                               one walk, and query i reads the state after key i
    a general (Tq, Tk) mask              a walk for each query: right, at the reference's cost

All three are one piece of code: states have the axes (..., R, d, n), with R = 1 walk or R = Tq.
A hidden key is made one that changes nothing: k_j = 0, and for a decay the factor 1.
"""

from __future__ import annotations

from kvq_ref.arrays import broadcast_leading, device, namespace, sum_to_shape, transpose
from kvq_ref.masks import is_key_mask, visible_pairs
from kvq_ref.types import Array


def visible_on_walks(mask: Array | None, is_causal: bool, q: Array, k: Array) -> Array | None:
    """Which walk passes which key, (..., R, Tk); None if all pass all. One walk serves a causal call too."""
    return mask if is_key_mask(mask) else visible_pairs(mask, is_causal, q, k)


def per_key(x: Array | None, k: Array) -> Array:
    """A number, or (..., Tk or 1, n) with a row for each key, as (..., Tk, n); ones by default."""
    xp, Tk = namespace(k), k.shape[-2]
    if x is None:
        return xp.ones((Tk, 1), dtype=k.dtype, device=device(k))
    return xp.broadcast_to(x, (*x.shape[:-2], Tk, x.shape[-1] if x.ndim else 1))


def on_walks(x: Array, visible: Array | None, hidden: float | None = None) -> Array:
    """Rows (..., Tk, n) as each walk meets them, (..., R, Tk, n), with ``hidden`` for those that it does not."""
    x = x[..., None, :, :]
    if visible is None or hidden is None:
        return x
    return namespace(x).where(visible[..., None], x, namespace(x).full_like(x, hidden))


def one_by_one(x: Array) -> list[Array]:
    """Rows (..., Tk, n) as Tk row vectors (..., 1, n)."""
    return [row[..., None, :] for row in namespace(x).unstack(x, axis=-2)]


def beginning(initial_state: Array | None, k: Array, v: Array, *others: Array) -> Array:
    """S before the first key, in the shape that it will keep: (..., R, d, n) for k of d columns and v of n."""
    xp = namespace(k)
    past = () if initial_state is None else (initial_state[..., None, :, :],)
    shape = (*broadcast_leading(*(x.shape[:-2] for x in (k, v, *others, *past))), k.shape[-1], v.shape[-1])
    return xp.broadcast_to(past[0], shape) if past else xp.zeros(shape, dtype=k.dtype, device=device(k))


def states_read(states: list[Array], each_its_own: bool, Tq: int) -> Array:
    """What the queries read of the states after 0, 1, ..., Tk keys: the last, or query i that after key i."""
    last = len(states) - 1
    if not each_its_own or Tq == 0:
        return states[last]
    return namespace(states[0]).concat([states[min(i + 1, last)] for i in range(Tq)], axis=-3)


def states_read_backward(ds: Array, states: list[Array], each_its_own: bool) -> list[Array | float]:
    """The gradient of each state from those that read it, 0.0 where none did."""
    last, shape = len(states) - 1, states[0].shape
    if not each_its_own or ds.shape[-3] == 0:
        return [*([0.0] * last), sum_to_shape(ds, shape)]
    own: list[Array | float] = [0.0] * (last + 1)
    for i, of_query in enumerate(namespace(ds).unstack(ds, axis=-3)):
        j = min(i + 1, last)
        own[j] = own[j] + sum_to_shape(of_query[..., None, :, :], shape)
    return own


def read(q: Array, s: Array) -> Array:
    """q_i S_i for states (..., Tq or 1, d, n)."""
    return q @ s[..., 0, :, :] if s.shape[-3] == 1 else (q[..., None, :] @ s)[..., 0, :]


def read_backward(dout: Array, q: Array, s: Array) -> tuple[Array, Array]:
    """(dq, dS)."""
    dq = read(dout, transpose(s))
    if s.shape[-3] == 1:
        return dq, (transpose(q) @ dout)[..., None, :, :]
    return dq, q[..., :, None] * dout[..., None, :]


def gather(rows: list[Array], visible: Array | None) -> Array:
    """Gradients of row vectors on each walk as one of the rows (..., Tk, n), nothing from the walks that hide them."""
    xp = namespace(rows[0])
    x = xp.concat(rows, axis=-2)
    if visible is not None:
        x = xp.where(visible[..., None], x, xp.zeros_like(x))
    return xp.sum(x, axis=-3)
