"""The compiled kernels in the dress of a form: forward -> (out, saved), backward(dout, saved) -> Grads.

The kernels proper are C, in the top-level folder ``_ext``; they take arrays of
shape (batch, T, d). The files here flatten the leading axes, make room for the
results, and compose what a form is made of. Nothing is asked of the arguments:
:mod:`kvq_ref.dispatch` sends only what fits.

tiled.py           softmax and expressive attention
linear.py          linear attention
ridge.py           Intention, and the preconditioner
preconditioned.py  sigma-Intention and expressive Intention: the two together

This file has what they share.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from kvq_ref.threads import num_threads as num_threads
from kvq_ref.types import Array

try:
    tiled_ext: Any = importlib.import_module("kvq_ref._ext.tiled")
    linear_ext: Any = importlib.import_module("kvq_ref._ext.linear")
    ridge_ext: Any = importlib.import_module("kvq_ref._ext.ridge")
    buffers_ext: Any = importlib.import_module("kvq_ref._ext.buffers")
except ImportError as error:
    missing: str | None = str(error)
else:
    missing = None


def simd_level() -> str:
    """The instruction set that the kernels use here: "baseline", "avx2", "avx512", ..."""
    level: str = tiled_ext.simd_level()
    return level


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Room for a NumPy result: memory used again, where there is some."""
    return np.empty(shape, dtype) if missing else buffers_ext.empty(shape, dtype)


def buffer_policy() -> str:
    """What happens to the memory of a result that is no longer used."""
    if missing is not None:
        return "given back"
    return f"up to {buffers_ext.limit() >> 20} MB kept for the next result (KVQ_REF_BUFFER_MB)"


def copy(x: Array) -> Array:
    """A copy of a NumPy array, in such memory."""
    twin = empty(x.shape, x.dtype)
    twin[...] = x
    return twin


def all_finite(x: Array) -> bool:
    """Whether ``x`` holds neither NaN nor infinity, in one pass and without an array of answers."""
    answer: bool = tiled_ext.all_finite(plain(x))
    return answer


def flatten(x: Array, leading: tuple[int, ...]) -> Array:
    """(..., T, d) to a contiguous (batch, T, d)."""
    whole = x if x.shape[:-2] == leading else np.broadcast_to(x, (*leading, *x.shape[-2:]))
    return plain(whole).reshape(math.prod(leading), *x.shape[-2:])


def plain(x: Array) -> Array:
    """As the kernels read it: contiguous, aligned, and no subclass such as numpy.memmap."""
    x = x if type(x) is np.ndarray else np.asarray(x)
    return x if x.flags.c_contiguous and x.flags.aligned else np.array(x, order="C")
