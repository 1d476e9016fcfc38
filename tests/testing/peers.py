"""Implementations that are right, each in its own library: what a kit must not complain about.

Each says how it is called, and which laws it does not claim to obey, and why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS

Function = Callable[..., Any]


@dataclass(frozen=True)
class Peer:
    """A correct implementation.

    Attributes
    ----------
    name : str
    form : str
    dtypes : tuple of str
    make : callable
        The function and its backward, None for none; made when it is needed, as its library may not be there.
    how : mapping
        How to call it.
    strict : bool
        Whether it promises what this package does of NaN and of single bits.
    except_for : mapping of str to str
        Laws that it does not claim, with the reason.
    examples : int
        Calls for each law: fewer where its library takes long.
    is_large : bool
        Whether its library is one of the large oracles.
    """

    name: str
    form: str
    dtypes: tuple[str, ...]
    make: Callable[[], tuple[Function, Function | None]]
    how: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    except_for: Mapping[str, str] = field(default_factory=dict)
    examples: int = 50
    is_large: bool = False


# ---- This package --------------------------------------------------------------------


def ours(form: str, implementation: str) -> tuple[Function, Function]:
    found = FORMS[form].implementation(implementation)
    assert found is not None
    if found.missing is not None:
        pytest.skip(f"compiled kernels are not installed: {found.missing}")
    forward = partial(getattr(kvq, form), implementation=implementation)

    def backward(dout: Any, q: Any, k: Any, v: Any, **options: Any) -> Any:
        _, pullback = kvq.vjp(getattr(kvq, form), q, k, v, implementation=implementation, **options)
        return pullback(dout)

    return forward, backward


OURS = [
    Peer(
        f"{form.name}-{x.name}",
        form.name,
        ("float32", "float64", "float16"),
        partial(ours, form.name, x.name),
        strict=True,
    )
    for form in FORMS.values()
    for x in form.implementations
]


# ---- PyTorch -------------------------------------------------------------------------


def torch_sdpa() -> tuple[Function, None]:
    return pytest.importorskip("torch").nn.functional.scaled_dot_product_attention, None


# ---- JAX -----------------------------------------------------------------------------


def jax_attention() -> tuple[Function, None]:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def pad(x: Any, n: int) -> Any:
        return jax.numpy.pad(x, [(0, 0)] * 3 + [(0, n - x.shape[-1])])

    def attention(
        q: Any, k: Any, v: Any, *, mask: Any = None, bias: Any = None, is_causal: bool = False, scale: Any = None
    ) -> Any:
        """Values have to be as wide as keys there: what is missing is filled with zeros, which changes nothing."""
        d, dv = q.shape[-1], v.shape[-1]
        q, k, v = (pad(x, max(d, dv)) for x in (q, k, v))
        scale = d**-0.5 if scale is None else scale
        return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, is_causal=is_causal, scale=scale)[..., :dv]

    return attention, None


# ---- ONNX ----------------------------------------------------------------------------


def onnx_attention() -> tuple[Function, None]:
    onnx = pytest.importorskip("onnx")
    if onnx.defs.onnx_opset_version() < 23 or not onnx.defs.has("Attention", 23):
        pytest.skip("this onnx has no Attention operator")
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
    helper = onnx.helper

    def attention(q: Any, k: Any, v: Any, *, attn_mask: Any = None, is_causal: bool = False, scale: Any = None) -> Any:
        inputs = {"q": q, "k": k, "v": v} | ({} if attn_mask is None else {"attn_mask": attn_mask})
        attributes = {"is_causal": int(is_causal)} | ({} if scale is None else {"scale": scale})
        node = helper.make_node("Attention", list(inputs), ["out"], **attributes)
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in inputs.items()
        ]
        result = helper.make_tensor_value_info("out", onnx.TensorProto.UNDEFINED, None)
        graph = helper.make_graph([node], "attention", values, [result])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
        (out,) = evaluator(model).run(None, inputs)
        return out

    return attention, None


# Both take mask and bias in one argument.
ONE_ARGUMENT = {"rename": {"mask": "attn_mask", "bias": "attn_mask"}}

ONNX_TAKES = {"layout": "bhtd", "gradient": False, **ONE_ARGUMENT}

TORCH = Peer(
    "torch-sdpa",
    "softmax_attention",
    ("float32", "float64", "bfloat16"),
    torch_sdpa,
    {"framework": "torch", **ONE_ARGUMENT},
    is_large=True,
)
JAX = Peer(
    "jax-dot_product_attention",
    "softmax_attention",
    ("float32",),  # of float64 too it computes the softmax in float32, as its source says; the laws do notice
    jax_attention,
    {"framework": "jax", "layout": "bthd"},
    except_for={
        "a query that sees nothing gives zero": "hidden scores are a large negative number: it gives the mean of all"
    },
    examples=5,  # each shape and option is traced anew
    is_large=True,
)
ONNX = [
    Peer("onnx-reference", "softmax_attention", ("float32",), onnx_attention, ONNX_TAKES),
    # The operator's scale is an attribute, and an attribute's floats are of single precision: none is given in float64.
    Peer("onnx-reference", "softmax_attention", ("float64",), onnx_attention, {**ONNX_TAKES, "drop": ("scale",)}),
]

PEERS = [*OURS, TORCH, JAX, *ONNX]
