"""The least-squares kernels on their own: sizes, levels, states, threads, and what must hold bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cases import relative_error

import kvq_ref as kvq
from kvq_ref import kernels

if kernels.missing is not None:
    pytest.skip(f"compiled kernels are not installed: {kernels.missing}", allow_module_level=True)
ridge = pytest.importorskip("kvq_ref._ext.ridge")

LEVELS = kernels.tiled_ext.simd_levels()
BARS = {"float64": 1e-11, "float32": 2e-3}
ALPHA = 0.7
SIZES = [  # batch, Tq, Tk, d, dv
    (2, 5, 7, 3, 4),
    (1, 1, 1, 1, 1),
    (2, 67, 130, 17, 33),
    (2, 130, 67, 64, 64),
    (1, 200, 200, 8, 8),
    (1, 100, 100, 80, 16),
    (1, 150, 150, 128, 3),
    (3, 16, 16, 16, 16),
    (2, 65, 65, 32, 32),
]
MANY = [  # heads for most of the lanes of a vector: of 16 float32, or fewer
    (16, 16, 16, 16, 16),
    (33, 5, 5, 3, 4),
    (17, 50, 50, 8, 8),
    (48, 33, 33, 24, 20),
    (16, 32, 32, 32, 31),
    (20, 1, 1, 1, 1),
    (64, 40, 40, 16, 13),
]
each_level = pytest.mark.parametrize("simd", LEVELS)
each_dtype = pytest.mark.parametrize("dtype", BARS)
each_size = pytest.mark.parametrize("sizes", SIZES + MANY, ids=str)
each_order = pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])


def poisoned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.full_like(x, np.nan) for x in arrays)


def problem(sizes: tuple[int, ...], dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """q, k, v, alpha, gram, moment."""
    batch, Tq, Tk, d, dv = sizes
    q, k, v = (rng.standard_normal((batch, *x)).astype(dtype) for x in ((Tq, d), (Tk, d), (Tk, dv)))
    past = rng.standard_normal((batch, d + 2, d))
    gram = (past.swapaxes(1, 2) @ past).astype(dtype)
    return q, k, v, np.full(batch, ALPHA), gram, rng.standard_normal((batch, d, dv)).astype(dtype)


def regressions(k: np.ndarray, gram: Any, Tq: int, is_causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """H of every query, and who sees whom, in float64."""
    visible = np.ones((Tq, k.shape[1]))
    visible = np.tril(visible) if is_causal else visible
    h = np.einsum("ts,bsi,bsj->btij", visible, k, k) + ALPHA * np.eye(k.shape[2])
    return (h if gram is None else h + gram[:, None]), visible


@pytest.mark.parametrize("has_state", [False, True], ids=["", "state"])
@each_order
@each_size
@each_level
@each_dtype
def test_fit(
    dtype: str, simd: str, sizes: tuple[int, ...], is_causal: bool, has_state: bool, rng: np.random.Generator
) -> None:
    q, k, v, alpha, gram, moment = problem(sizes, dtype, rng)
    wide_q, wide_k, wide_v, wide_gram, wide_moment = (x.astype("f8") for x in (q, k, v, gram, moment))
    h, visible = regressions(wide_k, wide_gram if has_state else None, q.shape[1], is_causal)
    sums = np.einsum("ts,bsi,bsj->btij", visible, wide_k, wide_v) + (wide_moment[:, None] if has_state else 0)
    w = np.linalg.solve(h, sums)
    (out,) = poisoned(np.empty((*q.shape[:2], v.shape[2]), dtype))
    state = (gram, moment) if has_state else None
    served, factors = ridge.fit(q, k, v, alpha, state, is_causal, out, 2, simd=simd)
    assert (served == q.shape[1]).all()
    assert relative_error(out, np.einsum("bti,btij->btj", wide_q, w)) < BARS[dtype]

    dout = rng.standard_normal(out.shape).astype(dtype)
    wide_dout = dout.astype("f8")
    y = np.linalg.solve(h, wide_q[..., None])[..., 0]
    u = np.einsum("btij,btj->bti", w, wide_dout)
    x = visible * (y @ wide_k.swapaxes(1, 2))
    z = visible * (wide_dout @ wide_v.swapaxes(1, 2) - u @ wide_k.swapaxes(1, 2))
    outer = u.swapaxes(1, 2) @ y
    expected = {
        "q": u,
        "k": z.swapaxes(1, 2) @ y - x.swapaxes(1, 2) @ u,
        "v": x.swapaxes(1, 2) @ wide_dout,
        "gram": -(outer + outer.swapaxes(1, 2)) / 2,
        "moment": y.swapaxes(1, 2) @ wide_dout,
    }
    dq, dk, dv, dgram, dmoment = poisoned(q, k, v, gram, moment)
    dstate = (dgram, dmoment) if has_state else None
    dalpha = ridge.fit_backward(
        dout, q, k, v, alpha, state, is_causal, served, factors, dq, dk, dv, dstate, 2, simd=simd
    )
    assert_near_alpha(dalpha, u, y, BARS[dtype])
    got = {"q": dq, "k": dk, "v": dv} | ({"gram": dgram, "moment": dmoment} if has_state else {})
    for name, grad in got.items():
        assert relative_error(grad, expected[name]) < BARS[dtype], name


def assert_near_alpha(dalpha: np.ndarray, u: np.ndarray, y: np.ndarray, bar: float) -> None:
    """Against -sum u.y. The sum may cancel, so the measure is its size were the signs of its terms random."""
    expected = -(u * y).sum(axis=(-2, -1))
    size = np.sqrt(((u * y) ** 2).sum(axis=(-2, -1)))
    assert (np.abs(dalpha - expected) < bar * np.maximum(size, np.abs(expected))).all()


@pytest.mark.parametrize("has_state", [False, True], ids=["", "state"])
@each_order
@each_size
@each_level
@each_dtype
def test_precondition(
    dtype: str, simd: str, sizes: tuple[int, ...], is_causal: bool, has_state: bool, rng: np.random.Generator
) -> None:
    q, k, _, alpha, gram, _ = problem(sizes, dtype, rng)
    gram = gram if has_state else None
    wide_q, wide_k = q.astype("f8"), k.astype("f8")
    h, visible = regressions(wide_k, gram, q.shape[1], is_causal)
    y = np.linalg.solve(h, wide_q[..., None])[..., 0]
    (q_star,) = poisoned(q)
    served, factors = ridge.precondition(q, k, alpha, gram, is_causal, q_star, 2, simd=simd)
    assert (served == q.shape[1]).all()
    assert relative_error(q_star, y) < BARS[dtype]

    dq_star = rng.standard_normal(q.shape).astype(dtype)
    u = np.linalg.solve(h, dq_star.astype("f8")[..., None])[..., 0]
    seen_y, seen_u = (visible * (x @ wide_k.swapaxes(1, 2)) for x in (y, u))
    outer = u.swapaxes(1, 2) @ y
    expected = {
        "q": u,
        "k": -(seen_y.swapaxes(1, 2) @ u + seen_u.swapaxes(1, 2) @ y),
        "gram": -(outer + outer.swapaxes(1, 2)) / 2,
    }
    dq, dk, dgram = poisoned(q, k, np.empty((q.shape[0], q.shape[2], q.shape[2]), dtype))
    dalpha = ridge.precondition_backward(
        dq_star, q, k, alpha, gram, is_causal, q_star, served, factors, dq, dk, dgram, 2, simd=simd
    )
    assert_near_alpha(dalpha, u, y, BARS[dtype])
    for name, grad in {"q": dq, "k": dk, "gram": dgram}.items():
        assert relative_error(grad, expected[name]) < BARS[dtype], name


@pytest.mark.parametrize("sizes", [(5, 200, 200, 33, 17), (90, 20, 20, 8, 8)], ids=str)
@each_level
def test_threads_change_no_bit(simd: str, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
    q, k, v, alpha, *_ = problem(sizes, "float32", rng)
    results = []
    for threads in (1, 2, 3, 5):
        out, causal, q_star = poisoned(v, v, q)
        served, factors = ridge.fit(q, k, v, alpha, None, False, out, threads, simd=simd)
        causal_served, causal_factors = ridge.fit(q, k, v, alpha, None, True, causal, threads, simd=simd)
        ridge.precondition(q, k, alpha, None, True, q_star, threads, simd=simd)
        dq, dk, dv = poisoned(q, k, v)
        how = (alpha, None, False, served, factors)
        dalpha = ridge.fit_backward(out, q, k, v, *how, dq, dk, dv, None, threads, simd=simd)
        causal_grads = poisoned(q, k, v)
        how = (alpha, None, True, causal_served, causal_factors)
        causal_dalpha = ridge.fit_backward(out, q, k, v, *how, *causal_grads, None, threads, simd=simd)
        results.append((out, causal, q_star, dq, dk, dv, dalpha, *causal_grads, causal_dalpha))
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", [0, 1, 19, 40, 130])
@pytest.mark.parametrize("form", [kvq.intention, kvq.sigma_intention], ids=lambda form: form.__name__)
def test_keys_of_much_leverage(form: Any, where: int, rng: np.random.Generator) -> None:
    """A few keys that dwarf the others, and from there to the end of the chunk an elimination for each token.

    30 times: of a leverage of 20,000 the reference, too, loses no more than four digits.
    """
    q, k, v, dout = (rng.standard_normal((150, n)) for n in (20, 20, 5, 5))
    k[where] *= 30
    out, pullback = kvq.vjp(form, q, k, v, alpha=1.0, is_causal=True, implementation="compiled")
    expected, expected_pullback = kvq.vjp(form, q, k, v, alpha=1.0, is_causal=True, implementation="reference")
    assert relative_error(out, expected) < 1e-11
    got, grads = pullback(dout), expected_pullback(dout)
    for name in ("q", "k", "v"):
        assert relative_error(getattr(got, name), getattr(grads, name)) < 1e-10, name
    h, _ = regressions(k[None], None, 150, True)
    y = np.linalg.solve(h + (1 - ALPHA) * np.eye(20), q[None, ..., None])[0, ..., 0]
    assert_near_alpha(got.alpha, grads.q, y, 1e-10)  # dq is u, of the regression and of the preconditioner


@pytest.mark.parametrize("where", [32, 33, 47, 48, 63, 64, 100, 129, None])
@pytest.mark.parametrize("queries", [130, 150])
def test_a_run_of_short_steps_ends_anywhere(where: int | None, queries: int, rng: np.random.Generator) -> None:
    """From token 32 on, H^-1 itself is kept, to the end or to a key of too much leverage: the first of the run, or one
    within a step, at its end, within a chunk, at its end, or the last key. Rows before it keep their bits.
    """
    q, dout = (rng.standard_normal((2, queries, n)) for n in (20, 13))
    k, v = (rng.standard_normal((2, 130, n)) for n in (20, 13))
    calm = kvq.intention(q, k, v, alpha=1.0, is_causal=True, implementation="compiled")
    if where is not None:
        k[:, where] *= 30
    out, pullback = kvq.vjp(kvq.intention, q, k, v, alpha=1.0, is_causal=True, implementation="compiled")
    expected, expected_pullback = kvq.vjp(kvq.intention, q, k, v, alpha=1.0, is_causal=True, implementation="reference")
    np.testing.assert_array_equal(out[:, :where], calm[:, :where])
    np.testing.assert_array_equal(out, kvq.intention(q, k, v, alpha=1.0, is_causal=True, implementation="compiled"))
    assert relative_error(out, expected) < 1e-11
    got, grads = pullback(dout), expected_pullback(dout)
    for name in ("q", "k", "v", "alpha"):
        assert relative_error(getattr(got, name), getattr(grads, name)) < 1e-10, name


@pytest.mark.parametrize("T", [64, 2048])
def test_keys_that_leave_directions_out(T: int, rng: np.random.Generator) -> None:
    """They make H as ill-conditioned as there are tokens; what they do span is known as well as ever, where an H^-1 in
    float32 would lose a digit with each tenfold length.
    """
    basis = np.linalg.qr(rng.standard_normal((32, 16)))[0].T * 1.5
    q, k = ((rng.standard_normal((2, T, 16)) @ basis).astype("float32") for _ in range(2))
    v, dout = (rng.standard_normal((2, T, 32)).astype("float32") for _ in range(2))
    out, pullback = kvq.vjp(kvq.intention, q, k, v, alpha=1.0, is_causal=True, implementation="compiled")
    wide = (x.astype("float64") for x in (q, k, v))
    expected, expected_pullback = kvq.vjp(kvq.intention, *wide, alpha=1.0, is_causal=True)
    assert relative_error(out[:, T // 2 :], expected[:, T // 2 :]) < 5e-6
    got, grads = pullback(dout), expected_pullback(dout.astype("float64"))
    for name in ("k", "v"):  # dq lies in all directions
        assert relative_error(getattr(got, name), getattr(grads, name)) < 5e-5, name


@pytest.mark.parametrize("repeated", [False, True], ids=["others", "repeated"])
@pytest.mark.parametrize(("tokens", "d"), [(16, 16), (40, 8), (48, 24), (64, 32), (130, 64)])
def test_a_small_alpha(tokens: int, d: int, repeated: bool, rng: np.random.Generator) -> None:
    """The first d keys have leverages of thousands: some digits are lost by that, of keys that differ fewer. Where some
    tokens of a chunk are served by it and some are not, those served keep their weights and residuals.
    """
    alpha = 2.0**-7
    q, k, v, dout = (rng.standard_normal((15, tokens, d)).astype("float32") for _ in range(4))
    if repeated:
        k = np.take_along_axis(k, rng.integers(0, tokens // 4, (15, tokens, 1)), 1)
    out, pullback = kvq.vjp(kvq.intention, q, k, v, alpha=alpha, is_causal=True)
    np.testing.assert_array_equal(out, kvq.intention(q, k, v, alpha=alpha, is_causal=True))
    wide = (x.astype("float64") for x in (q, k, v))
    expected, expected_pullback = kvq.vjp(kvq.intention, *wide, alpha=alpha, is_causal=True, implementation="reference")
    got, grads = pullback(dout), expected_pullback(dout.astype("float64"))
    leverage = np.square(k).sum(-1).max() / alpha
    bar = np.finfo("float32").eps * leverage * (4 if repeated else 1 / 6)
    found = {"out": (out, expected)} | {name: (getattr(got, name), getattr(grads, name)) for name in "qkv"}
    for name, (x, y) in found.items():
        errors = np.linalg.norm(x - y, axis=(1, 2)) / np.linalg.norm(y, axis=(1, 2))
        assert np.median(errors) < bar, name  # single heads may have two keys that nearly agree


@pytest.mark.parametrize("size", [16, 64])
def test_large_leverages_are_refined(size: int, rng: np.random.Generator) -> None:
    """As many tokens as dimensions: unrefined, q* would lose as many digits as the leverage has."""
    q, k = (rng.standard_normal((3, size, size)).astype("float32") for _ in range(2))
    (q_star,) = poisoned(q)
    ridge.precondition(q, k, np.ones(3), None, True, q_star, 1)
    h, _ = regressions(k.astype("f8"), None, size, True)
    exact = np.linalg.solve(h + (1 - ALPHA) * np.eye(size), q.astype("f8")[..., None])[..., 0]
    assert relative_error(q_star, exact) < 8 * np.finfo("float32").eps


@pytest.mark.parametrize(("batch", "d"), [(2, 20), (16, 8)], ids=str)
@pytest.mark.parametrize("later", ["others", 1e4, 1e25, "same"], ids=str)
@each_dtype
def test_the_future_changes_no_bit(dtype: str, later: Any, batch: int, d: int, rng: np.random.Generator) -> None:
    """Also where it makes the regressions of later queries singular, and a wider type serves those."""
    q, k, v = (rng.standard_normal((batch, 90, n)).astype(dtype) for n in (d, d, 5))
    calm, calm_star = kvq.intention(q, k, v, alpha=0.1, is_causal=True), preconditioned(q, k)
    for t in (1, 17, 40, 64, 89):
        wild_k, wild_v = k.copy(), v.copy()
        wild_v[:, t:] = rng.standard_normal(wild_v[:, t:].shape)
        if later == "others":
            wild_k[:, t:] = rng.standard_normal(wild_k[:, t:].shape)
        else:
            wild_k[:, t:] = (1e6 if later == "same" else later) * (k[:, t : t + 1] if later == "same" else k[:, t:])
        wild = kvq.intention(q, wild_k, wild_v, alpha=0.1, is_causal=True)
        np.testing.assert_array_equal(wild[:, :t], calm[:, :t])
        np.testing.assert_array_equal(preconditioned(q, wild_k)[:, :t], calm_star[:, :t])
        assert np.isfinite(wild).all()


@each_level
@each_dtype
def test_heads_that_share_a_vector_do_not_meet(dtype: str, simd: str, rng: np.random.Generator) -> None:
    """One is served alike whatever the others hold, keys that no float32 can serve among it."""
    q, k, v, alpha, *_ = problem((40, 30, 30, 8, 7), dtype, rng)
    dout = rng.standard_normal(v.shape).astype(dtype)
    others = np.arange(40) % 3 != 0
    wild_k = k.copy()
    wild_k[others, 5] *= 1e4
    wild_k[others, 25] *= 1e8
    results = []
    for keys in (k, wild_k):
        out, dq, dk, dv = poisoned(v, q, k, v)
        served, factors = ridge.fit(q, keys, v, alpha, None, True, out, 1, simd=simd)
        how = (alpha, None, True, served, factors)
        dalpha = ridge.fit_backward(dout, q, keys, v, *how, dq, dk, dv, None, 1, simd=simd)
        results.append([x[~others] for x in (served, out, dq, dk, dv, dalpha)])
        np.testing.assert_array_equal(served[~others], 30)
    for calm, wild in zip(*results, strict=True):
        np.testing.assert_array_equal(calm, wild)


@pytest.mark.parametrize("where", [0, 9, 20, 29])
def test_keys_of_much_leverage_among_many_heads(where: int, rng: np.random.Generator) -> None:
    """Heads with one are served by themselves, from it on; in float64, that the last bits do not matter."""
    q, k, v, dout = (rng.standard_normal((40, 30, 8)) for _ in range(4))
    k[::3, where] *= 1e3
    out, pullback = kvq.vjp(kvq.intention, q, k, v, alpha=1.0, is_causal=True, implementation="compiled")
    expected, expected_pullback = kvq.vjp(kvq.intention, q, k, v, alpha=1.0, is_causal=True, implementation="reference")
    assert relative_error(out, expected) < 1e-9
    got, grads = pullback(dout), expected_pullback(dout)
    for name in ("q", "k", "v"):
        assert relative_error(getattr(got, name), getattr(grads, name)) < 1e-8, name


def preconditioned(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return kernels_ridge().precondition(q, k, np.asarray(0.1, q.dtype), is_causal=True)[0]  # type: ignore[no-any-return]


def kernels_ridge() -> Any:
    from kvq_ref.kernels import ridge

    return ridge


@each_order
def test_float32_that_would_fail_is_served_in_float64(is_causal: bool, rng: np.random.Generator) -> None:
    """Nearly dependent keys and an alpha that float32 loses: as good as float64, not noise, and not an error."""
    base = rng.standard_normal((3, 40, 2))
    k = (base @ rng.standard_normal((2, 6)) + 1e-4 * rng.standard_normal((3, 40, 6))).astype("float32")
    k[0] = rng.standard_normal(k[0].shape)  # one that float32 can serve
    q, v, dout = (rng.standard_normal((3, 40, n)).astype("float32") for n in (6, 2, 2))
    options: dict[str, Any] = {"alpha": 1e-7, "is_causal": is_causal, "solver": "cholesky"}
    out, pullback = kvq.vjp(kvq.intention, q, k, v, **options)
    wide = [x.astype("f8") for x in (q, k, v, dout)]
    exact, exact_pullback = kvq.vjp(kvq.intention, *wide[:3], implementation="reference", **options)
    grads, expected = pullback(dout), exact_pullback(wide[3])
    assert relative_error(out, exact) < 1e-5
    for name in ("q", "k", "v"):
        assert relative_error(getattr(grads, name), getattr(expected, name)) < 1e-4, name


@each_order
def test_what_float64_cannot_serve_goes_to_the_reference(is_causal: bool, rng: np.random.Generator) -> None:
    k = np.repeat(rng.standard_normal((1, 4)), 9, axis=0) * 1e9  # alpha is lost in any rounding
    q, v = rng.standard_normal((2, 9, 4))
    options: dict[str, Any] = {"alpha": 1e-3, "is_causal": is_causal}
    out, pullback = kvq.vjp(kvq.intention, q, k, v, **options)
    expected, expected_pullback = kvq.vjp(kvq.intention, q, k, v, implementation="reference", **options)
    assert np.isfinite(out).all()
    assert relative_error(out, expected) < 1e-6
    for a, b in zip(pullback(v)[:3], expected_pullback(v)[:3], strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(
    ("form", "d", "longest"), [(kvq.intention, 16, 8192), (kvq.intention, 40, 65536), (kvq.sigma_intention, 16, 8192)]
)
def test_error_does_not_drift_with_length(form: Any, d: int, longest: int, rng: np.random.Generator) -> None:
    """Recursive least squares in float32: as exact at the end of a long sequence as at the end of a short one."""
    w = rng.standard_normal((d, d)) / math.sqrt(d)
    errors = {}
    for T in (1024, longest):
        q, k = (rng.standard_normal((T, d)).astype("float32") for _ in range(2))
        v = (k @ w + 0.5 * rng.standard_normal((T, d))).astype("float32")
        wide = form(*(x.astype("f8") for x in (q, k, v)), alpha=1.0, is_causal=True)
        errors[T] = relative_error(form(q, k, v, alpha=1.0, is_causal=True)[-512:], wide[-512:])
    assert errors[longest] < 10 * errors[1024]


def test_an_inverse_that_is_kept_stays_symmetric(rng: np.random.Generator) -> None:
    """X^T X makes H^-1 smaller and smaller, but not what is not symmetric in it: that would be all in the end."""
    T, d = 32768, 64
    q, v = (rng.standard_normal((T, d)).astype("float32") for _ in range(2))
    k = (1 + rng.standard_normal((T, d))).astype("float32")
    wide = kvq.intention(*(x.astype("f8") for x in (q, k, v)), alpha=1.0, is_causal=True)
    out = kvq.intention(q, k, v, alpha=1.0, is_causal=True)
    assert relative_error(out[-512:], wide[-512:]) < 100 * np.finfo("float32").eps
