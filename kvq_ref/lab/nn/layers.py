"""Linear maps, embeddings, layer norm and activations: value and pullback.

A pullback takes the gradient of the value and returns those of the arguments,
in the order of the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kvq_ref.lab.nn.compiled import layer
from kvq_ref.types import Array

Pullback = Callable[[Array], Any]


@layer
def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback]:
    """y = x W + b.

    Parameters
    ----------
    x : array, shape (..., n)
    weight : array, shape (n, m)
    bias : array, shape (m,), optional

    Returns
    -------
    y : array, shape (..., m)
    pullback : callable
        dy to (dx, dweight, dbias); dbias is None where there is no bias.

    Examples
    --------
    >>> y, pullback = linear(np.ones((5, 2)), np.ones((2, 3)), np.zeros(3))
    >>> dx, dweight, dbias = pullback(np.ones((5, 3)))
    >>> dbias
    array([5., 5., 5.])
    """
    rows = x.reshape(-1, x.shape[-1])  # one product, and not one for each leading index
    y = rows @ weight
    if bias is not None:
        y += bias

    def pullback(dy: Array) -> tuple[Array, Array, Array | None]:
        dy = dy.reshape(-1, dy.shape[-1])
        dbias = None if bias is None else dy.sum(axis=0)
        dweight = rows.T @ dy
        dx = dy @ weight.T
        return dx.reshape(x.shape), dweight, dbias

    return y.reshape(*x.shape[:-1], weight.shape[1]), pullback


@layer
def embedding(tokens: Array, table: Array) -> tuple[Array, Pullback]:
    """Row ``tokens`` of a table.

    The gradient is a product with one-hot rows: right for the small
    vocabularies of experiments, O(tokens x vocabulary x width).

    Parameters
    ----------
    tokens : array of int, shape (...)
    table : array, shape (vocabulary, width)

    Returns
    -------
    y : array, shape (..., width)
    pullback : callable
        dy to dtable.

    Examples
    --------
    >>> y, pullback = embedding(np.array([2, 2]), np.eye(3))
    >>> pullback(np.ones((2, 3)))[2]
    array([2., 2., 2.])
    """
    y = table[tokens]

    def pullback(dy: Array) -> Array:
        words = np.arange(table.shape[0], like=table)
        one_hot = (tokens.reshape(-1, 1) == words).astype(dy.dtype)
        return one_hot.T @ dy.reshape(-1, dy.shape[-1])

    return y, pullback


@layer
def layer_norm(x: Array, gain: Array, shift: Array, eps: float = 1e-5) -> tuple[Array, Pullback]:
    """y = gain (x - mean) / sqrt(variance + eps) + shift, along the last axis (Ba, Kiros & Hinton 2016).

    Parameters
    ----------
    x : array, shape (..., n)
    gain, shift : array, shape (n,)
    eps : float

    Returns
    -------
    y : array, shape (..., n)
    pullback : callable
        dy to (dx, dgain, dshift).

    Examples
    --------
    >>> y, _ = layer_norm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))
    >>> y.round(3)
    array([[-1.,  1.]])
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    unit = centred * inverse
    y = gain * unit + shift

    def pullback(dy: Array) -> tuple[Array, Array, Array]:
        rows = dy.reshape(-1, dy.shape[-1])
        dshift = rows.sum(axis=0)
        dgain = (rows * unit.reshape(rows.shape)).sum(axis=0)
        dunit = dy * gain
        # unit has mean 0 and variance 1 whatever x is: nothing of dx lies along (1, .., 1) or unit
        along = (dunit * unit).mean(axis=-1, keepdims=True)
        dx = (dunit - dunit.mean(axis=-1, keepdims=True) - unit * along) * inverse
        return dx, dgain, dshift

    return y, pullback


TINY = 1e-12


def unit(x: Array) -> tuple[Array, Pullback]:
    """Rows of length 1, y = x / sqrt(|x|^2 + 1e-12), and dy to dx.

    Examples
    --------
    >>> unit(np.array([[3.0, 4.0]]))[0].round(6)
    array([[0.6, 0.8]])
    """
    inverse = 1 / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + TINY)
    y = x * inverse

    def pullback(dy: Array) -> Array:
        return (dy - y * (y * dy).sum(axis=-1, keepdims=True)) * inverse

    return y, pullback


@layer
def relu(x: Array) -> tuple[Array, Pullback]:
    """max(x, 0), and dy to dx.

    Examples
    --------
    >>> relu(np.array([-1.0, 2.0]))[0]
    array([0., 2.])
    """

    def pullback(dy: Array) -> Array:
        return dy * (x > 0)

    return np.maximum(x, 0), pullback


SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715


@layer
def gelu(x: Array) -> tuple[Array, Pullback]:
    """x Phi(x) with the usual tanh for Phi (Hendrycks & Gimpel 2016), and dy to dx.

    Examples
    --------
    >>> gelu(np.array([-10.0, 0.0, 10.0]))[0].round(6) + 0.0
    array([ 0.,  0., 10.])
    """
    square = x * x
    tanh = np.tanh(SLOPE * x * (1 + CUBIC * square))
    half = 0.5 * (1 + tanh)
    y = x * half

    def pullback(dy: Array) -> Array:
        slope = SLOPE * (1 + 3 * CUBIC * square)
        return dy * (half + 0.5 * x * (1 - tanh * tanh) * slope)

    return y, pullback


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Pullback]]] = {"gelu": gelu, "relu": relu}
