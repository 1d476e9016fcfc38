"""Which implementation serves a call, and the path that every call takes.

The only file that chooses between the readable forms and the compiled kernels.
One declaration per form, in :data:`FORMS`, says what serves it; error messages,
the capabilities table and the tests' skips are all made from that.

A call passes through, in this order: checks (arguments.py); half precision is
widened to float32; what is not finite is isolated (nonfinite.py); the chosen
implementation runs; and back out the same way.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kvq_ref import arrays, kernels, nonfinite
from kvq_ref.arguments import DTYPES, LIBRARIES, check_call, check_dtypes, check_same_library, check_word
from kvq_ref.arrays import (
    HALF_DTYPES,
    device,
    dtype_name,
    is_array,
    is_numpy,
    library,
    namespace,
    sum_to_shape,
    transpose,
)
from kvq_ref.forms import expressive, expressive_intention, intention, linear, sigma_intention, softmax
from kvq_ref.nonfinite import Inputs
from kvq_ref.types import Array, Grads

IMPLEMENTATIONS = ("reference", "compiled")


# ---- The declarations ----------------------------------------------------------------


@dataclass(frozen=True)
class Implementation:
    """One way to compute a form, and what it serves.

    Attributes
    ----------
    name : str
        One of ``IMPLEMENTATIONS``.
    forward, backward : callable
        With the signatures of the form's file.
    all_finite : callable
        Whether an array that it serves holds neither NaN nor infinity.
    numpy_only : bool
        Whether it takes NumPy arrays alone.
    missing : str or None
        Why it is not there at all in this installation.
    """

    name: str
    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., Grads]
    all_finite: Callable[[Array], bool] = arrays.all_finite
    numpy_only: bool = False
    missing: str | None = None

    def why_not(self, q: Array) -> str | None:
        """Why it cannot serve a call with these arrays; None if it can."""
        if self.missing is not None:
            return f"the compiled kernels are not installed ({self.missing})"
        if self.numpy_only and not is_numpy(q):
            return f"it takes NumPy arrays, and q belongs to {library(q)}"
        return None


@dataclass(frozen=True)
class Form:
    """A form: its public name, its file, and the implementations that serve it, best first."""

    name: str
    module: ModuleType
    implementations: tuple[Implementation, ...]

    @functools.cached_property
    def options(self) -> tuple[str, ...]:
        """The keyword arguments that the form's file takes."""
        parameters = inspect.signature(self.module.forward).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def has_state(self) -> bool:
        """Whether a sequence can be fed in pieces."""
        return "initial_state" in self.options

    def implementation(self, name: str) -> Implementation | None:
        return next((x for x in self.implementations if x.name == name), None)


def _form(name: str, module: ModuleType, compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None) -> Form:
    reference = Implementation("reference", module.forward, module.backward)
    if compiled is None:
        return Form(name, module, (reference,))
    fast = Implementation("compiled", *compiled, kernels.all_finite, numpy_only=True, missing=kernels.missing)
    return Form(name, module, (fast, reference))


def _tiled(score: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return functools.partial(kernels.forward, score), kernels.backward


def _preconditioned(score: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return functools.partial(kernels.preconditioned_forward, score), kernels.preconditioned_backward


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        _form("softmax_attention", softmax, compiled=_tiled("softmax")),
        _form("expressive_attention", expressive, compiled=_tiled("expressive")),
        _form("linear_attention", linear),
        _form("intention", intention),
        _form("sigma_intention", sigma_intention, compiled=_preconditioned("softmax")),
        _form("expressive_intention", expressive_intention, compiled=_preconditioned("expressive")),
    )
}


def capabilities() -> list[dict[str, str]]:
    """What serves what, a row for each form and implementation, from the declarations above.

    >>> [row["form"] for row in capabilities() if row["implementation"] == "compiled"][:2]
    ['softmax_attention', 'expressive_attention']
    """
    return [
        {
            "form": form.name,
            "implementation": x.name,
            "arrays": "NumPy" if x.numpy_only else LIBRARIES,
            "dtypes": ", ".join(DTYPES),
            "options": ", ".join(form.options),
            "available": "yes" if x.missing is None else f"no: {x.missing}",
        }
        for form in FORMS.values()
        for x in form.implementations
    ]


