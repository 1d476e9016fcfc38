"""The function under test: how to call it, whatever its library, layout and keyword names are.

A target answers with NumPy arrays in this package's conventions, so that a law
is written once: q (..., Tq, d), k (..., Tk, d), v (..., Tk, dv), options as in :mod:`kvq_ref`.
"""

from __future__ import annotations

import contextvars
import inspect
import re
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kvq_ref.dispatch import FORMS, form_name
from kvq_ref.testing.calls import F64, OPTIONAL, PER_KEY, SIMPLE, Call, calls
from kvq_ref.testing.frameworks import FRAMEWORKS, DetachedError
from kvq_ref.testing.load import described, innermost
from kvq_ref.testing.rounding import ROUNDOFF, Rounding, representable, rounding

LAYOUTS = ("any", "bhtd", "bthd", "packed")

# Names under which kernels in use take an option.
ALIASES: Mapping[str, Sequence[str]] = {
    "mask": ("mask", "attn_mask", "attention_mask", "key_mask"),
    "bias": ("bias", "attn_bias", "attention_bias"),
    "is_causal": ("is_causal", "causal"),
    "scale": ("scale", "sm_scale", "softmax_scale"),
    "offset": ("offset", "sigmoid_bias"),
    "alpha": ("alpha", "ridge", "lam", "lamb"),
    "feature_map": ("feature_map",),
    "normalize": ("normalize",),
    "beta": ("beta",),
    "decay": ("decay",),
}
STATE = ("initial_state", "output_final_state")
# Every length another, so that arrays that are mixed up do not fit by chance.
FEW_SIZES = ((3, 5, 4, 2), (1, 1, 1, 1), (4, 4, 2, 3), (1, 6, 3, 1), (5, 2, 4, 3), (2, 2, 1, 2), (3, 3, 3, 3))


