"""Every kernel against the formula of the same name: sizes, dtypes, SIMD levels, what is not finite, threads."""

from __future__ import annotations

import doctest
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref import kernels
from kvq_ref.lab.nn import attention, compiled, layers, losses, optimizers, perceptron, positions
from kvq_ref.lab.nn.model import Transformer

pytestmark = pytest.mark.skipif(kernels.missing is not None, reason=f"no kernels ({kernels.missing})")

LEVELS = [] if kernels.missing else kernels.tiled_ext.simd_levels()
BARS = {"float32": 1e-4, "float64": 1e-11}  # of the largest entry, or of 1: terms are of that size; mistakes are larger
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100)

Arguments = tuple[list[Any], dict[str, Any]]
REFERENCES: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (layers, attention, perceptron, positions, losses, optimizers)
    for name in compiled.KERNELS
    if inspect.isfunction(getattr(module, name, None)) and getattr(module, name).__module__ == module.__name__
}


def arguments(name: str, rng: np.random.Generator, dtype: str, rows: int, n: int, m: int) -> Arguments:
    """Of one function, random."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    if name == "linear":
        return [normal(rows, n), normal(n, m), normal(m) if rng.random() < 0.7 else None], {}
    if name == "perceptron":
        p = {"in.weight": normal(n, m), "in.bias": normal(m), "out.weight": normal(m, n), "out.bias": normal(n)}
        return [p, normal(2, rows, n)], {"activation": str(rng.choice(["gelu", "relu"]))}
    if name == "embedding":
        return [rng.integers(0, m, (2, rows)), normal(m, n)], {}
    if name == "layer_norm":
        return [normal(rows, max(n, 3)) * 3 + 1, normal(max(n, 3)), normal(max(n, 3))], {}
    if name in ("relu", "gelu"):
        return [normal(rows, n) * 4], {}
    if name == "split":
        return [normal(2, rows, 3 * 2 * n), 3, 2], {}
    if name == "merge":
        return [normal(2, 3, rows, n)], {}
    if name == "turn":
        return [normal(2, rows, 2 * n), normal(rows, n), normal(rows, n)], {}
    if name == "cross_entropy":
        counts = rng.random(rows) < 0.6 if rng.random() < 0.5 else None
        return [normal(rows, n) * 5, rng.integers(0, n, rows), counts], {}
    if name == "sgd":
        momentum = float(rng.choice([0.0, 0.9]))
        how = {"rate": 0.1, "momentum": momentum, "weight_decay": float(rng.choice([0.0, 0.3]))}
        return [normal(rows * n), normal(rows * n), normal(rows * n) if momentum else None], how
    assert name == "adamw"
    how = {"rate": 0.01, "unbias": 1.3, "keep": 0.99, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3}
    return [normal(rows * n), normal(rows * n), normal(rows * n), normal(rows * n) ** 2], how


def results(name: str, given: Arguments, rng: np.random.Generator) -> list[np.ndarray]:
    """All that comes out of a call: the value, the gradients for a random one of it, and what was changed."""
    positional, named = given
    positional = [x.copy() if isinstance(x, np.ndarray) else x for x in positional]
    value = REFERENCES[name](*positional, **named)
    if name in ("sgd", "adamw"):
        return [x for x in positional if x is not None]
    if isinstance(value, tuple) and callable(value[1]):
        parts = value[0] if isinstance(value[0], tuple) else (value[0],)
        gradient = tuple(rng.standard_normal(x.shape).astype(x.dtype) for x in parts)
        grads = value[1](gradient if isinstance(value[0], tuple) else gradient[0])
        value = (*parts, *(grads if isinstance(grads, tuple) else (grads,)))
    flat: list[np.ndarray] = []
    for x in value if isinstance(value, tuple) else (value,):
        flat += list(x.values()) if isinstance(x, dict) else [] if x is None else [np.asarray(x)]
    return flat


def assert_agree(name: str, given: Arguments, dtype: str, seed: int = 0) -> None:
    found, expected = [], []
    for implementation, into in (("reference", expected), ("compiled", found)):
        with kvq.use_implementation(implementation), np.errstate(all="ignore"):
            into += results(name, given, np.random.default_rng(seed))
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype == dtype
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_array_equal(np.where(np.isinf(x), x, 0), np.where(np.isinf(y), y, 0))
        fine = np.isfinite(y)
        size = max(1.0, np.abs(y[fine]).max(initial=0))
        assert np.abs(x[fine] - y[fine]).max(initial=0) <= BARS[dtype] * size, (name, x.shape)


@pytest.fixture(params=LEVELS)
def at_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All kernels of this SIMD level; room for results is full of NaN."""
    real = compiled.layers_ext

    class AtLevel:
        def __getattr__(self, name: str) -> Any:
            found = getattr(real, name)
            return functools.partial(found, simd=request.param) if callable(found) else found

    monkeypatch.setattr(compiled, "layers_ext", AtLevel())
    real.poison(True)
    yield
    real.poison(False)


