"""Who sees whom: causal, window, length and ALiBi masks, and how the forms combine them.

A mask is boolean and True means *attend*. It broadcasts to (..., Tq, Tk). A
bias is a float that multiplies a weight by exp(bias).

The functions of the first half create masks for users, in the library that
:func:`kvq_ref.use_backend` names. Those of the second half are what the forms
need to know about a mask.
"""

from __future__ import annotations

import math
from typing import Any

from kvq_ref.arrays import creation_namespace, device, dtype_name, is_array, namespace
from kvq_ref.types import Array


def causal(Tq: int, Tk: int) -> Array:
    """Query i sees keys 0 .. i (aligned at the upper left, as in PyTorch).

    Parameters
    ----------
    Tq, Tk : int
        Number of queries and keys.

    Returns
    -------
    array of bool, shape (Tq, Tk)

    Examples
    --------
    >>> causal(2, 3)
    array([[ True, False, False],
           [ True,  True, False]])
    """
    return _lags(creation_namespace(), Tq, Tk) >= 0


def window(Tq: int, Tk: int, left: int, right: int = 0) -> Array:
    """Query i sees keys i - left .. i + right: a band around the diagonal.

    Parameters
    ----------
    Tq, Tk : int
        Number of queries and keys.
    left, right : int
        How many keys before and after its own place a query sees, >= 0.

    Returns
    -------
    array of bool, shape (Tq, Tk)

    Raises
    ------
    ValueError
        If ``left`` or ``right`` is negative.

    Examples
    --------
    >>> window(3, 3, left=1)
    array([[ True, False, False],
           [ True,  True, False],
           [False,  True,  True]])
    """
    for name, value in (("left", left), ("right", right)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    lag = _lags(creation_namespace(), Tq, Tk)
    return (lag <= left) & (lag >= -right)


def lengths(n_keys: Array | list[int], Tk: int) -> Array:
    """Key masks of padded sequences: sequence b has ``n_keys[b]`` real keys, then padding.

    Parameters
    ----------
    n_keys : int array or list, shape (...)
        Number of real keys of each sequence.
    Tk : int
        Padded length.

    Returns
    -------
    array of bool, shape (..., 1, Tk)
        On the device of ``n_keys`` if that is an array.

    Raises
    ------
    TypeError
        If the lengths are not integers.

    Examples
    --------
    >>> lengths([1, 3], 3)
    array([[[ True, False, False]],
    <BLANKLINE>
           [[ True,  True,  True]]])
    """
    xp = namespace(n_keys) if is_array(n_keys) else creation_namespace()
    n_keys = xp.asarray(n_keys)
    if not xp.isdtype(n_keys.dtype, "integral"):
        raise TypeError(f"n_keys: expected integers, got dtype {dtype_name(n_keys)}")
    return xp.arange(Tk, device=device(n_keys)) < n_keys[..., None, None]


def alibi(heads: int, Tq: int, Tk: int) -> Array:
    """ALiBi: a bias that falls linearly with distance, with a slope for each head.

    As a *bias* it multiplies a weight by ``exp(-slope * |i - j|)`` in every score
    form, so it serves expressive attention as it does softmax. The slopes are
    the geometric sequence 2^(-8/heads), 2^(-16/heads), ... of
    Press, Smith & Lewis 2022 (arXiv 2108.12409) for a power of two.

    Parameters
    ----------
    heads, Tq, Tk : int
        Number of heads, queries and keys.

    Returns
    -------
    array of float64, shape (heads, Tq, Tk)

    Examples
    --------
    >>> alibi(2, 1, 3) * 256
    array([[[  0., -16., -32.]],
    <BLANKLINE>
           [[  0.,  -1.,  -2.]]])
    """
    xp = creation_namespace()
    slopes = xp.asarray([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)], dtype=xp.float64)
    closeness = xp.astype(-xp.abs(_lags(xp, Tq, Tk)), xp.float64)  # negated as integers, which have no -0
    return slopes[:, None, None] * closeness


def _lags(xp: Any, Tq: int, Tk: int, where: Any = None) -> Array:
    """i - j for every query i and key j, shape (Tq, Tk)."""
    return xp.arange(Tq, device=where)[:, None] - xp.arange(Tk, device=where)[None, :]


# ---- What the forms need to know about a mask -----------------------------------------


def visible_pairs(mask: Array | None, is_causal: bool, q: Array, k: Array) -> Array | None:
    """The mask and the causal rule as one: bool, broadcasts to (..., Tq, Tk); None if all is visible."""
    if not is_causal:
        return mask
    xp = namespace(q)
    prefix = _lags(xp, q.shape[-2], k.shape[-2], where=device(q)) >= 0
    return prefix if mask is None else mask & prefix


def with_key_axis(mask: Array | None, Tk: int) -> Array | None:
    """A mask that broadcasts to (..., Tq, Tk), with all Tk keys in its last axis and a query axis before it."""
    if mask is None or (mask.ndim >= 2 and mask.shape[-1] == Tk):
        return mask
    return namespace(mask).broadcast_to(mask, (*mask.shape[:-2], *((1,) if mask.ndim < 2 else mask.shape[-2:-1]), Tk))


def is_key_mask(mask: Array | None) -> bool:
    """Whether the mask says the same of every query: shape (..., 1, Tk), or no mask at all."""
    return mask is None or mask.shape[-2] == 1


def hide_keys(mask: Array | None, *rows: Array) -> tuple[Array, ...]:
    """Zero the rows (of keys, of values) that a key mask hides.

    Where keys enter only through sums of k_j v_j^T or k_j k_j^T, a zero row is
    a key that was never there; so a key mask needs no further thought.
    """
    if mask is None:
        return rows
    xp = namespace(mask)
    column = xp.matrix_transpose(mask)  # (..., Tk, 1)
    return tuple(xp.where(column, x, xp.zeros_like(x)) for x in rows)


def row_max(x: Array, visible: Array | None) -> Array:
    """The largest *visible* entry of each row, shape (..., 1); 0 for a row without one, or where all are -inf.

    A row that is shifted by its maximum can be exponentiated without overflow.
    """
    xp = namespace(x)
    if visible is not None:
        x = xp.where(visible, x, xp.full_like(x, -math.inf))
    largest = xp.max(x, axis=-1, keepdims=True)
    return xp.where(largest == -math.inf, xp.zeros_like(largest), largest)


def row_divisor(n: Array) -> Array:
    """n, and infinity where n is 0: divided by it, a row without weight is zero.

    Not 1 / n to multiply with: it overflows where a sum of tiny weights is below 1 / (the largest number).
    """
    xp = namespace(n)
    return xp.where(n == 0, xp.full_like(n, math.inf), n)
