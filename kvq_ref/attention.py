"""The public functions: one for each form, and their vector-Jacobian product.

All take ``q (..., Tq, d)``, ``k (..., Tk, d)`` and ``v (..., Tk, dv)`` and give
``out (..., Tq, dv)``; leading axes broadcast, and heads are a leading axis. The
arrays may be NumPy's, CuPy's, PyTorch's or JAX's; what comes out is of the kind
that went in. The mathematics of each is one short file in ``kvq_ref/forms``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from kvq_ref.dispatch import FORMS, Pullback, call, differentiable_call
from kvq_ref.features import FeatureMapLike
from kvq_ref.forms.delta_rule import DeltaRuleState
from kvq_ref.forms.gated_linear import GatedLinearState
from kvq_ref.forms.intention import IntentionState
from kvq_ref.forms.linear import LinearState
from kvq_ref.forms.mesa import MesaState
from kvq_ref.types import Array


def softmax_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Softmax attention: a mean of the values, weighted by exp(scale * q.k).

    ``out_i = sum_j softmax_j(scale * q_i.k_j + bias_ij) v_j`` over the keys that query
    i sees. A query that sees no key gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). -inf hides a key.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, optional
        Factor of the scores, by default 1/sqrt(d).
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk (d + dv)). Memory O(Tq Tk) in the reference; the compiled kernel
    never stores the weights. To see the weights, ask for the output at v = I.
    Source: Vaswani et al. 2017, arXiv 1706.03762.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.eye(2)
    >>> kvq.softmax_attention(np.array([[100.0, 0.0], [0.0, 0.0]]), k, v).round(6)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "out": out,
        "implementation": implementation,
    }
    return call("softmax_attention", q, k, v, options)


def expressive_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Expressive attention: a mean of the values, weighted by z^2 / (1 + z^2) with z = scale * q.k.

    Keys parallel and antiparallel to the query are attended to, orthogonal ones
    suppressed. A query that sees no key, or is orthogonal to all that it sees,
    gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). -inf hides a key.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the scores.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk (d + dv)). Memory O(Tq Tk) in the reference; the compiled kernel
    never stores the weights.
    Source: Gros 2024, arXiv 2407.18601.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.eye(2)
    >>> kvq.expressive_attention(np.array([[-5.0, 0.0], [1.0, 1.0]]), k, v)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "out": out,
        "implementation": implementation,
    }
    return call("expressive_attention", q, k, v, options)


def quadratic_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Quadratic attention: a mean of the values, weighted by z^2 with z = scale * q.k.

    Keys parallel and antiparallel to the query are attended to, orthogonal ones
    suppressed: expressive attention where its scores are small, and normalised linear
    attention of phi(x) = vec(x x^T). A query that sees no key, or is orthogonal to all
    that it sees, gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). -inf hides a key.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the scores. It cancels, unless it is 0; every score form has one.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk (d + dv)), memory O(Tq Tk).
    Source: Aksenov et al. 2024, arXiv 2402.10644 (ReBased), without its learned normalisation.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.eye(2)
    >>> kvq.quadratic_attention(np.array([[-5.0, 0.0], [1.0, 2.0]]), k, v)
    array([[1. , 0. ],
           [0.2, 0.8]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "out": out,
        "implementation": implementation,
    }
    return call("quadratic_attention", q, k, v, options)


def taylor_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Taylor attention: a mean of the values, weighted by 1 + z + z^2/2 with z = scale * q.k.

    The first terms of exp(z), so softmax attention where scores are small. No weight is
    below 1/2 (times exp(bias)). A query that sees no key gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). -inf hides a key.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the scores; 1/sqrt(d) makes it comparable with softmax attention.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk (d + dv)), memory O(Tq Tk).
    Source: Arora et al. 2024, arXiv 2402.18668 (Based).

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.eye(2)
    >>> kvq.taylor_attention(np.array([[2.0, 0.0], [0.0, 0.0]]), k, v).round(6)
    array([[0.833333, 0.166667],
           [0.5     , 0.5     ]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "out": out,
        "implementation": implementation,
    }
    return call("taylor_attention", q, k, v, options)


def sigmoid_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    offset: float = 0.0,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Sigmoid attention: a sum of the values, weighted by 1 / (1 + exp(-(z + offset))) with z = scale * q.k.

    Nothing is normalised: the weights of a row do not sum to one, and the output grows
    with the number of keys. A query that sees no key gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias), as in every form; it is not added inside the
        sigmoid, which is what offset is for. -inf hides a key. Nothing is normalised, so
        a large one overflows to infinity.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the scores; 1/sqrt(d) is in use too.
    offset : float, default 0
        Added to every score, inside the sigmoid. -log n, for n keys, is recommended.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk (d + dv)), memory O(Tq Tk).
    Source: Ramapuram et al. 2024, arXiv 2409.04431.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.eye(2)
    >>> kvq.sigmoid_attention(np.array([[100.0, 0.0], [0.0, 0.0]]), k, v)
    array([[1. , 0.5],
           [0.5, 0.5]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "offset": offset,
        "out": out,
        "implementation": implementation,
    }
    return call("sigmoid_attention", q, k, v, options)


def local_linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: float | Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Local linear attention: for each query the line that fits the values near it best, read off at the query.

    The b of ``argmin_(b, W) sum_j p_ij |v_j - b - (k_j - q_i) W|^2 + alpha |W|^2``, with p the
    weights of softmax attention. As alpha grows it tends to softmax attention, and with
    scale = 0 it is ridge regression with an intercept. A query that sees no key gets zeros.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    alpha : float or array, shape (...)
        Ridge penalty on the slope, >= 0, in units of k squared: large or small against
        the variance of the keys. An array broadcasts over the leading axes. 0 means the
        least slope that fits best.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). -inf hides a key.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, optional
        Factor of the scores, by default 1/sqrt(d).
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tq Tk d (d + dv) + Tq d^3), memory O(Tq Tk d + Tq d^2).
    Source: Zuo et al. 2025, arXiv 2510.01450; the definition here is chosen, see the form's file.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = np.array([[1.0], [2.0], [4.0]])
    >>> kvq.local_linear_attention(np.array([[3.0], [0.0]]), k, 5 * k + 1, alpha=0.0).round(9)  # it is a line
    array([[16.],
           [ 1.]])
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "out": out,
        "implementation": implementation,
    }
    return call("local_linear_attention", q, k, v, options)


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    feature_map: FeatureMapLike | None = None,
    normalize: bool = False,
    initial_state: LinearState | None = None,
    output_final_state: bool = False,
    out: Array | None = None,
    implementation: str | None = None,
) -> Any:
    """Linear attention: a sum of the values, weighted by scale * phi(q).phi(k).

    Equals ``scale * phi(q) @ (phi(k).T @ v)``: what it keeps of the past is a matrix of
    fixed size, so a sequence can be fed in pieces.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query attends to a key. What it hides may hold NaN or inf.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the scores.
    feature_map : {"identity", "elu+1", "relu"}, callable, pair or FeatureMap, default "identity"
        phi. A pair ``(phi, dphi)`` holds an elementwise function and its
        derivative; a callable alone serves forward calls.
    normalize : bool, default False
        Whether to divide each row by the sum of its weights.
    initial_state : LinearState, optional
        What came before the first key, as returned by an earlier call.
    output_final_state : bool, default False
        Whether to return the state after the last key as well.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.
    state : LinearState
        Only with ``output_final_state=True``: the return value is then ``(out, state)``.
        In float32 if the arguments are of half precision.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O((Tq + Tk) d dv), memory O(d dv); with a causal or a (Tq, Tk) mask, time
    O(Tq Tk (d + dv)) and memory O(Tq Tk) in the reference.
    Source: Katharopoulos et al. 2020, arXiv 2006.16236.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q = k = v = np.array([[1.0], [2.0], [3.0]])
    >>> kvq.linear_attention(q, k, v, is_causal=True)
    array([[ 1.],
           [10.],
           [42.]])
    >>> out, state = kvq.linear_attention(q[:2], k[:2], v[:2], is_causal=True, output_final_state=True)
    >>> kvq.linear_attention(q[2:], k[2:], v[2:], is_causal=True, initial_state=state)
    array([[42.]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "is_causal": is_causal,
        "scale": scale,
        "feature_map": feature_map,
        "normalize": normalize,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "out": out,
        "implementation": implementation,
    }
    return call("linear_attention", q, k, v, options)


def intention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: float | Array,
    mask: Array | None = None,
    is_causal: bool = False,
    solver: str = "auto",
    initial_state: IntentionState | None = None,
    output_final_state: bool = False,
    out: Array | None = None,
    implementation: str | None = None,
) -> Any:
    """Intention: ridge regression from keys to values, evaluated at the queries.

    ``out = q @ W`` with ``W = (k.T @ k + alpha I)^-1 @ k.T @ v``, fitted for each query to
    the keys that it sees. Times alpha, it tends to linear attention as alpha grows.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    alpha : float or array, shape (...)
        Ridge penalty, >= 0, in units of k squared: large or small against the
        eigenvalues of K^T K. An array broadcasts over the leading axes. 0 means the
        minimum-norm least-squares solution.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        Which keys enter the regression of a query: True where they do. What it
        hides may hold NaN or inf.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only, in the preconditioner too.
    solver : {"auto", "cholesky", "qr", "svd", "lstsq", "cg"}
        How the least-squares problem is solved; see :mod:`kvq_ref.solvers`.
    initial_state : IntentionState, optional
        What came before the first key, as returned by an earlier call.
    output_final_state : bool, default False
        Whether to return the state after the last key as well.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.
    state : IntentionState
        Only with ``output_final_state=True``: the return value is then ``(out, state)``.
        In float32 if the arguments are of half precision.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.
    numpy.linalg.LinAlgError
        The chosen solver cannot solve this system.

    Notes
    -----
    Time O(Tk d^2 + d^3 + (Tq + Tk) d dv), memory O(d (d + dv)), or with Tk and d
    exchanged where Tk < d. Causal: time O(T d^3 + T^2 (d + dv)), memory O(T d^2 + T^2). A
    (Tq, Tk) mask: Tq regressions, memory O(Tq d^2); with alpha = 0, or solver "qr", "svd" or
    "lstsq", a causal or (Tq, Tk) mask takes memory O(Tq Tk d).
    Source: Garnelo & Czarnecki 2023, arXiv 2305.10203.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k, v = np.array([[1.0], [2.0]]), np.array([[2.0], [4.0]])
    >>> kvq.intention(np.array([[10.0]]), k, v, alpha=0.0)  # v = 2 k
    array([[20.]])
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "mask": mask,
        "is_causal": is_causal,
        "solver": solver,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "out": out,
        "implementation": implementation,
    }
    return call("intention", q, k, v, options)


def sigma_intention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: float | Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    solver: str = "auto",
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """sigma-Intention: softmax attention of preconditioned queries.

    ``q*_i = (sum_j k_j k_j^T + alpha I)^-1 q_i`` over the keys that query i sees, then
    softmax attention of q* with the same keys and values.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    alpha : float or array, shape (...)
        Ridge penalty, >= 0, in units of k squared: large or small against the
        eigenvalues of K^T K. An array broadcasts over the leading axes. 0 means the
        minimum-norm least-squares solution.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        Which keys enter the regression of a query: True where they do. What it
        hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). A key of bias -inf has no weight, but
        stays in the regression; a mask takes it out of both.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only, in the preconditioner too.
    scale : float, default 1
        Factor of the scores.
    solver : {"auto", "cholesky", "qr", "svd", "lstsq", "cg"}
        How the least-squares problem is solved; see :mod:`kvq_ref.solvers`.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.
    numpy.linalg.LinAlgError
        The chosen solver cannot solve this system.

    Notes
    -----
    Time that of softmax attention, and O(Tk d^2 + d^3 + Tq d^2); causal or with a
    (Tq, Tk) mask O(Tq d^3), with O(Tq d^2) memory, or O(Tq Tk d) with alpha = 0 or solver
    "qr", "svd" or "lstsq".
    Source: Garnelo & Czarnecki 2023, arXiv 2305.10203; that the softmax runs over the
    preconditioned scores is this package's reading of the abstract.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.diag([1.0, 2.0])
    >>> kvq.sigma_intention(np.array([[100.0, 0.0]]), k, v, alpha=1.0).round(6)
    array([[1., 0.]])
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "solver": solver,
        "out": out,
        "implementation": implementation,
    }
    return call("sigma_intention", q, k, v, options)


