"""The first laws: it can be called, it computes the form, and its gradient is the form's gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvq_ref.testing.calls import F64, SIMPLE, Call
from kvq_ref.testing.laws.dense import PHI, reference_gradients, scores
from kvq_ref.testing.laws.law import MAY_VANISH, Comparison, law, suppose
from kvq_ref.testing.oracles import ORACLES
from kvq_ref.testing.target import MisbehavedError, Target


def oracle(form: str, call: Call) -> F64:
    """The output by loops over the definition, in float64."""
    options = dict(call.options)
    if "feature_map" in options:
        phi = PHI[options.pop("feature_map")]
        options["phi"] = lambda x: float(phi(np.asarray(x)))
    return ORACLES[form](call.q, call.k, call.v, **options)


@law(
    r"f:\ (Q, K, V) \mapsto O \in \mathbb{R}^{\ldots \times T_q \times d_v}",
    tolerance="exact",
    hint="the target changes its inputs, or hands back a view of one of them or a workspace that it uses again",
)
def conduct(target: Target, call: Call) -> Iterator[Comparison]:
    """A call returns a new array of shape (..., Tq, dv) in the dtype of its arguments, which stay as they were."""
    out, given = target.ask(call)
    at_first = target.framework.read(out)
    target(call.but(v=-call.v))
    yield Comparison("the output, after another call", target.framework.read(out), at_first)
    fresh = target.arrays(call)
    for name, x in given.items():
        before, after = target.framework.read(fresh[name]), target.framework.read(x)
        yield Comparison(f"{name} after the call, against {name} before", after, before)
        if target.framework.shares(out, x):
            raise MisbehavedError("view", f"returned an output that shares memory with {name}")


@law(r"O = \text{definition}(Q, K, V)")
def definition(target: Target, call: Call) -> Iterator[Comparison]:
    """The output is that of the form's definition, evaluated in loops and in float64."""
    bound = target.rounding(call)
    yield Comparison("output", target(call), oracle(target.form, call), bound.unit["out"], bound.limit["out"])


@law(
    r"\langle \bar O, O \rangle' = \langle \bar Q, \dot Q \rangle + \langle \bar K, \dot K \rangle"
    r" + \langle \bar V, \dot V \rangle",
    needs={"gradient"},
    hint="a term of the gradient is missing, or has a wrong sign or factor",
)
def gradient_is_the_derivative(target: Target, call: Call) -> Iterator[Comparison]:
    """Along a random direction, and under a random gradient from above, the gradients give the definition's derivative.

    The derivative is a difference of order six of the loops, in float64: its error
    is about 1e-11 of the sizes involved. It asks for a smooth function: so feature
    maps stay clear of their corner at 0, and a query of a form whose rows may vanish of
    the point where it is orthogonal to all its keys. How fast the scores would get there
    sets the step.
    """
    if call.get("feature_map"):
        call = target.representable(
            call.but(q=call.q + np.copysign(0.0625, call.q), k=call.k + np.copysign(0.0625, call.k))
        )
    if target.form in MAY_VANISH:
        z = scores(target.form, call)
        suppose(bool((np.max(np.abs(z), axis=-1, initial=0.0, where=call.visible()) > 0.02).all()))
    rng = call.rng()
    dout = target.representable(Call(call.dout(), call.k, call.v)).q
    directions = {name: rng.choice(SIMPLE, np.shape(x)) for name, x in call.arrays.items()}
    grads = target.gradients(call, dout)
    unit = target.rounding(call, dout)
    directions = {name: x for name, x in directions.items() if name in grads}

    def along(t: float) -> Call:
        return call.but(**{name: call.arrays[name] + t * x for name, x in directions.items()})

    def moved(t: float) -> float:
        return float(np.sum(dout * oracle(target.form, along(t))))

    h = 1e-4
    if target.form in MAY_VANISH:
        # z^2 over a sum of such squares has its poles about as far off as the largest score is from 0.
        rate = np.abs(scores(target.form, along(h)) - scores(target.form, along(-h))) / (2 * h)
        fastest, largest = (np.max(x, axis=-1, initial=0.0, where=call.visible()) for x in (rate, np.abs(z)))
        h = min(h, 0.0015 * float(np.min(largest / np.maximum(fastest, 1e-9))))
    near, mid, far = (moved(n * h) - moved(-n * h) for n in (1, 2, 3))
    derivative = (45 * near - 9 * mid + far) / (60 * h)
    got = sum(float(np.sum(grads[name] * x)) for name, x in directions.items())
    allowed = sum(float(np.sum(unit.unit[name] * np.abs(x))) for name, x in directions.items())
    size = 1 + float(np.sum(np.abs(dout)) * np.max(np.abs(oracle(target.form, call)), initial=0.0))
    noise = 1e-9 * size / max(unit.limit.values())
    yield Comparison(
        "derivative along a direction", np.array(got), np.array(derivative), allowed + noise, unit.limit["q"]
    )


@law(r"\bar Q, \bar K, \bar V = \nabla \langle \bar O, O(Q, K, V) \rangle", needs={"gradient"})
def gradients(target: Target, call: Call) -> Iterator[Comparison]:
    """Entry by entry, under a random gradient from above, the gradients are the readable form's in float64."""
    dout = target.representable(Call(call.dout(), call.k, call.v)).q
    expected = reference_gradients(target.form, call, dout)
    bound = target.rounding(call, dout)
    for name, got in target.gradients(call, dout).items():
        yield Comparison(f"gradient of {name}", got, expected[name], bound.unit[name], bound.limit[name])


@law(r"f(x), f(y), f(x):\quad \text{first} = \text{third}", hint="something is kept from one call to the next")
def a_call_remembers_nothing(target: Target, call: Call) -> Iterator[Comparison]:
    """The same call gives the same output and gradients, whatever was called in between."""
    other = call.but(q=2 * call.q[..., ::-1, :], k=-call.k, v=call.v + 1)
    other = target.representable(other)
    dout = target.representable(Call(call.dout(), call.k, call.v)).q
    bound = target.rounding(call, dout)
    first = target(call)
    target(other)
    yield Comparison("output of a repeated call", target(call), first, bound.unit["out"], bound.limit["out"])
    if target.has_gradient:
        before = target.gradients(call, dout)
        target.gradients(other, dout)
        for name, again in target.gradients(call, dout).items():
            unit, limit = bound.unit[name], bound.limit[name]
            yield Comparison(f"gradient of {name} of a repeated call", again, before[name], unit, limit)


DEFINITION = (conduct, definition, gradients, gradient_is_the_derivative, a_call_remembers_nothing)
