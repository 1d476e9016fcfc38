"""The kernels of linear attention on their own: sizes, levels, states, and what must hold bit for bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import relative_error

import kvq_ref as kvq
from kvq_ref import kernels
from kvq_ref.forms import linear
from kvq_ref.forms.linear import LinearState

if kernels.missing is not None:
    pytest.skip(f"compiled kernels are not installed: {kernels.missing}", allow_module_level=True)
fast = pytest.importorskip("kvq_ref._ext.linear")

LEVELS = kernels.tiled_ext.simd_levels()
BARS = {"float64": 1e-13, "float32": 2e-5}
DIMENSIONS = (1, 3, 8, 16, 32, 64, 80, 128)
each_level = pytest.mark.parametrize("simd", LEVELS)
each_dtype = pytest.mark.parametrize("dtype", BARS)
each_order = pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])


class Problem(NamedTuple):
    """Inputs as the kernels take them; a state or its gradient may be None."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    initial: np.ndarray | None
    dstate: np.ndarray | None


class Results(NamedTuple):
    out: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dinitial: np.ndarray


def problem(
    rng: np.random.Generator, sizes: tuple[int, int, int, int, int], dtype: str, with_states: bool = True
) -> Problem:
    batch, Tq, Tk, d, dv = sizes
    shapes = ((Tq, d), (Tk, d), (Tk, dv), (Tq, dv), (d, dv), (d, dv))
    arrays: list[Any] = [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]
    return Problem(*(arrays if with_states else [*arrays[:4], None, None]))


def poisoned(*shape: int, dtype: Any) -> np.ndarray:
    """Room for a result, in which NaN betrays whatever is not written."""
    return np.full(shape, np.nan, dtype)


def run(p: Problem, is_causal: bool, scale: float = 0.7, threads: int = 1, simd: str | None = None) -> Results:
    batch, Tq, d = p.q.shape
    dv, dtype = p.v.shape[2], p.q.dtype
    out = poisoned(batch, Tq, dv, dtype=dtype)
    seen = None if is_causal else poisoned(batch, d, dv, dtype=dtype)
    grads = [poisoned(*x.shape, dtype=dtype) for x in (p.q, p.k, p.v)]
    dinitial = poisoned(batch, d, dv, dtype=dtype)
    fast.forward(p.q, p.k, p.v, p.initial, is_causal, scale, out, seen, threads, simd=simd)
    fast.backward(
        *(p.dout, p.q, p.k, p.v, p.initial, seen, is_causal, scale, p.dstate, *grads, dinitial, threads), simd=simd
    )
    return Results(out, *grads, dinitial)


def expected(p: Problem, is_causal: bool, scale: float = 0.7) -> Results:
    """By forms/linear.py in float64."""
    wide = Problem(*(None if x is None else x.astype(np.float64) for x in p))

    def state(x: np.ndarray | None) -> LinearState | None:
        return None if x is None else LinearState(kv=x, k_sum=np.zeros((*x.shape[:-1], 1)))

    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "initial_state": state(wide.initial)}
    out, saved = linear.forward(wide.q, wide.k, wide.v, **options)
    grads = linear.backward(wide.dout, saved, state(wide.dstate))
    assert grads.initial_state is not None
    return Results(out, grads.q, grads.k, grads.v, grads.initial_state[0])


def size_of_terms(p: Problem, is_causal: bool, scale: float = 0.7) -> Results:
    """The root of the sum of the squares of the terms: every result is a sum of products, so square the inputs."""
    squared = Problem(*(None if x is None else np.square(x, dtype=np.float64) for x in p))
    return Results(*(np.sqrt(x) for x in expected(squared, is_causal, scale**2)))


def assert_close(got: Results, p: Problem, is_causal: bool, bar: float, context: Any) -> None:
    """A sum that happens to cancel keeps the rounding of its terms, so theirs is the size that counts."""
    results = zip(Results._fields, got, expected(p, is_causal), size_of_terms(p, is_causal), strict=True)
    for name, x, wanted, size in results:
        error = np.max(np.abs(x - wanted), initial=0.0)
        assert error <= bar * np.max(size, initial=0.0), (name, context)


