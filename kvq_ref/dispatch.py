"""Which implementation serves a call, and the path that every call takes.

The only file that chooses between the readable forms and the compiled kernels.
One declaration per form, in :data:`FORMS`, says what serves it; error messages,
the capabilities table and the tests' skips are all made from that.

A call passes through, in this order: checks (arguments.py); half precision is
widened to float32; what is not finite is isolated (nonfinite.py); the chosen
implementation runs; and back out the same way. For a small call that is many
times the work proper. So where the best implementation has a ``quick`` way, that
is tried first: it takes a plain call whole, with the same result to the bit,
and leaves whatever is out of the ordinary, mistakes included, to the long way.
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
from kvq_ref.arguments import (
    DTYPES,
    LIBRARIES,
    PER_KEY,
    STATES,
    check_call,
    check_dtypes,
    check_same_library,
    check_word,
)
from kvq_ref.arrays import (
    HALF_DTYPES,
    device,
    dtype_name,
    is_array,
    is_numpy,
    library,
    may_overlap,
    namespace,
    sum_to_shape,
    transpose,
)
from kvq_ref.forms import (
    delta_rule,
    expressive,
    expressive_intention,
    gated_linear,
    intention,
    linear,
    local_linear,
    mesa,
    quadratic,
    sigma_intention,
    sigmoid,
    softmax,
    taylor,
)
from kvq_ref.grid import GRID
from kvq_ref.kernels import linear as fast_linear
from kvq_ref.kernels import preconditioned as fast_preconditioned
from kvq_ref.kernels import ridge as fast_ridge
from kvq_ref.kernels import tiled as fast_tiled
from kvq_ref.nonfinite import Inputs
from kvq_ref.types import Array, Grads, map_state

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
    quick : callable, optional
        ``quick(q, k, v, options)`` takes a public call as it comes, unchecked, and
        gives out; None if the call is not plain.
    quick_vjp : callable, optional
        The same, giving ``(out, pullback)``; the pullback gives None for a gradient that is not plain.
    final_state : callable, optional
        The state after the last key, from what forward saved and the initial state.
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
    quick: Callable[..., Array | None] | None = None
    quick_vjp: Callable[..., tuple[Array, Callable[[Any], Grads | None]] | None] | None = None
    final_state: Callable[..., Any] | None = None
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

    @property
    def is_sequential(self) -> bool:
        """Whether the order of the keys matters: each has a step size or a decay, and acts on what came before it."""
        return not PER_KEY.isdisjoint(self.options)

    def implementation(self, name: str) -> Implementation | None:
        return next((x for x in self.implementations if x.name == name), None)


Compiled = dict[str, Callable[..., Any]]


def _form(name: str, module: ModuleType, compiled: Compiled | None = None) -> Form:
    reference = Implementation("reference", module.forward, module.backward, final_state=_final_state_of(module))
    if compiled is None:
        return Form(name, module, (reference,))
    fast = Implementation(
        "compiled", **compiled, all_finite=kernels.all_finite, numpy_only=True, missing=kernels.missing
    )
    return Form(name, module, (fast, reference))


def _final_state_of(module: ModuleType) -> Callable[..., Any] | None:
    return getattr(module, "final_state", None)


def _kernel(module: ModuleType, score: str | None = None) -> Compiled:
    """What a file of kernels/ has to offer: forward and backward, and some of the rest; for a score form, of that."""
    names = ("forward", "backward", "final_state", "quick", "quick_vjp")
    found = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if score is None:
        return found
    return {name: x if name == "backward" else functools.partial(x, score) for name, x in found.items()}


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        _form("softmax_attention", softmax, _kernel(fast_tiled, "softmax")),
        _form("expressive_attention", expressive, _kernel(fast_tiled, "expressive")),
        _form("quadratic_attention", quadratic),
        _form("taylor_attention", taylor),
        _form("sigmoid_attention", sigmoid),
        _form("local_linear_attention", local_linear),
        _form("linear_attention", linear, _kernel(fast_linear)),
        _form("intention", intention, _kernel(fast_ridge)),
        _form("sigma_intention", sigma_intention, _kernel(fast_preconditioned, "softmax")),
        _form("expressive_intention", expressive_intention, _kernel(fast_preconditioned, "expressive")),
        _form("delta_rule", delta_rule),
        _form("gated_linear_attention", gated_linear),
        _form("mesa_attention", mesa),
    )
}


def form_name(name: str) -> str:
    """The form's full name; the name of its file will do.

    >>> form_name("softmax"), form_name("sigma-intention")
    ('softmax_attention', 'sigma_intention')
    """
    files = {file_name(full): full for full in FORMS}
    wanted = name.lower().replace("-", "_")
    if wanted not in FORMS:
        check_word("form", wanted, files)
    return files.get(wanted, wanted)


def file_name(name: str) -> str:
    """The name of the form's file: short, and enough to know it by.

    >>> file_name("softmax_attention")
    'softmax'
    """
    return FORMS[name].module.__name__.rpartition(".")[2]


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


def requested_implementation() -> str | None:
    """What :func:`use_implementation` asks for, here and now.

    >>> with use_implementation("reference"):
    ...     requested_implementation()
    'reference'
    """
    return _requested.get()


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
    form = FORMS[name]
    best = _quick_way(form, options["implementation"])
    if best is not None and best.quick is not None:
        out = best.quick(q, k, v, options)
        if out is not None:
            return out
    out, state, _ = _long_way(form, q, k, v, options)
    if options["out"] is not None:
        out = _write(out, options["out"])
    return out if state is None else (out, state)


def differentiable_call(name: str, q: Array, k: Array, v: Array, options: dict[str, Any]) -> tuple[Any, Pullback]:
    """Evaluate a form, and return with the result the function that carries its gradient back.

    The result is the caller's to write into (``out -= target``): the pullback keeps one of its own.
    """
    form = FORMS[name]
    best = _quick_way(form, options["implementation"])
    if best is not None and best.quick_vjp is not None:
        done = best.quick_vjp(q, k, v, options)
        if done is not None:
            out, quick_pullback = done
            again = options | {"implementation": best.name, "out": None}

            def pullback(dout: Any) -> Grads:
                return quick_pullback(dout) or _long_way(form, q, k, v, again)[2](dout)

            return out, pullback
    out, state, long_pullback = _long_way(form, q, k, v, options, is_differentiated=True)
    out = _copy(out) if options["out"] is None else _write(out, options["out"])
    return out if state is None else (out, state), long_pullback


def _quick_way(form: Form, requested: Any) -> Implementation | None:
    """The best implementation, if it is the one wanted and installed; what is wanted may be any mistake."""
    best = form.implementations[0]
    if requested is None:
        requested = _requested.get()
    is_wanted = requested is None or (isinstance(requested, str) and requested == best.name)
    return best if is_wanted and best.missing is None else None


def _long_way(
    form: Form, q: Array, k: Array, v: Array, options: dict[str, Any], is_differentiated: bool = False
) -> tuple[Array, Any, Pullback]:
    """(out, state, pullback), whatever the arguments; state is None unless it was asked for."""
    given = {name: options.get(name) for name in ("bias", "alpha", "beta", "decay")}
    options = check_call(form.name, q, k, v, options)
    implementation = choose(form, q, options.pop("implementation"))

    returns_state = options.pop("output_final_state", False)
    inputs = Inputs(q, k, v, *(options.pop(name, None) for name in ("mask", "bias", "beta", "decay")))
    numbers = {"alpha": options.get("alpha"), "beta": inputs.beta, "decay": inputs.decay}
    into = options.pop("out")
    if into is not None and is_differentiated:
        inputs = Inputs(*(_apart(x, into) for x in inputs))
        options = {name: _apart(x, into) for name, x in options.items()}
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
        regresses=GRID[form.name].query == "preconditioned",
    )
    if not nonfinite.inputs_finite(inputs, implementation.all_finite):
        inputs, quarantine = isolate(inputs)
    inputs = _without_unseen_keys(inputs)

    options |= {name: getattr(inputs, name) for name in ("bias", "beta", "decay") if name in form.options}
    out, saved = implementation.forward(inputs.q, inputs.k, inputs.v, mask=inputs.mask, **options)
    state = None
    if returns_state and implementation.final_state is not None:
        state = implementation.final_state(saved, initial_state)
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
        return _to_given(grads, q, k, v, given, numbers, initial_state)

    return out, state, pullback


def _write(out: Array, into: Array) -> Array:
    into[...] = out
    return into


def _copy(x: Array) -> Array:
    return kernels.copy(x) if is_numpy(x) else 1 * x


def _apart(x: Any, into: Array) -> Any:
    """An argument that the pullback can keep: a copy, where writing into ``into`` might change it."""
    if type(x) in STATES.values():
        return map_state(lambda part: _apart(part, into), x)
    return _copy(x) if is_array(x) and may_overlap(x, into) else x


def _to_given(
    grads: Grads, q: Array, k: Array, v: Array, given: dict[str, Any], numbers: dict[str, Any], state: Any
) -> Grads:
    """Gradients in the shapes and the dtype of what the caller gave; ``numbers`` has an array for each number given."""

    def like(grad: Array, given: Array) -> Array:
        if (
            given.ndim >= 2 and grad.ndim >= 2 and grad.shape[-2] > given.shape[-2] == 0
        ):  # the hidden key of an empty set of keys
            grad = grad[..., :0, :]
        grad = sum_to_shape(grad, given.shape)
        return grad if grad.dtype == given.dtype else _narrow(grad, given)

    bias = given["bias"]
    if bias is not None and 0 in bias.shape:
        grads = grads._replace(bias=namespace(bias).zeros_like(bias))

    def like_given(name: str) -> Array | None:
        x = given[name]
        return None if x is None else like(getattr(grads, name), x if is_array(x) else numbers[name])

    return Grads(
        q=like(grads.q, q),
        k=like(grads.k, k),
        v=like(grads.v, v),
        bias=like_given("bias"),
        alpha=like_given("alpha"),
        initial_state=None if state is None else type(state)(*map(like, grads.initial_state or (), state)),
        beta=like_given("beta"),
        decay=like_given("decay"),
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
    per_key = {name: getattr(inputs, name) for name in PER_KEY if getattr(inputs, name) is not None}
    per_key = {name: xp.where(seen, x, xp.ones_like(x)) if x.ndim else x for name, x in per_key.items()}
    return inputs._replace(k=k, v=v, **per_key)


def _with_one_hidden_key(inputs: Inputs) -> Inputs:
    """No keys at all are one key that nobody sees; no form needs to think of an empty sum."""
    q, k, v, mask, bias, *per_key = inputs
    xp, where = namespace(q), device(q)

    def one_row(x: Array) -> Array:
        return xp.zeros((*x.shape[:-2], 1, x.shape[-1]), dtype=x.dtype, device=where)

    hidden = xp.zeros((*(() if mask is None else mask.shape[:-2]), 1, 1), dtype=xp.bool, device=where)
    if bias is not None:
        bias = xp.zeros((*bias.shape[:-1], 1), dtype=bias.dtype, device=where)
    per_key = [one_row(x) if x is not None and x.ndim else x for x in per_key]
    return Inputs(q, one_row(k), one_row(v), hidden, bias, *per_key)
