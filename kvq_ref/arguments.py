"""Checks of what a caller hands over: every form says the same of the same mistake.

Each message names the argument, what was expected and what it was.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kvq_ref.arrays import (
    COMPUTE_DTYPES,
    HALF_DTYPES,
    broadcast_leading,
    device,
    dtype_name,
    is_array,
    is_numpy,
    is_writeable,
    library,
    namespace,
)
from kvq_ref.features import FEATURE_MAPS, FeatureMap, elementwise
from kvq_ref.forms.delta_rule import DeltaRuleState
from kvq_ref.forms.gated_linear import GatedLinearState
from kvq_ref.forms.intention import IntentionState
from kvq_ref.forms.linear import LinearState
from kvq_ref.forms.mesa import MesaState
from kvq_ref.masks import is_key_mask, with_key_axis
from kvq_ref.solvers import GRAM_SOLVERS, SOLVERS
from kvq_ref.types import Array

DTYPES = (*HALF_DTYPES, *COMPUTE_DTYPES)
LIBRARIES = "NumPy, CuPy, PyTorch or JAX"
PER_KEY = frozenset({"beta", "decay"})  # options with a row for each key
STATES: dict[str, Any] = {
    "linear_attention": LinearState,
    "intention": IntentionState,
    "delta_rule": DeltaRuleState,
    "gated_linear_attention": GatedLinearState,
    "mesa_attention": MesaState,
}


def check_call(form: str, q: Array, k: Array, v: Array, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check one call of ``form`` and return its options, ready for the form's file.

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype, or from another array library.
    ValueError
        An argument of the right type with a wrong shape, device or value.
    """
    arrays = {"q": q, "k": k, "v": v}
    arrays |= {name: options[name] for name in ("mask", "bias") if options.get(name) is not None}
    arrays |= {name: options[name] for name in ("alpha", "beta", "decay") if is_array(options.get(name))}
    check_same_library(arrays)
    check_dtypes({name: x for name, x in arrays.items() if name != "mask"})
    check_qkv_shapes(q, k, v)
    Tq, Tk = q.shape[-2], k.shape[-2]
    if "mask" in arrays and dtype_name(options["mask"]) != "bool":
        raise TypeError(
            f"mask: expected dtype bool (True = attend), got {dtype_name(options['mask'])}; a float mask is a bias"
        )
    for name in ("mask", "bias"):
        if name in arrays:
            check_pair_shape(name, options[name], Tq, Tk)

    ready = dict(options)
    if "mask" in arrays:
        ready["mask"] = with_key_axis(options["mask"], Tk)
    if "is_causal" in ready:
        ready["is_causal"] = check_flag("is_causal", ready["is_causal"])
    if "scale" in ready:
        ready["scale"] = check_scale(ready["scale"], q)
    if "offset" in ready:
        ready["offset"] = check_number("offset", ready["offset"], "a real number", q)
    if "alpha" in ready:
        ready["alpha"] = check_alpha(ready["alpha"], q)
    if ready.get("beta") is not None:
        ready["beta"] = check_per_key("beta", ready["beta"], q, k)
    if ready.get("decay") is not None:
        of_coordinates = q.shape[-1] if form == "gated_linear_attention" else 1
        ready["decay"] = check_per_key("decay", ready["decay"], q, k, of_coordinates)
    if "solver" in ready:
        check_word("solver", ready["solver"], SOLVERS)
    if "normalize" in ready:
        ready["normalize"] = check_flag("normalize", ready["normalize"])
    if "feature_map" in ready:
        ready["feature_map"] = check_feature_map(ready["feature_map"])
    leading = check_leading(arrays)
    if ready.get("decay") is not None:
        check_decay(ready["decay"], ready["mask"])
    if "initial_state" in ready:
        returns_state = check_flag("output_final_state", ready.get("output_final_state", False))
        leading = check_leading(arrays | check_state(form, ready, returns_state, q, k, v))
    if ready.get("out") is not None:
        check_out(ready["out"], q, (*leading, Tq, v.shape[-1]))
    return ready


def check_same_library(arrays: Mapping[str, Array]) -> None:
    """All arrays of one library, on one device."""
    for name, x in arrays.items():
        if not is_array(x):
            raise TypeError(f"{name}: expected an array ({LIBRARIES}), got {type(x).__name__}")
    (first, x0), *rest = arrays.items()
    for name, x in rest:
        if type(x) is type(x0) and isinstance(x, np.ndarray):
            continue
        if library(x) != library(x0):
            raise TypeError(
                f"{name}: expected the same array library as {first}, which is {library(x0)}, got {library(x)}; "
                "no array is moved silently"
            )
        here, there = device(x0), device(x)  # JAX's tracers have none
        if here is not None and there is not None and here != there:
            raise ValueError(f"{name}: expected the device of {first}, {here}, got {there}")


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """One floating dtype for all: a form returns the dtype that it is given."""
    (first, x0), *rest = arrays.items()
    expected = dtype_name(x0)
    if expected not in DTYPES:
        raise TypeError(f"{first}: expected dtype {', '.join(DTYPES)}, got {expected}")
    for name, x in rest:
        got = dtype_name(x)
        if got != expected:
            raise TypeError(f"{name}: expected dtype {expected}, as {first} has, got {got}")


