"""Memory for results is used again, and never while anyone can see it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq

buffers = pytest.importorskip("kvq_ref._ext.buffers", reason="compiled kernels are not installed")

MB = 1 << 20


@pytest.fixture(autouse=True)
def _a_stock_of_its_own() -> Iterator[None]:
    """Each test begins with nothing kept, and leaves the limit as it was."""
    gc.collect()
    before = buffers.limit()
    buffers.set_limit(0)
    buffers.set_limit(64 * MB)
    yield
    buffers.set_limit(0)
    buffers.set_limit(before)


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


@pytest.fixture
def inputs(rng: np.random.Generator) -> Any:
    return rng.standard_normal((3, 4, 128, 32))


def test_memory_is_used_again_after_death() -> None:
    first = buffers.empty((100, 1000), "f8")
    where = address(first)
    assert buffers.kept() == 0
    del first
    assert buffers.kept() >= 800_000
    second = buffers.empty((1000, 100), np.float64)
    assert address(second) == where
    assert buffers.kept() == 0
    third = buffers.empty((1000, 100), np.float64)
    assert not np.shares_memory(second, third)


def test_it_is_an_array_like_any_other() -> None:
    x = buffers.empty((100, 1000), "f4")
    assert type(x) is np.ndarray
    assert (x.shape, x.dtype) == ((100, 1000), np.float32)
    assert x.flags.c_contiguous
    assert x.flags.writeable
    assert address(x) % 64 == 0
    x[...] = 3.0
    for twin in (pickle.loads(pickle.dumps(x)), copy.copy(x), copy.deepcopy(x), x.copy()):
        assert not np.shares_memory(twin, x)
        np.testing.assert_array_equal(twin, x)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "f8"),
        ((0,), "f8"),
        ((1000, 0, 1000), "f4"),
        ((10**9, 0, 10**9), "f4"),
        ((3, 4), "f4"),
        ((10**4,), "V0"),
        ((10**5,), object),
    ],
)
def test_small_empty_and_strange_arrays_are_numpys_own(shape: tuple[int, ...], dtype: Any) -> None:
    x = buffers.empty(shape, dtype)
    assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
    assert x.base is None


@pytest.mark.parametrize(
    "shape", [(1 << 32, 1 << 32), (1 << 62, 4), ((1 << 61) + 4096, 2), (-1, 10**6), (1 << 31, 1 << 30, 4)]
)
def test_shapes_that_no_memory_holds(shape: tuple[int, ...]) -> None:
    """Sizes whose product overflows are NumPy's errors, and not a small array."""
    with pytest.raises((ValueError, MemoryError)):
        buffers.empty(shape, "f8")


def test_a_view_keeps_its_memory_alive() -> None:
    x = buffers.empty((1000, 100), "f8")
    x[...] = 5.0
    view = x[10:20, ::2].T
    raw = memoryview(x)
    del x
    for _ in range(3):
        buffers.empty((1000, 100), "f8")[...] = 7.0
    assert np.all(view == 5.0)
    del view
    buffers.empty((1000, 100), "f8")[...] = 7.0
    assert raw[0, 0] == 5.0
    del raw
    assert buffers.kept() >= 2 * 800_000


def test_limit_is_respected() -> None:
    """Whatever dies: no more is kept than the limit, and the longest unused goes first."""
    buffers.set_limit(4 * MB)
    arrays = [buffers.empty((MB,), "u1") for _ in range(10)]
    last = [address(x) for x in arrays[6:]]
    while arrays:
        del arrays[0]
        assert buffers.kept() <= 4 * MB
    assert buffers.kept() == 4 * MB
    again = [buffers.empty((MB,), "u1") for _ in range(4)]
    assert sorted(map(address, again)) == sorted(last)
    del again
    big = buffers.empty((4 * MB + 1,), "u1")  # more than may be kept: NumPy's own
    assert big.base is None
    buffers.set_limit(MB)
    assert buffers.kept() == MB
    x = buffers.empty((MB,), "u1")
    buffers.set_limit(0)
    del x
    assert buffers.kept() == 0