class MisbehavedError(Exception):
    """What the target did instead of returning an array as it should; ``kind`` is one word for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class HungError(BaseException):
    """The target did not return in time. No law can go on, so nothing may catch it as an ordinary error."""


class Target:
    """A callable, with all that is needed to hold it to the laws of a form.

    Parameters
    ----------
    function : callable
        ``function(q, k, v, **options)``.
    form : str
        A name in ``kvq_ref.dispatch.FORMS``, or the name of its file: "softmax", "linear", ...
    framework : {"numpy", "torch", "jax", "cupy"}
        Whose arrays it takes.
    layout : {"any", "bhtd", "bthd", "packed"}
        "any": (..., T, d), whatever stands before; "bhtd": exactly (B, H, T, d); "bthd": (B, T, H, d);
        "packed": one array (B, T, 3, H, d) of q, k and v.
    device : str, optional
        Such as "cuda"; by default the library's own default.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Of the arrays.
    rename : mapping of str to str, optional
        Its keyword for an option: ``{"mask": "attn_mask"}``. The usual names are known.
    drop : collection of str
        Options that it is not to be given.
    assume : mapping, optional
        Options that it always has, and does not take: ``{"is_causal": True}``.
    backward : callable, optional
        ``backward(dout, q, k, v, **options)`` giving dq, dk, dv, as a tuple or by name. By default
        gradients come from the library's own differentiation, where it has one.
    gradient : bool
        Whether it has a gradient at all.
    limit : float
        Seconds that one call may take.
    on_call : callable, optional
        Called with each :class:`Call` before the target is.

    Raises
    ------
    ValueError
        An unknown form, framework, layout or dtype; a framework that is not installed; a device that is not there.

    Examples
    --------
    >>> def attention(queries, keys, values, attn_mask=None, causal=False): ...
    >>> sorted(Target(attention, "softmax").names.items())
    [('is_causal', 'causal'), ('mask', 'attn_mask')]
    """

    def __init__(
        self,
        function: Callable[..., Any],
        form: str,
        *,
        framework: str = "numpy",
        layout: str = "any",
        device: str | None = None,
        dtype: str = "float32",
        rename: Mapping[str, str] | None = None,
        drop: Collection[str] = (),
        assume: Mapping[str, Any] | None = None,
        backward: Callable[..., Any] | None = None,
        gradient: bool = True,
        limit: float = 30.0,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(f"target: expected a callable, got {type(function).__name__}")
        self.function = function
        self.form = form_name(form)
        self.framework = FRAMEWORKS[_one_of("framework", framework, FRAMEWORKS)]()
        self.layout = _one_of("layout", layout, LAYOUTS)
        self.dtype = _one_of("dtype", dtype, ROUNDOFF)
        self.device = device
        self.assume = dict(assume or {})
        self.backward = backward
        self.limit = limit
        self.on_call = on_call
        self.latest: Call | None = None  # what it was last asked
        try:
            self.framework.make(np.zeros(1), dtype, device)  # what cannot be made is said here
        except ValueError:
            raise
        except Exception as error:
            where = device or "the default device"
            raise ValueError(f"device: no {dtype} array on {where}: {type(error).__name__}: {error}") from error
        self.names = _keywords(function, self.form, rename or {}, frozenset(drop) | set(self.assume))
        self.not_together: set[tuple[str, str]] = set()
        self.same_lengths = self.same_widths = layout == "packed"  # whether Tq = Tk, and d = dv, or it refuses
        self.has_gradient = gradient and (backward is not None or self.framework.vjp is not None)
        self._worker = _Worker()

    # ---- What it can do --------------------------------------------------------------

    @property
    def accepts(self) -> frozenset[str]:
        """Options that it can be given."""
        return frozenset(self.names) - set(STATE)

    @property
    def offers(self) -> frozenset[str]:
        """What a law may need: options that it can be given, and what :data:`kvq_ref.testing.laws.law.OFFERS` names."""
        more = {
            "gradient": self.has_gradient,
            "state": set(STATE) <= set(self.names),
            "causal": "is_causal" in self.accepts or bool(self.assume.get("is_causal")),
            "keys apart": not self.same_lengths,
            "widths apart": not self.same_widths,
            "broadcasting": self.layout == "any",
        }
        return self.accepts | {name for name, is_offered in more.items() if is_offered}

    def calls(self, **restrictions: Any) -> st.SearchStrategy[Call]:
        """Random calls that this target can be given."""
        few: Any = FEW_SIZES if self.framework.compiles else None
        if self.layout == "any":
            leading: Any = ((), (2,)) if few else ((), (2,), (2, 1))
        else:
            leading = ((1, 1), (2, 2)) if few else ((1, 1), (2, 1), (1, 2), (2, 2))
        if self.layout == "packed":  # one array for all: their sizes agree
            few = tuple((t, t, d, d) for t in (1, 2, 4, 7) for d in (1, 3, 4))
        drawn = calls(
            self.form,
            self.accepts,
            assumed=self.assume,
            leading=leading,
            sizes=few,
            without=frozenset(self.not_together),
            **{
                **restrictions,
                "square": self.same_lengths or restrictions.get("square", False),
                "same_widths": self.same_widths,
            },
        )
        return drawn.map(self.representable)

    def representable(self, call: Call) -> Call:
        """The call with arrays that the dtype holds exactly: nothing is lost before the target is asked."""
        arrays = {name: representable(x, self.dtype) for name, x in call.arrays.items() if name != "alpha"}
        return call.but(**arrays)

    def rounding(self, call: Call, dout: F64 | None = None) -> Rounding:
        return rounding(self.form, call, self.dtype, dout)

    # ---- Asking it -------------------------------------------------------------------

    def __call__(self, call: Call) -> F64:
        """The output, as float64 in NumPy.

        Raises
        ------
        MisbehavedError
            The target raised, or what it returned is not an array of the right kind, shape and dtype.
        HungError
            It did not return within the limit.
        """
        out, _ = self.ask(call)
        return self._read(out, self._shape(call), "output")

    def ask(self, call: Call) -> tuple[Any, dict[str, Any]]:
        """What the target returns, as it is, and the arrays that it was given."""
        arrays, options = self._arguments(call)
        return self._run(partial(self._apply, arrays, options)), arrays

    def arrays(self, call: Call) -> dict[str, Any]:
        """The arrays of a call as the target is given them."""
        return self._arguments(call)[0]

    def gradients(self, call: Call, dout: F64) -> dict[str, F64]:
        """Gradients of sum(dout * out) by name: "q", "k", "v", and "bias", "alpha", ... where they are differentiable.

        Raises
        ------
        MisbehavedError, HungError
            As for a call; also if no gradient comes back.
        """
        arrays, options = self._arguments(call)
        cotangent = self._array(self._into_layout(dout))
        if self.backward is not None:
            given = self._run(lambda: self.backward(cotangent, *arrays.values(), **self._named(options)))  # type: ignore[misc]
            if not isinstance(given, Mapping):
                fields = getattr(given, "_asdict", None)
                if fields is None and not isinstance(given, tuple | list):
                    what = f"returned {type(given).__name__} from its backward"
                    raise MisbehavedError("type", f"{what}, expected a tuple, or a mapping by name")
                given = fields() if fields else dict(zip(arrays, given, strict=False))
            grads = {name: g for name, g in given.items() if g is not None}
        else:
            assert self.framework.vjp is not None
            own = [name for name in ("bias", *PER_KEY) if name in options]
            arrays |= {name: options.pop(name) for name in own}
            vjp = self.framework.vjp

            def apply(**leaves: Any) -> Any:
                given = {name: leaves.pop(name) for name in own if name in leaves}
                return self._apply(leaves, {**options, **given})

            try:
                _, grads = self._run(lambda: vjp(apply, arrays, cotangent))
            except DetachedError:
                raise MisbehavedError(
                    "no gradient",
                    "the output is detached from its inputs; if it has no gradient at all, say so (--no-gradient)",
                ) from None
        if self.layout == "packed" and "qkv" in grads:
            qkv = self._read(grads.pop("qkv"), None, "gradient")
            grads |= {name: np.moveaxis(qkv[:, :, i], 1, 2) for i, name in enumerate("qkv")}
            return {name: np.asarray(g) for name, g in grads.items()}
        found = {}
        for name, g in grads.items():
            if name in call.arrays:
                shape = call.arrays[name].shape
                found[name] = self._read(g, shape, f"gradient of {name}", in_layout=name in ("q", "k", "v", *PER_KEY))
        missing = {"q", "k", "v"} - set(found)
        if missing:
            raise MisbehavedError("no gradient", f"no gradient came back for {', '.join(sorted(missing))}")
        return found

    def stream(self, pieces: Sequence[Call]) -> list[F64]:
        """Outputs of pieces of one sequence, each given the state that the one before it left."""
        state, outs = None, []
        for piece in pieces:
            arrays, options = self._arguments(piece)
            options["output_final_state"] = True
            if state is not None:
                options["initial_state"] = state
            returned = self._run(partial(self._apply, arrays, options))
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise MisbehavedError(
                    "type", f"expected (out, state) with output_final_state, got {type(returned).__name__}"
                )
            out, state = returned
            outs.append(self._read(out, self._shape(piece), "output"))
        return outs

    def probe(self) -> list[str]:
        """Find which sizes have to agree, and pairs of options that it refuses together; return what it said of them.

        Raises
        ------
        MisbehavedError, HungError
            It cannot be called at all.
        """
        rng = np.random.default_rng(0)
        leading = () if self.layout == "any" else (1, 1)
        alpha = {"alpha": 1.0} if "alpha" in self.accepts else {}
        remarks = []

        def plain_call(same_lengths: bool, same_widths: bool) -> Call:
            Tq, d = 3, 4
            Tk, dv = Tq if same_lengths else 5, d if same_widths else 2
            q, k, v = (rng.choice(SIMPLE, (*leading, *shape)) for shape in ((Tq, d), (Tk, d), (Tk, dv)))
            return Call(q, k, v, {**self.assume, **alpha})

        # Sizes that differ wherever they may: what takes a path of its own for equal ones might refuse nothing there.
        for lengths, widths in ((False, False), (False, True), (True, False), (True, True)):
            if self.same_lengths > lengths or self.same_widths > widths:
                continue
            plain = plain_call(lengths, widths)
            try:
                self(plain)
                break
            except MisbehavedError as error:
                if error.kind != "raised" or (lengths and widths):
                    raise
                refused = error
        if lengths and not self.same_lengths:
            remarks.append(f"it is always given as many keys as queries: the target {refused}")
        if widths and not self.same_widths:
            remarks.append(f"it is always given as many columns of values as of keys: the target {refused}")
        self.same_lengths, self.same_widths = lengths, widths
        Tq, Tk, _, _ = plain.sizes
        some: dict[str, Any] = {
            "mask": np.tri(Tq, Tk, dtype=bool),
            "bias": rng.choice(SIMPLE, (Tq, Tk)),
            "is_causal": True,
        }
        some = {name: x for name, x in some.items() if name in self.accepts}
        for first, second in (("mask", "is_causal"), ("bias", "is_causal"), ("mask", "bias")):
            if not {first, second} <= set(some):
                continue
            if self.names[first] == self.names[second]:
                self.not_together.add((first, second))
                remarks.append(f"{first} and {second} are one argument of the target: never given together")
                continue
            try:
                self(plain.but(**{first: some[first], second: some[second]}))
            except MisbehavedError as error:
                if (
                    error.kind == "raised"
                    and self._takes(plain.but(**{first: some[first]}))
                    and self._takes(plain.but(**{second: some[second]}))
                ):
                    self.not_together.add((first, second))
                    remarks.append(f"{first} and {second} are not given together: the target {error}")
        return remarks

    def _takes(self, call: Call) -> bool:
        try:
            self(call)
        except MisbehavedError:
            return False
        return True

    # ---- Between the conventions -----------------------------------------------------

    def _arguments(self, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays and options as the target takes them, the options by this package's names."""
        self.latest = call
        if self.on_call is not None:
            self.on_call(call)
        options = {}
        for name, x in call.options.items():
            if name in self.assume:
                continue
            if isinstance(x, np.ndarray) and name in PER_KEY:
                x = self._into_layout(x)
            elif isinstance(x, np.ndarray) and name != "alpha" and self.layout != "any":
                x = np.broadcast_to(x, (*call.q.shape[:-1], call.k.shape[-2]))  # most kernels want it whole
            options[name] = self._array(x) if isinstance(x, np.ndarray) else x
        if self.layout == "packed":
            packed = np.stack([np.moveaxis(x, 1, 2) for x in (call.q, call.k, call.v)], axis=2)
            return {"qkv": self._array(packed)}, options
        arrays = {"q": call.q, "k": call.k, "v": call.v}
        return {name: self._array(self._into_layout(x)) for name, x in arrays.items()}, options

    def _into_layout(self, x: F64) -> F64:
        return x if self.layout in ("any", "bhtd") else np.moveaxis(x, 1, 2)

    def _array(self, x: Any) -> Any:
        return self.framework.make(x, self.dtype, self.device)

    def _apply(self, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        return self.function(*arrays.values(), **self._named(options))

    def _named(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {self.names.get(name, name): x for name, x in options.items()}

    def _shape(self, call: Call) -> tuple[int, ...]:
        return (*call.q.shape[:-1], call.v.shape[-1])

    def _read(self, x: Any, shape: tuple[int, ...] | None, what: str, in_layout: bool = True) -> F64:
        try:
            values = self.framework.read(x)
        except (TypeError, ValueError) as error:
            raise MisbehavedError("type", f"returned no usable {what}: {error}") from None
        if self.framework.dtype(x) != self.dtype and what != "gradient of alpha":  # a float has no dtype to keep
            raise MisbehavedError("dtype", f"returned the {what} in {self.framework.dtype(x)}, expected {self.dtype}")
        if shape is None:
            return values
        moved = in_layout and self.layout in ("bthd", "packed")
        expected = (shape[0], shape[2], shape[1], shape[3]) if moved else shape
        if values.shape != tuple(expected):
            raise MisbehavedError("shape", f"returned the {what} in shape {values.shape}, expected {tuple(expected)}")
        return np.moveaxis(values, 1, 2) if moved else values

    def _run(self, function: Callable[[], Any]) -> Any:
        return self._worker.run(function, self.limit)


class _Worker:
    """A thread that calls the target, so that one that never returns can be left behind; it ends with its worker."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._hung = False
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._results: SimpleQueue[_Result] = SimpleQueue()

    def run(self, function: Callable[[], Any], limit: float) -> Any:
        if self._hung:  # its thread is still busy: to wait once more would only take time
            raise HungError("did not return from an earlier call")
        if self._thread is None:
            self._thread = threading.Thread(target=serve, args=(self._jobs, self._results), daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        self._jobs.put((contextvars.copy_context(), function))
        try:
            result, error = self._results.get(timeout=limit)
        except Empty:
            self._hung = True
            raise HungError(f"did not return within {limit:g} s{self._where()}") from None
        if error is None:
            return result
        if isinstance(error, DetachedError | MisbehavedError):
            raise error
        raise MisbehavedError("raised", f"raised {described(error)}") from error

    def _where(self) -> str:
        frames, frame = [], sys._current_frames().get(self._thread.ident or 0) if self._thread else None
        while frame is not None:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        place = innermost(frames[::-1])
        return f", at {place}" if place else ""


_Job = tuple[contextvars.Context, Callable[[], Any]]
_Result = tuple[Any, BaseException | None]


def serve(jobs: SimpleQueue[_Job | None], results: SimpleQueue[_Result]) -> None:
    """Do what is asked for, until that is None."""
    while (job := jobs.get()) is not None:
        context, function = job
        try:
            result: _Result = (context.run(function), None)
        except BaseException as error:  # whatever the target raises is reported, not lost in a thread
            result = (None, error)
        results.put(result)
        del job, context, function, result  # they hold the worker, which would then never be given up


def _one_of(name: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def _keywords(
    function: Callable[..., Any], form: str, rename: Mapping[str, str], drop: Collection[str]
) -> dict[str, str]:
    """The target's keyword for each option that it takes."""
    known = {name for name in OPTIONAL if name in FORMS[form].options} | set(STATE if FORMS[form].has_state else ())
    for given, what in ((rename, "rename"), (drop, "drop")):
        for name in given:
            if name not in (*OPTIONAL, *STATE):
                raise ValueError(f"{what}: expected an option, one of {', '.join(OPTIONAL)}, got {name!r}")
    parameters, takes_any = _parameters(function)
    names = {}
    for name in sorted(known - set(drop)):
        if name in rename:
            names[name] = rename[name]
            continue
        found = next((alias for alias in ALIASES.get(name, (name,)) if alias in parameters), None)
        if found is not None or (takes_any and name not in STATE):
            names[name] = found or name
    if "alpha" in known - set(drop) and "alpha" not in names:
        raise ValueError(
            f"target: {form} needs alpha and no argument of that name was found; rename it, or assume its value"
        )
    return names


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names of the parameters, and whether it takes any keyword. A builtin's come from its docstring's first line."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        first = re.match(r"\s*\w+\((.*)\)", (getattr(function, "__doc__", None) or "").partition("->")[0], re.DOTALL)
        return set(re.findall(r"(\w+)\s*(?:=|,|$|:)", first.group(1))) if first else set(), False
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)
