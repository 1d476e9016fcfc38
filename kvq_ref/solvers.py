"""The solvers behind :mod:`kvq_ref.solve`: ways to apply (G + alpha I)^-1, with G = K^T K.

Each solver below turns keys into a :class:`Factor`, something that can apply
(G + alpha I)^-1 to a right-hand side. SciPy does the work on NumPy arrays; the
array's own library does it elsewhere. `primal` factors the (d, d) matrix
G + alpha I, `dual` the (Tk, Tk) matrix K K^T + alpha I, whichever is smaller.

====================  ======================================================  =======================
solver                what is factored                                        rank-deficient, alpha=0
====================  ======================================================  =======================
"auto"                "cholesky"; "svd" at alpha = 0 or where Cholesky fails  minimum norm
"cholesky"            G + alpha I, or its dual                                LinAlgError
"qr"                  the keys on top of sqrt(alpha) I, or their transpose    LinAlgError
"svd"                 the keys                                                minimum norm
"lstsq"               nothing: scipy.linalg.lstsq on the augmented keys       minimum norm
"cg"                  nothing: conjugate gradients, truncated                 minimum norm
====================  ======================================================  =======================

"cholesky", "auto" and "cg" square the condition number of the keys; "qr",
"svd" and "lstsq" do not. A masked key is a row of zeros, so with "cholesky" and
"qr" at alpha = 0 a mask can leave the keys rank-deficient.

Where only G is known, because a state was given, "svd" and what falls back on
it use the eigenvalues of G.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kvq_ref.arrays import device, is_numpy, namespace, strict_linalg, transpose
from kvq_ref.types import Array

Solve = Callable[[Array], Array]


class Factor(NamedTuple):
    """The left-hand side of a regression on keys K, made ready for right-hand sides.

    Attributes
    ----------
    solve : callable
        b (..., d, n) -> (G + alpha I)^-1 b.
    fit : callable
        v (..., Tk, n) -> argmin_W |v - k W|^2 + alpha |W|^2.
    """

    solve: Solve
    fit: Solve


# ---- Solvers: (keys, alpha) -> Factor; alpha has two trailing axes of length 1 --------


def _auto(k: Array, alpha: Array) -> Factor:
    if any_zero(alpha):
        return _svd(k, alpha)
    try:
        return _cholesky(k, alpha)
    except np.linalg.LinAlgError:  # alpha is lost in the rounding of G, somewhere in the batch
        return _svd(k, alpha)


def _cholesky(k: Array, alpha: Array) -> Factor:
    kt = transpose(k)
    if k.shape[-2] >= k.shape[-1]:
        primal = _cholesky_solver(kt @ k, alpha)
        return Factor(solve=primal, fit=lambda v: primal(kt @ v))
    dual = _cholesky_solver(k @ kt, alpha)
    return Factor(solve=_through_dual(k, alpha, dual), fit=lambda v: kt @ dual(v))


def _qr(k: Array, alpha: Array) -> Factor:
    xp = namespace(k)
    Tk, d = k.shape[-2:]
    if Tk >= d:
        # [K; sqrt(alpha) I] = Q R, so G + alpha I = R^T R and W = R^-1 Q^T [V; 0]
        basis, r = xp.linalg.qr(_stack(k, xp.sqrt(alpha) * _eye(k, d)))
        _require_full_rank(xp.linalg.diagonal(r))
        top = transpose(basis[..., :Tk, :])
        return Factor(solve=lambda b: _upper(r, _upper_t(r, b)), fit=lambda v: _upper(r, top @ v))
    # [K^T; sqrt(alpha) I] = Q R, so K K^T + alpha I = R^T R and W is the top of Q R^-T V
    basis, r = xp.linalg.qr(_stack(transpose(k), xp.sqrt(alpha) * _eye(k, Tk)))
    _require_full_rank(xp.linalg.diagonal(r))
    top = basis[..., :d, :]
    solve = _through_dual(k, alpha, lambda b: _upper(r, _upper_t(r, b)))
    return Factor(solve=solve, fit=lambda v: top @ _upper_t(r, v))


def _svd(k: Array, alpha: Array) -> Factor:
    xp = namespace(k)
    if k.shape[-1] == 0:
        return Factor(solve=lambda b: alpha * b, fit=lambda v: alpha * (transpose(k) @ v))  # nothing, of every shape
    with strict_linalg(k):
        u, s, vt = xp.linalg.svd(k, full_matrices=False)
    ut, right, s = transpose(u), transpose(vt), s[..., None]
    # At alpha = 0 a singular value at the level of rounding is zero: minimum norm.
    noise = max(k.shape[-2:]) * xp.finfo(k.dtype).eps * xp.max(s, axis=-2, keepdims=True)
    keep = (alpha > 0) | (s > noise)
    for_solve = _ratio_where(keep, xp.ones_like(s), s * s + alpha)
    safe = xp.where(keep & (s > 0), s, xp.ones_like(s))
    for_fit = _ratio_where(keep & (s > 0), xp.ones_like(s), safe + alpha / safe)  # s / (s^2 + alpha), in range
    beyond = _reciprocal_where_positive(alpha)

    def solve(b: Array) -> Array:
        along = vt @ b
        x = right @ (for_solve * along)
        if k.shape[-2] >= k.shape[-1]:
            return x
        # Fewer keys than dimensions: off their span G is 0, so 1/alpha there, and 0 for minimum norm.
        return x + beyond * (b - right @ along)

    return Factor(solve=solve, fit=lambda v: right @ (for_fit * (ut @ v)))


def _lstsq(k: Array, alpha: Array) -> Factor:
    xp = namespace(k)
    augmented = _stack(k, xp.sqrt(alpha) * _eye(k, k.shape[-1]))

    def fit(v: Array) -> Array:
        below = xp.zeros((*v.shape[:-2], k.shape[-1], v.shape[-1]), dtype=v.dtype, device=device(v))
        return _minimum_norm(augmented, xp.concat([v, below], axis=-2))

    def solve(b: Array) -> Array:
        return _minimum_norm(augmented, _minimum_norm(transpose(augmented), b))

    return Factor(solve=solve, fit=fit)


def _cg(k: Array, alpha: Array) -> Factor:
    xp = namespace(k)
    kt, rank = transpose(k), min(k.shape[-2:])
    none = xp.zeros_like(alpha)

    def times_gram(b: Array) -> Array:
        return kt @ (k @ b)

    def fit(v: Array) -> Array:
        return _conjugate_gradients(times_gram, alpha, rank, kt @ v, summed_from=v)

    def solve(b: Array) -> Array:
        x = _conjugate_gradients(times_gram, alpha, rank, b)
        if not any_zero(alpha):
            return x
        # A singular G cannot reach all of b. G^+ b = K^+ K^+^T b: two systems that can be solved exactly.
        z = _conjugate_gradients(lambda y: k @ (kt @ y), none, rank, k @ b, summed_from=b)
        reached = _conjugate_gradients(times_gram, none, rank, kt @ z, summed_from=z)
        return xp.where(alpha == 0, reached, x)

    return Factor(solve=solve, fit=fit)


SOLVERS: dict[str, Callable[[Array, Array], Factor]] = {
    "auto": _auto,
    "cholesky": _cholesky,
    "qr": _qr,
    "svd": _svd,
    "lstsq": _lstsq,
    "cg": _cg,
}

# Those that can do with G alone, which is all that a state holds.
GRAM_SOLVERS = ("auto", "cholesky", "svd", "cg")


def solver_of_gram(gram: Array, alpha: Array, solver: str) -> Solve:
    """b -> (G + alpha I)^-1 b where only G is known: at each causal prefix, or with a state."""
    if solver == "svd" or (solver in ("auto", "cg") and any_zero(alpha)):
        return _eigh_solver(gram, alpha)
    if solver == "cg":
        return _nan_where_overflowed(
            gram, lambda finite: lambda b: _conjugate_gradients(lambda p: finite @ p, alpha, gram.shape[-1], b)
        )
    try:
        return _cholesky_solver(gram, alpha)
    except np.linalg.LinAlgError:
        if solver == "cholesky":
            raise
    # alpha is lost in the rounding of some G. The others keep Cholesky: what a later
    # token did to its prefix must not change a bit of an earlier one.
    xp = namespace(gram)
    definite = _is_positive_definite(gram, alpha)
    regular = _cholesky_solver(xp.where(definite, gram, _eye(gram, gram.shape[-1])), alpha)
    singular = _eigh_solver(gram, alpha)
    return lambda b: xp.where(definite, regular(b), singular(b))


# ---- Right-hand sides: the linear algebra itself -------------------------------------


def _nan_where_overflowed(h: Array, solver_of: Callable[[Array], Solve]) -> Solve:
    """The solver of a batch of matrices, some of which may have overflowed: those give NaN, not the others."""
    xp = namespace(h)
    finite = xp.all(xp.isfinite(h), axis=(-2, -1), keepdims=True)
    if bool(xp.all(finite)):
        return solver_of(h)
    solve = solver_of(xp.where(finite, h, _eye(h, h.shape[-1])))

    def solve_where_finite(b: Array) -> Array:
        x = solve(b)
        return xp.where(finite, x, xp.full_like(x, math.nan))

    return solve_where_finite


def _cholesky_solver(gram: Array, alpha: Array) -> Solve:
    """b -> (gram + alpha I)^-1 b; LinAlgError where that is not positive definite."""
    xp = namespace(gram)

    def solver_of(h: Array) -> Solve:
        lower = _cholesky_factor(h)
        if any_zero(alpha):
            _require_full_rank(xp.linalg.diagonal(lower) ** 2)
        return lambda b: _cholesky_solve(lower, b)

    return _nan_where_overflowed(gram + alpha * _eye(gram, gram.shape[-1]), solver_of)


def _cholesky_factor(h: Array) -> Array:
    """The lower factor, and one way of failing for all libraries."""
    xp = namespace(h)
    failure = np.linalg.LinAlgError("K^T K + alpha I is not positive definite to working precision")
    try:
        if is_numpy(h):
            return scipy.linalg.cho_factor(h, lower=True, check_finite=False)[0] if h.size else h
        with strict_linalg(h):
            lower = xp.linalg.cholesky(h)
    except np.linalg.LinAlgError:
        raise failure from None
    except RuntimeError as error:  # PyTorch's LinAlgError is one of these
        if "LinAlgError" not in type(error).__name__:
            raise
        raise failure from None
    if not bool(xp.all(xp.isfinite(lower))):  # JAX returns NaN
        raise failure
    return lower


def _cholesky_solve(lower: Array, b: Array) -> Array:
    if is_numpy(lower):
        factor, b = _same_batch(lower, b)
        return (
            scipy.linalg.cho_solve((factor, True), b, check_finite=False) if b.size and lower.size else np.zeros_like(b)
        )
    xp = namespace(lower)
    return xp.linalg.solve(transpose(lower), xp.linalg.solve(lower, b))


def _is_positive_definite(gram: Array, alpha: Array) -> Array:
    """For each matrix of a batch whether Cholesky succeeds, shape (..., 1, 1). One at a time: few calls come here."""
    xp = namespace(gram)
    alphas = xp.reshape(xp.broadcast_to(alpha, (*gram.shape[:-2], 1, 1)), (-1, 1, 1))
    flags = []
    for one, its_alpha in zip(xp.unstack(xp.reshape(gram, (-1, *gram.shape[-2:]))), xp.unstack(alphas), strict=True):
        try:
            _cholesky_solver(one, its_alpha)
        except np.linalg.LinAlgError:
            flags.append(False)
        else:
            flags.append(True)
    return xp.reshape(xp.asarray(flags, dtype=xp.bool, device=device(gram)), (*gram.shape[:-2], 1, 1))


def _eigh_solver(gram: Array, alpha: Array) -> Solve:
    """b -> (gram + alpha I)^-1 b, a pseudo-inverse at alpha = 0, for gram that may be singular."""
    return _nan_where_overflowed(gram, lambda finite_gram: _eigh_solver_of_finite(finite_gram, alpha))


def _eigh_solver_of_finite(gram: Array, alpha: Array) -> Solve:
    xp = namespace(gram)
    if gram.shape[-1] == 0:
        return lambda b: alpha * b
    with strict_linalg(gram):
        values, vectors = xp.linalg.eigh(gram)
    values = values[..., None]
    values = xp.where(values > 0, values, xp.zeros_like(values))
    noise = gram.shape[-1] * xp.finfo(gram.dtype).eps * xp.max(values, axis=-2, keepdims=True)
    keep = xp.where(alpha > 0, values + alpha > 0, values > noise)
    inverse = _reciprocal_where_positive(xp.where(keep, values + alpha, xp.zeros_like(values)))
    return lambda b: vectors @ (inverse * (transpose(vectors) @ b))


def _conjugate_gradients(
    times_gram: Solve, alpha: Array, rank: int, b: Array, summed_from: Array | None = None
) -> Array:
    """Solve (G + alpha I) x = b, every column of b on its own; at alpha = 0 b must be in the range of G.

    Exact arithmetic would end after `rank` steps; it is given four times as
    many. A column ends earlier when its residual is at the rounding of what it
    was made from: G x, and b or, where b = K^T v, the v that it was summed from.
    Beyond that a singular G would only amplify the rounding.
    """
    xp = namespace(b)
    noise = (8 * rank * float(xp.finfo(b.dtype).eps)) ** 2
    x = xp.zeros_like(times_gram(b) + alpha * b)  # of the shape that all leading axes broadcast to
    r = p = b + x
    rr = _squared(r)
    terms = rr if summed_from is None else _squared(summed_from)
    steepest = xp.zeros_like(rr)
    for _ in range(4 * rank + 10):
        hp = times_gram(p) + alpha * p
        curvature, pp = xp.sum(p * hp, axis=-2, keepdims=True), _squared(p)
        along = _ratio_where(pp > 0, curvature, pp)  # between the least and the largest eigenvalue
        steepest = xp.where(along > steepest, along, steepest)
        attainable = noise * (steepest**2 * _squared(x) + (terms if summed_from is None else steepest * terms))
        active = (rr > attainable) & (curvature > 0)
        if not bool(xp.any(active)):
            break
        step = _ratio_where(active, rr, curvature)
        x, r = x + step * p, r - step * hp
        rr_next = _squared(r)
        p = xp.where(active, r + _ratio_where(active, rr_next, rr) * p, xp.zeros_like(r))
        rr = rr_next
    return x


def _squared(x: Array) -> Array:
    """The squared norm of each column."""
    return namespace(x).sum(x * x, axis=-2, keepdims=True)


def _through_dual(k: Array, alpha: Array, dual: Solve) -> Solve:
    """(K^T K + alpha I)^-1 from (K K^T + alpha I)^-1: Woodbury, and K^T (K K^T)^-2 K at alpha = 0."""
    xp = namespace(k)
    kt = transpose(k)
    scale = _reciprocal_where_positive(alpha)
    some_zero = any_zero(alpha)

    def solve(b: Array) -> Array:
        inner = dual(k @ b)
        woodbury = scale * (b - kt @ inner)
        return xp.where(alpha > 0, woodbury, kt @ dual(inner)) if some_zero else woodbury

    return solve


def _upper(r: Array, b: Array) -> Array:
    """r^-1 b for upper triangular r."""
    if is_numpy(r) and 0 not in b.shape:
        return scipy.linalg.solve_triangular(*_same_batch(r, b), check_finite=False)
    return namespace(r).linalg.solve(r, b)


def _upper_t(r: Array, b: Array) -> Array:
    """r^-T b for upper triangular r."""
    if is_numpy(r) and 0 not in b.shape:
        return scipy.linalg.solve_triangular(*_same_batch(r, b), trans="T", check_finite=False)
    return namespace(r).linalg.solve(transpose(r), b)


def _minimum_norm(a: Array, b: Array) -> Array:
    """The least-squares solution of a x = b of minimum norm."""
    rtol = float(max(a.shape[-2:]) * namespace(a).finfo(a.dtype).eps)
    if not is_numpy(a):
        with strict_linalg(a):
            return namespace(a).linalg.pinv(a, rtol=rtol) @ b
    a, b = _same_batch(a, b)
    x = np.zeros((*a.shape[:-2], a.shape[-1], b.shape[-1]), a.dtype)
    if x.size and a.size:
        for i in np.ndindex(*a.shape[:-2]):  # SciPy's own loop fails where ranks differ
            finite = np.isfinite(b[i]).all()
            x[i] = scipy.linalg.lstsq(a[i], b[i], cond=rtol)[0] if finite else math.nan
    return x


def _same_batch(*arrays: Array) -> tuple[Array, ...]:
    """Broadcast the leading axes, which SciPy's batched functions do not do by themselves."""
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return tuple(np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in arrays)