def test_many_small_blocks() -> None:
    """More blocks than the list of them has places for."""
    sizes = [40_000 + 65_536 * (i % 3) for i in range(700)]
    arrays = [buffers.empty((n,), "u1") for n in sizes]
    for i, x in enumerate(arrays):
        x[...] = i % 251
    assert all(np.all(x == i % 251) for i, x in enumerate(arrays))
    del arrays, x
    assert 0 < buffers.kept() <= 64 * MB
    arrays = [buffers.empty((n,), "u1") for n in sizes]
    assert len({address(x) for x in arrays}) == len(arrays)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_results_that_live_share_no_memory(inputs: Any, masked: bool, is_causal: bool) -> None:
    """Neither of one call nor of several, nor with what a pullback keeps."""
    options = {"is_causal": is_causal} | ({"mask": np.ones((128, 128), bool)} if masked else {})
    alive: list[np.ndarray] = []
    pullbacks = []
    for _ in range(3):
        out, pullback = kvq.vjp(kvq.softmax_attention, *inputs, **options)
        grads = pullback(np.ones_like(out))
        pullbacks.append((pullback, grads))
        alive += [out, kvq.softmax_attention(*inputs, **options), *grads[:3]]
    assert not any(np.shares_memory(x, y) for i, x in enumerate(alive) for y in alive[:i])
    for x in alive[::5]:
        x[...] = 0.0
    for pullback, grads in pullbacks:
        for a, b in zip(pullback(np.ones((4, 128, 32)))[:3], grads[:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_loop_of_calls_uses_the_same_memory(inputs: Any) -> None:
    places = set()
    for _ in range(20):
        out, pullback = kvq.vjp(kvq.expressive_attention, *inputs)
        grads = pullback(out)
        places |= {address(x) for x in (out, *grads[:3])}
    assert len(places) <= 12


def test_threads_at_once(rng: np.random.Generator) -> None:
    """Many threads that take, fill and drop blocks of a few sizes: nobody's values change under them."""
    wrong: list[Any] = []

    def work(i: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        mine: list[tuple[float, np.ndarray]] = []
        for step in range(400):
            x = buffers.empty((int(random.integers(1, 5)) * 10_000,), "f8")
            x[...] = value = float(i * 1000 + step)
            mine.append((value, x))
            if len(mine) > 5:
                value, x = mine.pop(int(random.integers(5)))
                if not np.all(x == value):
                    wrong.append((i, step))

    threads = [threading.Thread(target=work, args=(i, int(rng.integers(2**32)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert buffers.kept() <= buffers.limit()


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, and in a folder without a source tree."""
    command, env = [sys.executable, "-c", code], os.environ | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


REPORT = """
import numpy as np, kvq_ref as kvq
from kvq_ref._ext import buffers
x = np.ones((4, 256, 64))
out = kvq.softmax_attention(x, x, x)
del out
print(buffers.limit() >> 20, buffers.kept() > 0)
kvq.show_config()
"""


@pytest.mark.parametrize(("megabytes", "used"), [("0", False), ("1", True), ("", True), (str(10**30), True)])
def test_limit_from_the_environment(megabytes: str, used: bool, tmp_path: Path) -> None:
    done = python(REPORT, tmp_path, KVQ_REF_BUFFER_MB=megabytes)
    assert done.returncode == 0, done.stderr
    limit, was_kept = done.stdout.splitlines()[0].split()
    assert limit == {"": "64", str(10**30): str(1 << 40)}.get(megabytes, megabytes)
    assert was_kept == str(used)
    assert f"memory for results  up to {limit} MB kept" in done.stdout


@pytest.mark.parametrize("wrong", ["-1", "lots", "1.5", "²"])
def test_limit_that_is_no_number(wrong: str, tmp_path: Path) -> None:
    done = python("import kvq_ref", tmp_path, KVQ_REF_BUFFER_MB=wrong, PYTHONUTF8="1")
    assert done.returncode == 1
    assert f"ValueError: KVQ_REF_BUFFER_MB: expected a whole number of megabytes, got {wrong!r}" in done.stderr
