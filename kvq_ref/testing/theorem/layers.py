"""A layer of linear attention, copied by a layer of Intention with as many parameters.

For every layer of linear attention, every radius R, every number of tokens T and every eps > 0
there is an alpha, and an Intention layer of the same shapes, whose outputs differ by at most eps for
all T tokens with |x_t| <= R, causal or not. Nothing has to be trained: the projections stay as they are
and the output matrix is multiplied by alpha.

*Proof.* In head h, with spectral norms of its blocks of the projections and S_t = K^T V, G_t = K^T K of
what token t sees:

    |q_t| <= R |Wq|,   |S_t| <= T R^2 |Wk| |Wv|,   lambda_max(G_t) <= g := T R^2 |Wk|^2

because |X^T X| <= T R^2. By the bound of a large alpha, alpha times Intention is off by at most |q_t| |S_t| g / (g +
alpha), and behind the output matrix by |Wo| times that. Summed over heads, the error is below sum_h C_h g_h / alpha
with C = T R^3 |Wq| |Wk| |Wv| |Wo|, so alpha = sum_h C_h g_h / eps is enough.

The other direction fails: a layer of linear attention has the degree 3 in its tokens, and Intention has not;
see :mod:`~kvq_ref.testing.theorem.strictness`.

In floating point a large alpha costs no accuracy, since alpha I_alpha is as well conditioned as 1 + g / alpha, but it
gains none below the rounding of the two layers themselves: :func:`rounding` says where that is. An eps
far below it only brings alpha nearer to overflow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import kvq_ref as kvq
from kvq_ref.testing.theorem.bounds import F64, Bound, Form, length, spectral_norm


class Layer(NamedTuple):
    """Projections of a layer of attention, with ``heads`` heads side by side.

    Attributes
    ----------
    wq, wk : array, shape (m, heads * d)
    wv : array, shape (m, heads * dv)
    wo : array, shape (heads * dv, n)
    heads : int

    Examples
    --------
    >>> Layer(np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 2)), np.ones((2, 3)), heads=2).parameters()
    36
    """

    wq: F64
    wk: F64
    wv: F64
    wo: F64
    heads: int = 1

    def parameters(self) -> int:
        """How many numbers are trained."""
        return self.wq.size + self.wk.size + self.wv.size + self.wo.size


class Copy(NamedTuple):
    """An Intention layer that copies a layer of linear attention, and where it does.

    Attributes
    ----------
    layer : Layer
    alpha : float
    eps : float
        The largest error in exact arithmetic,
    radius : float
        for tokens x with |x_t| <= radius,
    tokens : int
        of which there are at most this many.
    """

    layer: Layer
    alpha: float
    eps: float
    radius: float
    tokens: int


def apply(layer: Layer, x: F64, attention: Form = kvq.linear_attention, **options: Any) -> F64:
    """The output of a layer: project, attend in every head, merge, project.

    Parameters
    ----------
    layer : Layer
    x : array, shape (..., T, m)
    attention : callable, default kvq.linear_attention
        ``attention(q, k, v, **options)``.
    **options

    Returns
    -------
    array, shape (..., T, n)

    Raises
    ------
    ValueError
        If ``layer.heads`` does not divide the projections.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> apply(Layer(one, one, one, one), np.array([[1.0], [2.0]]), is_causal=True)
    array([[ 1.],
           [10.]])
    """
    q, k, v = (kvq.split_heads(x @ w, layer.heads) for w in (layer.wq, layer.wk, layer.wv))
    out: F64 = kvq.merge_heads(np.asarray(attention(q, k, v, **options))) @ layer.wo
    return out


def sufficient_alpha(layer: Layer, eps: float, radius: float, tokens: int) -> float:
    """The alpha of the theorem: sum_h C_h g_h / eps.

    It cannot be much smaller: for m = d = dv = n = 1 and all tokens at the radius the error is eps / (1 + eps / C).

    Parameters
    ----------
    layer : Layer
        Of linear attention.
    eps : float
        The largest error of an output row, in length. Above 0.
    radius : float
        The largest length of a token.
    tokens : int
        The largest number of them.

    Returns
    -------
    float
        1 if the layer is zero everywhere: then any alpha will do.

    Raises
    ------
    ValueError
        If eps is not above 0, or so small that alpha is too large for float64.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> sufficient_alpha(Layer(one, one, one, one), eps=0.5, radius=1.0, tokens=3)  # C = g = 3
    18.0
    """
    if not eps > 0:
        raise ValueError(f"eps: expected a number above 0, got {eps}")
    n_q, n_k, n_v, n_o = (spectral_norm(w) for w in _by_head(layer))
    c = tokens * radius**3 * n_q * n_k * n_v * n_o
    g = tokens * radius**2 * n_k**2
    with np.errstate(over="ignore"):
        alpha = float(np.sum(c * g) / np.float64(eps))
    if not np.isfinite(alpha):
        raise ValueError(f"eps: {eps} needs an alpha too large for float64")
    return alpha or 1.0


def copy(layer: Layer, eps: float, radius: float, tokens: int) -> Copy:
    """The Intention layer that does what a layer of linear attention does, up to eps.

    Parameters
    ----------
    layer : Layer
        Of linear attention.
    eps, radius, tokens
        As for :func:`sufficient_alpha`.

    Returns
    -------
    Copy

    Raises
    ------
    ValueError
        As :func:`sufficient_alpha` does.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> made = copy(Layer(one, one, one, one), eps=0.5, radius=1.0, tokens=3)
    >>> made.layer.wo, made.alpha, made.layer.parameters()
    (array([[18.]]), 18.0, 4)
    """
    alpha = sufficient_alpha(layer, eps, radius, tokens)
    return Copy(layer._replace(wo=alpha * layer.wo), alpha, eps, radius, tokens)


def copy_error(
    x: F64,
    layer: Layer,
    made: Copy,
    *,
    is_causal: bool = False,
    intention: Form = kvq.intention,
    linear: Form = kvq.linear_attention,
) -> Bound:
    """How far the copy is from its model on tokens x, in the length of each output row; allowed is eps.

    Parameters
    ----------
    x : array, shape (..., T, m)
    layer : Layer
        Of linear attention.
    made : Copy
        What :func:`copy` made of it.
    is_causal : bool, default False
    intention, linear : callable
        The implementations in question; alpha, and the leading axes of batch and heads, are given to them.

    Returns
    -------
    Bound
        Of shape (..., T) and ().

    Raises
    ------
    ValueError
        If x has more tokens or longer ones than the copy was made for.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> layer = Layer(one, one, one, one)
    >>> copy_error(one, layer, copy(layer, eps=0.5, radius=1.0, tokens=3)).holds()
    True
    """
    # A token made to be of the length R may be longer by its rounding.
    if x.shape[-2] > made.tokens or np.max(length(x)) > made.radius * (1 + 1e-12):
        raise ValueError(f"x: the copy is for at most {made.tokens} tokens of length at most {made.radius}")
    a = apply(made.layer, x, intention, alpha=made.alpha, is_causal=is_causal)
    return Bound(length(a - apply(layer, x, linear, is_causal=is_causal)), np.float64(made.eps))


def rounding(layer: Layer, radius: float, tokens: int, alpha: float) -> float:
    """A bound on the rounding errors, in float64, of the two outputs that are compared: the floor for eps.

    To first order. A product of matrices of inner size n has an error of n eps times the product of
    their Frobenius norms, which bound the norms of the entries' magnitudes; a backward stable solve
    multiplies errors by the condition number, at most 1 + g / alpha. 16 is for the two layers and for the
    constants of the parts.

    Parameters
    ----------
    layer : Layer
    radius : float
    tokens : int
    alpha : float

    Returns
    -------
    float

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> rounding(Layer(one, one, one, one), radius=1.0, tokens=3, alpha=18.0) < 1e-12
    True
    """
    f_q, f_k, f_v, f_o = (np.linalg.norm(w, axis=(-2, -1)) for w in _by_head(layer))
    m, d, dv = len(layer.wq), layer.wq.shape[1] // layer.heads, layer.wv.shape[1]
    condition = 1 + tokens * radius**2 * f_k**2 / alpha
    size = tokens * radius**3 * f_q * f_k * f_v * f_o
    return float(16 * np.finfo(np.float64).eps * (3 * m + tokens + 2 * d + dv) * np.sum(condition * size))


def _by_head(layer: Layer) -> tuple[F64, F64, F64, F64]:
    """The blocks of wq, wk, wv, wo that each head uses, heads first."""
    wq, wk, wv = (kvq.split_heads(w, layer.heads) for w in (layer.wq, layer.wk, layer.wv))
    return wq, wk, wv, layer.wo.reshape(layer.heads, -1, layer.wo.shape[1])
