"""The array libraries that a target may be written in: how to make an array, read it, and differentiate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.testing.calls import F64

Function = Callable[..., Any]
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Framework:
    """One array library.

    Attributes
    ----------
    name : str
        As it is imported.
    make : callable
        ``make(x, dtype, device)``: an array of the library, with memory of its own.
    read : callable
        ``read(array)``: its values as float64 in NumPy, or a TypeError.
    dtype : callable
        The name of an array's dtype.
    vjp : callable or None
        ``vjp(function, arrays, dout)``: out and a gradient by name, by the library's own differentiation.
    shares : callable
        Whether two arrays share memory.
    compiles : bool
        Whether a new shape costs much more than a known one.
    """

    name: str
    make: Callable[[Any, str, str | None], Any]
    read: Callable[[Any], F64]
    dtype: Callable[[Any], str]
    vjp: Callable[[Function, Arrays, Any], tuple[Any, dict[str, Any]]] | None
    shares: Callable[[Any, Any], bool]
    compiles: bool = False


class DetachedError(Exception):
    """The output does not depend on its inputs as far as the library's differentiation can see."""


def numpy() -> Framework:
    def make(x: Any, dtype: str, device: str | None) -> Any:
        if dtype == "bfloat16":
            raise ValueError("dtype: NumPy has no bfloat16; expected float16, float32 or float64")
        if device not in (None, "cpu"):
            raise ValueError(f"device: NumPy has the CPU alone, got {device!r}")
        return np.array(x, dtype=bool if np.asarray(x).dtype == bool else dtype)

    def read(x: Any) -> F64:
        if not isinstance(x, np.ndarray | np.generic):  # a gradient of one number may be NumPy's scalar
            raise TypeError(f"expected a NumPy array, got {type(x).__name__}")
        return np.asarray(x).astype(np.float64)

    return Framework("numpy", make, read, lambda x: str(x.dtype), None, np.shares_memory)


def torch() -> Framework:
    torch = _import("torch")

    def make(x: Any, dtype: str, device: str | None) -> Any:
        kind = torch.bool if np.asarray(x).dtype == bool else getattr(torch, dtype)
        return torch.tensor(np.array(x), dtype=kind, device=device)

    def read(x: Any) -> F64:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"expected a torch tensor, got {type(x).__name__}")
        return np.array(x.detach().to("cpu", torch.float64).numpy())

    def vjp(function: Function, arrays: Arrays, dout: Any) -> tuple[Any, dict[str, Any]]:
        leaves = {name: x.detach().requires_grad_() for name, x in arrays.items()}
        out = function(**leaves)
        if not getattr(out, "requires_grad", False):
            raise DetachedError
        grads = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
        zero = {name: torch.zeros_like(x) for name, x in leaves.items()}
        return out, {name: zero[name] if g is None else g for name, g in zip(leaves, grads, strict=True)}

    def shares(a: Any, b: Any) -> bool:
        return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())

    return Framework("torch", make, read, lambda x: str(x.dtype).rpartition(".")[2], vjp, shares)


def jax() -> Framework:
    jax = _import("jax")
    jnp = importlib.import_module("jax.numpy")

    def make(x: Any, dtype: str, device: str | None) -> Any:
        if dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError('dtype: JAX has no float64 until jax.config.update("jax_enable_x64", True) is called')
        array = jnp.array(np.array(x), dtype=bool if np.asarray(x).dtype == bool else dtype)
        return array if device is None else jax.device_put(array, jax.devices(device.partition(":")[0])[0])

    def read(x: Any) -> F64:
        if not isinstance(x, jax.Array):
            raise TypeError(f"expected a JAX array, got {type(x).__name__}")
        return np.array(x).astype(np.float64)

    def vjp(function: Function, arrays: Arrays, dout: Any) -> tuple[Any, dict[str, Any]]:
        names = list(arrays)
        out, pullback = jax.vjp(lambda *xs: function(**dict(zip(names, xs, strict=True))), *arrays.values())
        return out, dict(zip(names, pullback(dout), strict=True))

    return Framework("jax", make, read, lambda x: str(x.dtype), vjp, lambda a, b: a is b, compiles=True)


def cupy() -> Framework:
    cupy = _import("cupy")

    def make(x: Any, dtype: str, device: str | None) -> Any:
        if dtype == "bfloat16":
            raise ValueError("dtype: CuPy has no bfloat16; expected float16, float32 or float64")
        with cupy.cuda.Device(int((device or "cuda:0").partition(":")[2] or 0)):
            return cupy.array(np.array(x), dtype=bool if np.asarray(x).dtype == bool else dtype)

    def read(x: Any) -> F64:
        if not isinstance(x, cupy.ndarray):
            raise TypeError(f"expected a CuPy array, got {type(x).__name__}")
        return np.array(cupy.asnumpy(x).astype(np.float64))

    return Framework("cupy", make, read, lambda x: str(x.dtype), None, cupy.shares_memory)


FRAMEWORKS: dict[str, Callable[[], Framework]] = {"numpy": numpy, "torch": torch, "jax": jax, "cupy": cupy}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"framework: {name} is not installed") from error
