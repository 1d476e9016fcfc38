"""How many threads the compiled kernels may use.

The smallest of three: what the process has (OMP_NUM_THREADS if set, else the
processors that it may run on), what threadpoolctl allows, and what the
innermost ``use_num_threads`` says. Results do not depend on it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import numbers
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_limit: ContextVar[int | None] = ContextVar("kvq_ref_num_threads", default=None)


@contextlib.contextmanager
def use_num_threads(limit: int) -> Iterator[None]:
    """Limit the threads of the compiled kernels, for a ``with`` block.

    It holds for the thread and context that the block is in; the innermost block
    decides. A limit above what the process has changes nothing. No bit of a
    result depends on it.

    Parameters
    ----------
    limit : int
        At most so many threads for a call, >= 1.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Notes
    -----
    The environment variable ``OMP_NUM_THREADS`` sets what the process has;
    without it, that is the processors it may run on. Where threadpoolctl is
    installed, ``threadpoolctl.threadpool_limits`` limits the kernels too. What
    NumPy and SciPy do with their own threads is none of this.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q = k = v = np.ones((1, 1))
    >>> with kvq.use_num_threads(1):
    ...     kvq.softmax_attention(q, k, v)
    array([[1.]])
    """
    if not isinstance(limit, numbers.Integral) or isinstance(limit, bool):
        raise TypeError(f"limit: expected a whole number of threads, got {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"limit: expected at least 1 thread, got {limit}")
    token = _limit.set(int(limit))
    try:
        yield
    finally:
        _limit.reset(token)


def num_threads() -> int:
    """Threads that a kernel may use, here and now."""
    threads = available_threads()
    for limit in (_pool_limit(), _limit.get()):
        if limit and limit < threads:
            threads = limit
    return threads


def available_threads() -> int:
    """What the process has: the first number of OMP_NUM_THREADS, else the processors it may run on."""
    wanted = _first_number(os.environ.get("OMP_NUM_THREADS", ""))
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache  # small calls ask each time
def _first_number(text: str) -> int:
    """3 of "3,2"; 0 where there is none."""
    first = text.split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0


# ---- threadpoolctl ---------------------------------------------------------------------


def _pool_limit() -> int:
    """What threadpoolctl allows; 0 where it sets no limit."""
    return 0 if _tiled is None else _tiled.thread_limit()


def _register() -> None:
    """Tell threadpoolctl, where it is installed, of the two functions in the kernels' library that hold the limit."""
    try:
        from threadpoolctl import LibController, register
    except ImportError:  # or a version that knows its own libraries only
        return

    class KernelController(LibController):  # type: ignore[misc]
        user_api = "kvq_ref"
        internal_api = "kvq_ref"
        filename_prefixes = ("tiled",)
        check_symbols = ("kvq_get_thread_limit", "kvq_set_thread_limit")

        def get_num_threads(self) -> int:
            return self.dynlib.kvq_get_thread_limit() or available_threads()

        def set_num_threads(self, num_threads: int) -> None:
            # As many as there are is no limit: so leaving a block puts things back as they were.
            self.dynlib.kvq_set_thread_limit(num_threads if num_threads < available_threads() else 0)

        def get_version(self) -> None:
            """None, as it is no library of its own."""

    register(KernelController)


try:
    _tiled: Any = importlib.import_module("kvq_ref._ext.tiled")
except ImportError:
    _tiled = None
else:
    _register()
