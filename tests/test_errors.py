"""Bad input: a message that names the argument, says what was expected, and leaves everything as it was.

Each mistake below is one change to a good call, with the error that it must
give; every form and implementation that takes the argument is held to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import SERVED, each_form, each_implementation, public, skip_if_missing

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form

Arguments = dict[str, Any]


def good_call(form: Form, rng: np.random.Generator) -> Arguments:
    """A correct call with every array argument that the form takes."""
    arguments: Arguments = {
        "q": rng.standard_normal((2, 5, 3)),
        "k": rng.standard_normal((2, 7, 3)),
        "v": rng.standard_normal((2, 7, 4)),
        "mask": rng.random((2, 5, 7)) < 0.7,
    }
    if "bias" in form.options:
        arguments["bias"] = rng.standard_normal((2, 5, 7))
    if "alpha" in form.options:
        arguments["alpha"] = rng.uniform(0.5, 1.0, (2,))
    return arguments


@contextmanager
def complains(error: type[Exception], argument: str, expected: str) -> Iterator[None]:
    """The block raises just this error; its message begins with the argument and says what was expected."""
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith(f"{argument}:"), message
    assert re.search(expected, message.removeprefix(f"{argument}:")), message


def call_with(form: Form, implementation: str | None, arguments: Arguments) -> Any:
    options = dict(arguments)
    q, k, v = (options.pop(name) for name in ("q", "k", "v"))
    return public(form)(q, k, v, implementation=implementation, **options)


def vjp_with(form: Form, implementation: str | None, arguments: Arguments) -> Any:
    options = dict(arguments)
    q, k, v = (options.pop(name) for name in ("q", "k", "v"))
    return kvq.vjp(public(form), q, k, v, implementation=implementation, **options)


def snapshot(arguments: Arguments) -> Arguments:
    return {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in arguments.items()}


def assert_unchanged(arguments: Arguments, before: Arguments) -> None:
    for name, x in arguments.items():
        if isinstance(x, np.ndarray):
            assert x.dtype == before[name].dtype
            assert x.shape == before[name].shape
            np.testing.assert_array_equal(x, before[name])
        else:
            assert x is before[name]


# ---- One change to a good call -------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """What is wrong, with which argument, and what the message has to say."""

    what: str
    argument: str
    change: Callable[[Arguments], Any]
    error: type[Exception]
    expected: str
    blamed: str | None = None  # the argument that the message names, where it is another

    def applies(self, form: Form) -> bool:
        return self.argument in ("q", "k", "v") or self.argument in form.options


def becomes(value: Any) -> Callable[[Arguments], Any]:
    return lambda arguments: value


def array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Arguments], Any]:
    return lambda arguments: change(arguments[name])


def random_mistakes_of_kind() -> Iterator[Mistake]:
    """Shapes and dtypes that every array argument can get wrong in the same way."""
    shapes = {"q": r"\(\.\.\., Tq, d\)", "k": r"\(\.\.\., Tk, d\)", "v": r"\(\.\.\., Tk, dv\)"}
    for name, shape in shapes.items():
        yield Mistake("one axis", name, array(name, lambda x: x[0, 0]), ValueError, shape)
        yield Mistake("no axis", name, array(name, lambda x: x[0, 0, 0, ...]), ValueError, shape)
        yield Mistake("None", name, becomes(None), TypeError, "expected an array.*NoneType")
        # A dtype that no form takes, and one that q does not have.
        for dtype in ("int64", "complex128", "bool", "object"):
            expected = "float32, float64" if name == "q" else "float64, as q has"
            yield Mistake(
                dtype,
                name,
                array(name, lambda x, t=dtype: x.astype(t)),
                TypeError,
                f"expected dtype.*{expected}.*got {dtype}",
            )
    yield Mistake(
        "float32 beside float64",
        "q",
        array("q", lambda x: x.astype("f4")),
        TypeError,
        "float32, as q has, got float64",
        "k",
    )
    for name in ("k", "v", "bias", "alpha"):
        change = array(name, lambda x: x.astype("f4"))
        yield Mistake("float32 beside float64", name, change, TypeError, "float64, as q has, got float32")
    for name in ("q", "k", "v", "mask", "bias"):
        yield Mistake("a list", name, array(name, lambda x: x.tolist()), TypeError, "expected an array.*got list")
        yield Mistake("a string", name, becomes("x"), TypeError, "expected an array.*got str")
    for name in ("k", "v", "mask", "bias", "alpha"):
        change = array(name, lambda x: np.stack([x[0]] * 3))
        yield Mistake(
            "leading axes that do not broadcast", name, change, ValueError, r"broadcast with \(2,\).*got \(3,\)"
        )
    for name in ("mask", "bias"):
        for what, change in {
            "too few queries": lambda x: x[..., :4, :],
            "too many keys": lambda x: np.concatenate([x, x], axis=-1),
            "queries and keys exchanged": lambda x: x.swapaxes(-1, -2),
            "no axis": lambda x: x[0, 0, 0, ...],
        }.items():
            yield Mistake(what, name, array(name, change), ValueError, r"broadcasts to \(\.\.\., 5, 7\)")


MISTAKES = [
    *random_mistakes_of_kind(),
    Mistake("d of q", "q", array("q", lambda x: x[..., :2]), ValueError, "last axis d = 2, as q has", "k"),
    Mistake("d of k", "k", array("k", lambda x: x[..., :2]), ValueError, "last axis d = 3, as q has"),
    Mistake("rows of v", "v", array("v", lambda x: x[:, :6]), ValueError, "Tk = 7 rows, as k has"),
    Mistake("rows of k", "k", array("k", lambda x: x[:, :6]), ValueError, "Tk = 6 rows, as k has", "v"),
    Mistake("float", "mask", array("mask", lambda x: x.astype("f8")), TypeError, "dtype bool.*True = attend.*float64"),
    Mistake("int", "mask", array("mask", lambda x: x.astype("i8")), TypeError, "dtype bool.*True = attend.*got int64"),
    Mistake("a number", "mask", becomes(1), TypeError, "expected an array.*got int"),
    Mistake("bool", "bias", array("bias", lambda x: x > 0), TypeError, "dtype float64, as q has, got bool"),
    Mistake("int", "bias", array("bias", lambda x: x.astype("i8")), TypeError, "dtype float64, as q has, got int64"),
    Mistake("negative", "alpha", becomes(-0.5), ValueError, "finite number >= 0, got -0.5"),
    Mistake("NaN", "alpha", becomes(math.nan), ValueError, "finite number >= 0, got nan"),
    Mistake("infinite", "alpha", becomes(math.inf), ValueError, "finite number >= 0, got inf"),
    Mistake("one negative entry", "alpha", becomes(np.array([1.0, -1e-3])), ValueError, "finite numbers >= 0"),
    Mistake("one NaN entry", "alpha", becomes(np.array([1.0, math.nan])), ValueError, "finite numbers >= 0"),
    Mistake("one infinite entry", "alpha", becomes(np.array([1.0, math.inf])), ValueError, "finite numbers >= 0"),
    Mistake("int array", "alpha", becomes(np.array([1, 2])), TypeError, "dtype float64, as q has, got int64"),
    Mistake("a string", "alpha", becomes("0.5"), TypeError, "a real number or an array, got str"),
    Mistake("True", "alpha", becomes(True), TypeError, "a real number or an array, got bool"),
    Mistake("None", "alpha", becomes(None), TypeError, "a real number or an array, got NoneType"),
    Mistake("complex", "alpha", becomes(1j), TypeError, "a real number or an array, got complex"),
    Mistake("a list", "alpha", becomes([0.5]), TypeError, "a real number or an array, got list"),
    Mistake("a typing error", "solver", becomes("cholseky"), ValueError, "did you mean 'cholesky'"),
    Mistake("no such solver", "solver", becomes("xyzzy"), ValueError, "'qr', 'svd', 'lstsq', 'cg', got 'xyzzy'"),
    Mistake("a number", "solver", becomes(3), TypeError, "one of 'auto'.*got int"),
    Mistake("None", "solver", becomes(None), TypeError, "one of 'auto'.*got NoneType"),
    Mistake("a list", "solver", becomes(["qr"]), TypeError, "one of 'auto'.*got list"),
    Mistake("NaN", "scale", becomes(math.nan), ValueError, "finite number, got nan"),
    Mistake("infinite", "scale", becomes(-math.inf), ValueError, "finite number, got -inf"),
    Mistake("a string", "scale", becomes("1"), TypeError, "real number or None, got str"),
    Mistake("True", "scale", becomes(True), TypeError, "real number or None, got bool"),
    Mistake("complex", "scale", becomes(1j), TypeError, "real number or None, got complex"),
    Mistake("an array", "scale", becomes(np.ones(3)), TypeError, "real number or None, got ndarray"),
    Mistake("NaN", "offset", becomes(math.nan), ValueError, "finite number, got nan"),
    Mistake("infinite", "offset", becomes(math.inf), ValueError, "finite number, got inf"),
    Mistake("None", "offset", becomes(None), TypeError, "a real number, got NoneType"),
    Mistake("an array", "offset", becomes(np.ones(3)), TypeError, "a real number, got ndarray"),
    Mistake("1", "is_causal", becomes(1), TypeError, "True or False, got 1"),
    Mistake("a string", "is_causal", becomes("yes"), TypeError, "True or False, got 'yes'"),
    Mistake("None", "is_causal", becomes(None), TypeError, "True or False, got None"),
    Mistake("an array", "is_causal", becomes(np.ones(2, bool)), TypeError, "True or False, got array"),
    Mistake("0", "normalize", becomes(0), TypeError, "True or False, got 0"),
    Mistake("1", "output_final_state", becomes(1), TypeError, "True or False, got 1"),
    Mistake("a typing error", "feature_map", becomes("elu1"), ValueError, r"did you mean 'elu\+1'"),
    Mistake("no such map", "feature_map", becomes("xyzzy"), ValueError, r"'identity', 'elu\+1', 'relu', got 'xyzzy'"),
    Mistake("a number", "feature_map", becomes(3), TypeError, r"a pair \(phi, dphi\).*got int"),
    Mistake("three functions", "feature_map", becomes((abs, abs, abs)), TypeError, r"a pair \(phi, dphi\).*got tuple"),
    Mistake("not functions", "feature_map", becomes((1, 2)), TypeError, r"a pair \(phi, dphi\).*got tuple"),
]  # fmt: skip


def served_mistakes() -> Iterator[Any]:
    for form, implementation in SERVED:
        for mistake in MISTAKES:
            if mistake.applies(form) or (mistake.argument == "output_final_state" and form.has_state):
                name = f"{form.name}-{implementation}-{mistake.argument}-{mistake.what}"
                yield pytest.param(form, implementation, mistake, id=name)


@pytest.mark.parametrize("evaluate", [call_with, vjp_with], ids=["call", "vjp"])
@pytest.mark.parametrize(("form", "implementation", "mistake"), list(served_mistakes()))
def test_mistake_is_named(
    form: Form, implementation: str, mistake: Mistake, evaluate: Callable[..., Any], rng: np.random.Generator
) -> None:
    """One wrong argument: the error, the name of the argument, what was expected; no input is touched."""
    skip_if_missing(form, implementation)
    good = good_call(form, rng)
    call_with(form, implementation, good)  # it is this one change that makes it bad
    bad = good | {mistake.argument: mistake.change(good)}
    before = snapshot(bad)
    with complains(mistake.error, mistake.blamed or mistake.argument, mistake.expected):
        evaluate(form, implementation, bad)
    assert_unchanged(bad, before)


@each_implementation
def test_numpy_scalars_are_numbers(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """What NumPy's indexing and arithmetic give for a number or a flag is not a mistake."""
    skip_if_missing(form, implementation)
    call = good_call(form, rng)
    numbers = {
        "offset": (np.float64(0.5), 0.5),
        "scale": (np.float64(0.5), 0.5),
        "is_causal": (np.True_, True),
        "alpha": (np.float64(0.5), 0.5),
    }
    for name, (scalar, plain) in numbers.items():
        if name in form.options:
            got, expected = (call_with(form, implementation, call | {name: x}) for x in (scalar, plain))
            np.testing.assert_array_equal(got, expected)