# ---- The choice ----------------------------------------------------------------------

_requested: ContextVar[str | None] = ContextVar("kvq_ref_implementation", default=None)


@contextlib.contextmanager
def use_implementation(name: str | None) -> Iterator[None]:
    """Choose how forms are computed, for a ``with`` block.

    Parameters
    ----------
    name : {"reference", "compiled", None}
        The readable reference, the compiled kernels, or (None) the best that
        serves each call. The keyword ``implementation`` of a form wins over it.

    Raises
    ------
    ValueError
        For another name; and, inside the block, from a call that the named
        implementation cannot serve.

    Examples
    --------
    >>> import numpy as np, kvq_ref as kvq
    >>> q = k = v = np.ones((1, 1))
    >>> with kvq.use_implementation("reference"):
    ...     kvq.softmax_attention(q, k, v)
    array([[1.]])
    """
    if name is not None:
        check_word("implementation", name, IMPLEMENTATIONS)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def choose(form: Form, q: Array, requested: str | None) -> Implementation:
    """The implementation to use: the one asked for, or the first that serves."""
    requested = _requested.get() if requested is None else requested
    if requested is None:
        return next(x for x in form.implementations if x.why_not(q) is None)
    check_word("implementation", requested, IMPLEMENTATIONS)
    chosen = form.implementation(requested)
    reason = "there is no kernel for this form" if chosen is None else chosen.why_not(q)
    if chosen is None or reason is not None:
        raise ValueError(
            f"implementation: {requested!r} cannot serve {form.name}: {reason}; "
            "None takes the best that serves, 'reference' always does"
        )
    return chosen


# ---- The path of a call --------------------------------------------------------------

Pullback = Callable[[Any], Grads]


def call(name: str, q: Array, k: Array, v: Array, options: dict[str, Any]) -> Any:
    """Evaluate a form."""
    return differentiable_call(name, q, k, v, options)[0]


def differentiable_call(name: str, q: Array, k: Array, v: Array, options: dict[str, Any]) -> tuple[Any, Pullback]:
    """Evaluate a form, and return with the result the function that carries its gradient back."""
    form = FORMS[name]
    requested = options.pop("implementation", None)
    given_bias, given_alpha = options.get("bias"), options.get("alpha")
    options = check_call(name, q, k, v, options)
    implementation = choose(form, q, requested)

    returns_state = options.pop("output_final_state", False)
    inputs = Inputs(q, k, v, options.pop("mask", None), options.pop("bias", None))
    is_causal, initial_state = options["is_causal"], options.get("initial_state")
    half = dtype_name(q) in HALF_DTYPES
    if half:
        inputs = Inputs(*(_widen(x) for x in inputs))
        options = {name: _widen(x) for name, x in options.items()}
    if k.shape[-2] == 0:
        inputs = _with_one_hidden_key(inputs)
    quarantine = None
    isolate = functools.partial(
        nonfinite.isolate,
        is_causal=is_causal,
        has_state=initial_state is not None,
        regresses="alpha" in form.options,
    )
    if not nonfinite.inputs_finite(inputs, implementation.all_finite):
        inputs, quarantine = isolate(inputs)
    inputs = _without_unseen_keys(inputs)

    if "bias" in form.options:
        options["bias"] = inputs.bias
    out, saved = implementation.forward(inputs.q, inputs.k, inputs.v, mask=inputs.mask, **options)
    state = form.module.final_state(saved, initial_state) if returns_state else None
    if quarantine is not None:
        out = nonfinite.mark_rows(out, quarantine)
        state = None if state is None else nonfinite.mark_state(state, quarantine)
    out = _narrow(out, q) if half else out

    def pullback(cotangent: Any) -> Grads:
        dout, dstate = _check_cotangent(cotangent, out, state)
        dout = _widen(dout) if half else dout
        seen = quarantine
        if seen is not None or not implementation.all_finite(dout):
            seen = seen or isolate(inputs)[1]
            dout, seen = nonfinite.isolate_cotangent(dout, seen)
        extra = {} if dstate is None else {"dstate": dstate}
        grads = implementation.backward(dout, saved, **extra)
        if seen is not None:
            grads = nonfinite.mark_grads(grads, seen)
        return _to_given(grads, q, k, v, given_bias, given_alpha, options.get("alpha"), initial_state)

    return (out, state) if returns_state else out, pullback