def assert_same_bits(a: Results, b: Results, context: Any = "") -> None:
    for name, x, y in zip(Results._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=f"{name} {context}")


# ---- Agreement with the reference ------------------------------------------------------


@each_order
@each_dtype
@each_level
def test_every_dimension(simd: str, dtype: str, is_causal: bool, rng: np.random.Generator) -> None:
    """d and dv on both sides of every vector length and register block, T around the chunks."""
    for d in DIMENSIONS:
        dv = int(rng.choice(DIMENSIONS))
        Tq, Tk = rng.integers(1, 150, 2)
        for sizes in ((2, Tq, Tk, d, dv), (1, Tk, Tq, dv, d)):
            p = problem(rng, sizes, dtype, with_states=bool(rng.integers(2)))
            assert_close(run(p, is_causal, simd=simd), p, is_causal, BARS[dtype], sizes)


@each_order
@each_dtype
@each_level
@pytest.mark.parametrize("with_states", [False, True], ids=["from nothing", "from a state"])
def test_every_length(simd: str, dtype: str, is_causal: bool, with_states: bool, rng: np.random.Generator) -> None:
    """More queries than keys, fewer, none; whole chunks and one more; d and dv no multiple of a vector."""
    for Tq in (0, 1, 15, 16, 17, 63, 64, 65, 130):
        for Tk in (0, 1, 33, 64, 96, 200):
            p = problem(rng, (1, Tq, Tk, 5, 18), dtype, with_states)
            assert_close(run(p, is_causal, simd=simd), p, is_causal, BARS[dtype], (Tq, Tk))


@each_order
@pytest.mark.parametrize(("d", "dv"), [(0, 3), (3, 0)])
def test_no_dimensions(d: int, dv: int, is_causal: bool, rng: np.random.Generator) -> None:
    p = problem(rng, (2, 5, 6, d, dv), "float64")
    assert_same_bits(run(p, is_causal), expected(p, is_causal))


# ---- Bit for bit -----------------------------------------------------------------------


@each_order
@each_dtype
@pytest.mark.parametrize("sizes", [(1, 700, 700, 64, 64), (3, 500, 611, 33, 80), (11, 200, 190, 48, 16)])
def test_threads_change_no_bit(
    sizes: tuple[int, int, int, int, int], dtype: str, is_causal: bool, rng: np.random.Generator
) -> None:
    """A batch of one is cut into columns, a batch of many is not: neither depends on who does the work."""
    p = problem(rng, sizes, dtype)
    alone = run(p, is_causal)
    assert_close(alone, p, is_causal, 10 * BARS[dtype], sizes)
    for threads in (2, 5):
        assert_same_bits(run(p, is_causal, threads=threads), alone, threads)


@each_dtype
@each_level
def test_no_future_key_changes_a_bit(simd: str, dtype: str, rng: np.random.Generator) -> None:
    """Of a row of out or dq; and no earlier query changes one of dk or dv."""
    for sizes in ((1, 150, 150, 16, 16), (2, 64, 64, 7, 33), (1, 70, 130, 64, 5), (1, 130, 70, 32, 32)):
        p = problem(rng, sizes, dtype)
        before = run(p, True, simd=simd)
        for t in rng.integers(0, min(sizes[1:3]), 6):
            later = p._replace(k=p.k.copy(), v=p.v.copy())
            later.k[:, t + 1 :] *= 1e15
            later.v[:, t + 1 :] += 1e20
            after = run(later, True, simd=simd)
            for x, y in ((after.out, before.out), (after.dq, before.dq)):
                np.testing.assert_array_equal(x[:, : t + 1], y[:, : t + 1])
            earlier = p._replace(q=p.q.copy(), dout=p.dout.copy())
            earlier.q[:, :t] *= 1e15
            earlier.dout[:, :t] += 1e20
            after = run(earlier, True, simd=simd)
            for x, y in ((after.dk, before.dk), (after.dv, before.dv)):
                np.testing.assert_array_equal(x[:, t:], y[:, t:])