def test_every_kernel_has_its_formula() -> None:
    assert set(REFERENCES) == set(compiled.KERNELS)


@pytest.mark.usefixtures("at_level")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", compiled.KERNELS)
def test_kernels_agree_with_formulas(name: str, dtype: str, rng: np.random.Generator) -> None:
    for n in SIZES:
        rows, m = (int(x) for x in rng.choice(SIZES, 2))
        assert_agree(name, arguments(name, rng, dtype, rows, n, m), dtype)
    assert_agree(name, arguments(name, rng, dtype, 300, 40, 512), dtype)  # more than one tile, block and depth
    assert_agree(name, arguments(name, rng, dtype, 130, 512, 40), dtype)  # rows that are far apart


@pytest.mark.usefixtures("at_level")
@pytest.mark.parametrize("name", sorted({*compiled.KERNELS} - {"cross_entropy"}))
def test_of_nothing_comes_nothing(name: str, rng: np.random.Generator) -> None:
    assert_agree(name, arguments(name, rng, "float32", 0, 5, 4), "float32")


@pytest.mark.usefixtures("at_level")
def test_a_map_from_nothing_is_its_bias() -> None:
    y, pullback = layers.linear(np.ones((3, 0)), np.ones((0, 4)), np.arange(4.0))
    np.testing.assert_array_equal(y, np.tile(np.arange(4.0), (3, 1)))
    assert [x.shape for x in pullback(y)] == [(3, 0), (0, 4), (4,)]


@pytest.mark.usefixtures("at_level")
@pytest.mark.parametrize("name", sorted({*compiled.KERNELS} - {"embedding"}))  # its formula multiplies NaN by zero
def test_what_is_not_finite_goes_where_it_does_in_the_formula(name: str, rng: np.random.Generator) -> None:
    for value in (np.nan, np.inf, -np.inf):
        for place in range(4):
            given = arguments(name, rng, "float32", 9, 21, 5)
            floats = [x for x in given[0] if isinstance(x, np.ndarray) and x.dtype == "float32"]
            if place < len(floats):
                floats[place].flat[int(rng.integers(floats[place].size))] = value
                assert_agree(name, given, "float32")