def expressive_intention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: float | Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    solver: str = "auto",
    out: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Expressive Intention: expressive attention of preconditioned queries.

    ``q*_i = (sum_j k_j k_j^T + alpha I)^-1 q_i`` over the keys that query i sees, then
    expressive attention of q* with the same keys and values.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    alpha : float or array, shape (...)
        Ridge penalty, >= 0, in units of k squared: large or small against the
        eigenvalues of K^T K. An array broadcasts over the leading axes. 0 means the
        minimum-norm least-squares solution.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        Which keys enter the regression of a query: True where they do. What it
        hides may hold NaN or inf.
    bias : array, broadcasts to (..., Tq, Tk), optional
        Multiplies each weight by exp(bias). A key of bias -inf has no weight, but
        stays in the regression; a mask takes it out of both.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only, in the preconditioner too.
    scale : float, default 1
        Factor of the scores.
    solver : {"auto", "cholesky", "qr", "svd", "lstsq", "cg"}
        How the least-squares problem is solved; see :mod:`kvq_ref.solvers`.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.
    numpy.linalg.LinAlgError
        The chosen solver cannot solve this system.

    Notes
    -----
    Time that of expressive attention, and O(Tk d^2 + d^3 + Tq d^2); causal or with a
    (Tq, Tk) mask O(Tq d^3), with O(Tq d^2) memory, or O(Tq Tk d) with alpha = 0 or solver
    "qr", "svd" or "lstsq".
    Source: this package; we know of no paper that has it.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = v = np.diag([1.0, 2.0])
    >>> kvq.expressive_intention(np.array([[1.0, 0.0]]), k, v, alpha=0.0)
    array([[1., 0.]])
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "mask": mask,
        "bias": bias,
        "is_causal": is_causal,
        "scale": scale,
        "solver": solver,
        "out": out,
        "implementation": implementation,
    }
    return call("expressive_intention", q, k, v, options)


