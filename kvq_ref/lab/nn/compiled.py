"""Which functions here have a kernel, and when it is used: the only file of this folder that knows.

Each function of layers.py, attention.py, perceptron.py, losses.py and optimizers.py
is written as a formula in NumPy. Those that :func:`layer` or :func:`function` stands
over have a kernel too, of the same name below; it takes the call if it can. It can
where everything is a NumPy array in C order, of one dtype, float32 or float64 (and
int64 for tokens). ``kvq.use_implementation`` chooses, as it does for attention.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from kvq_ref import kernels
from kvq_ref.dispatch import requested_implementation
from kvq_ref.kernels import missing, num_threads
from kvq_ref.types import Array

if missing is None:
    layers_ext: Any = importlib.import_module("kvq_ref._ext.layers")
    IDENTITY, RELU, GELU = (layers_ext.ACTIVATIONS[name] for name in ("identity", "relu", "gelu"))

F = TypeVar("F", bound=Callable[..., Any])
Kernel = Callable[..., Any]
Pullback = Callable[..., Any]


# ---- The choice ----------------------------------------------------------------------


def function(reference: F) -> F:
    """A function that its kernel computes where it can; the kernel gives None where it cannot."""
    name = reference.__name__

    @functools.wraps(reference)
    def chosen(*arguments: Any, **options: Any) -> Any:
        done = _by_kernel(name, arguments, options)
        return reference(*arguments, **options) if done is None else done

    return cast(F, chosen)


def layer(reference: F) -> F:
    """The same for a function that gives (value, pullback); the kernel's pullback, too, gives None where it cannot."""
    name = reference.__name__

    @functools.wraps(reference)
    def chosen(*arguments: Any, **options: Any) -> Any:
        done = _by_kernel(name, arguments, options)
        if done is None:
            return reference(*arguments, **options)
        value, kernel_pullback = done

        def pullback(gradient: Any) -> Any:
            grads = kernel_pullback(gradient)
            return reference(*arguments, **options)[1](gradient) if grads is None else grads

        return value, pullback

    return cast(F, chosen)


def _by_kernel(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    requested = requested_implementation()
    if requested == "reference":
        return None
    done = None if missing is not None else KERNELS[name](*arguments, **options)
    if done is None and requested == "compiled":
        why = "it takes NumPy arrays in C order, of one dtype" if missing is None else f"not installed ({missing})"
        raise ValueError(f"implementation: 'compiled' cannot serve {name}: {why}")
    return done


def empty_like(x: Array) -> Array:
    """``numpy.empty_like``, in memory used again where there is some."""
    return kernels.empty(x.shape, x.dtype) if type(x) is np.ndarray else np.empty_like(x)


# ---- Layers --------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback] | None:
    done = layers_ext.affine(x, weight, bias, IDENTITY, num_threads)
    if done is None:
        return None

    def pullback(dy: Array) -> Any:
        return layers_ext.affine_backward(dy, x, weight, bias is not None, None, num_threads)

    return done[0], pullback


def perceptron(p: Mapping[str, Array], x: Array, *, activation: str = "gelu") -> tuple[Array, Pullback] | None:
    """The activation and its slope are made together, while a tile of the product is in the cache."""
    weight_in, weight_out = p["in.weight"], p["out.weight"]
    number = layers_ext.ACTIVATIONS[activation]
    inside = layers_ext.affine(x, weight_in, p["in.bias"], number, num_threads)
    outside = None if inside is None else layers_ext.affine(inside[0], weight_out, p["out.bias"], IDENTITY, num_threads)
    if outside is None:
        return None
    h, slope = inside
    y, _ = outside

    def pullback(dy: Array) -> tuple[Array, dict[str, Array]] | None:
        grads = {}
        done = layers_ext.affine_backward(dy, h, weight_out, True, slope, num_threads)
        if done is None:
            return None
        dbefore, grads["out.weight"], grads["out.bias"] = done
        dx, grads["in.weight"], grads["in.bias"] = layers_ext.affine_backward(
            dbefore, x, weight_in, True, None, num_threads
        )
        return dx, grads

    return y, pullback


def embedding(tokens: Array, table: Array) -> tuple[Array, Pullback] | None:
    """Row by row where the reference multiplies by one-hot rows: what is not finite stays with its own token."""
    if type(table) is not np.ndarray or type(tokens) is not np.ndarray:
        return None
    return table[tokens], lambda dy: layers_ext.scatter(dy, tokens, table.shape[0])


def layer_norm(x: Array, gain: Array, shift: Array, eps: float = 1e-5) -> tuple[Array, Pullback] | None:
    done = layers_ext.norm(x, gain, shift, eps, num_threads)
    if done is None:
        return None
    y, stats = done
    return y, lambda dy: layers_ext.norm_backward(dy, x, gain, stats, num_threads)


def relu(x: Array) -> tuple[Array, Pullback] | None:
    y = layers_ext.activate(x, RELU)
    return None if y is None else (y, lambda dy: layers_ext.activate_backward(dy, x, RELU))


def gelu(x: Array) -> tuple[Array, Pullback] | None:
    y = layers_ext.activate(x, GELU)
    return None if y is None else (y, lambda dy: layers_ext.activate_backward(dy, x, GELU))


def split(x: Array, parts: int, heads: int) -> tuple[tuple[Array, ...], Pullback] | None:
    apart = layers_ext.split(x, parts, heads, num_threads)
    return None if apart is None else (tuple(apart), lambda grads: layers_ext.merge(tuple(grads), num_threads))


def merge(x: Array) -> tuple[Array, Pullback] | None:
    together = layers_ext.merge((x,), num_threads)
    if together is None:
        return None
    heads = x.shape[-3]

    def pullback(dy: Array) -> Array | None:
        apart = layers_ext.split(dy, 1, heads, num_threads)
        return None if apart is None else apart[0]

    return together, pullback


def turn(x: Array, cos: Array, sin: Array) -> Any:
    return layers_ext.turn(x, cos, sin)


# ---- Losses and optimisers -----------------------------------------------------------


def cross_entropy(logits: Array, targets: Array, counts: Array | None = None) -> Any:
    return layers_ext.cross_entropy(logits, targets, counts)


def sgd(x: Array, g: Array, m: Array | None, *, rate: float, momentum: float, weight_decay: float) -> Any:
    return layers_ext.sgd(x, g, m, rate, weight_decay, momentum, num_threads)


def adamw(
    x: Array,
    g: Array,
    mean: Array,
    square: Array,
    *,
    rate: float,
    unbias: float,
    keep: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Any:
    return layers_ext.adamw(x, g, mean, square, rate, keep, beta1, beta2, eps, unbias, num_threads)


KERNELS: dict[str, Kernel] = {
    kernel.__name__: kernel
    for kernel in (
        linear, perceptron, embedding, layer_norm, relu, gelu, split, merge, turn, cross_entropy, sgd, adamw,
    )
}  # fmt: skip
