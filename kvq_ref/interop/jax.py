"""Every form inside a JAX model: under jit, grad and vmap, differentiated by the backward written by hand.

A form is called as in kvq_ref. It is a ``jax.custom_vjp`` around two ``jax.pure_callback``: compiled programs call
back into kvq_ref, which takes the compiled kernels where a form has them, and the readable reference with
``implementation="reference"``. There are gradients of q, k and v, and of ``bias``, ``alpha``, ``beta`` and ``decay``
where these are JAX arrays.

What is different from kvq_ref:

- The work is done on the CPU: JAX moves what lives on another device there and back.
- Backward computes forward once more, for nothing but arrays can be kept between two callbacks.
- Shapes and dtypes are checked when a function is traced, with kvq_ref's errors. What depends on values (alpha is not
  negative, decays are from 0 to 1) is checked when it runs; JAX wraps that error in its own.
- No ``out``, ``initial_state`` or ``output_final_state``.
- A feature map of one's own is of NumPy arrays, and comes with its derivative; pass the same object every time, or
  every call is compiled anew.
- Gradients have no gradients, and there is no forward mode (``jax.jvp``): JAX raises.

Examples
--------
>>> import jax
>>> from kvq_ref.interop.jax import intention, softmax_attention
>>> q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 100, 16))  # 8 heads, 100 tokens
>>> softmax_attention(q, k, v, is_causal=True).shape
(8, 100, 16)

A penalty for each head, learned:

>>> loss = jax.jit(lambda alpha: (intention(q, k, v, alpha=alpha) ** 2).mean())
>>> jax.grad(loss)(jax.numpy.full(8, 0.1)).shape
(8,)
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.arguments import check_call, check_leading
from kvq_ref.dispatch import FORMS
from kvq_ref.interop.wrap import Function, wrap

try:
    jax: Any = importlib.import_module("jax")
except ImportError as error:
    raise ImportError("kvq_ref.interop.jax needs JAX: pip install jax", name="jax") from error

JaxArray = Any
Arrays = dict[str, Any]

__all__ = [*FORMS]


@dataclass(frozen=True)
class _Call:
    """A form with the options that are no arrays: all that is known when a function is traced, and hashable."""

    form: Function
    options: tuple[tuple[str, Any], ...]

    def forward(self, arrays: Arrays) -> Any:
        return self.form(**_numpy(arrays), **dict(self.options))

    def backward(self, arrays: Arrays, dout: Any) -> Arrays:
        _, pullback = kvq.vjp(self.form, **_numpy(arrays), **dict(self.options))
        grads = pullback(np.asarray(dout))
        return {name: getattr(grads, name) for name in arrays if name != "mask"}


def _numpy(arrays: Arrays) -> Arrays:
    return {name: np.asarray(x) for name, x in arrays.items()}


def _call(form: Function, arrays: dict[str, JaxArray], options: dict[str, Any]) -> JaxArray:
    _check(form, arrays, options)
    return _apply(_Call(form, tuple(options.items())), _with_equal_axes(arrays))


def _check(form: Function, arrays: dict[str, JaxArray], options: dict[str, Any]) -> None:
    """kvq_ref's checks, on ones of the same shapes and dtypes: values are not known yet."""
    ones = {name: np.broadcast_to(np.ones((), x.dtype), x.shape) for name, x in arrays.items()}
    q, k, v = (ones.pop(name) for name in ("q", "k", "v"))
    check_call(form.__name__, q, k, v, options | ones)


def _with_equal_axes(arrays: dict[str, JaxArray]) -> dict[str, JaxArray]:
    """As many leading axes for each, so that the axis that vmap puts before them is the same axis of all."""
    trailing = {name: 0 if name == "alpha" else 2 for name in arrays}
    leading = max(x.ndim - trailing[name] for name, x in arrays.items())
    ndim = {name: leading + trailing[name] for name in arrays}
    return {name: x.reshape((1,) * (ndim[name] - x.ndim) + x.shape) for name, x in arrays.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(call: _Call, arrays: dict[str, JaxArray]) -> JaxArray:
    q, v = arrays["q"], arrays["v"]
    out = jax.ShapeDtypeStruct((*check_leading(arrays), q.shape[-2], v.shape[-1]), q.dtype)
    return jax.pure_callback(call.forward, out, arrays, vmap_method="broadcast_all")


def _apply_forward(call: _Call, arrays: dict[str, JaxArray]) -> tuple[JaxArray, dict[str, JaxArray]]:
    return _apply(call, arrays), arrays


def _apply_backward(call: _Call, arrays: dict[str, JaxArray], dout: JaxArray) -> tuple[dict[str, JaxArray | None]]:
    grads = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items() if name != "mask"}
    found = jax.pure_callback(call.backward, grads, arrays, dout, vmap_method="broadcast_all")
    return (dict.fromkeys(arrays) | found,)  # a mask has no gradient


_apply.defvjp(_apply_forward, _apply_backward)


def _wrapped(form: Function) -> Function:
    return wrap(form, _call, "jax", "JAX array")


softmax_attention = _wrapped(kvq.softmax_attention)
expressive_attention = _wrapped(kvq.expressive_attention)
quadratic_attention = _wrapped(kvq.quadratic_attention)
taylor_attention = _wrapped(kvq.taylor_attention)
sigmoid_attention = _wrapped(kvq.sigmoid_attention)
local_linear_attention = _wrapped(kvq.local_linear_attention)
linear_attention = _wrapped(kvq.linear_attention)
intention = _wrapped(kvq.intention)
sigma_intention = _wrapped(kvq.sigma_intention)
expressive_intention = _wrapped(kvq.expressive_intention)
delta_rule = _wrapped(kvq.delta_rule)
gated_linear_attention = _wrapped(kvq.gated_linear_attention)
mesa_attention = _wrapped(kvq.mesa_attention)