def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    beta: float | Array | None = None,
    initial_state: DeltaRuleState | None = None,
    output_final_state: bool = False,
    out: Array | None = None,
    implementation: str | None = None,
) -> Any:
    """The delta rule: linear attention that writes, for each key, what its memory has wrong.

    ``S_j = S_{j-1} + beta_j k_j (v_j - S_{j-1}^T k_j)^T`` over the keys that a query sees, in their order, and
    ``out_i = scale * S^T q_i`` after the last of them.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys. Where ``beta_j |k_j|^2`` is above 2 the state grows from key to key: they are
        normalised as a rule.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query sees a key: one that it does not see is left out of its sequence, with
        its beta. What it hides may hold NaN or inf.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the output.
    beta : float or array, shape (..., Tk, 1), default 1
        Size of each key's step, any finite number. An array may have one row for all keys.
    initial_state : DeltaRuleState, optional
        What came before the first key, as returned by an earlier call.
    output_final_state : bool, default False
        Whether to return the state after the last key as well.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.
    state : DeltaRuleState
        Only with ``output_final_state=True``: the return value is then ``(out, state)``.
        In float32 if the arguments are of half precision.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O((Tq + Tk) d dv), memory O(Tk d dv); a (Tq, Tk) mask makes it Tq walks along the keys, and
    both Tq times as large. The order of the keys matters.
    Source: Schlag, Irie & Schmidhuber 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the first key comes again, with another value
    >>> v = np.array([[1.0], [2.0], [3.0]])
    >>> kvq.delta_rule(k, k, v)
    array([[3.],
           [2.],
           [3.]])
    >>> kvq.linear_attention(k, k, v)
    array([[4.],
           [2.],
           [4.]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "is_causal": is_causal,
        "scale": scale,
        "beta": beta,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "out": out,
        "implementation": implementation,
    }
    return call("delta_rule", q, k, v, options)


def gated_linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    decay: float | Array | None = None,
    initial_state: GatedLinearState | None = None,
    output_final_state: bool = False,
    out: Array | None = None,
    implementation: str | None = None,
) -> Any:
    """Gated linear attention: linear attention whose memory fades with every key.

    ``S_j = diag(decay_j) S_{j-1} + k_j v_j^T`` over the keys that a query sees, in their order, and
    ``out_i = scale * S^T q_i`` after the last of them.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        True where a query sees a key: one that it does not see is left out of its sequence, with
        its decay. What it hides may hold NaN or inf.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    scale : float, default 1
        Factor of the output.
    decay : float or array, shape (..., Tk, d) or (..., Tk, 1), default 1
        What key j leaves of the memory before it, from 0 to 1, for each coordinate or for all. An array
        may have one row for all keys.
    initial_state : GatedLinearState, optional
        What came before the first key, as returned by an earlier call.
    output_final_state : bool, default False
        Whether to return the state after the last key as well.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.
    state : GatedLinearState
        Only with ``output_final_state=True``: the return value is then ``(out, state)``.
        In float32 if the arguments are of half precision.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O((Tq + Tk) d dv), memory O(Tk d dv); a (Tq, Tk) mask makes it Tq walks along the keys, and
    both Tq times as large. The order of the keys matters, unless all decays are 1.
    Source: Yang et al. 2023, arXiv 2312.06635.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q = k = v = np.ones((3, 1))
    >>> kvq.gated_linear_attention(q, k, v, is_causal=True, decay=0.5)
    array([[1.  ],
           [1.5 ],
           [1.75]])
    """
    options: dict[str, Any] = {
        "mask": mask,
        "is_causal": is_causal,
        "scale": scale,
        "decay": decay,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "out": out,
        "implementation": implementation,
    }
    return call("gated_linear_attention", q, k, v, options)


def mesa_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: float | Array,
    mask: Array | None = None,
    is_causal: bool = False,
    decay: float | Array | None = None,
    initial_state: MesaState | None = None,
    output_final_state: bool = False,
    out: Array | None = None,
    implementation: str | None = None,
) -> Any:
    """Mesa attention: Intention whose keys and values fade with every key.

    ``H_j = decay_j H_{j-1} + k_j k_j^T`` and ``W_j = decay_j W_{j-1} + k_j v_j^T`` over the keys that a query
    sees, in their order, and ``out_i = q_i (H + alpha I)^-1 W`` after the last of them.

    Parameters
    ----------
    q : array, shape (..., Tq, d)
        Queries.
    k : array, shape (..., Tk, d)
        Keys.
    v : array, shape (..., Tk, dv)
        Values.
    alpha : float or array, shape (...)
        Ridge penalty, >= 0, as in Intention; it does not fade. An array broadcasts over the leading
        axes. 0 means the minimum-norm least-squares solution.
    mask : array of bool, broadcasts to (..., Tq, Tk), optional
        Which keys enter the regression of a query: one that does not is left out of its sequence,
        with its decay. What it hides may hold NaN or inf.
    is_causal : bool, default False
        Whether query i sees keys 0 .. i only.
    decay : float or array, shape (..., Tk, 1), default 1
        What key j leaves of the sums before it, from 0 to 1. An array may have one row for all keys.
    initial_state : MesaState, optional
        What came before the first key, as returned by an earlier call.
    output_final_state : bool, default False
        Whether to return the state after the last key as well.
    out : array, optional
        Where to write the result, which is then what is returned: an array of its
        shape, library, dtype and device. It may overlap the arguments.
    implementation : {"reference", "compiled", None}
        How to compute it; None takes the best that serves these arguments.

    Returns
    -------
    out : array, shape (..., Tq, dv)
        In the library, dtype and device of the arguments.
    state : MesaState
        Only with ``output_final_state=True``: the return value is then ``(out, state)``.
        In float32 if the arguments are of half precision.

    Raises
    ------
    TypeError
        Arguments of different libraries, or of a wrong or different dtype.
    ValueError
        A wrong shape or value, or an implementation that cannot serve the call.

    Notes
    -----
    Time O(Tk d (d + dv) + d^3 + Tq d (d + dv)), memory O(Tk d (d + dv)). Causal: time O(T d^3 + T d dv). A (Tq, Tk)
    mask: Tq walks along the keys and Tq regressions. The order of the keys matters, unless all decays are 1. Solved
    by Cholesky, or by the eigenvalues of H at alpha = 0 and where Cholesky fails.
    Source: von Oswald et al. 2023, arXiv 2309.05858, and 2025, arXiv 2506.05233; that alpha does not fade was chosen.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> k = np.ones((3, 1))  # the value of one key changes: 0, 0, then 1
    >>> v = np.array([[0.0], [0.0], [1.0]])
    >>> [float(kvq.mesa_attention(k[:1], k, v, alpha=0.0, decay=decay)[0, 0].round(3)) for decay in (1.0, 0.5, 0.0)]
    [0.333, 0.571, 1.0]
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "mask": mask,
        "is_causal": is_causal,
        "decay": decay,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "out": out,
        "implementation": implementation,
    }
    return call("mesa_attention", q, k, v, options)


