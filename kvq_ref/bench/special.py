"""The smallest calls, and kernels mixed with NumPy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.bench.jobs import Job

LATENCY_SHAPE = (1, 1, 16, 16)
MIXED_SHAPE = (1, 8, 512, 64)
MIXED_SIDE = 512
MIXED_THREADS = 2
MIXED_CALLS = 5


def latency_jobs(dtype: str) -> list[Job]:
    """The smallest useful call: forward, forward that keeps what backward needs, both."""
    return [Job("softmax", LATENCY_SHAPE, what, False, dtype) for what in ("f", "vjp", "fb")]


def mixed_rounds(rounds: int, seed: int) -> list[dict[str, float]]:
    """Seconds of a NumPy product alone, of a kernel alone, and of the two in turns, round by round.

    Examples
    --------
    >>> (times,) = mixed_rounds(1, 0)
    >>> sorted(times)
    ['kernel', 'product', 'turns']
    """
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, MIXED_SIDE, MIXED_SIDE)).astype(np.float32)
    q, k, v = rng.standard_normal((3, *MIXED_SHAPE)).astype(np.float32)

    def product() -> Any:
        return a @ b

    def kernel() -> Any:
        return kvq.softmax_attention(q, k, v)

    def turns() -> None:
        product()
        kernel()

    todo: dict[str, Callable[[], Any]] = {"product": product, "kernel": kernel, "turns": turns}
    names = list(todo)
    found = []
    for number in range(rounds):
        first = number % len(names)
        found.append({name: _seconds(todo[name]) for name in names[first:] + names[:first]})
    return found


def _seconds(call: Callable[[], Any]) -> float:
    time.sleep(0.03)  # threads of the one before go to sleep
    call()
    begin = time.perf_counter()
    for _ in range(MIXED_CALLS):
        call()
    return (time.perf_counter() - begin) / MIXED_CALLS