@pytest.mark.parametrize(
    "name", ["affine", "affine_backward", "norm", "norm_backward", "split", "merge", "adamw", "sgd"]
)
def test_no_bit_depends_on_the_number_of_threads(name: str, rng: np.random.Generator) -> None:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype("float32")

    ext, gelu = compiled.layers_ext, compiled.GELU
    rows, n, m = 4100, 80, 112
    x, dy, weight = normal(rows, n), normal(rows, m), normal(n, m)
    flat = [normal(700_000) for _ in range(3)]
    calls: dict[str, Callable[..., Any]] = {
        "affine": lambda threads: ext.affine(x, weight, normal_bias, gelu, threads),
        "affine_backward": lambda threads: ext.affine_backward(dy, x, weight, True, x, threads),
        "norm": lambda threads: ext.norm(tall, gain, gain, 1e-5, threads),
        "norm_backward": lambda threads: ext.norm_backward(tall, tall + 1, gain, stats, threads),
        "split": lambda threads: ext.split(tall.reshape(100, -1, 96), 3, 4, threads),
        "merge": lambda threads: ext.merge((tall.reshape(100, 3, -1, 16),), threads),
        "adamw": lambda threads: _changed(ext.adamw, flat, 0.1, 1.0, 0.9, 0.99, 1e-8, 1.0, threads),
        "sgd": lambda threads: _changed(ext.sgd, flat[:1], 0.1, 0.1, 0.9, threads),
    }
    normal_bias, tall, gain, stats = normal(m), normal(7200, 96), normal(96), np.abs(normal(7200, 2))
    one, three = (calls[name](lambda n=n: n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


def _changed(step: Callable[..., Any], state: list[np.ndarray], *how: Any) -> list[np.ndarray]:
    """x and state after a step of an optimiser."""
    x, g = np.ones_like(state[0]), np.linspace(-1, 1, state[0].size).astype("float32")
    copies = [np.abs(one) for one in state]
    if step is compiled.layers_ext.adamw:
        copies = copies[:2]
    step(x, g, *copies, *how)
    return [x, *copies]


# ---- The choice ------------------------------------------------------------------------


def test_what_a_kernel_cannot_take_the_formula_takes(rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 6, 5)), rng.standard_normal((5, 4))
    turned = np.asfortranarray(x)
    y, pullback = layers.linear(turned, weight)
    np.testing.assert_allclose(y, x @ weight)
    dy = rng.standard_normal((6, 2, 4)).swapaxes(0, 1)
    for grad, plain in zip(pullback(dy)[:2], layers.linear(x, weight)[1](dy.copy())[:2], strict=True):
        np.testing.assert_allclose(grad, plain)
    grads = layers.linear(x, weight)[1](dy)  # the kernel took the call, and cannot take this gradient
    np.testing.assert_allclose(grads[1], np.einsum("bti,btj->ij", x, dy))
    with kvq.use_implementation("compiled"), pytest.raises(ValueError, match="'compiled' cannot serve linear"):
        layers.linear(turned, weight)
    assert layers.linear(x.astype(int), weight.astype(int))[0].dtype == int
    assert layers.relu(np.float64(3.0))[0] == 3


def test_the_reference_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KERNELS", dict.fromkeys(compiled.KERNELS))  # to call one would raise
    with kvq.use_implementation("reference"):
        model = Transformer(3, 3, positions="rotary")
        logits, pullback = model.apply(model.init(np.random.default_rng(0)), np.array([[0, 1, 2]]))
        assert np.isfinite(pullback(losses.cross_entropy(logits, np.array([[1, 2, 0]]))[1]).flat).all()


def test_training_repeats_itself_to_the_bit() -> None:
    def trained() -> np.ndarray:
        rng = np.random.default_rng(3)
        model, optimizer = Transformer(5, 5, positions="rotary"), optimizers.AdamW(weight_decay=0.1)
        p = model.init(rng)
        for _ in range(5):
            tokens = rng.integers(0, 5, (16, 10))
            logits, pullback = model.apply(p, tokens)
            optimizer.step(p.flat, pullback(losses.cross_entropy(logits, tokens)[1]).flat, 1e-2)
        return p.flat

    np.testing.assert_array_equal(trained(), trained())


def test_an_optimiser_may_begin_with_a_state_in_any_order(rng: np.random.Generator) -> None:
    x, g = rng.standard_normal((2, 9))
    state = {"steps": 3, "square": np.full(9, 2.0), "mean": np.full(9, -1.0)}
    steps = []
    for names in (("steps", "square", "mean"), ("mean", "steps", "square")):
        optimizer = optimizers.AdamW(state={name: np.copy(state[name]) for name in names})
        moved = x.copy()
        optimizer.step(moved, g, 0.1)
        steps.append(moved)
    np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize("name", compiled.KERNELS)
def test_examples(name: str) -> None:
    """doctest does not look for them behind a decorator."""
    function = REFERENCES[name]
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for test in finder.find(function, name, module=False, globs={**inspect.unwrap(function).__globals__}):
        assert runner.run(test).failed == 0
