"""Forms in pieces: what a query keeps of the keys that it has met, and how two such memories become one.

Every form for which the order of the keys does not matter is a fold over (k, v). Cut the keys anywhere, sum
up each piece on its own, and merge in any order; a piece without keys is the neutral element:

    part = merge(partial(q, piece 1), merge(partial(q, piece 3), partial(q, piece 2)))
    out  = finish(q, part)

What a partial holds:

    softmax, expressive attention    m_i, sum_j w_ij v_j and sum_j w_ij, with all weights divided by exp(m_i)
    quadratic, Taylor attention      the same
    sigmoid attention                sum_j w_ij v_j
    local linear attention           m_i, the sums of w, w k and w v, and the spread about the means of these
    linear attention                 sum_j phi(k_j) v_j^T and sum_j phi(k_j)
    Intention                        sum_j k_j k_j^T and sum_j k_j v_j^T
    sigma-, expressive Intention     first sum_j k_j k_j^T, which gives q*; then the first line, for q*

Three machines that look different are this one merge:

    tiles      FlashAttention, and the kernels in _ext/: a block of queries meets one tile of keys
               after another, and the (Tq, Tk) weights never exist at once
    streaming  keys arrive one by one; the sums of linear attention and of Intention are all that a new
               query needs of them, while for the other forms it is folded over a cache of keys
    shards     each machine sums up the keys that it holds, and sends its partial, once for each round

Cost: the form's. Where a mask or the causal rule gives each query its own keys, the sums of linear
attention and of the least-squares forms are taken for each query: time O(Tq Tk d (d + dv)), memory
O(Tq (d + n) (d + dv)) for a piece of n keys. Plain, not fast: this is the reference.
Source: Milakov & Gimelshein 2018 (arXiv 1805.02867), the merge of softmax; Dao et al. 2022 (arXiv
2205.14135), tiles; Katharopoulos et al. 2020 (arXiv 2006.16236), the sums of linear attention.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from kvq_ref import nonfinite, solve
from kvq_ref.arguments import check_call, check_pair_shape, check_qkv_shapes, check_word
from kvq_ref.arrays import HALF_DTYPES, device, dtype_name, is_array, namespace, transpose
from kvq_ref.features import FeatureMap
from kvq_ref.forms import (
    delta_rule,
    expressive,
    expressive_intention,
    gated_linear,
    intention,
    linear,
    local_linear,
    mesa,
    quadratic,
    sigma_intention,
    sigmoid,
    softmax,
    taylor,
)
from kvq_ref.forms.intention import IntentionState
from kvq_ref.forms.linear import LinearState
from kvq_ref.grid import GRID
from kvq_ref.masks import row_divisor
from kvq_ref.nonfinite import Inputs, Quarantine
from kvq_ref.solvers import GRAM_SOLVERS
from kvq_ref.types import Array

# ---- Softmax, expressive, quadratic and Taylor attention: a mean of the values --------------------------
#
# Here and below, visible (..., Tq or 1, n) says which of a piece's n keys each query sees.


class MeanPartial(NamedTuple):
    """A weighted mean in the making; its weights are w_ij = factor_ij * exp(exponent_ij - maximum_i).

    Attributes
    ----------
    maximum : array, shape (..., Tq, 1)
        The largest exponent that the query has met, -inf before the first: exp stays in range.
    numerator : array, shape (..., Tq, dv)
        sum_j w_ij v_j
    denominator : array, shape (..., Tq, 1)
        sum_j w_ij
    """

    maximum: Array
    numerator: Array
    denominator: Array


Weight = Callable[[Array, Array], tuple[Array, Array]]  # (z, bias) to (exponent, factor)


def softmax_weight(z: Array, bias: Array) -> tuple[Array, Array]:
    return z + bias, namespace(z).ones_like(z)


def expressive_weight(z: Array, bias: Array) -> tuple[Array, Array]:
    return bias, expressive.score(z)[0]


def quadratic_weight(z: Array, bias: Array) -> tuple[Array, Array]:
    """z^2 is all exponent: the least and the largest score of a row may be in different pieces."""
    xp = namespace(z)
    has_weight = z != 0
    log = xp.log(xp.where(has_weight, xp.abs(z), xp.ones_like(z)))
    return xp.where(has_weight, bias + 2 * log, xp.full_like(log, -math.inf)), xp.ones_like(log)


def taylor_weight(z: Array, bias: Array) -> tuple[Array, Array]:
    """(1 + (1 + z)^2) / 2 with c^2 taken out, c the larger of 1 and |z|, so that no square overflows."""
    xp = namespace(z)
    c = xp.where(xp.abs(z) > 1, xp.abs(z), xp.ones_like(z))
    r = 1 / c
    return bias + 2 * xp.log(c), (r * r + (r + z / c) ** 2) / 2


def partial_mean(
    weight: Weight, q: Array, k: Array, v: Array, visible: Array, *, bias: Array | None, scale: float, **_: Any
) -> MeanPartial:
    xp = namespace(q)
    z = scale * (q @ transpose(k))
    exponent, factor = weight(z, xp.zeros_like(z) if bias is None else bias)
    exponent = xp.where(visible, exponent, xp.full_like(z, -math.inf))
    before = xp.full((*exponent.shape[:-1], 1), -math.inf, dtype=q.dtype, device=device(q))
    maximum = xp.max(xp.concat([before, exponent], axis=-1), axis=-1, keepdims=True)
    w = factor * xp.exp(exponent - _in_range(maximum))
    w = xp.where(visible, w, xp.zeros_like(w))  # a hidden score may have overflowed
    return MeanPartial(maximum, w @ v, xp.sum(w, axis=-1, keepdims=True))


def merge_means(a: MeanPartial, b: MeanPartial) -> MeanPartial:
    """Sums add up, once both are divided by the same exp(maximum)."""
    xp = namespace(a.maximum)
    maximum = xp.maximum(a.maximum, b.maximum)
    of_a, of_b = (xp.exp(part.maximum - _in_range(maximum)) for part in (a, b))
    numerator = of_a * a.numerator + of_b * b.numerator
    return MeanPartial(maximum, numerator, of_a * a.denominator + of_b * b.denominator)


def finish_mean(q: Array, part: MeanPartial, **_: Any) -> Array:
    return part.numerator / row_divisor(part.denominator)


def _in_range(maximum: Array) -> Array:
    """What to subtract from exponents: the maximum, or 0 before the first key, for -inf - -inf is NaN."""
    xp = namespace(maximum)
    return xp.where(maximum == -math.inf, xp.zeros_like(maximum), maximum)


# ---- Sigmoid attention: a sum of the values ------------------------------------------


class SumPartial(NamedTuple):
    """A weighted sum in the making: ``numerator``, sum_j w_ij v_j, of shape (..., Tq, dv)."""

    numerator: Array


def partial_sigmoid(
    q: Array,
    k: Array,
    v: Array,
    visible: Array,
    *,
    bias: Array | None,
    scale: float,
    offset: float,
    **_: Any,
) -> SumPartial:
    xp = namespace(q)
    z = scale * (q @ transpose(k)) + offset
    zero = xp.zeros_like(z)
    w, _ = sigmoid.score(xp.where(visible, z, zero), zero if bias is None else xp.where(visible, bias, zero))
    return SumPartial(xp.where(visible, w, zero) @ v)


def finish_sum(q: Array, part: SumPartial, **_: Any) -> Array:
    return part.numerator


# ---- Local linear attention: a line through the values -------------------------------


class LinePartial(NamedTuple):
    """A weighted regression in the making, with the weights w_ij = exp(exponent_ij - maximum_i).

    Attributes
    ----------
    maximum : array, shape (..., Tq, 1)
        As in :class:`MeanPartial`.
    total : array, shape (..., Tq, 1)
        sum_j w_ij
    k, v : array, shapes (..., Tq, d) and (..., Tq, dv)
        sum_j w_ij k_j and sum_j w_ij v_j
    kk, kv : array, shapes (..., Tq, d, d) and (..., Tq, d, dv)
        sum_j w_ij (k_j - mu_i) (k_j - mu_i)^T, mu the mean of these keys, and the same of k with v.
    """

    maximum: Array
    total: Array
    k: Array
    v: Array
    kk: Array
    kv: Array


def partial_line(
    q: Array, k: Array, v: Array, visible: Array, *, bias: Array | None, scale: float, **_: Any
) -> LinePartial:
    xp = namespace(q)
    maximum, k_sum, total = partial_mean(softmax_weight, q, k, k, visible, bias=bias, scale=scale)
    z = scale * (q @ transpose(k))
    exponent = z if bias is None else z + bias
    hidden = ~visible | (exponent == -math.inf)
    w = xp.exp(xp.where(hidden, xp.full_like(z, -math.inf), exponent) - _in_range(maximum))
    divisor = row_divisor(total)
    c = k[..., None, :, :] - (k_sum / divisor)[..., :, None, :]
    c = xp.where((w > 0)[..., None], c, xp.zeros_like(c))
    c = c - (w / divisor)[..., None, :] @ c  # as in the form's file
    wc = transpose(w[..., None] * c)
    return LinePartial(maximum, total, k_sum, w @ v, wc @ c, wc @ v[..., None, :, :])


def merge_lines(a: LinePartial, b: LinePartial) -> LinePartial:
    """Sums add up; and the spread of both is that of each, and that of their two means (Chan et al. 1979)."""
    xp = namespace(a.maximum)
    maximum = xp.maximum(a.maximum, b.maximum)
    of_a, of_b = (xp.exp(part.maximum - _in_range(maximum)) for part in (a, b))
    total, k, v = (of_a * x + of_b * y for x, y in zip(a[1:4], b[1:4], strict=True))
    apart_k, apart_v = (x / row_divisor(a.total) - y / row_divisor(b.total) for x, y in ((a.k, b.k), (a.v, b.v)))
    weight = ((of_a * a.total) * (of_b * b.total) / row_divisor(total))[..., None]
    kk, kv = (of_a[..., None] * x + of_b[..., None] * y for x, y in zip(a[4:], b[4:], strict=True))
    kk = kk + weight * (apart_k[..., :, None] * apart_k[..., None, :])
    kv = kv + weight * (apart_k[..., :, None] * apart_v[..., None, :])
    return LinePartial(maximum, total, k, v, kk, kv)


def finish_line(q: Array, part: LinePartial, *, alpha: Array, **_: Any) -> Array:
    total = row_divisor(part.total)
    y = solve.solver_of_each(part.kk / total[..., None], alpha)(q - part.k / total)
    return part.v / total + (y[..., None, :] @ (part.kv / total[..., None]))[..., 0, :]


# ---- Linear attention and least squares: sums over the keys alone --------------------
#
# Before the last two axes of these sums is one for the queries. Its length is 1 where all see the same
# keys; without it, part.kv[..., 0, :, :], they are what the public functions call a state.


class GramPartial(NamedTuple):
    """What preconditions a query: ``gram``, sum_j k_j k_j^T, of shape (..., Tq or 1, d, d)."""

    gram: Array


def partial_linear(q: Array, k: Array, v: Array, visible: Array, *, feature_map: FeatureMap, **_: Any) -> LinearState:
    phi_k = _own(visible, feature_map.apply(k))
    k_sum = namespace(k).sum(phi_k, axis=-2)[..., None]
    return LinearState(kv=transpose(phi_k) @ v[..., None, :, :], k_sum=k_sum)


def finish_linear(
    q: Array, part: LinearState, *, scale: float, feature_map: FeatureMap, normalize: bool, **_: Any
) -> Array:
    phi_q = scale * feature_map.apply(q)
    out = _times(phi_q, part.kv)
    return out / row_divisor(_times(phi_q, part.k_sum)) if normalize else out


def partial_intention(q: Array, k: Array, v: Array, visible: Array, **_: Any) -> IntentionState:
    k = _own(visible, k)
    return IntentionState(gram=transpose(k) @ k, kv=transpose(k) @ v[..., None, :, :])


def finish_intention(q: Array, part: IntentionState, **options: Any) -> Array:
    """Linear attention of preconditioned queries."""
    return _times(finish_gram(q, GramPartial(part.gram), **options), part.kv)


def partial_gram(q: Array, k: Array, v: Array, visible: Array, **_: Any) -> GramPartial:
    k = _own(visible, k)
    return GramPartial(transpose(k) @ k)


def finish_gram(q: Array, part: GramPartial, *, alpha: Array, solver: str, **_: Any) -> Array:
    """q*_i = (gram_i + alpha I)^-1 q_i."""

    def precondition(q: Array, alpha: Array, gram: Array) -> Array:
        no_more_keys = q[..., :0, :]
        return solve.precondition(q, no_more_keys, alpha, gram=gram, solver=solver)[0]

    if part.gram.shape[-3] == 1:
        return precondition(q, alpha, part.gram[..., 0, :, :])
    return precondition(q[..., None, :], alpha[..., None], part.gram)[..., 0, :]


def add(a: Any, b: Any) -> Any:
    """The merge of all of these: sums add up."""
    return type(a)(*(x + y for x, y in zip(a, b, strict=True)))


def _own(visible: Array, x: Array) -> Array:
    """The rows of x that each query sees, (..., Tq or 1, n, d); the others are zeros, and so in no sum."""
    x = x[..., None, :, :]
    return namespace(x).where(visible[..., None], x, namespace(x).zeros_like(x))


def _times(q: Array, sums: Array) -> Array:
    """q_i S_i for every query."""
    return q @ sums[..., 0, :, :] if sums.shape[-3] == 1 else (q[..., None, :] @ sums)[..., 0, :]


# ---- The forms -----------------------------------------------------------------------


class Round(NamedTuple):
    """One pass over the pieces; ``finish`` gives the queries of the next round and, in the last one, the output.

    Of its arguments ``fold`` has made what the forms' files take: checked, finite, and with every option of the form.
    """

    partial: Callable[..., Any]
    merge: Callable[[Any, Any], Any]
    finish: Callable[..., Array]


SOFTMAX = Round(functools.partial(partial_mean, softmax_weight), merge_means, finish_mean)
EXPRESSIVE = Round(functools.partial(partial_mean, expressive_weight), merge_means, finish_mean)
QUADRATIC = Round(functools.partial(partial_mean, quadratic_weight), merge_means, finish_mean)
TAYLOR = Round(functools.partial(partial_mean, taylor_weight), merge_means, finish_mean)
SIGMOID = Round(partial_sigmoid, add, finish_sum)
LINE = Round(partial_line, merge_lines, finish_line)
LINEAR = Round(partial_linear, add, finish_linear)
INTENTION = Round(partial_intention, add, finish_intention)
PRECONDITION = Round(partial_gram, add, finish_gram)

# A new form: its partial, merge and finish, or those above, and a line here.
FOLDS: dict[str, tuple[ModuleType, tuple[Round, ...]]] = {
    "softmax_attention": (softmax, (SOFTMAX,)),
    "expressive_attention": (expressive, (EXPRESSIVE,)),
    "quadratic_attention": (quadratic, (QUADRATIC,)),
    "taylor_attention": (taylor, (TAYLOR,)),
    "sigmoid_attention": (sigmoid, (SIGMOID,)),
    "local_linear_attention": (local_linear, (LINE,)),
    "linear_attention": (linear, (LINEAR,)),
    "intention": (intention, (INTENTION,)),
    "sigma_intention": (sigma_intention, (PRECONDITION, SOFTMAX)),
    "expressive_intention": (expressive_intention, (PRECONDITION, EXPRESSIVE)),
    # No rounds: the keys have an order, and the state of one piece is the beginning of the next.
    "delta_rule": (delta_rule, ()),
    "gated_linear_attention": (gated_linear, ()),
    "mesa_attention": (mesa, ()),
}


# ---- The fold ------------------------------------------------------------------------


class Piece(NamedTuple):
    """Some of the keys, with their values and their columns of mask and bias.

    Attributes
    ----------
    k, v : array, shapes (..., n, d) and (..., n, dv)
        There may be none: n = 0.
    mask, bias : array, broadcasts to (..., Tq, n), optional
        As in the form's public function.
    start : int, optional
        The position of the first of these keys among all; the causal rule needs it.
    """

    k: Array
    v: Array
    mask: Array | None = None
    bias: Array | None = None
    start: int | None = None


def fold(
    form: str,
    q: Array,
    pieces: Iterable[Piece],
    *,
    start: int = 0,
    gather: Callable[[Callable[[Any, Any], Any], list[Any]], Any] = functools.reduce,
    **options: Any,
) -> Array:
    """Evaluate a form whose keys and values come in pieces, in any order.

    Parameters
    ----------
    form : str
        The name of its public function.
    q : array, shape (..., Tq, d)
        Queries: all, or any block of them.
    pieces : iterable of Piece
        At least one. Tuples ``(k, v)`` will do.
    start : int, default 0
        The position of the first query, for the causal rule.
    gather : callable, optional
        ``gather(merge, partials)`` makes one partial of all. By default one after another; a tree gives
        the same. It may bring in others: those of other machines, or of an earlier call.
    **options
        Those of the public function: ``is_causal``, ``scale``, ``offset``, ``alpha``, ``solver``, ``feature_map``,
        ``normalize``. K^T K is all that is kept, so ``solver`` is "auto", "cholesky", "svd" or "cg".

    Returns
    -------
    out : array, shape (..., Tq, dv)
        What the form gives for all the keys at once, up to rounding: at alpha = 0 that of K^T K, whose
        condition number is that of the keys squared.

    Raises
    ------
    TypeError, ValueError
        As the form does, with a note that says in which piece.
    numpy.linalg.LinAlgError
        The chosen solver cannot solve this system.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 2))
    >>> tiles = kvq.partials.split(k, v, at=[2, 4])
    >>> out = kvq.partials.fold("sigma_intention", q[3:], tiles[::-1], start=3, is_causal=True, alpha=0.1)
    >>> np.allclose(out, kvq.sigma_intention(q, k, v, is_causal=True, alpha=0.1)[3:])
    True
    """
    check_word("form", form, FOLDS)
    _, rounds = FOLDS[form]
    if not rounds:
        any_order = ", ".join(name for name, (_, its) in FOLDS.items() if its)
        raise ValueError(
            f"form: expected one whose pieces may be merged in any order ({any_order}), got {form!r}: its keys "
            "act one after the other; call it on its pieces in their order, each with the initial_state of the last"
        )
    ready: list[tuple[Inputs, Quarantine, dict[str, Any]]] = []
    for i, piece in enumerate(pieces):
        try:
            ready.append(_prepare(form, q, piece, start, options))
            if (dv := ready[i][0].v.shape[-1]) != (first := ready[0][0].v.shape[-1]):
                raise ValueError(f"v: expected dv = {first} columns, as in pieces[0], got {dv}")
        except (TypeError, ValueError) as error:
            error.add_note(f"in pieces[{i}]")
            raise
    if not ready:
        raise ValueError("pieces: expected at least one, got none; a piece may be without keys")

    (rows, *_), quarantine, options = ready[0]
    for step in rounds:
        parts = [step.partial(rows, x.k, x.v, x.mask, bias=x.bias, **options) for x, *_ in ready]
        rows = step.finish(rows, gather(step.merge, parts), **options)
    saw = functools.reduce(operator.or_, (x.rows for _, x, _ in ready))
    return namespace(q).astype(nonfinite.mark_rows(rows, quarantine._replace(rows=saw)), q.dtype)


def split(
    k: Array, v: Array, at: Sequence[int], *, mask: Array | None = None, bias: Array | None = None
) -> list[Piece]:
    """Cut keys and values, with the columns of mask and bias, where ``at`` says that a piece begins.

    Raises
    ------
    ValueError
        Shapes that do not fit each other, or places that do not ascend from 0 to Tk.

    Examples
    --------
    >>> import numpy as np
    >>> k = v = np.ones((5, 2))
    >>> [(len(piece.k), piece.start) for piece in split(k, v, at=[2, 4])]
    [(2, 0), (2, 2), (1, 4)]
    """
    check_qkv_shapes(k, k, v)
    columns = {name: x for name, x in (("mask", mask), ("bias", bias)) if x is not None}
    for name, x in columns.items():
        check_pair_shape(name, x, (1, *x.shape)[-2], k.shape[-2])
    edges = [0, *at, k.shape[-2]]
    if edges != sorted(edges):
        raise ValueError(f"at: expected places that ascend from 0 to {k.shape[-2]}, got {list(at)}")
    pieces = []
    for a, b in itertools.pairwise(edges):
        own = {name: x if x.shape[-1] == 1 else x[..., a:b] for name, x in columns.items()}
        pieces.append(Piece(k[..., a:b, :], v[..., a:b, :], **own, start=a))
    return pieces


def _prepare(
    form: str, q: Array, piece: Piece, start: int, options: dict[str, Any]
) -> tuple[Inputs, Quarantine, dict[str, Any]]:
    """A piece as the form would take it: checked, widened and finite, with a mask that knows positions."""
    if not isinstance(piece, tuple) or len(piece) < 2:
        raise TypeError(f"pieces: expected Pieces or tuples (k, v), got {type(piece).__name__}")
    k, v, mask, bias, first = Piece(*piece)
    columns = {name: x for name, x in (("mask", mask), ("bias", bias)) if x is not None}
    call = inspect.signature(FOLDS[form][0].forward).bind(q, k, v, **columns, **options)
    call.apply_defaults()
    ready = check_call(form, q, k, v, call.kwargs)
    if ready.pop("initial_state", None) is not None:
        raise TypeError("initial_state: expected none, for a fold begins with its pieces")
    if "solver" in ready:
        check_word("solver", ready["solver"], GRAM_SOLVERS)
    if "scale" in ready and ready["scale"] is None:
        ready["scale"] = GRID[form].default_scale(q.shape[-1])

    xp, where, visible = namespace(q), device(q), ready.pop("mask")
    if visible is None:
        visible = xp.ones((1, k.shape[-2]), dtype=xp.bool, device=where)
    if ready.pop("is_causal"):
        lag = xp.arange(q.shape[-2], device=where)[:, None] - xp.arange(k.shape[-2], device=where)
        visible = visible & (lag >= _place(first) - _place(start))
    inputs = Inputs(*map(_wide, (q, k, v, visible, ready.pop("bias", None))))
    inputs, quarantine = nonfinite.isolate(
        inputs, is_causal=False, has_state=False, regresses=GRID[form].query == "preconditioned"
    )
    visible = quarantine.visible  # not where a bias of -inf hides a key that is not finite
    by_any = transpose(xp.any(visible, axis=-2, keepdims=True))  # what nobody sees could overflow
    k, v = (xp.where(by_any, x, xp.full_like(x, by)) for x, by in ((inputs.k, 1), (inputs.v, 0)))
    return inputs._replace(k=k, v=v, mask=visible), quarantine, {name: _wide(x) for name, x in ready.items()}


def _place(x: object) -> int:
    if not isinstance(x, numbers.Integral):
        raise TypeError(f"start: expected an integer, for the causal rule needs positions, got {type(x).__name__}")
    return int(x)


def _wide(x: Any) -> Any:
    """Half precision to float32; anything else as it is."""
    return namespace(x).astype(x, namespace(x).float32) if is_array(x) and dtype_name(x) in HALF_DTYPES else x
