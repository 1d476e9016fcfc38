"""What the contract runs over: every form, implementation, array library and kind of call.

The lists are made from the package's own declarations, so that a form or a
kernel that is added there is tested here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form

Options = dict[str, Any]
Arrays = Callable[[tuple[int, ...], tuple[int, ...], tuple[int, ...]], tuple[np.ndarray, ...]]


# ---- Array libraries -----------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """How to make an array of a library, on a device that is not the default where there is one."""

    name: str
    make: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]
    device: Any = None


def library(name: str) -> Library:
    """The library of that name; skips the test where it is not installed."""
    if name == "numpy":
        return Library(name, lambda x: x, np.asarray)
    module = pytest.importorskip(name)
    if name == "array_api_strict":
        # The strictest there is: nothing whose shape depends on values, and of the extensions linear algebra alone.
        module.set_array_api_strict_flags(
            boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=("linalg",)
        )
        device = module.Device("device1")  # refuses to meet arrays of any other device
        return Library(
            name,
            lambda x: module.asarray(x, device=device),
            lambda x: np.asarray(x.to_device(module.Device("CPU_DEVICE"))),
            device,
        )
    if name == "torch":
        # Tensors share memory with the array they are made from, so make them from a copy.
        return Library(
            name, lambda x: module.asarray(x.copy()), lambda x: (x.float() if x.dtype == module.bfloat16 else x).numpy()
        )
    if name == "jax":
        module.config.update("jax_enable_x64", True)
        return Library(name, importlib.import_module("jax.numpy").asarray, np.asarray)
    if name == "cupy":
        if not module.cuda.is_available():
            pytest.skip("no CUDA device")
        return Library(name, module.asarray, module.asnumpy)
    raise AssertionError(name)


LIBRARIES = [
    "numpy",
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.oracle),
    pytest.param("jax", marks=pytest.mark.oracle),
    pytest.param("cupy", marks=pytest.mark.gpu),
]


# ---- Forms and implementations -------------------------------------------------------

ALL_FORMS = list(FORMS.values())
SERVED = [(form, x.name) for form in ALL_FORMS for x in form.implementations]
each_form = pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
each_implementation = pytest.mark.parametrize(
    ("form", "implementation"), SERVED, ids=[f"{form.name}-{name}" for form, name in SERVED]
)


def public(form: Form) -> Callable[..., Any]:
    """The public function of a form."""
    return getattr(kvq, form.name)


def skip_if_missing(form: Form, implementation: str) -> None:
    found = form.implementation(implementation)
    assert found is not None
    if found.missing is not None:
        pytest.skip(f"compiled kernels are not installed: {found.missing}")


# ---- Kinds of call -------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A random call: arrays in float64 NumPy, and the options that go with them."""

    name: str
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: Options = field(default_factory=dict)

    def arrays(self) -> Options:
        """All differentiable arrays by name."""
        given = {"q": self.q, "k": self.k, "v": self.v}
        names = ("bias", "alpha", "beta", "decay")
        return given | {n: self.options[n] for n in names if isinstance(self.options.get(n), np.ndarray)}


