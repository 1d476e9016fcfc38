"""Threads: limits are kept to, results do not depend on them, and nothing breaks under many at once or after a fork."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import FORMS, each_form, public

import kvq_ref as kvq
from kvq_ref import kernels
from kvq_ref.dispatch import Form
from kvq_ref.kernels import tiled

WITH_KERNEL = [form for form in FORMS.values() if form.implementation("compiled") is not None]
each_form_with_kernel = pytest.mark.parametrize("form", WITH_KERNEL, ids=lambda form: form.name)
only_with_kernels = pytest.mark.skipif(kernels.missing is not None, reason="compiled kernels are not installed")


@pytest.fixture
def _eight_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with eight processors."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")


def alpha_of(form: Form) -> dict[str, Any]:
    return {"alpha": 0.5} if "alpha" in form.options else {}


# ---- Limits --------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("3,2", 3), (" 5 ", 5)])
def test_what_the_process_has(value: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert kernels.num_threads() == expected


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "²"])
def test_variable_that_says_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is the processors that the process may run on."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert kernels.num_threads() == expected


@pytest.mark.usefixtures("_eight_threads")
def test_use_num_threads_nests() -> None:
    """The innermost block decides; more than there are changes nothing; an error restores what was."""
    with kvq.use_num_threads(3):
        assert kernels.num_threads() == 3
        with kvq.use_num_threads(np.int64(5)):
            assert kernels.num_threads() == 5
        with kvq.use_num_threads(100):
            assert kernels.num_threads() == 8
        with pytest.raises(RuntimeError), kvq.use_num_threads(2):
            raise RuntimeError
        assert kernels.num_threads() == 3
    assert kernels.num_threads() == 8


@pytest.mark.usefixtures("_eight_threads")
def test_use_num_threads_is_of_a_thread_and_a_context() -> None:
    seen: list[int] = []
    with kvq.use_num_threads(1):
        thread = threading.Thread(target=lambda: seen.append(kernels.num_threads()))
        thread.start()
        thread.join()
        inside = contextvars.copy_context()
    assert seen == [8]
    assert inside.run(kernels.num_threads) == 1


@pytest.mark.parametrize("limit", [0, -2, 1.0, None, True, "2"])
def test_limit_that_is_none(limit: Any) -> None:
    error = ValueError if type(limit) is int else TypeError
    with pytest.raises(error, match=r"^limit: expected .*thread"), kvq.use_num_threads(limit):
        pass


@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_threadpoolctl_limits_the_kernels() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def listed() -> list[dict[str, Any]]:
        return [x for x in threadpoolctl.threadpool_info() if x["user_api"] == "kvq_ref"]

    assert [x["num_threads"] for x in listed()] == [8]
    with threadpoolctl.threadpool_limits(3):
        assert kernels.num_threads() == 3
        assert [x["num_threads"] for x in listed()] == [3]
        with threadpoolctl.threadpool_limits(1, user_api="kvq_ref"):
            assert kernels.num_threads() == 1
        with kvq.use_num_threads(2):
            assert kernels.num_threads() == 2
        with kvq.use_num_threads(5):
            assert kernels.num_threads() == 3
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert kernels.num_threads() == 3
    assert kernels.num_threads() == 8
    assert kernels.tiled_ext.thread_limit() == 0


class Asked:
    """How many threads each kernel call was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        honest = kernels.num_threads

        def num_threads() -> int:
            self.counts.append(honest())
            return self.counts[-1]

        monkeypatch.setattr(tiled, "num_threads", num_threads)


