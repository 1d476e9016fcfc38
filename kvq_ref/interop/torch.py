"""Every form inside a PyTorch model: tensors in, tensors out, differentiated by the backward written by hand.

A form is called as in kvq_ref, and is part of PyTorch's graph: ``loss.backward()`` carries gradients to q, k and
v, and to ``bias``, ``alpha``, ``beta`` and ``decay`` where these are tensors that require them. Forward and
backward are :func:`kvq_ref.vjp` on the memory of the tensors: no copy on the way in or out, the compiled kernels
where a form has them, the readable reference with ``implementation="reference"``. What backward needs is kept, and
forward alone keeps nothing: under ``torch.no_grad()``, or where no argument requires a gradient.

What is different from kvq_ref:

- Tensors live on the CPU. ``kvq_ref.softmax_attention`` itself takes tensors of any device; it runs the reference,
  and PyTorch differentiates that.
- float16 and bfloat16 are converted to float32 and computed there; results and gradients are rounded once.
- No ``out``, ``initial_state`` or ``output_final_state``.
- A feature map of one's own is of NumPy arrays, and comes with its derivative.
- Gradients have no gradients: a second backward through them raises RuntimeError.
- ``torch.compile`` leaves a form as it is, between two graphs. ``torch.vmap`` and ``torch.func`` do not take it: the
  leading axes of q, k and v are for batches.
- q, k and v changed in place before backward raise RuntimeError, as in PyTorch's own functions.

Examples
--------
>>> import torch
>>> from kvq_ref.interop.torch import intention, softmax_attention
>>> q, k, v = torch.randn(3, 8, 100, 16).unbind()  # 8 heads, 100 tokens
>>> softmax_attention(q, k, v, is_causal=True).shape
torch.Size([8, 100, 16])

A penalty for each head, learned:

>>> alpha = torch.full((8,), 0.1, requires_grad=True)
>>> loss = intention(q, k, v, alpha=alpha).square().mean()
>>> loss.backward()
>>> alpha.grad.shape
torch.Size([8])
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.arrays import HALF_DTYPES, dtype_name
from kvq_ref.dispatch import FORMS
from kvq_ref.interop.wrap import Function, wrap

try:
    torch: Any = importlib.import_module("torch")
    once_differentiable: Any = importlib.import_module("torch.autograd.function").once_differentiable
except ImportError as error:
    raise ImportError("kvq_ref.interop.torch needs PyTorch: pip install torch", name="torch") from error

Tensor = Any

__all__ = [*FORMS]


def _call(form: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    for name, x in tensors.items():
        if x.device.type != "cpu":
            raise ValueError(
                f"{name}: expected a tensor on the CPU, got one on {x.device}; kvq_ref.{form.__name__} takes it there, "
                "on the reference"
            )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values()):
        return _Form.apply(form, options, tuple(tensors), *tensors.values())
    return _tensor(form(**_arrays(tensors), **options), tensors["q"])


class _Form(torch.autograd.Function):  # type: ignore[misc]
    """A form as a node of PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, form: Function, options: dict[str, Any], names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        out, ctx.pullback = kvq.vjp(form, **_arrays(given), **options)
        ctx.names = names
        ctx.save_for_backward(*tensors)  # the pullback has their memory; PyTorch sees to it that nobody wrote there
        return _tensor(out, given["q"])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        given = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        grads = ctx.pullback(_array(dout))
        needed = dict(zip(ctx.names, ctx.needs_input_grad[3:], strict=True))
        return None, None, None, *(_tensor(getattr(grads, n), x) if needed[n] else None for n, x in given.items())


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: _array(x) for name, x in tensors.items()}


def _array(x: Tensor) -> Any:
    """The memory of a tensor as an array; half precision, which NumPy has but half of, as float32."""
    x = x.detach()
    return (x.float() if dtype_name(x) in HALF_DTYPES else x).numpy()


def _tensor(x: Any, like: Tensor) -> Tensor:
    """The memory of an array as a tensor, which must be one that can be written into."""
    return torch.from_numpy(np.require(x, requirements=("C", "W"))).to(like.dtype)


def _wrapped(form: Function) -> Function:
    # PyTorch's compiler would look into NumPy code, and put its own operations in its place.
    disabled: Function = torch.compiler.disable(wrap(form, _call, "torch", "PyTorch tensor"))
    return disabled


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