def _to_given(
    grads: Grads, q: Array, k: Array, v: Array, bias: Array | None, alpha: Any, alpha_array: Any, state: Any
) -> Grads:
    """Gradients in the shapes and the dtype of what the caller gave."""

    def like(grad: Array, given: Array) -> Array:
        if (
            given.ndim >= 2 and grad.ndim >= 2 and grad.shape[-2] > given.shape[-2] == 0
        ):  # the hidden key of an empty set of keys
            grad = grad[..., :0, :]
        grad = sum_to_shape(grad, given.shape)
        return grad if grad.dtype == given.dtype else _narrow(grad, given)

    if bias is not None and 0 in bias.shape:
        grads = grads._replace(bias=namespace(bias).zeros_like(bias))
    return Grads(
        q=like(grads.q, q),
        k=like(grads.k, k),
        v=like(grads.v, v),
        bias=None if bias is None else like(grads.bias, bias),
        alpha=None if alpha is None else like(grads.alpha, alpha if is_array(alpha) else alpha_array),
        initial_state=None if state is None else type(state)(*map(like, grads.initial_state or (), state)),
    )


def _check_cotangent(cotangent: Any, out: Array, state: Any) -> tuple[Array, Any]:
    """(dout, dstate), the gradients of what the form returned; dstate is None where there is none."""
    dout, dstate = cotangent, None
    if state is not None:
        if type(cotangent) is not tuple or len(cotangent) != 2:
            raise TypeError(f"pullback: expected (dout, dstate), as (out, state) was returned, got {cotangent!r:.60}")
        dout, dstate = cotangent
    pairs = {"dout": ("out", dout, out)}
    if dstate is not None:
        if type(dstate) is not type(state):
            raise TypeError(f"dstate: expected a {type(state).__name__} or None, got {type(dstate).__name__}")
        pairs |= {
            f"dstate.{field}": (f"state.{field}", getattr(dstate, field), x) for field, x in state._asdict().items()
        }
    for name, (of, got, like) in pairs.items():
        check_same_library({of: like, name: got})
        check_dtypes({of: like, name: got})
        if tuple(got.shape) != tuple(like.shape):
            raise ValueError(f"{name}: expected the shape of {of}, {tuple(like.shape)}, got {tuple(got.shape)}")
    return dout, dstate


def _widen(x: Any) -> Any:
    """Half precision to float32; anything else as it is."""
    if not is_array(x) or dtype_name(x) not in HALF_DTYPES:
        return x
    xp = namespace(x)
    return xp.astype(x, xp.float32)


def _narrow(x: Array, like: Array) -> Array:
    return namespace(x).astype(x, like.dtype)


def _without_unseen_keys(inputs: Inputs) -> Inputs:
    """Replace the keys and values that the mask hides from every query: what they hold could overflow."""
    if inputs.mask is None:
        return inputs
    xp = namespace(inputs.mask)
    seen = transpose(xp.any(inputs.mask, axis=-2, keepdims=True))
    k = xp.where(seen, inputs.k, xp.ones_like(inputs.k))  # one: a feature map may have no finite value at zero
    v = xp.where(seen, inputs.v, xp.zeros_like(inputs.v))
    return inputs._replace(k=k, v=v)


def _with_one_hidden_key(inputs: Inputs) -> Inputs:
    """No keys at all are one key that nobody sees; no form needs to think of an empty sum."""
    q, k, v, mask, bias = inputs
    xp, where = namespace(q), device(q)

    def one_row(x: Array) -> Array:
        return xp.zeros((*x.shape[:-2], 1, x.shape[-1]), dtype=x.dtype, device=where)

    hidden = xp.zeros((*(() if mask is None else mask.shape[:-2]), 1, 1), dtype=xp.bool, device=where)
    if bias is not None:
        bias = xp.zeros((*bias.shape[:-1], 1), dtype=bias.dtype, device=where)
    return Inputs(q, one_row(k), one_row(v), hidden, bias)