def vjp(form: Callable[..., Any], q: Array, k: Array, v: Array, **options: Any) -> tuple[Any, Pullback]:
    """Evaluate a form, and get the function that carries a gradient back through it.

    It has the shape of ``jax.vjp``, and runs the hand-written backward of the form.

    Parameters
    ----------
    form : callable
        One of the forms of this package.
    q, k, v : array
        As the form takes them.
    **options
        The form's keyword arguments.

    Returns
    -------
    out : array, or (array, state)
        What ``form(q, k, v, **options)`` returns.
    pullback : callable
        ``pullback(dout) -> grads``, where dout is the gradient of a scalar with
        respect to out and grads has the gradients of that scalar as ``.q``, ``.k``,
        ``.v``, and ``.bias``, ``.alpha``, ``.beta``, ``.decay``, ``.initial_state`` where these were
        given (None where not). Each has the shape of its argument. Where a state is
        returned it takes ``(dout, dstate)``; ``dstate`` may be None. It can be called
        more than once. It keeps q, k and v themselves and no copies (unless ``out=``
        overlaps them): leave them as they are until it has been called; out may be
        written into.

    Raises
    ------
    TypeError
        If ``form`` is not a form of this package, or does not take an option; and as the form does.
    ValueError
        As the form does.

    Notes
    -----
    Time and memory of backward are those of forward, times two or three. The
    compiled kernels recompute the weights rather than store them.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 5, 2))
    >>> out, pullback = kvq.vjp(kvq.intention, q, k, v, alpha=0.1)
    >>> grads = pullback(np.ones_like(out))
    >>> grads.k.shape, grads.alpha.shape, grads.bias
    ((5, 2), (), None)
    """
    name = getattr(form, "__name__", type(form).__name__)
    if name not in FORMS or globals().get(name) is not form:
        raise TypeError(f"form: expected a form of kvq_ref ({', '.join(FORMS)}), got {name}")
    names, defaults = _keywords(name)
    given = defaults | options
    if given.keys() != names:
        raise _wrong_keywords(form, options)
    return differentiable_call(name, q, k, v, given)


@functools.cache
def _keywords(name: str) -> tuple[frozenset[str], dict[str, Any]]:
    """The keyword arguments of a form, and the defaults of those that have one."""
    parameters = [p for p in inspect.signature(globals()[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return frozenset(p.name for p in parameters), {p.name: p.default for p in parameters if p.default is not p.empty}


def _wrong_keywords(form: Callable[..., Any], options: dict[str, Any]) -> TypeError:
    """What is wrong, in Python's own words, and the options that there are."""
    name = form.__name__
    try:
        inspect.signature(form).bind(None, None, None, **options)
    except TypeError as error:
        known = ", ".join((*FORMS[name].options, "out", "implementation"))
        return TypeError(f"{name}: {error}; its options are {known}")
    raise AssertionError(f"{name}: these keywords are right: {', '.join(options)}")
