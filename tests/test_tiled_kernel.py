"""Softmax and expressive attention on heads of few keys: small ones have kernels of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import relative_error

import kvq_ref as kvq
from kvq_ref import kernels

if kernels.missing is not None:
    pytest.skip(f"compiled kernels are not installed: {kernels.missing}", allow_module_level=True)
fast = kernels.tiled_ext

BARS = {"float64": 1e-13, "float32": 1e-5}
LANES = (2, 4, 8, 16)  # of every level and dtype
BATCH = 35  # more than a task holds
each_score = pytest.mark.parametrize("score", ["softmax", "expressive"])
each_level = pytest.mark.parametrize("simd", fast.simd_levels())
each_dtype = pytest.mark.parametrize("dtype", BARS)
each_order = pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])


def number(score: str) -> int:
    chosen: int = fast.SOFTMAX if score == "softmax" else fast.EXPRESSIVE
    return chosen


def sizes_of(lanes: int) -> Iterator[tuple[int, int]]:
    """Queries and keys: from one to a vector of them, and more keys than that."""
    queries = {1, lanes // 2, lanes // 2 + 1, lanes - 1, lanes} - {0}
    return itertools.product(sorted(queries), sorted(queries | {3, lanes + 5, 64}))


def problem(rng: np.random.Generator, Tq: int, Tk: int, d: int, dtype: str) -> list[np.ndarray]:
    return [rng.standard_normal((BATCH, T, d)).astype(dtype) for T in (Tq, Tk, Tk)]


def away_from_zero(x: np.ndarray) -> np.ndarray:
    """Of one sign: no sum of products is small, and expressive gradients, which divide by it, have their digits."""
    return np.asarray(abs(x) + x.dtype.type(0.5))


def forward(
    score: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    is_causal: bool,
    simd: str,
    *,
    mask: np.ndarray | None = None,
    scale: float = 0.7,
) -> tuple[np.ndarray, np.ndarray]:
    """The result and what is kept. NaN betrays what is not written, and a row beyond the end what should not be."""
    room = np.full((q.shape[0] * q.shape[1] + 1, v.shape[2]), np.nan, q.dtype)
    out = room[:-1].reshape(*q.shape[:2], -1)
    kept = fast.forward(number(score), q, k, v, mask, None, is_causal, scale, out, 1, simd=simd)
    assert np.isnan(room[-1]).all()
    return out, kept


def expected(
    score: str,
    *arrays: np.ndarray,
    is_causal: bool,
    mask: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    scale: float = 0.7,
) -> tuple[np.ndarray, Any]:
    form = kvq.softmax_attention if score == "softmax" else kvq.expressive_attention
    options: dict[str, Any] = {"is_causal": is_causal, "mask": mask, "scale": scale, "implementation": "reference"}
    if bias is not None:
        options["bias"] = bias.astype(np.float64)
    return kvq.vjp(form, *(x.astype(np.float64) for x in arrays), **options)


@each_order
@each_dtype
@each_level
@each_score
def test_every_size(score: str, simd: str, dtype: str, is_causal: bool, rng: np.random.Generator) -> None:
    """The result, and the gradients from the weights that were kept."""
    for d in LANES:
        for Tq, Tk in sizes_of(d):
            q, k, v = problem(rng, Tq, Tk, d, dtype)
            q, k = abs(q), abs(k)  # expressive gradients are ill-conditioned where all weights are small
            out, kept = forward(score, q, k, v, is_causal, simd)
            wanted, pullback = expected(score, q, k, v, is_causal=is_causal)
            assert relative_error(out, wanted) < BARS[dtype], (d, Tq, Tk)
            grads = [np.full_like(x, np.nan) for x in (q, k, v)]
            dout = rng.standard_normal(out.shape).astype(dtype)
            fast.backward(
                *(number(score), dout, q, k, v, out, kept, None, None, is_causal, 0.7, *grads, None, 1), simd=simd
            )
            for x, y in zip(grads, pullback(dout.astype(np.float64))[:3], strict=True):
                error = np.abs(x - y).max() / max(1, np.abs(y).max())  # with one key they cancel to nothing
                assert error < 10 * BARS[dtype], (d, Tq, Tk)


@pytest.mark.parametrize("extra", ["", "mask", "key mask", "bias"])
@each_order
@each_dtype
@each_level
@each_score
def test_several_vectors(
    score: str, simd: str, dtype: str, is_causal: bool, extra: str, rng: np.random.Generator
) -> None:
    """Up to 64 keys, and many more queries than that; rows that are whole vectors and rows that are not."""
    for Tq, Tk in ((64, 64), (33, 64), (64, 33), (150, 64), (17, 31), (100, 5), (64, 65)):
        for d, dv in ((64, 64), (16, 48), (5, 3)):
            q, k, v = (rng.standard_normal((3, *shape)).astype(dtype) for shape in ((Tq, d), (Tk, d), (Tk, dv)))
            q, k = away_from_zero(q), away_from_zero(k)
            mask = bias = None
            if extra.endswith("mask"):
                mask = rng.random((3, 1 if extra == "key mask" else Tq, Tk)) < 0.7
            elif extra == "bias":
                bias = rng.standard_normal((3, Tq, Tk)).astype(dtype)
            wide_mask = None if mask is None else np.broadcast_to(mask, (3, Tq, Tk))
            wanted, pullback = expected(score, q, k, v, is_causal=is_causal, mask=mask, bias=bias, scale=1 / d)
            out = np.full((3, Tq, dv), np.nan, dtype)
            numbers = (number(score), q, k, v, wide_mask, bias, is_causal, 1 / d)
            kept = fast.forward(*numbers, out, 1, simd=simd)
            assert relative_error(out, wanted) < BARS[dtype], (Tq, Tk, d, dv)
            dout = rng.standard_normal(out.shape).astype(dtype)
            grads = [np.full_like(x, np.nan) for x in (q, k, v)]
            dbias = None if bias is None else np.full_like(bias, np.nan)
            options = (wide_mask, bias, is_causal, 1 / d)
            fast.backward(number(score), dout, q, k, v, out, kept, *options, *grads, dbias, 1, simd=simd)
            wide = pullback(dout.astype(np.float64))
            for x, y in zip([*grads, dbias], (wide.q, wide.k, wide.v, wide.bias), strict=True):
                if x is not None:
                    assert np.abs(x - y).max() / max(1, np.abs(y).max()) < 10 * BARS[dtype], (Tq, Tk, d, dv)


@each_order
@each_dtype
@each_level
@each_score
def test_same_to_the_bit_as_other_small_heads(
    score: str, simd: str, dtype: str, is_causal: bool, rng: np.random.Generator
) -> None:
    """A mask that hides nothing sends a head the other way. So one that must be done again stays what it was."""
    faint, huge = (1e-20, 1e25) if dtype == "float32" else (1e-160, 1e200)
    for d in LANES:
        for Tq, Tk in sizes_of(d):
            for change in ("none", "no query", "faint query", "huge key", "huge value"):
                q, k, v = problem(rng, Tq, Tk, d, dtype)
                if change.endswith("query"):
                    q[::3, Tq // 2] *= 0 if change == "no query" else faint
                elif change == "huge key":
                    k[::3, Tk // 2], q[..., 0] = huge, huge
                elif change == "huge value":
                    v[::3, Tk // 2] = np.finfo(dtype).max
                mask = np.ones((1, 1, 1), bool)
                out = forward(score, q, k, v, is_causal, simd)[0]
                other = forward(*(score, q, k, v, is_causal, simd), mask=np.broadcast_to(mask, (BATCH, Tq, Tk)))[0]
                np.testing.assert_array_equal(out, other, err_msg=f"{change} {(d, Tq, Tk)}")


@each_dtype
@each_level
@each_score
def test_hidden_key_may_overflow(score: str, simd: str, dtype: str, rng: np.random.Generator) -> None:
    huge = 1e38 if dtype == "float32" else 1e307
    for d in LANES:
        q, k, v = problem(rng, d, d, d, dtype)
        out = forward(score, q, k, v, True, simd)[0]
        for t in range(d - 1):
            later_k, later_v = k.copy(), v.copy()
            later_k[:, t + 1 :], later_v[:, t + 1 :] = huge, huge
            changed = forward(score, 100 * q, later_k, later_v, True, simd, scale=0.007)[0]
            again = forward(score, 100 * q, k, v, True, simd, scale=0.007)[0]
            np.testing.assert_array_equal(changed[:, : t + 1], again[:, : t + 1])
            assert relative_error(again, out) < 100 * BARS[dtype]


@each_level
@each_dtype
def test_weights_too_small_for_their_sum_to_be_divided_by(dtype: str, simd: str, rng: np.random.Generator) -> None:
    scale = 1e-20 if dtype == "float32" else 1e-160
    for d in LANES:
        q, k, v = problem(rng, d, d, d, dtype)
        q[:, 0] = 0
        out = forward("expressive", q, k, v, False, simd, scale=scale)[0]
        assert (out[:, 0] == 0).all()
        size = np.abs(out[:, 1:]).max()
        assert 0.1 < size < 10  # z^2 has few digits left, but the result is a mean of v


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("saves", [False, True])
@each_order
@each_dtype
@each_score
def test_what_is_not_finite_is_noticed(
    score: str, dtype: str, is_causal: bool, saves: bool, value: float, rng: np.random.Generator
) -> None:
    """In the first row and in the last, wherever else the head is zero; also where no query sees it."""
    for d in LANES:
        for Tq, Tk in sizes_of(d):
            for which, row, column in itertools.product(range(3), (0, -1), (0, -1)):
                arrays = problem(rng, Tq, Tk, d, dtype)
                for x in arrays:
                    x[20] = 0
                call = (number(score), *arrays, is_causal, None, None, lambda: 1, saves)
                assert fast.quick(*call) is not None
                arrays[which][20, row, column] = value
                assert fast.quick(*call) is None, (d, Tq, Tk, "qkv"[which], row, column)


@each_order
@each_dtype
@each_score
def test_many_heads_on_many_threads(score: str, dtype: str, is_causal: bool, rng: np.random.Generator) -> None:
    """As many as are worth several threads, some of them in doubt."""
    for d in (8, 16):
        q, k, v = (rng.standard_normal((6000, d, d)).astype(dtype) for _ in range(3))
        q[::7, 2] *= 1e-20 if dtype == "float32" else 1e-160
        alone, out = np.full_like(q, np.nan), np.full_like(q, np.nan)
        for room, threads in ((alone, 1), (out, 3)):
            fast.forward(number(score), q, k, v, None, None, is_causal, 1.0, room, threads)
        np.testing.assert_array_equal(out, alone)
