"""The compiled kernels of linear attention in the dress of forms/linear.py.

The kernels proper are C, in ``_ext/linear.c``; they take arrays of shape
(batch, T, d) and know q, k, v, a causal order and states. What else the form
has is put on here, around them: feature maps, a key mask (rows of zeros), and
``normalize`` (one more column of v, all ones). A mask that differs between
queries is weights of (Tq, Tk) in any case, and goes to forms/linear.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kvq_ref.arrays import broadcast_leading, transpose
from kvq_ref.features import FEATURE_MAPS, FeatureMap
from kvq_ref.forms import linear
from kvq_ref.forms.linear import LinearState
from kvq_ref.kernels import empty, flatten, missing, num_threads, plain
from kvq_ref.masks import hide_keys, is_key_mask, row_divisor
from kvq_ref.types import Array, Grads

if missing is None:
    from kvq_ref.kernels import linear_ext


class Saved(NamedTuple):
    """What ``backward`` and ``final_state`` want to know; ``flat`` arrays are (batch, T, d)."""

    q: Array
    k: Array
    phi_k: Array
    v: Array
    mask: Array | None
    feature_map: FeatureMap
    is_causal: bool
    scale: float
    leading: tuple[int, ...]
    flat: tuple[Any, ...]  # phi(q), phi(k), v and the initial state, which may be None
    seen: Array | None
    out: Array
    divisor: Array | None


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
) -> tuple[Array, Any]:
    """As forms/linear.py; causal too in time O(T) and without an array of (Tq, Tk)."""
    if not is_key_mask(mask):
        return linear.forward(
            *(q, k, v),
            mask=mask,
            is_causal=is_causal,
            scale=scale,
            feature_map=feature_map,
            normalize=normalize,
            initial_state=initial_state,
        )
    scale = 1.0 if scale is None else scale
    phi_q, phi_k = feature_map.apply(q), feature_map.apply(k)
    (phi_k,) = hide_keys(mask, phi_k)
    values = _with_ones(v) if normalize else v
    start = None if initial_state is None else _columns(initial_state, normalize)
    leading, flat = _flatten(phi_q, phi_k, values, start)
    batch, Tq, m = flat[0].shape
    columns = values.shape[-1]

    flat_out = empty((batch, Tq, columns), q.dtype)
    seen = None if is_causal else empty((batch, m, columns), q.dtype)
    linear_ext.forward(*flat, is_causal, scale, flat_out, seen, num_threads())
    (out,) = _unflatten(leading, flat_out)
    divisor = None
    if normalize:
        divisor = row_divisor(out[..., -1:])
        out = out[..., :-1] / divisor
    return out, Saved(q, k, phi_k, v, mask, feature_map, is_causal, scale, leading, flat, seen, out, divisor)


def backward(dout: Array, saved: Any, dstate: LinearState | None = None) -> Grads:
    if not isinstance(saved, Saved):
        return linear.backward(dout, saved, dstate)
    vjp, leading, normalize = saved.feature_map.vjp, saved.leading, saved.divisor is not None
    if vjp is None:
        raise TypeError("feature_map: no derivative was given, expected a pair (phi, dphi) or a FeatureMap with a vjp")

    if normalize:  # out = out1 / row_sum
        drow_sum = -np.sum(dout * saved.out, axis=-1, keepdims=True)
        dout = np.concatenate([dout, drow_sum], axis=-1) / saved.divisor
    dend = dk_sum = None
    if dstate is not None:
        dend, dk_sum = _once(_columns(dstate, normalize), leading), _once(dstate.k_sum, leading)
    _, (flat_dout, flat_dend) = _flatten(dout, dend)
    grads = [None if x is None else empty(x.shape, x.dtype) for x in saved.flat]
    options = (saved.seen, saved.is_causal, saved.scale)
    linear_ext.backward(flat_dout, *saved.flat, *options, flat_dend, *grads, num_threads())
    dphi_q, dphi_k, dv, dinitial = _unflatten(leading, *grads)
    dv = dv[..., : saved.v.shape[-1]]

    if dk_sum is not None and not normalize:  # then the kernel knows nothing of k_sum
        dphi_k = dphi_k + transpose(dk_sum)
    dphi_k, dv = hide_keys(saved.mask, dphi_k, dv)
    if dinitial is not None:
        dinitial = _state(dinitial, normalize, dk_sum)
    return Grads(q=vjp(saved.q, dphi_q), k=vjp(saved.k, dphi_k), v=dv, initial_state=dinitial)


def final_state(saved: Any, initial_state: LinearState | None) -> LinearState:
    """S after the last key: what a query would see, of which there is none here."""
    if not isinstance(saved, Saved):
        return linear.final_state(saved, initial_state)
    start = None if initial_state is None else _columns(initial_state, True)
    leading, (k, v, start) = _flatten(saved.phi_k, _with_ones(saved.v), start)
    state = empty((len(k), k.shape[-1], v.shape[-1]), k.dtype)
    linear_ext.forward(k[:, :0], k, v, start, False, 1.0, np.empty_like(v[:, :0]), state, num_threads())
    (state,) = _unflatten(leading, state)
    return _state(state, True, None)


# ---- Plain calls -----------------------------------------------------------------------


def quick(q: Array, k: Array, v: Array, options: dict[str, Any]) -> Array | None:
    """A whole public call that is plain, checks and all; None if it is not plain."""
    if not _is_plain(options):
        return None
    return linear_ext.quick(q, k, v, options["is_causal"], options["scale"], options["out"], num_threads, False)


def quick_vjp(
    q: Array, k: Array, v: Array, options: dict[str, Any]
) -> tuple[Array, Callable[[Any], Grads | None]] | None:
    """The same with its pullback, which gives None for a gradient that is not plain."""
    if not _is_plain(options):
        return None
    is_causal, scale = options["is_causal"], options["scale"]
    done = linear_ext.quick(q, k, v, is_causal, scale, options["out"], num_threads, True)
    if done is None:
        return None
    out, seen = done

    def pullback(dout: Any) -> Grads | None:
        if type(dout) is np.ndarray and not dout.flags.c_contiguous:
            dout = plain(dout)
        grads = linear_ext.quick_backward(dout, q, k, v, seen, is_causal, scale, num_threads)
        return None if grads is None else Grads(*grads)

    return out, pullback


def _is_plain(options: dict[str, Any]) -> bool:
    """Whether nothing is wanted but q, k, v, causality and a scale. Options are as the caller gave them."""
    absent = ("mask", "feature_map", "initial_state")
    return (
        all(options[name] is None for name in absent)
        and options["normalize"] is False
        and options["output_final_state"] is False
    )


# ---- Shapes ----------------------------------------------------------------------------


def _flatten(*arrays: Array | None) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The leading axes of all together, and each array with them as one; None stays None."""
    leading = broadcast_leading(*(x.shape[:-2] for x in arrays if x is not None))
    return leading, tuple(None if x is None else flatten(x, leading) for x in arrays)


