"""Array libraries: which one an array belongs to, and the little that differs between them.

The mathematics is written once, against the array API standard
(https://data-apis.org/array-api). This file holds what the standard leaves
open, so that no other has to know NumPy from CuPy, PyTorch or JAX.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from kvq_ref.types import Array

BACKENDS = ("numpy", "cupy")
COMPUTE_DTYPES = ("float32", "float64")  # compute in their own type
HALF_DTYPES = ("float16", "bfloat16")  # compute in float32, round once at the end

_backend: ContextVar[str | None] = ContextVar("kvq_ref_backend", default=None)


def is_array(x: object) -> bool:
    """Whether ``x`` is an array of a library that follows the array API.

    NumPy's scalars count as numbers. Its matrices and masked arrays have an arithmetic of their own.
    """
    if type(x) is np.ndarray:
        return True
    return array_api_compat.is_array_api_obj(x) and not isinstance(x, (np.generic, np.matrix, np.ma.MaskedArray))


def namespace(x: Array) -> Any:
    """The array API namespace that ``x`` belongs to."""
    return array_api_compat.numpy if type(x) is np.ndarray else array_api_compat.array_namespace(x)


def library(x: Array) -> str:
    """The name of the library that ``x`` belongs to: "numpy", "torch", "jax", ...

    >>> library(np.zeros(3))
    'numpy'
    """
    if isinstance(x, np.ndarray):
        return "numpy"
    name: str = namespace(x).__name__
    return name.removeprefix("array_api_compat.").split(".")[0]


def is_numpy(x: Array) -> bool:
    """Whether SciPy and the compiled kernels can take ``x`` as it is."""
    return isinstance(x, np.ndarray)


def dtype_name(x: Array) -> str:
    """The dtype's name without its library: "float32", "bfloat16", ...

    >>> dtype_name(np.zeros(3, np.float32))
    'float32'
    """
    dtype = x.dtype
    return _numpy_dtype_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


@functools.cache
def _numpy_dtype_name(dtype: np.dtype[Any]) -> str:
    """Remembered, for NumPy makes the name anew at every call."""
    return str(dtype)


def device(x: Array) -> Any:
    """The device that ``x`` lives on."""
    return array_api_compat.device(x)


def is_writeable(x: Array) -> bool:
    """Whether ``x`` can be written into: not where its library has no such arrays, or it is read-only."""
    return bool(array_api_compat.is_writeable_array(x))


def may_overlap(x: Array, y: Array) -> bool:
    """Whether writing into ``y`` may change ``x``; where the library does not say, arrays of one dtype may."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y)
    return bool(x.dtype == y.dtype)


def transpose(x: Array) -> Array:
    """Swap the last two axes: (..., n, m) to (..., m, n)."""
    return namespace(x).matrix_transpose(x)


def all_finite(x: Array) -> bool:
    """Whether ``x`` holds neither NaN nor infinity."""
    xp = namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def broadcast_leading(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """``numpy.broadcast_shapes``, without its cost where all shapes are the same.

    >>> broadcast_leading((2, 1), (3,))
    (2, 3)
    """
    first = shapes[0]
    return first if all(shape == first for shape in shapes) else np.broadcast_shapes(*shapes)


def sum_to_shape(x: Array, shape: Sequence[int]) -> Array:
    """Undo broadcasting: sum ``x`` over the axes along which ``shape`` was stretched.

    It is the adjoint of broadcasting, so it turns the gradient of a broadcast
    array into that of the array itself.

    >>> sum_to_shape(np.ones((5, 3, 2)), (3, 1)).tolist()
    [[10.0], [10.0], [10.0]]
    """
    if tuple(x.shape) == tuple(shape):
        return x
    xp = namespace(x)
    extra = x.ndim - len(shape)
    if extra > 0:
        x = xp.sum(x, axis=tuple(range(extra)))
    stretched = tuple(axis for axis, n in enumerate(shape) if n == 1 and x.shape[axis] != 1)
    if stretched:
        x = xp.sum(x, axis=stretched, keepdims=True)
    # An axis can also be missing from x, where every slice had the same gradient: zero.
    return x if tuple(x.shape) == tuple(shape) else xp.broadcast_to(x, tuple(shape))


def add_once(x: Array, extra: Array) -> Array:
    """x + extra, for gradients of an array that has the leading axes of ``extra`` alone.

    Broadcasting would count ``extra`` once for each entry of the axes that only x has.

    >>> add_once(np.ones((5, 3, 2)), np.ones((3, 2)))[0]
    array([6., 6.])
    """
    return sum_to_shape(x, extra.shape) + extra


def strict_linalg(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Make the linear algebra of ``x``'s library raise where it fails.

    CuPy does not look at cuSOLVER's status unless it is told to, and hands
    back garbage; the other libraries raise or return NaN.
    """
    if array_api_compat.is_cupy_array(x):
        import cupyx

        return cupyx.errstate(linalg="raise")  # type: ignore[no-any-return]
    return contextlib.nullcontext()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the library in which kvq_ref *creates* arrays, for a ``with`` block.

    Masks and biases made by :mod:`kvq_ref.masks` come from it. What a form does
    to the arrays that it is given never depends on it: those decide by their
    own type. The environment variable ``KVQ_REF_BACKEND`` sets the default.

    Parameters
    ----------
    name : {"numpy", "cupy"}
        The library.

    Raises
    ------
    ValueError
        For another name.
    ImportError
        If CuPy is asked for and is not installed.

    Examples
    --------
    >>> import kvq_ref as kvq
    >>> with kvq.use_backend("numpy"):
    ...     kvq.masks.causal(2, 3)
    array([[ True, False, False],
           [ True,  True, False]])
    """
    _backend_namespace(name)  # fail here, not at the first mask
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def current_backend() -> str:
    """The backend in force: the innermost ``use_backend``, else ``KVQ_REF_BACKEND``, else NumPy."""
    return _backend.get() or os.environ.get("KVQ_REF_BACKEND") or "numpy"


def creation_namespace() -> Any:
    """The namespace in which to create arrays."""
    return _backend_namespace(current_backend())


def _backend_namespace(name: str) -> Any:
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    if name == "numpy":
        import array_api_compat.numpy as xp

        return xp
    try:
        import array_api_compat.cupy as cupy_xp
    except ImportError as error:
        raise ImportError(
            "backend 'cupy' needs CuPy and a CUDA device: install the cupy package for your CUDA version"
        ) from error
    return cupy_xp