@each_implementation
def test_missing_alpha_is_a_missing_argument(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """alpha has no default: Python itself says so, and vjp names the options."""
    if "alpha" not in form.options:
        pytest.skip("takes no alpha")
    skip_if_missing(form, implementation)
    call = good_call(form, rng)
    del call["alpha"]
    with pytest.raises(TypeError, match=f"{form.name}.*alpha"):
        call_with(form, implementation, call)
    with pytest.raises(TypeError, match=f"{form.name}.*alpha.*its options are"):
        vjp_with(form, implementation, call)


# ---- Libraries and devices -----------------------------------------------------------

ARRAYS = ("q", "k", "v", "mask", "bias", "alpha")
each_array = pytest.mark.parametrize("argument", ARRAYS)
each_other_library = pytest.mark.parametrize(
    "other", ["array_api_strict", pytest.param("torch", marks=pytest.mark.oracle)]
)


@each_other_library
@each_array
@each_implementation
def test_libraries_do_not_mix(
    form: Form, implementation: str, argument: str, other: str, rng: np.random.Generator
) -> None:
    """One array of another library: a TypeError that names both, and nothing is moved silently."""
    skip_if_missing(form, implementation)
    module = pytest.importorskip(other)
    call = good_call(form, rng)
    if argument not in call:
        pytest.skip(f"takes no {argument}")
    before = snapshot(call)
    mixed = call | {argument: module.asarray(call[argument].copy())}
    if argument == "q":
        blamed, expected = "k", f"same array library as q, which is {other}, got numpy"
    else:
        blamed, expected = argument, f"same array library as q, which is numpy, got {other}"
    with complains(TypeError, blamed, expected):
        call_with(form, implementation, mixed)
    assert_unchanged(call, before)


@each_array
@each_form
def test_devices_do_not_mix(form: Form, argument: str, rng: np.random.Generator) -> None:
    """One array on another device of the same library: a ValueError that names both devices."""
    xp = pytest.importorskip("array_api_strict")
    call = good_call(form, rng)
    if argument not in call:
        pytest.skip(f"takes no {argument}")
    here, there = xp.Device("device1"), xp.Device("device2")
    moved = {name: xp.asarray(x, device=there if name == argument else here) for name, x in call.items()}
    blamed = "k" if argument == "q" else argument
    with complains(ValueError, blamed, "expected the device of q, .*device(1|2).*, got .*device(1|2)"):
        call_with(form, None, moved)


@each_implementation
def test_kernels_take_numpy_only(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """implementation="compiled" with arrays of another library says that, and what to do."""
    if implementation == "reference":
        pytest.skip("it takes every library")
    skip_if_missing(form, implementation)
    xp = pytest.importorskip("array_api_strict")
    call = {name: xp.asarray(x) for name, x in good_call(form, rng).items()}
    expected = f"'compiled' cannot serve {form.name}: it takes NumPy arrays, and q belongs to array_api_strict"
    with complains(ValueError, "implementation", expected):
        call_with(form, "compiled", call)


# ---- Implementations -----------------------------------------------------------------


@each_form
def test_implementation_that_cannot_serve_says_why(form: Form, rng: np.random.Generator) -> None:
    """A form without a kernel, or kernels that are not installed: never another implementation in silence."""
    found = form.implementation("compiled")
    call = good_call(form, rng)
    if found is not None and found.missing is None:
        call_with(form, "compiled", call)
        return
    reason = "there is no kernel for this form" if found is None else "not installed"
    expected = f"'compiled' cannot serve {form.name}: .*{reason}.*'reference' always does"
    with complains(ValueError, "implementation", expected):
        call_with(form, "compiled", call)
    with kvq.use_implementation("compiled"), complains(ValueError, "implementation", expected):
        call_with(form, None, call)


@pytest.mark.parametrize(
    ("word", "error", "expected"),
    [
        ("compilde", ValueError, "'reference', 'compiled', got 'compilde'; did you mean 'compiled'"),
        ("fast", ValueError, "expected one of 'reference', 'compiled', got 'fast'"),
        ("", ValueError, "expected one of 'reference', 'compiled', got ''"),
        (3, TypeError, "expected one of 'reference', 'compiled', got int"),
        (True, TypeError, "expected one of 'reference', 'compiled', got bool"),
        (False, TypeError, "expected one of 'reference', 'compiled', got bool"),
    ],
)
@each_form
def test_unknown_implementation(
    form: Form, word: Any, error: type[Exception], expected: str, rng: np.random.Generator
) -> None:
    """As a keyword and as a switch."""
    with complains(error, "implementation", expected):
        call_with(form, word, good_call(form, rng))
    with complains(error, "implementation", expected), kvq.use_implementation(word):
        pass


# ---- Backward ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "change", "error", "expected"),
    [
        ("shape", lambda x: x[..., :3], ValueError, r"expected .*shape.* \(2, 5, 4\), got \(2, 5, 3\)"),
        ("fewer axes", lambda x: x[0], ValueError, r"expected .*shape.* \(2, 5, 4\), got \(5, 4\)"),
        ("broadcastable", lambda x: x[:1], ValueError, r"expected .*shape.* \(2, 5, 4\), got \(1, 5, 4\)"),
        ("float32", lambda x: x.astype("f4"), TypeError, "dtype float64, as out has, got float32"),
        ("int", lambda x: x.astype("i8"), TypeError, "dtype float64, as out has, got int64"),
        ("list", lambda x: x.tolist(), TypeError, "expected an array.*got list"),
        ("number", lambda x: 1.0, TypeError, "expected an array.*got float"),
        ("None", lambda x: None, TypeError, "expected an array.*got NoneType"),
    ],
    ids=lambda x: x if isinstance(x, str) and len(x) < 16 else "",
)
@each_implementation
def test_wrong_dout(
    form: Form,
    implementation: str,
    what: str,
    change: Callable[[np.ndarray], Any],
    error: type[Exception],
    expected: str,
    rng: np.random.Generator,
) -> None:
    """What comes in from above has the shape, dtype and library of what went out."""
    skip_if_missing(form, implementation)
    call = good_call(form, rng)
    before = snapshot(call)
    out, pullback = vjp_with(form, implementation, call)
    with complains(error, "dout", expected):
        pullback(change(out))
    assert_unchanged(call, before)
    pullback(out)  # and it is still good for the right one


@each_other_library
@each_implementation
def test_dout_of_another_library(form: Form, implementation: str, other: str, rng: np.random.Generator) -> None:
    """dout is not moved either."""
    skip_if_missing(form, implementation)
    module = pytest.importorskip(other)
    out, pullback = vjp_with(form, implementation, good_call(form, rng))
    with complains(TypeError, "dout", f"same array library as out, which is numpy, got {other}"):
        pullback(module.asarray(out.copy()))


@each_form
def test_unknown_option_of_vjp(form: Form, rng: np.random.Generator) -> None:
    """vjp names the form, the option, and the options that there are."""
    call = good_call(form, rng)
    with pytest.raises(TypeError, match=f"^{form.name}: .*'masc'.*its options are .*mask.*implementation"):
        vjp_with(form, None, call | {"masc": call["mask"]})
    without = {"alpha", "bias", "normalize"} - set(form.options)
    for name in without:
        with pytest.raises(TypeError, match=f"^{form.name}: .*'{name}'"):
            vjp_with(form, None, call | {name: 1.0})


@pytest.mark.parametrize(
    "form",
    [np.dot, len, "intention", None, lambda q, k, v: q, FORMS["intention"], kvq.vjp, kvq.masks.causal],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_vjp_of_what_is_no_form(form: Any, rng: np.random.Generator) -> None:
    """Anything but a form of this package, a function of the same name included."""
    q, k, v = rng.standard_normal((3, 4, 2))
    with complains(TypeError, "form", "expected a form of kvq_ref .*softmax_attention"):
        kvq.vjp(form, q, k, v)


def test_vjp_of_a_namesake(rng: np.random.Generator) -> None:
    """A user's function with the name of a form is not that form."""

    def intention(q: Any, k: Any, v: Any, *, alpha: float) -> Any:
        return q

    with complains(TypeError, "form", "expected a form of kvq_ref"):
        kvq.vjp(intention, *rng.standard_normal((3, 4, 2)), alpha=0.1)


def test_feature_map_without_a_derivative(rng: np.random.Generator) -> None:
    """A lone function serves forward calls; its pullback says what is missing."""
    q, k, v = rng.standard_normal((3, 4, 2))
    out, pullback = kvq.vjp(kvq.linear_attention, q, k, v, feature_map=np.cosh)
    np.testing.assert_array_equal(out, kvq.linear_attention(q, k, v, feature_map=np.cosh))
    with complains(TypeError, "feature_map", r"expected a pair \(phi, dphi\) or a FeatureMap with a vjp"):
        pullback(out)


# ---- States --------------------------------------------------------------------------

WITH_STATE = [form for form in FORMS.values() if form.has_state]
each_form_with_state = pytest.mark.parametrize("form", WITH_STATE, ids=lambda form: form.name)


def state_call(form: Form, rng: np.random.Generator) -> tuple[Arguments, Any]:
    call = good_call(form, rng) | {"mask": rng.random((2, 1, 7)) < 0.7}
    _, state = call_with(form, None, call | {"output_final_state": True})
    return call, state


@each_form_with_state
def test_state_of_the_wrong_kind(form: Form, rng: np.random.Generator) -> None:
    """A state of the other form, a plain tuple, an array, a string."""
    call, state = state_call(form, rng)
    other = next(x for x in WITH_STATE if x is not form)
    for wrong in (state_call(other, rng)[1], tuple(state), state[0], "state", 0):
        with complains(TypeError, "initial_state", rf"expected a {type(state).__name__}, got {type(wrong).__name__}"):
            call_with(form, None, call | {"initial_state": wrong})


@each_form_with_state
def test_state_of_a_wrong_shape_or_dtype(form: Form, rng: np.random.Generator) -> None:
    """Each array of the state is checked, and named; so are its leading axes."""
    call, state = state_call(form, rng)
    for name in state._fields:
        x = getattr(state, name)
        for wrong, error, expected in (
            (x[..., :-1, :], ValueError, r"expected shape \(\.\.\., .*got \(2, 2, "),
            (x[..., :0], ValueError, r"expected shape \(\.\.\., .*got \(2, 3, 0\)"),
            (x[0, 0], ValueError, r"expected shape \(\.\.\., "),
            (x.astype("f4"), TypeError, "expected dtype float64, got float32"),
            (x.astype("i8"), TypeError, "expected dtype float64, got int64"),
            (x.tolist(), TypeError, "expected an array.*got list"),
            (None, TypeError, "expected an array.*got NoneType"),
            (np.stack([x[0]] * 3), ValueError, r"broadcast.*got .*3"),
        ):
            before = snapshot(call)
            with complains(error, f"initial_state.{name}", expected):
                call_with(form, None, call | {"initial_state": state._replace(**{name: wrong})})
            assert_unchanged(call, before)


@pytest.mark.parametrize("feature_map", ["identity", "elu+1", "relu"])
def test_state_of_other_features(feature_map: str, rng: np.random.Generator) -> None:
    """The maps of this package keep d, so a state has d rows with each of them."""
    form = FORMS["linear_attention"]
    call, state = state_call(form, rng)
    call["feature_map"] = feature_map
    for name in state._fields:
        wrong = state._replace(**{name: getattr(state, name)[..., :1, :]})
        with complains(ValueError, f"initial_state.{name}", r"expected shape \(\.\.\., 3, [41]\), got \(2, 1, [41]\)"):
            call_with(form, None, call | {"initial_state": wrong})


@each_other_library
@each_form_with_state
def test_state_of_another_library(form: Form, other: str, rng: np.random.Generator) -> None:
    """A state is not moved between libraries."""
    module = pytest.importorskip(other)
    call, state = state_call(form, rng)
    moved = type(state)(*(module.asarray(x.copy()) for x in state))
    with complains(TypeError, f"initial_state.{state._fields[0]}", f"which is numpy, got {other}"):
        call_with(form, None, call | {"initial_state": moved})


@each_form_with_state
def test_state_goes_with_a_key_mask_only(form: Form, rng: np.random.Generator) -> None:
    """A state holds the same keys for every query; a (Tq, Tk) mask says otherwise."""
    call, state = state_call(form, rng)
    call["mask"] = rng.random((2, 5, 7)) < 0.7
    for option in ({"initial_state": state}, {"output_final_state": True}):
        with complains(ValueError, "mask", r"key mask, of shape \(\.\.\., 1, Tk\).*got \(2, 5, 7\)"):
            call_with(form, None, call | option)


@pytest.mark.parametrize("solver", ["qr", "lstsq"])
def test_state_goes_with_a_solver_that_needs_no_keys(solver: str, rng: np.random.Generator) -> None:
    """A state holds K^T K; "qr" and "lstsq" want K."""
    form = FORMS["intention"]
    call, state = state_call(form, rng)
    with complains(ValueError, "solver", f"'auto', 'cholesky', 'svd', 'cg' with an initial_state.*got '{solver}'"):
        call_with(form, None, call | {"initial_state": state, "solver": solver})


@each_form_with_state
def test_wrong_gradient_of_a_state(form: Form, rng: np.random.Generator) -> None:
    """A pullback of (out, state) takes (dout, dstate) and nothing else."""
    call, _ = state_call(form, rng)
    (out, state), pullback = vjp_with(form, None, call | {"output_final_state": True})
    pullback((out, state))
    pullback((out, None))
    for wrong in (out, (out,), None, (out, state, state)):
        with pytest.raises(TypeError, match=r"\(dout, dstate\)"):
            pullback(wrong)
    for wrong in (tuple(state), state[0], "state", state._replace(kv=state.kv[..., :-1])):
        with pytest.raises((TypeError, ValueError), match="dstate"):
            pullback((out, wrong))


# ---- A step or a decay for each key --------------------------------------------------

PER_KEY = [(form, name) for form in FORMS.values() for name in ("beta", "decay") if name in form.options]
each_per_key = pytest.mark.parametrize(("form", "name"), PER_KEY, ids=[f"{form.name}-{name}" for form, name in PER_KEY])


@each_per_key
def test_rows_for_keys(form: Form, name: str, rng: np.random.Generator) -> None:
    call, rows = good_call(form, rng), rng.uniform(0.2, 0.9, (2, 7, 1))
    for wrong, error, expected in (
        (rows[:, :-1], ValueError, r"expected shape \(\.\.\., 7, .*got \(2, 6, 1\)"),
        (np.concatenate([rows] * 2, axis=-1), ValueError, r"expected shape \(\.\.\., 7, .*got \(2, 7, 2\)"),
        (rows[0, :, 0], ValueError, r"expected shape .*got \(7,\)"),
        (rows[0, 0, 0, ...], ValueError, r"expected shape .*got \(\)"),
        (np.stack([rows[0]] * 3), ValueError, "broadcast"),
        (rows.astype("f4"), TypeError, "expected dtype float64, as q has, got float32"),
        ("1", TypeError, "expected a real number or an array, got str"),
        (True, TypeError, "expected a real number or an array, got bool"),
        (math.nan, ValueError, "expected a finite number"),
        (math.inf, ValueError, "expected a finite number"),
    ):
        with complains(error, name, expected):
            call_with(form, None, call | {name: wrong})


# ---- Subclasses of NumPy's arrays ----------------------------------------------------


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("subclass", [np.matrix, np.ma.masked_array], ids=["matrix", "masked_array"])
@each_implementation
def test_arrays_of_another_arithmetic(
    form: Form, implementation: str, subclass: Callable[[np.ndarray], Any], rng: np.random.Generator
) -> None:
    """A matrix has another product, and a masked array a mask of its own: neither is taken for an array."""
    skip_if_missing(form, implementation)
    call = good_call(form, rng)
    call = {name: x if name in ("mask", "alpha") else x[0] for name, x in call.items()}
    call["mask"] = None
    for name in ("q", "k", "v"):
        with complains(TypeError, name, f"expected an array.*got {type(subclass(call[name])).__name__}"):
            call_with(form, implementation, call | {name: subclass(call[name])})


# ---- Systems that have no solution ---------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("solver", ["cholesky", "qr"])
@each_implementation
def test_rank_deficient_keys_without_penalty(
    form: Form, implementation: str, solver: str, is_causal: bool, rng: np.random.Generator
) -> None:
    """The solvers "cholesky" and "qr" cannot solve a singular system: LinAlgError, and never numbers."""
    if "solver" not in form.options:
        pytest.skip("takes no solver")
    skip_if_missing(form, implementation)
    call = good_call(form, rng) | {"alpha": 0.0, "mask": None, "is_causal": is_causal, "solver": solver}
    call["k"][:] = 0
    call["k"][..., 0] = 1.0  # of rank 1
    before = snapshot(call)
    with pytest.raises(np.linalg.LinAlgError):
        call_with(form, implementation, call)
    assert_unchanged(call, before)


# ---- Where arrays are created --------------------------------------------------------


@pytest.mark.parametrize("name", ["tpu", "torch", "", 3, None])
def test_unknown_backend(name: Any) -> None:
    """use_backend takes two names; None or "" is not one of them."""
    with pytest.raises((ValueError, TypeError), match=r"backend.*'numpy', 'cupy'"), kvq.use_backend(name):
        pass


def test_backend_that_is_not_installed() -> None:
    """CuPy without CuPy: an ImportError that says what to install, at the switch and not at the first mask."""
    try:
        import cupy  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("CuPy is installed")
    with pytest.raises(ImportError, match=r"CuPy.*install") as caught, kvq.use_backend("cupy"):
        pytest.fail("the block was entered")
    assert "backend" in str(caught.value)
    assert kvq.masks.causal(1, 1).all()  # and the switch is as it was


@pytest.mark.parametrize(("value", "error"), [("tpu", ValueError), ("NumPy", ValueError)])
def test_environment_names_an_unknown_backend(
    value: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVQ_REF_BACKEND is held to the same names where an array is first created; a switch still wins over it."""
    monkeypatch.setenv("KVQ_REF_BACKEND", value)
    with pytest.raises(error, match=f"backend.*'numpy', 'cupy'.*{value}"):
        kvq.masks.causal(2, 2)
    with kvq.use_backend("numpy"):
        assert kvq.masks.causal(2, 2).shape == (2, 2)


def test_empty_environment_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty KVQ_REF_BACKEND is as good as none."""
    monkeypatch.setenv("KVQ_REF_BACKEND", "")
    assert isinstance(kvq.masks.causal(2, 2), np.ndarray)


# ---- What a user's function returns, and numbers at the edge -------------------------


@pytest.mark.parametrize(
    "phi",
    [
        lambda x: x[None],
        lambda x: x[..., :1, :],
        lambda x: x.astype("float32"),
        lambda x: x + 0j,
        lambda x: x.tolist(),
        lambda x: None,
        lambda x: 3.0,
    ],
    ids=["axis more", "row less", "dtype", "complex", "list", "None", "number"],
)
def test_feature_map_that_returns_something_else(phi: Callable[[np.ndarray], Any], rng: np.random.Generator) -> None:
    """phi(x) must be an array like x, but for its last axis; and the gradient must be like x."""
    q, k, v = rng.standard_normal((3, 5, 3))
    with pytest.raises(
        ValueError, match=r"feature_map: expected phi\(x\) to be a float64 numpy array of shape \(5, m\)"
    ):
        kvq.linear_attention(q, k, v, feature_map=phi)
    _, pullback = kvq.vjp(kvq.linear_attention, q, k, v, feature_map=kvq.FeatureMap(lambda x: x, lambda x, d: phi(d)))
    with pytest.raises(ValueError, match=r"feature_map: expected its gradient to be"):
        pullback(v)


def test_numbers_at_the_edge(rng: np.random.Generator) -> None:
    """A number too large for the dtype is named; NumPy's scalars are numbers of any dtype."""
    q, k, v = rng.standard_normal((3, 5, 3)).astype("float32")
    for number in (10**400, 1e300):
        with pytest.raises(ValueError, match="scale: expected a number that float32 can hold"):
            kvq.softmax_attention(q, k, v, scale=number)
        with pytest.raises(ValueError, match="alpha: expected a number that float32 can hold"):
            kvq.intention(q, k, v, alpha=number)
    plain = kvq.sigma_intention(q, k, v, alpha=2.0, scale=0.5)
    for alpha, scale in ((np.float64(2), np.float32(0.5)), (np.int64(2), np.float16(0.5)), (2, np.float64(0.5))):
        np.testing.assert_array_equal(kvq.sigma_intention(q, k, v, alpha=alpha, scale=scale), plain)


def test_states_that_do_not_fit_the_call(rng: np.random.Generator) -> None:
    """A state's leading axes against the mask's and alpha's; its two arrays against each other."""
    q, k, v = rng.standard_normal((3, 5, 3))
    state = kvq.LinearState(kv=np.zeros((3, 3, 3)), k_sum=np.zeros((3, 3, 1)))
    with pytest.raises(ValueError, match=r"initial_state.kv: expected leading axes"):
        kvq.linear_attention(q, k, v, initial_state=state, mask=np.ones((5, 1, 5), bool))
    fitted = kvq.IntentionState(gram=np.zeros((3, 3, 3)), kv=np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match=r"initial_state.gram: expected leading axes"):
        kvq.intention(q, k, v, initial_state=fitted, alpha=np.ones(5))
    uneven = kvq.LinearState(kv=np.zeros((4, 3)), k_sum=np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"initial_state.k_sum: expected as many rows"):
        kvq.linear_attention(q, k, v, initial_state=uneven, feature_map=lambda x: x)


def test_nan_gradient_reaches_a_state(rng: np.random.Generator) -> None:
    """A query that sees nothing but the state is a query all the same."""
    q, k, v = rng.standard_normal((3, 5, 3))
    _, state = kvq.linear_attention(q, k, v, output_final_state=True)
    out, pullback = kvq.vjp(kvq.linear_attention, q, k, v, mask=np.zeros(5, bool), initial_state=state)
    grads = pullback(np.full_like(out, np.nan))
    assert np.isnan(grads.q).all()
    assert np.isnan(grads.initial_state.kv).all()
    np.testing.assert_array_equal(grads.k, 0.0)
