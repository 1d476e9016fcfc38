"""What a law is: a statement that is data, and a check that compares numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis.errors import UnsatisfiedAssumption

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64

if TYPE_CHECKING:
    from kvq_ref.testing.target import Target

EVERY = frozenset(FORMS)
# By what is made of a query, of a score and of a row,
LEAST_SQUARES = frozenset(name for name in FORMS if GRID[name].query == "preconditioned")
PLAIN = frozenset(name for name in FORMS if GRID[name].query == "plain")
WEIGHTED_MEANS = frozenset(name for name in FORMS if GRID[name].row == "mean")
SEQUENTIAL = frozenset(name for name, form in FORMS.items() if form.is_sequential)
SUMS = frozenset(name for name in FORMS if GRID[name].row == "sum") - SEQUENTIAL  # steps do not add up in any order
LINES = frozenset(name for name in FORMS if GRID[name].row == "line")
MAY_VANISH = frozenset(name for name in FORMS if GRID[name].may_vanish)
# and by what can be given.
BIASED = frozenset(name for name, form in FORMS.items() if "bias" in form.options)
WITH_ALPHA = frozenset(name for name, form in FORMS.items() if "alpha" in form.options)
SCALED = frozenset(name for name, form in FORMS.items() if "scale" in form.options)
STATEFUL = frozenset(name for name, form in FORMS.items() if form.has_state)

# What a target may offer besides options that it takes, and what is said where it does not.
OFFERS: Mapping[str, str] = {
    "gradient": "the target has no gradient",
    "state": "the target has no state",
    "causal": "the target is never causal",
    "keys apart": "the target takes as many keys as queries",
    "widths apart": "the target takes as many columns of values as of keys",
    "broadcasting": "the target's leading axes are fixed",
}


@dataclass(frozen=True)
class Comparison:
    """What a law compares: two arrays, and how far apart they may be.

    Attributes
    ----------
    what : str
        In words, such as "the gradient of k".
    got, expected : array of float64
        The two sides, of one shape.
    unit : array, broadcasts to that shape
        The best achievable rounding error; see :mod:`kvq_ref.testing.rounding`.
    limit : float
        How many units apart they may be.
    """

    what: str
    got: F64
    expected: F64
    unit: Any = 0.0
    limit: float = 1.0

    @property
    def error(self) -> F64:
        """The distance, entry by entry: infinite where one side alone is NaN, or they are different infinities."""
        got, expected = np.broadcast_arrays(self.got, self.expected)
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(got - expected)
        return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))

    @property
    def units(self) -> float:
        """The largest error, in units: 0 where both sides are equal, infinite where no error is allowed."""
        error, unit = np.broadcast_arrays(self.error, self.unit)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.max(np.where(error == 0, 0.0, error / unit), initial=0.0))

    @property
    def holds(self) -> bool:
        return self.units <= self.limit


Check = Callable[..., Iterable[Comparison]]


def suppose(condition: object) -> None:
    """Pass over a call that a law is not about; unlike ``hypothesis.assume`` also where no test draws it."""
    if not condition:
        raise UnsatisfiedAssumption


@dataclass(frozen=True)
class Law:
    """A statement about attention that a correct implementation obeys.

    Attributes
    ----------
    name : str
        Short, as in "order of keys".
    statement : str
        One sentence.
    latex : str
        The same as a formula.
    check : callable
        From a target, a call and what ``more`` draws, to comparisons. Its docstring
        holds the statement and, where it needs one, the proof.
    forms : frozenset of str
        The forms that obey it.
    needs : frozenset of str
        What the target must offer; see :data:`OFFERS`.
    sets : frozenset of str
        Options that the check gives by itself. They are needed too, and no option is drawn that
        the target cannot be given beside them.
    draw : mapping
        Restrictions of the calls; see :func:`kvq_ref.testing.calls.calls`.
    more : mapping of str to strategy
        What is drawn besides the call.
    strict : bool
        A promise of this package that many sound implementations do not make:
        checked only where it is asked for.
    tolerance : {"rounding", "exact"}
        Whether both sides may differ by the rounding of :mod:`kvq_ref.testing.rounding`, or in no bit.
    hint : str
        The usual cause where it is broken.
    examples : float
        Its share of the examples: below 1 where each is slow.

    Examples
    --------
    >>> from kvq_ref.testing import LAWS
    >>> LAWS[1].name, LAWS[1].statement
    ('definition', "The output is that of the form's definition, evaluated in loops and in float64.")
    """

    name: str
    statement: str
    latex: str
    check: Check
    forms: frozenset[str] = EVERY
    needs: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    draw: Mapping[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    strict: bool = False
    tolerance: str = "rounding"
    hint: str = ""
    examples: float = 1.0

    def why_not(self, target: Target) -> str | None:
        """Why this law says nothing about a target; None if it does."""
        if target.form not in self.forms:
            return f"not a law of {target.form}"
        missing = sorted((self.needs | self.sets) - target.offers)
        if missing:
            return "; ".join(OFFERS.get(name, f"the target does not take {name}") for name in missing)
        for first, second in sorted(target.not_together):
            if {first, second} <= self.sets:
                return f"the target does not take {first} and {second} together"
        if target.assume.get("is_causal") and self.draw.get("causal") is False:
            return "the target is always causal"
        if target.assume.get("feature_map") and not self.draw.get("features", True):
            return "the target always has a feature map"
        return None


def law(latex: str, **properties: Any) -> Callable[[Check], Law]:
    """Make a law of a check: its name is the function's, its statement the first paragraph of the docstring.

    >>> @law("1 = 1")
    ... def a_small_law(target, call):
    ...     '''One is one.'''
    ...     return [Comparison("one", np.ones(1), np.ones(1))]
    >>> a_small_law.name, a_small_law.statement
    ('a small law', 'One is one.')
    """

    def make(check: Check) -> Law:
        statement = inspect.cleandoc(check.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        for name in ("needs", "forms", "sets"):
            if name in properties:
                properties[name] = frozenset(properties[name])
        return Law(check.__name__.replace("_", " "), statement, latex, check, **properties)

    return make