@each_order
def test_weights_that_overflow_stay_with_those_who_see_them(is_causal: bool, rng: np.random.Generator) -> None:
    """The product of a query and a hidden key may be infinite, or NaN."""
    p = problem(rng, (1, 40, 40, 16, 16), "float32", with_states=False)
    before = run(p, True)
    p.k[:, 30:] = 3e38 * np.sign(p.k[:, 30:])
    with np.errstate(over="ignore"):
        after = run(p, True)
    np.testing.assert_array_equal(after.out[:, :30], before.out[:, :30])
    np.testing.assert_array_equal(after.dq[:, :30], before.dq[:, :30])
    assert not np.isfinite(after.out[:, 30:]).all()


# ---- Accuracy ----------------------------------------------------------------------------


@each_order
def test_long_sequences_lose_no_more_than_numpy(is_causal: bool, rng: np.random.Generator) -> None:
    """T = 16384 in float32, and keys and values whose mean is not zero, so that sums grow."""
    T, d = 16384, 16
    q, k, v = ((rng.standard_normal((1, T, d)) + 0.5).astype(np.float32) for _ in range(3))
    p = Problem(q, k, v, (rng.standard_normal((1, T, d)) + 0.5).astype(np.float32), None, None)
    wide = Problem(*(None if x is None else x.astype(np.float64) for x in p))

    def by_numpy(p: Problem) -> Results:
        """Causal: by blocks of 64, the state added up along the way."""
        if not is_causal:
            s, ds = p.k.mT @ p.v, p.q.mT @ p.dout
            return Results(p.q @ s, p.dout @ s.mT, p.v @ ds.mT, p.k @ ds, ds)

        def sweep(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            x, y, z = (a.reshape(T // 64, 64, -1) for a in (x, y, z))
            states = np.cumsum(y.mT @ z, axis=0) - y.mT @ z
            return (x @ states + np.tril(x @ y.mT) @ z).reshape(1, T, -1)

        def back(x: np.ndarray) -> np.ndarray:
            return x[:, ::-1]

        dk = back(sweep(*map(back, (p.v, p.dout, p.q))))
        dv = back(sweep(*map(back, (p.k, p.q, p.dout))))
        return Results(sweep(p.q, p.k, p.v), sweep(p.dout, p.v, p.k), dk, dv, p.q.mT @ p.dout)

    exact = by_numpy(wide)
    for name, ours, numpy, x in zip(Results._fields, run(p, is_causal, 1.0), by_numpy(p), exact, strict=True):
        error, theirs = (np.sqrt(np.mean((y - x) ** 2)) for y in (ours, numpy))
        assert error <= 2 * theirs, (name, error / theirs)


# ---- The dress -----------------------------------------------------------------------------


@each_order
@pytest.mark.parametrize("normalize", [False, True])
def test_state_and_its_gradient(normalize: bool, is_causal: bool, rng: np.random.Generator) -> None:
    """Through the public call, with a feature map and a key mask, as the reference does it."""
    q, k, v = (rng.standard_normal((2, n, m)) for n, m in ((9, 5), (70, 5), (70, 18)))
    initial = LinearState(kv=rng.random((2, 5, 18)), k_sum=rng.random((2, 5, 1)))
    options: dict[str, Any] = {"normalize": normalize, "is_causal": is_causal, "feature_map": "elu+1", "scale": 0.3}
    options |= {"mask": rng.random((2, 1, 70)) < 0.7, "initial_state": initial, "output_final_state": True}
    results = []
    for implementation in ("reference", "compiled"):
        (out, state), pullback = kvq.vjp(kvq.linear_attention, q, k, v, implementation=implementation, **options)
        generator = np.random.default_rng(0)
        dout = generator.standard_normal(out.shape)
        dstate = LinearState(*(generator.standard_normal(x.shape) for x in state))
        grads = pullback((dout, dstate))
        results.append([out, *state, grads.q, grads.k, grads.v, *grads.initial_state])
    for reference, compiled in zip(*results, strict=True):
        assert relative_error(compiled, reference) < 1e-12


@each_order
@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_a_state_that_queries_share(normalize: bool, is_causal: bool, rng: np.random.Generator) -> None:
    """Three batches of queries, one of keys: there is one state, and its gradient counts once."""
    q, k, v = rng.standard_normal((3, 4, 2)), rng.standard_normal((5, 2)), rng.standard_normal((5, 3))
    options: dict[str, Any] = {"is_causal": is_causal, "normalize": normalize, "output_final_state": True}
    (out, state), pullback = kvq.vjp(kvq.linear_attention, q, k, v, implementation="compiled", **options)
    dstate = LinearState(*(rng.standard_normal(x.shape) for x in state))
    grads = pullback((np.zeros_like(out), dstate))
    assert relative_error(grads.k, v @ dstate.kv.T + dstate.k_sum.T) < 1e-13
    assert relative_error(grads.v, k @ dstate.kv) < 1e-13
    np.testing.assert_array_equal(grads.q, 0.0)


def test_plain_call_is_the_long_way_to_the_bit(rng: np.random.Generator) -> None:
    q, k, v, dout = (rng.standard_normal((2, 3, 70, n)).astype(np.float32) for n in (16, 16, 20, 20))
    for is_causal in (False, True):
        options: dict[str, Any] = {"is_causal": is_causal, "implementation": "compiled"}
        out, pullback = kvq.vjp(kvq.linear_attention, q, k, v, **options)
        quick, seen = fast.quick(q, k, v, is_causal, None, None, lambda: 1, True)
        np.testing.assert_array_equal(quick, out)
        grads = fast.quick_backward(dout, q, k, v, seen, is_causal, None, lambda: 1)
        for x, y in zip(grads, pullback(dout), strict=False):
            np.testing.assert_array_equal(x, y)


def test_what_is_not_plain_is_left(rng: np.random.Generator) -> None:
    """Whatever the long way has words for, or another answer."""
    q, k, v = (rng.standard_normal((2, 6, 4)) for _ in range(3))
    for position in range(3):
        for wrong in (None, [1.0], q[:1], q[..., :0], q.astype("f4"), q.astype("i8"), q[:, ::2], q.T):
            arguments: list[Any] = [q, k, v]
            arguments[position] = wrong
            assert fast.quick(*arguments, False, None, None, lambda: 1, False) is None
        for bad in (np.nan, np.inf):
            for is_causal in (False, True):
                arguments = [q.copy(), k.copy(), v.copy()]
                arguments[position][1, 2, 3] = bad
                assert fast.quick(*arguments, is_causal, None, None, lambda: 1, False) is None
    for is_causal, scale in ((1, None), (None, None), (False, 1), (False, np.nan), (False, 1e300), (False, "1")):
        assert fast.quick(q, k, v, is_causal, scale, None, lambda: 1, False) is None
    for out in (q, q[..., :2], [0.0], np.zeros((2, 6, 4), "f4"), np.zeros((4, 6, 2)).T):
        assert fast.quick(q, k, v, False, None, out, lambda: 1, False) is None
    _, seen = fast.quick(q, k, v, False, None, None, lambda: 1, True)
    for dout in (None, q[:1], q.astype("f4"), np.full_like(q, np.nan)):
        assert fast.quick_backward(dout, q, k, v, seen, False, None, lambda: 1) is None


def test_wrong_arguments_are_refused(rng: np.random.Generator) -> None:
    p = problem(rng, (2, 5, 6, 3, 4), "float64")
    out, seen = np.empty((2, 5, 4)), np.empty((2, 3, 4))
    good: dict[str, Any] = {"q": p.q, "k": p.k, "v": p.v, "initial": p.initial, "is_causal": False, "scale": 1.0}
    good |= {"out": out, "seen": seen, "num_threads": 1}
    fast.forward(*good.values())
    for name, wrong, message in (
        ("q", p.q[0], "3 axes"),
        ("k", p.k.astype("f4"), "dtype of q"),
        ("v", p.v[:, 1:], "C-contiguous"),
        ("initial", p.q, "initial must have shape"),
        ("out", out[:1], "out must have shape"),
        ("seen", out, "seen must have shape"),
        ("is_causal", True, "seen must be None"),
        ("num_threads", 0, "num_threads"),
    ):
        with pytest.raises(ValueError, match=message):
            fast.forward(*(good | {name: wrong}).values())
    grads = (np.empty_like(p.q), np.empty_like(p.k), np.empty_like(p.v), None)
    with pytest.raises(ValueError, match="seen must be what forward wrote"):
        fast.backward(p.dout, p.q, p.k, p.v, None, None, False, 1.0, None, *grads, 1)
