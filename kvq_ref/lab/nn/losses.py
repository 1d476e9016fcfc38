"""What training makes small: a number, and its gradient."""

from __future__ import annotations

import numpy as np

from kvq_ref.lab.nn.compiled import function
from kvq_ref.types import Array


@function
def cross_entropy(logits: Array, targets: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Mean of -log softmax(logits)[target], over the places that count.

    Parameters
    ----------
    logits : array, shape (..., N)
    targets : array of int, shape (...)
        0 to N - 1.
    counts : array of bool, shape (...), optional
        Which places count; all of them by default.

    Returns
    -------
    loss : number of the dtype of ``logits``
    dlogits : array, shape (..., N)
        Its gradient.

    Examples
    --------
    >>> loss, dlogits = cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(float(loss), 4), dlogits.tolist()
    (0.6931, [[-0.5, 0.5]])
    """
    z = logits.reshape(-1, logits.shape[-1])
    z = z - z.max(axis=-1, keepdims=True)
    exp = np.exp(z)
    total = exp.sum(axis=-1, keepdims=True)
    one_hot = targets.reshape(-1, 1) == np.arange(z.shape[-1], like=z)
    surprise = np.log(total[:, 0]) - np.where(one_hot, z, 0).sum(axis=-1)
    dlogits = exp / total - one_hot
    if counts is None:
        return surprise.mean(), (dlogits / z.dtype.type(len(z))).reshape(logits.shape)
    share = counts.reshape(-1).astype(z.dtype)
    share /= max(share.sum(), 1)
    return (surprise * share).sum(), (dlogits * share[:, None]).reshape(logits.shape)


def squared_error(y: Array, targets: Array) -> tuple[Array, Array]:
    """Mean of (y - target)^2, and its gradient.

    Parameters
    ----------
    y, targets : array, of one shape

    Returns
    -------
    loss : number of the dtype of ``y``
    dy : array, of that shape

    Examples
    --------
    >>> loss, dy = squared_error(np.array([3.0, 0.0]), np.array([1.0, 0.0]))
    >>> float(loss), dy.tolist()
    (2.0, [2.0, 0.0])
    """
    if y.shape != targets.shape:
        raise ValueError(f"targets: expected the shape of y, {tuple(y.shape)}, got {tuple(targets.shape)}")
    off = y - targets
    return np.square(off).mean(), off * y.dtype.type(2 / max(off.size, 1))
