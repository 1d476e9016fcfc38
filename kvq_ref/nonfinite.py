"""NaN and infinity stay where they are seen.

Padding is often uninitialised memory. A masked key or value may hold NaN or
infinity, and 0 * NaN is NaN: a product with weights that are zero under the
mask is not enough to keep it out. So before any form runs, what is not finite
is replaced by zero; afterwards NaN is written into exactly those rows that saw
it. The forms can then be plain mathematics, and a NaN in a future token changes
no bit of what came before it.

The rule is one for all forms: a query that sees a non-finite key, value or
bias, or is itself not finite and sees anything, gets a row of NaN; beta and decay
belong to their keys. A key whose
bias is -inf has no weight, so it is not seen; but the preconditioner of a
least-squares form, which is the mask's business alone, still sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from kvq_ref.arrays import device, namespace
from kvq_ref.masks import is_key_mask, visible_pairs
from kvq_ref.types import Array, Grads, State, map_state


class Quarantine(NamedTuple):
    """Who saw something that is not finite.

    Attributes
    ----------
    visible : array of bool, broadcasts to (..., Tq, Tk)
    rows : array of bool, shape (..., Tq)
        The queries whose output is NaN.
    sees : array of bool, broadcasts to (..., Tq)
        The queries that see anything.
    state : array of bool, shape (...)
        Whether the final state is.
    """

    visible: Array
    rows: Array
    sees: Array
    state: Array


class Inputs(NamedTuple):
    """What a form sees of its arguments."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    bias: Array | None
    beta: Array | None = None
    decay: Array | None = None


def isolate(inputs: Inputs, is_causal: bool, *, has_state: bool, regresses: bool) -> tuple[Inputs, Quarantine]:
    """Replace what is not finite, and note who saw it.

    ``has_state`` says that every query sees an initial state, ``regresses`` that the form fits all keys
    that the mask lets it see, whatever their bias.
    """
    q, k, v, mask, bias, *per_key = inputs
    xp = namespace(q)
    visible = visible_pairs(mask, is_causal, q, k)
    if visible is None:
        visible = xp.ones((q.shape[-2], k.shape[-2]), dtype=xp.bool, device=device(q))

    bad_q = xp.any(~xp.isfinite(q), axis=-1)[..., :, None]
    bad_key = (xp.any(~xp.isfinite(k), axis=-1) | xp.any(~xp.isfinite(v), axis=-1))[..., None, :]
    for x in per_key:
        if x is not None and x.ndim:  # a number is known to be finite
            bad_key = bad_key | xp.any(~xp.isfinite(x), axis=-1)[..., None, :]
    bad = bad_q | bad_key
    if bias is not None:
        hides = bias == -math.inf
        if not regresses:
            visible = visible & ~hides
        bad_bias = ~(xp.isfinite(bias) | hides)
        bad = bad | bad_bias
        bias = xp.where(bad_bias, xp.zeros_like(bias), bias)
    rows, sees = xp.any(visible & bad, axis=-1), xp.any(visible, axis=-1)
    if has_state:
        rows, sees = rows | bad_q[..., 0], xp.ones_like(sees)
    in_state = bad_key if mask is None or not is_key_mask(mask) else bad_key & mask
    state = xp.any(in_state, axis=(-2, -1))
    # One, and not zero, for a feature map may have no finite value at zero.
    per_key = [None if x is None else _finite(x, 1) for x in per_key]
    finite = Inputs(_finite(q, 1), _finite(k, 1), _finite(v, 0), mask, bias, *per_key)
    return finite, Quarantine(visible, rows, sees, state)


def mark_rows(out: Array, quarantine: Quarantine) -> Array:
    """NaN in the outputs of the rows that saw something."""
    return _nan_where(quarantine.rows[..., None], out)


def mark_state(state: State, quarantine: Quarantine) -> State:
    """NaN in a state that took in something."""
    return map_state(lambda x: _nan_where(quarantine.state[..., None, None], x), state)


def isolate_cotangent(dout: Array, quarantine: Quarantine) -> tuple[Array, Quarantine]:
    """The same for the gradient that comes in: a padded query's may be anything."""
    xp = namespace(dout)
    bad = xp.any(~xp.isfinite(dout), axis=-1) & quarantine.sees
    return _finite(dout, 0), quarantine._replace(rows=quarantine.rows | bad)


def mark_grads(grads: Grads, quarantine: Quarantine) -> Grads:
    """NaN in the gradient of everything that a marked row depends on."""
    xp = namespace(grads.q)
    rows, pairs = quarantine.rows[..., None], quarantine.visible & quarantine.rows[..., None]
    keys = xp.any(pairs, axis=-2)[..., None]
    anywhere = xp.any(quarantine.rows, axis=-1)
    state = grads.initial_state
    return Grads(
        q=_nan_where(rows, grads.q),
        k=_nan_where(keys, grads.k),
        v=_nan_where(keys, grads.v),
        bias=None if grads.bias is None else _nan_where(pairs, grads.bias),
        alpha=None if grads.alpha is None else _nan_where(anywhere, grads.alpha),
        initial_state=None if state is None else map_state(lambda x: _nan_where(anywhere[..., None, None], x), state),
        beta=None if grads.beta is None else _nan_where(keys, grads.beta),
        decay=None if grads.decay is None else _nan_where(keys, grads.decay),
    )


def inputs_finite(inputs: Inputs, all_finite: Callable[[Array], bool]) -> bool:
    """Whether there is nothing to isolate."""
    arrays = (inputs.q, inputs.k, inputs.v, inputs.bias, inputs.beta, inputs.decay)
    return all(all_finite(x) for x in arrays if x is not None)


def _finite(x: Array, instead: float) -> Array:
    xp = namespace(x)
    return xp.where(xp.isfinite(x), x, xp.full_like(x, instead))


def _nan_where(condition: Array, x: Array) -> Array:
    xp = namespace(x)
    return xp.where(condition, xp.full_like(x, math.nan), x)
