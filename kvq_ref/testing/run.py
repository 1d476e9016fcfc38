"""Hold a target to one law: draw calls, and shrink the first that breaks it."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from kvq_ref.testing.calls import Call
from kvq_ref.testing.laws.law import Comparison, Law
from kvq_ref.testing.simplify import simplify
from kvq_ref.testing.target import HungError, MisbehavedError, Target


@dataclass(frozen=True)
class Counterexample:
    """The simplest call found that breaks a law, and how.

    Attributes
    ----------
    call : Call
        The arrays and options.
    more : mapping
        What the law draws besides.
    broken : Comparison or None
        The two sides that differ; None if the target misbehaved instead.
    misbehaviour : str
        What it did, in words, and the ``kind`` of it in one.
    asked : Call or None
        What the target was asked last: a law may make another call of the one that was drawn.
    """

    call: Call
    more: Mapping[str, Any]
    broken: Comparison | None = None
    misbehaviour: str = ""
    kind: str = ""
    asked: Call | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of one law.

    Attributes
    ----------
    law : Law
    status : {"holds", "broken", "not checked"}
    why : str
        Why it was not checked.
    examples : int
        Calls that were tried.
    units, limit : float
        The largest error, in units of the best achievable, and how many are allowed; of the
        comparison that came nearest to its limit.
    seconds : float
    counterexample : Counterexample or None
    """

    law: Law
    status: Literal["holds", "broken", "not checked"]
    why: str = ""
    examples: int = 0
    units: float = 0.0
    limit: float = math.inf
    seconds: float = 0.0
    counterexample: Counterexample | None = field(default=None, repr=False)


class _BrokenError(Exception):
    def __init__(self, counterexample: Counterexample) -> None:
        super().__init__()
        self.counterexample = counterexample


def hold_to(law: Law, target: Target, *, examples: int = 50, seed: int = 0, simplest: bool = True) -> Verdict:
    """Check a law on random calls.

    Parameters
    ----------
    law : Law
        What is claimed.
    target : Target
        Of whom.
    examples : int
        How many calls to draw; a law of slow examples draws its share of them.
    seed : int
        The same seed draws the same calls.
    simplest : bool
        Whether to look for the simplest call that breaks the law, or to be content with the first.

    Returns
    -------
    Verdict
        It never raises for what the target does.
    """
    why = law.why_not(target)
    if why is not None:
        return Verdict(law, "not checked", why)
    start = time.perf_counter()
    nearest = (0.0, math.inf)
    tried = 0
    latest: Counterexample | None = None

    def failure(call: Call, more: Mapping[str, Any]) -> Counterexample | None:
        nonlocal nearest, latest
        found = None
        latest = Counterexample(call, more)
        try:
            for comparison in law.check(target, call, **more):
                units, limit = comparison.units, comparison.limit
                if comparison.holds:
                    if units / limit > nearest[0] / nearest[1]:
                        nearest = (units, limit)
                elif found is None:
                    found = Counterexample(call, more, broken=comparison, asked=target.latest)
        except MisbehavedError as error:
            found = Counterexample(call, more, misbehaviour=str(error), kind=error.kind, asked=target.latest)
        return found

    def check(call: Call, more: Mapping[str, Any]) -> None:
        nonlocal tried
        tried += 1
        found = failure(call, more)
        if found is not None:
            raise _BrokenError(found)

    @hypothesis.seed(zlib.crc32(f"{seed} {law.name}".encode()))
    @settings(
        max_examples=max(1, round(examples * law.examples)),
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if simplest else (Phase.generate,),
    )
    @given(call=target.calls(reserved=law.sets, **law.draw), **law.more)
    def property_holds(call: Call, **more: Any) -> None:
        check(call, more)

    def verdict(found: Counterexample | None) -> Verdict:
        units, limit = nearest
        if found is not None and found.broken is not None:
            units, limit = found.broken.units, found.broken.limit
        status: Literal["holds", "broken"] = "holds" if found is None else "broken"
        return Verdict(law, status, "", tried, units, limit, time.perf_counter() - start, found)

    try:
        property_holds()
    except _BrokenError as error:
        first = error.counterexample
        return verdict(_simplest(first, failure, law, target) if simplest else first)
    except HungError as error:
        assert latest is not None
        return verdict(Counterexample(latest.call, latest.more, misbehaviour=str(error), kind="hung"))
    except hypothesis.errors.Flaky as error:
        # It broke the law, and held to it when asked again.
        found = _first_broken(error)
        if found is None:
            raise
        text = "the same call broke the law once and kept it another time: the target is not deterministic"
        return verdict(Counterexample(found.call, found.more, found.broken, text, "flaky"))
    except hypothesis.errors.Unsatisfiable:
        return Verdict(law, "not checked", "no call of the kind that it is about can be given to the target")
    return verdict(None)


def _simplest(
    found: Counterexample,
    failure: Callable[[Call, Mapping[str, Any]], Counterexample | None],
    law: Law,
    target: Target,
) -> Counterexample:
    """A smaller counterexample of the same kind. Sizes that the law relies on stay."""
    simplest = found

    def breaks(call: Call) -> bool:
        nonlocal simplest
        if (law.draw.get("causal") and not call.is_causal) or any(call.get(n) != x for n, x in target.assume.items()):
            return False
        try:
            with warnings.catch_warnings():  # the law's assumptions are meant to be used inside of a test
                warnings.simplefilter("ignore", hypothesis.errors.HypothesisDeprecationWarning)
                other = failure(call, found.more)
        except (HungError, hypothesis.errors.UnsatisfiedAssumption, ValueError, IndexError):
            return False  # the law is not about such a call
        if other is None or other.kind != found.kind:
            return False
        simplest = other
        return True

    rows = not target.same_lengths and not law.draw.get("square") and not found.more
    simplify(found.call, breaks, rows=rows, columns=not target.same_widths)
    return simplest


def _first_broken(error: BaseException) -> Counterexample | None:
    for inner in getattr(error, "exceptions", ()):
        if isinstance(inner, _BrokenError):
            return inner.counterexample
        found = _first_broken(inner)
        if found is not None:
            return found
    return None