def _unflatten(leading: tuple[int, ...], *arrays: Array | None) -> tuple[Any, ...]:
    return tuple(None if x is None else x.reshape(*leading, *x.shape[1:]) for x in arrays)


def _with_ones(v: Array) -> Array:
    """v and one more column, whose sum is that of the weights."""
    return np.concatenate([v, np.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)


def _columns(state: LinearState, with_sum: bool) -> Array:
    """The state as the kernels hold it."""
    if not with_sum:
        return state.kv
    leading = broadcast_leading(state.kv.shape[:-2], state.k_sum.shape[:-2])
    return np.concatenate([np.broadcast_to(x, (*leading, *x.shape[-2:])) for x in state], axis=-1)


def _state(s: Array, with_sum: bool, k_sum: Array | None) -> LinearState:
    """And back; where the kernels hold no sum of keys it is k_sum, zero if that is None."""
    if with_sum:
        return LinearState(kv=s[..., :-1], k_sum=s[..., -1:])
    return LinearState(kv=s, k_sum=np.zeros_like(s[..., :1]) if k_sum is None else k_sum)


def _once(x: Array, leading: tuple[int, ...]) -> Array:
    """x for the first of the batch entries that share it, zero for the others: added up over them it counts once."""
    shared = (1,) * (len(leading) - x.ndim + 2) + x.shape[:-2]
    full = np.zeros((*leading, *x.shape[-2:]), x.dtype)
    full[tuple(slice(None) if n == m else slice(0, 1) for n, m in zip(shared, leading, strict=True))] = x
    return full
