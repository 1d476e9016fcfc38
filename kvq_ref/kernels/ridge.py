"""The compiled least-squares kernels in the dress of solve.py and forms/intention.py.

The kernels proper are C, in ``_ext``; they eliminate (Cholesky) in the dtype of
the arrays. Where a regression is singular to working precision they say so, and
it is done again in float64; where that does not do either, by the reference,
which knows the pseudo-inverse. What the kernels do not serve at all (alpha = 0,
a mask that differs between queries, solvers other than Cholesky's) goes to the
reference at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kvq_ref import solve
from kvq_ref.arrays import add_once, broadcast_leading, sum_to_shape, transpose
from kvq_ref.forms import intention
from kvq_ref.forms.intention import IntentionState
from kvq_ref.kernels import empty, flatten, missing, num_threads, plain
from kvq_ref.masks import hide_keys, is_key_mask
from kvq_ref.types import Array, Grads

if missing is None:
    from kvq_ref.kernels import ridge_ext

Saved = tuple[Any, ...]


def serves(q: Array, k: Array, v: Array, alpha: Array, mask: Array | None, solver: str) -> bool:
    """Whether the kernels can do it; if not, the reference does."""
    sizes = (*q.shape, *k.shape[-2:], v.shape[-1])
    return 0 not in sizes and solver in ("auto", "cholesky") and is_key_mask(mask) and bool((alpha > 0).all())


# ---- Intention -----------------------------------------------------------------------


class Fit(NamedTuple):
    """What a forward leaves to its backward; arrays are (batch, T, d), and `state` is (gram, moment) or None."""

    q: Array
    k: Array
    v: Array
    alpha: Array
    state: tuple[Array, Array] | None
    is_causal: bool
    solver: str
    served: Array
    factors: Array | None
    others: Array  # the entries that a wider type served
    again: Any  # and what that saved


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
    """As forms/intention.py."""
    if not serves(q, k, v, alpha, mask, solver):
        options: dict[str, Any] = {"alpha": alpha, "mask": mask, "is_causal": is_causal, "solver": solver}
        out, plainly = intention.forward(q, k, v, **options, initial_state=initial_state)
        return out, (None, plainly)
    if mask is not None:
        k, v = hide_keys(mask, k, v)
    leading = broadcast_leading(*(x.shape[:-2] for x in (q, k, v, *(initial_state or ()))), alpha.shape)
    flat_q, flat_k, flat_v = (flatten(x, leading) for x in (q, k, v))
    state = None if initial_state is None else tuple(flatten(x, leading) for x in initial_state)
    out, fit = _fit(flat_q, flat_k, flat_v, _of_entries(alpha, leading), state, is_causal, solver)
    return out.reshape(*leading, *out.shape[1:]), (fit, k, v, mask, leading, alpha.dtype)


def backward(dout: Array, saved: Saved, dstate: IntentionState | None = None) -> Grads:
    fit, *rest = saved
    if fit is None:
        return intention.backward(dout, rest[0], dstate)
    k, v, mask, leading, dtype = rest
    *flat, dalpha = _fit_backward(plain(dout).reshape(-1, *dout.shape[-2:]), fit)
    dq, dk, dv, dgram, dkv = (None if x is None else x.reshape(*leading, *x.shape[1:]) for x in flat)
    if dstate is not None:
        # state = (gram + k^T k, kv + k^T v)
        dk = add_once(dk, k @ (dstate.gram + transpose(dstate.gram)) + v @ transpose(dstate.kv))
        dv = add_once(dv, k @ dstate.kv)
        dgram = add_once(dgram, dstate.gram) if dgram is not None else None
        dkv = add_once(dkv, dstate.kv) if dkv is not None else None
    if mask is not None:
        dk, dv = hide_keys(mask, dk, dv)
    state = None if fit.state is None else IntentionState(dgram, dkv)
    return Grads(q=dq, k=dk, v=dv, alpha=dalpha.reshape(leading).astype(dtype), initial_state=state)


def final_state(saved: Saved, initial_state: IntentionState | None) -> IntentionState:
    """(K^T K, K^T V) after the last key."""
    fit, *rest = saved
    # forms/intention.py finds k and v in the second and third place
    return intention.final_state(rest[0] if fit is None else saved, initial_state)


def _fit(q: Array, k: Array, v: Array, alpha: Array, state: Any, is_causal: bool, solver: str) -> tuple[Array, Fit]:
    """q (gram + k^T k + alpha I)^-1 (moment + k^T v), every batch entry on its own."""
    out = empty((*q.shape[:2], v.shape[-1]), q.dtype)
    served, factors = ridge_ext.fit(q, k, v, alpha, state, is_causal, out, num_threads())
    others = np.flatnonzero(served < q.shape[1])
    again: Any = None
    if others.size:
        its_q, its_k, its_v, its_alpha = (x[others].astype(np.float64) for x in (q, k, v, alpha))
        its_state = None if state is None else IntentionState(*(x[others].astype(np.float64) for x in state))
        if q.dtype == np.float32:
            wide, again = _fit(its_q, its_k, its_v, its_alpha, its_state, is_causal, solver)
        else:
            options: dict[str, Any] = {"is_causal": is_causal, "solver": solver, "initial_state": its_state}
            wide, again = intention.forward(its_q, its_k, its_v, alpha=its_alpha, **options)
        _put_late(out, others, served, wide)
    return out, Fit(q, k, v, alpha, state, is_causal, solver, served, factors, others, again)


def _fit_backward(dout: Array, fit: Fit) -> list[Array]:
    """[dq, dk, dv, dgram, dmoment, dalpha]."""
    dq, dk, dv = (empty(x.shape, x.dtype) for x in (fit.q, fit.k, fit.v))
    dstate = None if fit.state is None else tuple(empty(x.shape, x.dtype) for x in fit.state)
    how = (fit.alpha, fit.state, fit.is_causal, fit.served, fit.factors)
    dalpha = ridge_ext.fit_backward(dout, fit.q, fit.k, fit.v, *how, dq, dk, dv, dstate, num_threads())
    grads = [dq, dk, dv, *(dstate or (None, None)), dalpha]
    if fit.others.size:
        its_dout = dout[fit.others].astype(np.float64)
        if isinstance(fit.again, Fit):
            wide = _fit_backward(its_dout, fit.again)
        else:
            its = intention.backward(its_dout, fit.again)
            wide = [its.q, its.k, its.v, *(its.initial_state or (None, None)), its.alpha]
        for grad, instead in zip(grads, wide, strict=True):
            if grad is not None:
                grad[fit.others] = instead
    return grads


# ---- Intention: plain calls ------------------------------------------------------------


def quick(q: Array, k: Array, v: Array, options: dict[str, Any]) -> Array | None:
    """A whole public call that is plain, checks and all; None if it is not plain."""
    if not _is_plain(options):
        return None
    how = (options["alpha"], options["is_causal"], options["out"])
    return ridge_ext.quick(q, k, v, *how, num_threads, False)


def quick_vjp(
    q: Array, k: Array, v: Array, options: dict[str, Any]
) -> tuple[Array, Callable[[Any], Grads | None]] | None:
    """The same with its pullback, which gives None for a gradient that is not plain."""
    if not _is_plain(options):
        return None
    is_causal = options["is_causal"]
    done = ridge_ext.quick(q, k, v, options["alpha"], is_causal, options["out"], num_threads, True)
    if done is None:
        return None
    out, saved = done

    def pullback(dout: Any) -> Grads | None:
        if type(dout) is np.ndarray and not dout.flags.c_contiguous:
            dout = plain(dout)
        grads = ridge_ext.quick_backward(dout, q, k, v, is_causal, saved, num_threads)
        if grads is None:
            return None
        dq, dk, dv, dalpha = grads
        return Grads(q=dq, k=dk, v=dv, alpha=np.asarray(dalpha, q.dtype))

    return out, pullback


def _is_plain(options: dict[str, Any]) -> bool:
    """Whether nothing is wanted but q, k, v, alpha and causality. Options are as the caller gave them."""
    return (
        options["mask"] is None
        and options["initial_state"] is None
        and options["output_final_state"] is False
        and options["solver"] in ("auto", "cholesky")
    )


# ---- The preconditioner: as solve.precondition and its adjoint -------------------------


def precondition(
    q: Array,
    k: Array,
    alpha: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    solver: str = "auto",
    gram: Array | None = None,
) -> tuple[Array, Saved]:
    """q*_i = (gram + sum_{i sees j} k_j k_j^T + alpha I)^-1 q_i."""
    if not serves(q, k, k, alpha, mask, solver):
        q_star, fit = solve.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver, gram=gram)
        return q_star, (None, fit)
    if mask is not None:
        (k,) = hide_keys(mask, k)
    leading = broadcast_leading(*(x.shape[:-2] for x in (q, k, gram) if x is not None), alpha.shape)
    q, k, gram = (None if x is None else flatten(x, leading) for x in (q, k, gram))
    q_star, saved = _precondition(q, k, _of_entries(alpha, leading), gram, is_causal, solver)
    return q_star.reshape(*leading, *q_star.shape[1:]), (leading, (alpha.dtype, saved))


def precondition_backward(dq_star: Array, saved: Saved) -> tuple[Array, Array, Array, Array]:
    """(dq, dk, dalpha, dgram)."""
    leading, rest = saved
    if leading is None:
        return solve.precondition_backward(dq_star, rest)
    dtype, flat = rest
    dq_star = sum_to_shape(dq_star, (*leading, *dq_star.shape[-2:]))  # values or a bias may have had further axes
    *grads, dalpha = _precondition_backward(plain(dq_star).reshape(-1, *dq_star.shape[-2:]), flat)
    dq, dk, dgram = (x.reshape(*leading, *x.shape[1:]) for x in grads)
    return dq, dk, dalpha.reshape(leading).astype(dtype, copy=False), dgram


def _precondition(
    q: Array, k: Array, alpha: Array, gram: Array | None, is_causal: bool, solver: str
) -> tuple[Array, Saved]:
    q_star = empty(q.shape, q.dtype)
    served, factors = ridge_ext.precondition(q, k, alpha, gram, is_causal, q_star, num_threads())
    others = np.flatnonzero(served < q.shape[1])
    again: Any = None
    if others.size:
        its_gram = None if gram is None else gram[others].astype(np.float64)
        its_q, its_k, its_alpha = (x[others].astype(np.float64) for x in (q, k, alpha))
        if q.dtype == np.float32:
            wide, again = _precondition(its_q, its_k, its_alpha, its_gram, is_causal, solver)
        else:
            wide, again = solve.precondition(its_q, its_k, its_alpha, is_causal=is_causal, solver=solver, gram=its_gram)
        _put_late(q_star, others, served, wide)
    return q_star, (q, k, alpha, gram, is_causal, q_star, served, factors, others, again)


def _precondition_backward(dq_star: Array, saved: Saved) -> tuple[Array, Array, Array, Array]:
    q, k, alpha, gram, is_causal, q_star, served, factors, others, again = saved
    dq, dk = empty(q.shape, q.dtype), empty(k.shape, k.dtype)
    dgram = empty((q.shape[0], q.shape[2], q.shape[2]), q.dtype)
    dalpha = ridge_ext.precondition_backward(
        dq_star, q, k, alpha, gram, is_causal, q_star, served, factors, dq, dk, dgram, num_threads()
    )
    if others.size:
        if q.dtype == np.float32:
            wide = _precondition_backward(dq_star[others].astype(np.float64), again)
        else:
            its_dq, its_dk, its_dalpha, its_dgram = solve.precondition_backward(dq_star[others], again)
            wide = (its_dq, its_dk, its_dgram, its_dalpha)
        for grad, its in zip((dq, dk, dgram, dalpha), wide, strict=True):
            grad[others] = its
    return dq, dk, dgram, dalpha


def _put_late(rows: Array, others: Array, served: Array, wide: Array) -> None:
    """Rows of a wider type where the others end. What was served stays: token t keeps its bits whatever comes later."""
    late = np.arange(rows.shape[1]) >= served[others, None]
    rows[others] = np.where(late[..., None], wide, rows[others])


def _of_entries(alpha: Array, leading: tuple[int, ...]) -> Array:
    """alpha as the kernels read it: one float64 for each batch entry."""
    return np.array(np.broadcast_to(alpha, leading), dtype=np.float64).reshape(-1)