def check_qkv_shapes(q: Array, k: Array, v: Array) -> None:
    for name, x, shape in (("q", q, "(..., Tq, d)"), ("k", k, "(..., Tk, d)"), ("v", v, "(..., Tk, dv)")):
        if x.ndim < 2:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k: expected last axis d = {q.shape[-1]}, as q has, got shape {tuple(k.shape)}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"v: expected Tk = {k.shape[-2]} rows, as k has, got shape {tuple(v.shape)}")


def check_pair_shape(name: str, x: Array, Tq: int, Tk: int) -> None:
    pair = tuple(x.shape[-2:])
    fits = len(pair) > 0 and all(n in (1, m) for n, m in zip(pair[::-1], (Tk, Tq), strict=False))
    if not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to (..., {Tq}, {Tk}), got {tuple(x.shape)}")


def check_leading(arrays: Mapping[str, Array]) -> tuple[int, ...]:
    """What the axes before the last two (all of them, for alpha) broadcast to."""
    so_far: tuple[int, ...] = ()
    for name, x in arrays.items():
        leading = tuple(x.shape if name == "alpha" else x.shape[:-2])
        try:
            so_far = broadcast_leading(so_far, leading) if so_far else leading
        except ValueError:
            raise ValueError(
                f"{name}: expected leading axes that broadcast with {so_far}, those of the arguments before it, "
                f"got {leading} of shape {tuple(x.shape)}"
            ) from None
    return so_far


def check_out(out: Array, q: Array, shape: tuple[int, ...]) -> None:
    """An array that can take the result, whose shape is known by now."""
    check_same_library({"q": q, "out": out})
    check_dtypes({"q": q, "out": out})
    if not is_writeable(out):
        if is_numpy(out):
            raise ValueError("out: expected an array that can be written into, got a read-only one")
        raise TypeError(f"out: expected an array that can be written into, got one of {library(out)}; use the result")
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected the shape of the result, {shape}, got {tuple(out.shape)}")


def check_flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_number(name: str, value: Any, kind: str, q: Array, *, least: float = -math.inf) -> float:
    """A real number, at least ``least``, that is finite in the dtype that q is computed in."""
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected {kind}, got {type(value).__name__}")
    number = value if isinstance(value, int) else float(value)  # an int may be too large for a float
    if not (-math.inf < number < math.inf and number >= least):
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value}")
    dtype = "float64" if dtype_name(q) == "float64" else "float32"
    if abs(number) > float(np.finfo(dtype).max):
        raise ValueError(f"{name}: expected a number that {dtype} can hold, got {value!s:.40}")
    return float(number)


def check_scale(scale: object, q: Array) -> float | None:
    return None if scale is None else check_number("scale", scale, "a real number or None", q)


def check_alpha(alpha: Any, q: Array) -> Array:
    """alpha as an array in the library, and on the device, of q."""
    xp = namespace(q)
    if not is_array(alpha):
        alpha = check_number("alpha", alpha, "a real number or an array", q, least=0.0)
        wide = xp.float32 if dtype_name(q) in HALF_DTYPES else q.dtype
        return xp.asarray(float(alpha), dtype=wide, device=device(q))
    if not bool(xp.all(xp.isfinite(alpha) & (alpha >= 0))):
        raise ValueError("alpha: expected finite numbers >= 0, got an array with a negative, NaN or infinite entry")
    return alpha


def check_per_key(name: str, x: Any, q: Array, k: Array, columns: int = 1) -> Array:
    """A number for all keys, or an array with a row for each; what is not finite in it is those queries' who see it."""
    xp = namespace(q)
    if not is_array(x):
        x = check_number(name, x, "a real number or an array", q)
        wide = xp.float32 if dtype_name(q) in HALF_DTYPES else q.dtype
        return xp.asarray(x, dtype=wide, device=device(q))
    if x.ndim < 2 or x.shape[-2] not in (1, k.shape[-2]) or x.shape[-1] not in (1, columns):
        wanted = " or ".join(f"(..., {k.shape[-2]}, {n})" for n in dict.fromkeys((1, columns)))
        raise ValueError(f"{name}: expected shape {wanted}, a row for each key, got {tuple(x.shape)}")
    return x


def check_decay(decay: Array, mask: Array | None) -> None:
    """Factors from 0 to 1: what is left of what came before. Behind a mask there may be anything."""
    xp = namespace(decay)
    wrong = xp.isfinite(decay) & ((decay < 0) | (decay > 1))
    if mask is not None and decay.ndim:
        wrong = wrong & xp.any(mask, axis=-2)[..., None]
    if bool(xp.any(wrong)):
        got = "an array with an entry outside" if decay.ndim else f"{float(decay):g}"
        raise ValueError(f"decay: expected numbers from 0 to 1, got {got}")