@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
@pytest.mark.parametrize("masked", [False, True], ids=["quick", "long"])
def test_kernels_ask(masked: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward ask how many threads they may use, each when it runs."""
    asked = Asked(monkeypatch)
    q, k, v = rng.standard_normal((3, 4, 300, 32))
    mask = {"mask": np.ones((300, 300), bool)} if masked else {}
    with kvq.use_num_threads(2):
        out, pullback = kvq.vjp(kvq.softmax_attention, q, k, v, **mask)
    with kvq.use_num_threads(5):
        pullback(out)
    assert asked.counts == [2, 5]


# ---- Results -------------------------------------------------------------------------

# each worth waking several threads; the last two are worth those that are awake
LARGE = [(2, 3, 200, 210, 32, 33), (1, 1, 700, 650, 16, 64), (40, 2, 33, 47, 16, 16), (64, 4, 16, 16, 16, 16)]


@pytest.mark.usefixtures("_eight_threads")
@only_with_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", LARGE, ids=str)
@each_form_with_kernel
def test_results_do_not_depend_on_threads(form: Form, sizes: Any, dtype: str, rng: np.random.Generator) -> None:
    """Not a bit of the result or of a gradient, causal or not, masked or not, for any number of threads."""
    *leading, Tq, Tk, d, dv = sizes
    q, k, v = (rng.standard_normal((*leading, *x)).astype(dtype) for x in ((Tq, d), (Tk, d), (Tk, dv)))
    dout = rng.standard_normal((*leading, Tq, dv)).astype(dtype)
    variants: list[dict[str, Any]] = [{}, {"mask": rng.random((Tq, Tk) if "alpha" not in form.options else Tk) < 0.8}]
    if "alpha" not in form.options:  # where only the kernel, and no solver, takes long
        variants.append({"is_causal": True})
    if "bias" in form.options:
        variants.append({"bias": rng.standard_normal((Tq, Tk)).astype(dtype)})

    def evaluate(threads: int, options: dict[str, Any]) -> list[Any]:
        with kvq.use_num_threads(threads):
            out, pullback = kvq.vjp(public(form), q, k, v, implementation="compiled", **alpha_of(form), **options)
            return [out, *pullback(dout)]

    for options in variants:
        expected = evaluate(1, options)
        for threads in (2, 3, 5, 8):
            for a, b in zip(evaluate(threads, options), expected, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{threads} threads, {list(options)}")


def random_call(form: Form, rng: np.random.Generator) -> Callable[[], list[Any]]:
    """A call of random size and options, forward or forward and backward."""
    T, d, batch = int(rng.integers(1, 160)), int(rng.integers(1, 40)), int(rng.integers(1, 5))
    if "alpha" in form.options:
        T, d = T // 4 + 1, d // 4 + 1
    dtype = rng.choice(["float32", "float64"])
    q, k, v, dout = (rng.standard_normal((batch, T, d)).astype(dtype) for _ in range(4))
    if "beta" in form.options:  # steps of one, or the state grows with every key
        k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    options = alpha_of(form) | {"is_causal": bool(rng.integers(2))}
    if rng.random() < 0.3:
        options["mask"] = rng.random((batch, 1, T)) < 0.8
    if "bias" in form.options and rng.random() < 0.3:
        options["bias"] = rng.standard_normal((T, T)).astype(dtype)
    if rng.random() < 0.5:
        return lambda: [public(form)(q, k, v, **options)]

    def both() -> list[Any]:
        out, pullback = kvq.vjp(public(form), q, k, v, **options)
        return [out, *pullback(dout)]

    return both


@pytest.mark.usefixtures("_eight_threads")
def test_many_threads_at_once(rng: np.random.Generator) -> None:
    """Eight Python threads with 200 random calls each get, bit for bit, what one thread gets alone."""
    forms = list(FORMS.values())
    calls = [random_call(forms[i], rng) for i in rng.integers(len(forms), size=200)]
    with kvq.use_num_threads(1):
        expected = [call() for call in calls]
    wrong: list[Any] = []

    def work(order: np.ndarray, threads: int) -> None:
        with kvq.use_num_threads(threads):
            for i in order:
                for a, b in zip(calls[i](), expected[i], strict=True):
                    if not (a is b is None or np.array_equal(a, b)):
                        wrong.append(i)

    workers = [threading.Thread(target=work, args=(rng.permutation(200), i % 4 + 1)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@each_form
def test_switches_do_not_meet(form: Form, rng: np.random.Generator) -> None:
    """Forms keep nothing between calls: threads with other switches and inputs do not meet."""
    inputs = [rng.standard_normal((3, 20, 4)) for _ in range(4)]
    expected = [public(form)(*x, is_causal=True, implementation="reference", **alpha_of(form)) for x in inputs]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        with kvq.use_implementation("reference"):
            for _ in range(5):
                results[i] = public(form)(*inputs[i], is_causal=True, **alpha_of(form))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], expected[i])


# ---- Helpers -------------------------------------------------------------------------


def threads_of_the_process() -> int:
    """Once those that have been joined are gone, too."""
    counts = [len(os.listdir("/proc/self/task"))]
    while len(counts) < 5 or len(set(counts[-5:])) > 1:
        time.sleep(0.01)
        counts.append(len(os.listdir("/proc/self/task")))
    return counts[-1]


def in_a_process_of_its_own(work: Callable[[], bool]) -> bool:
    """Where no call has made helpers yet."""
    return fork(work) == "true"


only_on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system lists no threads")


@only_on_linux
@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_helpers_are_shared(rng: np.random.Generator) -> None:
    """Calls of all kernels, from many threads at once, have together no more helpers than one call wants."""
    q, k, v = rng.standard_normal((3, 16, 300, 32))

    def call_everything() -> None:
        for _ in range(5):
            kvq.softmax_attention(q, k, v)
            kvq.linear_attention(q, k, v, is_causal=True)
            kvq.intention(q, k, v, alpha=0.5)

    def counts() -> bool:
        before = threads_of_the_process()
        call_everything()
        alone = threads_of_the_process()
        callers = [threading.Thread(target=call_everything) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return alone == threads_of_the_process() == before + 7

    assert in_a_process_of_its_own(counts)


@only_on_linux
@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_calls_on_one_thread_make_no_helpers(rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal((3, 16, 300, 32))

    def counts() -> bool:
        before = threads_of_the_process()
        with kvq.use_num_threads(1):
            kvq.softmax_attention(q, k, v)
        return threads_of_the_process() == before

    assert in_a_process_of_its_own(counts)


@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_helpers_sleep(parallel_call: Any) -> None:
    """Soon after a call its helpers leave the processors to others."""
    call, _ = parallel_call
    call()
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
@pytest.mark.parametrize("gap", [0.0, 1e-5, 1e-4], ids=["at once", "soon", "later"])
def test_small_calls_one_after_another(gap: float, rng: np.random.Generator) -> None:
    """Whether helpers are awake, fall asleep or sleep makes no difference to a result."""
    q, k, v, dout = rng.standard_normal((4, 64, 4, 16, 16))

    def evaluate() -> list[Any]:
        out, pullback = kvq.vjp(kvq.softmax_attention, q, k, v)
        return [out, *pullback(dout)[:3]]

    with kvq.use_num_threads(1):
        expected = evaluate()
    for _ in range(100):
        assert agree(evaluate(), expected)
        end = time.perf_counter() + gap
        while time.perf_counter() < end:
            pass


# ---- Fork ----------------------------------------------------------------------------


def fork(work: Callable[[], bool], seconds: float = 60.0) -> str:
    """Run work in a forked child: "true", "false", "error" or "hangs"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python 3.12 and JAX say of forks where there are threads
        child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {0: "true", 1: "false"}.get(os.waitstatus_to_exitcode(status), "error")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


@pytest.fixture(params=[(4, 300, 32), (256, 16, 16)], ids=["great", "small"])
def parallel_call(
    request: pytest.FixtureRequest, rng: np.random.Generator
) -> tuple[Callable[[], list[Any]], list[Any]]:
    """A call, forward and backward, that uses threads, and its result."""
    q, k, v = rng.standard_normal((3, *request.param))

    def call() -> list[Any]:
        for _ in range(4):  # small ones have helpers from the third on
            out, pullback = kvq.vjp(kvq.softmax_attention, q, k, v, is_causal=True)
            grads = pullback(v)[:3]
        return [out, *grads]

    return call, call()


def agree(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_child_completes_a_parallel_call(parallel_call: Any) -> None:
    """After one in the parent; and so does a child of the child."""
    call, expected = parallel_call
    assert fork(lambda: agree(call(), expected)) == "true"
    assert fork(lambda: agree(call(), expected) and fork(lambda: agree(call(), expected)) == "true") == "true"
    assert agree(call(), expected)


@needs_fork
@only_with_kernels
@pytest.mark.usefixtures("_eight_threads")
def test_child_forked_in_the_midst_of_a_call(parallel_call: Any) -> None:
    """While another thread is in a kernel, and its threads at work."""
    call, expected = parallel_call
    stop = threading.Event()
    wrong: list[Any] = []

    def keep_calling() -> None:
        while not stop.is_set():
            if not agree(call(), expected):
                wrong.append(None)

    worker = threading.Thread(target=keep_calling)
    worker.start()
    try:
        for _ in range(10):
            time.sleep(0.003)
            assert fork(lambda: agree(call(), expected)) == "true"
    finally:
        stop.set()
        worker.join()
    assert not wrong