def cases(form: Form, rng: np.random.Generator, sizes: tuple[int, int, int, int] = (5, 7, 3, 4)) -> Iterator[Case]:
    """Every kind of option, alone and together, and every kind of broadcasting."""
    Tq, Tk, d, dv = sizes
    alpha: Options = {"alpha": 0.7} if "alpha" in form.options else {}

    def arrays(lq: tuple[int, ...], lk: tuple[int, ...], lv: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        return (
            rng.standard_normal((*lq, Tq, d)),
            rng.standard_normal((*lk, Tk, d)),
            rng.standard_normal((*lv, Tk, dv)),
        )

    def mask(*shape: int) -> np.ndarray:
        return rng.random(shape) < 0.6

    yield Case("plain", *arrays((), (), ()), alpha)
    yield Case("causal", *arrays((), (), ()), alpha | {"is_causal": True})
    yield Case("batch", *arrays((2,), (2,), (2,)), alpha | {"mask": mask(2, Tq, Tk)})
    yield Case("broadcast", *arrays((2, 1, 1), (3, 1), (2,)), alpha | {"mask": mask(1, 1, Tk)})
    yield Case("key mask, causal", *arrays((2,), (), (2,)), alpha | {"mask": mask(2, 1, Tk), "is_causal": True})
    yield Case("mask broadcast over keys", *arrays((), (), ()), alpha | {"mask": mask(Tq, 1)})
    yield Case("mask of one axis", *arrays((2,), (2,), (2,)), alpha | {"mask": mask(Tk)})
    yield Case("mask with the only batch axis", *arrays((), (), ()), alpha | {"mask": mask(2, Tq, Tk)})
    if "scale" in form.options:
        yield Case("scale", *arrays((), (), ()), alpha | {"scale": -0.6})
    if "bias" in form.options:
        yield Case("bias", *arrays((2,), (2,), (2,)), alpha | {"bias": rng.standard_normal((2, Tq, Tk))})
        yield Case("bias broadcast", *arrays((2,), (2,), (2,)), alpha | {"bias": rng.standard_normal((1, Tk))})
        everything = {"bias": rng.standard_normal((Tq, Tk)), "mask": mask(2, Tq, Tk), "is_causal": True, "scale": 0.8}
        yield Case("everything", *arrays((2,), (2,), ()), alpha | everything)
    if "offset" in form.options:
        bias = rng.standard_normal((Tq, Tk))
        yield Case("offset", *arrays((), (), ()), {"offset": -1.3, "bias": bias, "mask": mask(Tq, Tk)})
    if "alpha" in form.options:
        per_batch = rng.uniform(0.3, 2.0, (2,))
        yield Case("alpha per batch", *arrays((2,), (), (2,)), {"alpha": per_batch})
        yield Case("alpha per batch, causal", *arrays((2,), (2,), (2,)), {"alpha": per_batch, "is_causal": True})
        yield Case("alpha with the only batch axis", *arrays((), (), ()), {"alpha": per_batch})
        yield Case("fewer keys than dimensions", *_few_keys(rng), {"alpha": 0.7})
    if "normalize" in form.options:
        positive = {"normalize": True, "feature_map": "elu+1"}
        batch = _off_zero(arrays((2,), (2,), (2,)))
        yield Case("normalized", *batch, positive | {"mask": mask(2, 1, Tk)})
        yield Case("normalized, causal", *batch, positive | {"is_causal": True, "scale": 0.5})
        yield Case("relu", *_off_zero(arrays((), (), ())), {"feature_map": "relu"})
    for name in ("beta", "decay"):
        if name in form.options:
            yield from per_key_cases(name, arrays, rng, alpha, mask(2, Tq, Tk))
    if form.name == "gated_linear_attention":
        each = rng.uniform(0.2, 0.9, (2, Tk, d))
        yield Case("a decay for each coordinate", *arrays((2,), (), (2,)), {"decay": each, "mask": mask(2, Tq, Tk)})


def per_key_cases(
    name: str, arrays: Arrays, rng: np.random.Generator, given: Options, mask: np.ndarray
) -> Iterator[Case]:
    """Steps or decays: one for all keys, one for each, for each and each sequence, and as the only batch axis."""
    Tk = mask.shape[-1]

    def rows(*shape: int) -> np.ndarray:
        return rng.uniform(0.2, 0.9, shape)

    yield Case(f"one {name}", *arrays((), (), ()), given | {name: 0.7})
    yield Case(f"{name}, causal", *arrays((2,), (), (2,)), given | {name: rows(2, Tk, 1), "is_causal": True})
    yield Case(f"{name}, mask", *arrays((2,), (2,), ()), given | {name: rows(Tk, 1), "mask": mask, "is_causal": True})
    yield Case(f"{name} with the only batch axis", *arrays((), (), ()), given | {name: rows(2, 1, 1)})


def _off_zero(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Where feature maps have kinks, in the value or in the slope: a difference across one is no derivative."""
    return tuple(x + np.copysign(0.01, x) for x in arrays)


def _few_keys(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return rng.standard_normal((4, 6)), rng.standard_normal((3, 6)), rng.standard_normal((3, 2))


PHI = {"elu+1": lambda x: x + 1 if x > 0 else float(np.exp(x)), "relu": lambda x: max(x, 0.0)}


def oracle_options(options: Options) -> Options:
    """A call's options in the words of kvq_ref.testing.ORACLES."""
    changed = {name: value for name, value in options.items() if name != "feature_map"}
    if "feature_map" in options:
        changed["phi"] = PHI[options["feature_map"]]
    return changed


def convert(options: Options, lib: Library, dtype: str) -> Options:
    """The arrays among the options, in a library and a dtype; masks stay boolean."""
    return {
        name: lib.make(x if x.dtype == bool else x.astype(dtype)) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, relative to the largest entry, or to 1e-3 where all are smaller: inputs are of order one."""
    scale = max(float(np.max(np.abs(expected), initial=0.0)), 1e-3)
    return float(np.max(np.abs(np.asarray(got, np.float64) - expected), initial=0.0)) / scale