def check_word(name: str, word: object, known: Iterable[str]) -> None:
    """One of a few words, with the nearest if it is none of them."""
    known = list(known)
    if not isinstance(word, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, known))}, got {type(word).__name__}")
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {word!r}{hint}")


def check_feature_map(feature_map: Any) -> FeatureMap:
    if feature_map is None:
        return FEATURE_MAPS["identity"]
    if isinstance(feature_map, FeatureMap) and callable(feature_map.apply):
        return _checked(feature_map)
    if isinstance(feature_map, str):
        check_word("feature_map", feature_map, FEATURE_MAPS)
        return FEATURE_MAPS[feature_map]
    if isinstance(feature_map, tuple) and len(feature_map) == 2 and all(map(callable, feature_map)):
        return _checked(elementwise(*feature_map))
    if callable(feature_map):
        return _checked(FeatureMap(apply=feature_map, vjp=None))
    raise TypeError(
        f"feature_map: expected one of {', '.join(map(repr, FEATURE_MAPS))}, a callable, a pair (phi, dphi) of "
        f"elementwise functions or a FeatureMap, got {type(feature_map).__name__}"
    )


def _checked(feature_map: FeatureMap) -> FeatureMap:
    """A user's feature map, with a look at what it returns."""

    def check(what: str, got: Any, x: Array, expected: str, shape_fits: bool) -> Array:
        if not is_array(got) or library(got) != library(x) or dtype_name(got) != dtype_name(x) or not shape_fits:
            is_like = f"a {dtype_name(got)} {library(got)} array of shape {tuple(got.shape)}" if is_array(got) else None
            raise ValueError(
                f"feature_map: expected {what} to be a {dtype_name(x)} {library(x)} array of shape {expected}, "
                f"got {is_like or type(got).__name__}"
            )
        return got

    def apply(x: Array) -> Array:
        got = feature_map.apply(x)
        fits = is_array(got) and got.ndim == x.ndim and tuple(got.shape[:-1]) == tuple(x.shape[:-1])
        return check("phi(x)", got, x, str((*x.shape[:-1], "m")).replace("'", ""), fits)

    def vjp(x: Array, dphi: Array) -> Array:
        assert feature_map.vjp is not None
        got = feature_map.vjp(x, dphi)
        shape = (*dphi.shape[:-1], x.shape[-1])
        return check("its gradient", got, x, str(shape), is_array(got) and tuple(got.shape) == shape)

    return FeatureMap(apply=apply, vjp=None if feature_map.vjp is None else vjp)


def check_state(
    form: str, options: Mapping[str, Any], returns_state: bool, q: Array, k: Array, v: Array
) -> dict[str, Array]:
    """A state of the right kind, and options that a state can go with. Returns its arrays by name, if one is given."""
    state, mask = options["initial_state"], options["mask"]
    if state is None and not returns_state:
        return {}
    if not is_key_mask(mask):
        raise ValueError(
            "mask: expected a key mask, of shape (..., 1, Tk), where a state is given or asked for, "
            f"got {tuple(mask.shape)}; a state holds the same keys for every query"
        )
    if state is None:
        return {}
    if (solver := options.get("solver", "auto")) not in GRAM_SOLVERS:
        raise ValueError(
            f"solver: expected one of {', '.join(map(repr, GRAM_SOLVERS))} with an initial_state, which holds "
            f"K^T K and not the keys, got {solver!r}"
        )
    kind: Any = STATES[form]
    if not isinstance(state, kind):
        raise TypeError(f"initial_state: expected a {kind.__name__}, got {type(state).__name__}")
    d, dv = q.shape[-1], v.shape[-1]
    if kind is LinearState:
        m = d if options["feature_map"] in FEATURE_MAPS.values() else "m"  # a feature map of one's own may change d
        expected = {"kv": (m, dv), "k_sum": (m, 1)}
    else:
        expected = {name: (d, dv if name == "kv" else d) for name in kind._fields}
    for name, shape in expected.items():
        x = getattr(state, name)
        check_same_library({"q": q, f"initial_state.{name}": x})
        if x.ndim < 2 or any(n != m for n, m in zip(shape, x.shape[-2:], strict=True) if n != "m"):
            raise ValueError(
                f"initial_state.{name}: expected shape (..., {', '.join(map(str, shape))}), got {tuple(x.shape)}"
            )
        if dtype_name(x) != (wanted := "float32" if dtype_name(q) in HALF_DTYPES else dtype_name(q)):
            raise TypeError(f"initial_state.{name}: expected dtype {wanted}, got {dtype_name(x)}")
    if kind is LinearState and state.kv.shape[-2] != state.k_sum.shape[-2]:
        raise ValueError(
            f"initial_state.k_sum: expected as many rows as initial_state.kv has, {state.kv.shape[-2]}, "
            f"got shape {tuple(state.k_sum.shape)}"
        )
    return {f"initial_state.{name}": getattr(state, name) for name in expected}