def _require_full_rank(pivots: Array) -> None:
    """Raise if a pivot is at the level of rounding: a triangular solve would return noise."""
    xp = namespace(pivots)
    if 0 in pivots.shape:
        return
    pivots = xp.abs(pivots)
    floor = 8 * pivots.shape[-1] * xp.finfo(pivots.dtype).eps * xp.max(pivots, axis=-1, keepdims=True)
    if bool(xp.any(pivots <= floor)):
        raise np.linalg.LinAlgError(
            "K^T K + alpha I is singular to working precision: solver='svd' gives the minimum norm"
        )


def _stack(k: Array, below: Array) -> Array:
    """k on top of ``below``, their leading axes broadcast."""
    xp = namespace(k)
    batch = np.broadcast_shapes(k.shape[:-2], below.shape[:-2])
    return xp.concat([xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (k, below)], axis=-2)


def _eye(like: Array, n: int) -> Array:
    return namespace(like).eye(n, dtype=like.dtype, device=device(like))


def any_zero(alpha: Array) -> bool:
    return bool(namespace(alpha).any(alpha == 0))


def _reciprocal_where_positive(x: Array) -> Array:
    """1 / x where x > 0, and 0 elsewhere."""
    return _ratio_where(x > 0, namespace(x).ones_like(x), x)


def _ratio_where(condition: Array, a: Array, b: Array) -> Array:
    """a / b where the condition holds, and 0 elsewhere."""
    xp = namespace(a)
    return xp.where(condition, a / xp.where(condition, b, xp.ones_like(b)), xp.zeros_like(a))
