"""Hold somebody's attention to all the laws of its form: :func:`verify`, or :func:`suite` for pytest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from kvq_ref.testing.causes import likely_cause
from kvq_ref.testing.laws import LAWS, Law
from kvq_ref.testing.report import Finding, Report, finding
from kvq_ref.testing.run import Verdict, hold_to
from kvq_ref.testing.target import HungError, MisbehavedError, Target

EXAMPLES = 50


def verify(
    function: Callable[..., Any],
    form: str,
    *,
    examples: int = EXAMPLES,
    seed: int | None = None,
    strict: bool = False,
    laws: Collection[str] = (),
    except_for: Collection[str] = (),
    on_finding: Callable[[Finding], None] | None = None,
    **how: Any,
) -> Report:
    """Hold a function to the laws of a form.

    Parameters
    ----------
    function : callable
        ``function(q, k, v, **options)``, with arrays of any library.
    form : str
        Which form it claims to be: "softmax", "expressive", "linear", "intention", ...
    examples : int
        Calls drawn for each law.
    seed : int, optional
        The same seed draws the same calls; by default a new one, which the report holds.
    strict : bool
        Whether to ask for what this package promises and many sound kernels do not: that NaN and
        infinity behind a mask do not leak.
    laws : collection of str
        Names of the laws to check, by default all.
    except_for : collection of str
        Names of laws that the function does not claim to obey.
    on_finding : callable, optional
        Called with each finding as it comes.
    **how
        How to call it: ``framework``, ``layout``, ``device``, ``dtype``, ``rename``, ``drop``,
        ``assume``, ``backward``, ``gradient``, ``limit``; see :class:`kvq_ref.testing.Target`.

    Returns
    -------
    Report
        ``report.status`` is 0 if all laws hold, 1 if one is broken and 2 if the function could not be used.

    Raises
    ------
    ValueError
        An argument of this function is wrong. Nothing that ``function`` does raises.

    Notes
    -----
    Time: some milliseconds for each example of each law, and what the function itself takes.

    Examples
    --------
    >>> import numpy as np
    >>> def mine(q, k, v):
    ...     w = np.exp(q @ np.swapaxes(k, -1, -2))  # the scale is forgotten
    ...     return (w / w.sum(-1, keepdims=True)) @ v
    >>> report = verify(mine, "softmax", dtype="float64", examples=10, seed=0)
    >>> report.status, "definition" in [x.law for x in report.broken]
    (1, True)
    """
    chosen = select(laws, except_for)
    target = Target(function, form, **how)
    seed = secrets.randbelow(2**32) if seed is None else seed
    start = time.perf_counter()
    report = Report(
        target=getattr(function, "__qualname__", type(function).__name__),
        form=target.form,
        framework=target.framework.name,
        layout=target.layout,
        device=target.device or "",
        dtype=target.dtype,
        seed=seed,
        examples=examples,
        strict=strict,
        options=sorted(target.accepts),
    )
    try:
        remarks = target.probe()
    except (MisbehavedError, HungError) as error:
        return replace(report, unusable=f"the target {error}", seconds=time.perf_counter() - start)
    findings = []
    for verdict in verdicts(target, chosen, except_for, examples=examples, seed=seed, strict=strict):
        cause = likely_cause(target, verdict) if verdict.status == "broken" else ""
        findings.append(finding(verdict, target, cause))
        if on_finding is not None:
            on_finding(findings[-1])
    return replace(report, remarks=remarks, findings=findings, seconds=time.perf_counter() - start)


def verdicts(
    target: Target, laws: Collection[Law], except_for: Collection[str], *, examples: int, seed: int, strict: bool
) -> Iterator[Verdict]:
    """One verdict a law; after the target has hung, no further law is tried."""
    hung = False
    for law in laws:
        if law.name in except_for:
            yield Verdict(law, "not checked", "exempted")
        elif law.strict and not strict:
            yield Verdict(law, "not checked", "asked for with strict only")
        elif hung:
            yield Verdict(law, "not checked", "the target hung before")
        else:
            verdict = hold_to(law, target, examples=examples, seed=seed)
            hung = verdict.counterexample is not None and verdict.counterexample.kind == "hung"
            yield verdict


def select(laws: Collection[str], except_for: Collection[str]) -> list[Law]:
    """The laws of these names, or all; names may have underscores for spaces."""
    known = {law.name: law for law in LAWS}
    for name in (*laws, *except_for):
        if name not in known:
            raise ValueError(f"laws: expected one of {', '.join(map(repr, known))}, got {name!r}")
    return [law for law in LAWS if not laws or law.name in laws]


def suite(
    function: Callable[..., Any],
    form: str,
    *,
    examples: int = EXAMPLES,
    seed: int | None = None,
    strict: bool = False,
    except_for: Collection[str] = (),
    **how: Any,
) -> type:
    """A class of pytest tests, one for each law: ``TestMine = suite(my_attention, form="softmax")``.

    Parameters
    ----------
    function, form, examples, seed, strict, except_for, **how
        As for :func:`verify`.

    Returns
    -------
    type
        A class with a method ``test_...`` for each law of the form. A broken law fails with its statement,
        the simplest counterexample and the likely cause; a law that says nothing about the function is skipped.

    Examples
    --------
    >>> import kvq_ref as kvq
    >>> TestMine = suite(kvq.softmax_attention, form="softmax")
    >>> hasattr(TestMine, "test_definition")
    True
    """
    import pytest

    from kvq_ref.testing.render import explain

    target = Target(function, form, **how)
    seed = secrets.randbelow(2**32) if seed is None else seed
    probed: list[str] = []

    def method(law: Law) -> Callable[[Any], None]:
        def test(self: Any) -> None:
            if not probed:
                try:
                    probed.extend(["probed", *target.probe()])
                except (MisbehavedError, HungError) as error:
                    pytest.fail(f"the target {error}", pytrace=False)
            (verdict,) = verdicts(target, [law], except_for, examples=examples, seed=seed, strict=strict)
            if verdict.status == "not checked":
                pytest.skip(verdict.why)
            if verdict.status == "broken":
                cause = likely_cause(target, verdict)
                pytest.fail(f"{explain(finding(verdict, target, cause))}\nseed={seed}", pytrace=False)

        test.__doc__ = law.statement
        return test

    laws = [law for law in LAWS if target.form in law.forms and (strict or not law.strict)]
    return type("TestLaws", (), {f"test_{law.name.replace(' ', '_')}": method(law) for law in laws})
