"""Hold somebody's attention to all the laws of its form: :func:`verify`, or :func:`suite` for pytest."""

from __future__ import annotations

import difflib
import os
import secrets
import time
import zlib
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
    on_start: Callable[[Report], None] | None = None,
    on_law: Callable[[str], None] | None = None,
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
        Names of the laws to check, by default all of the form.
    except_for : collection of str
        Names of laws that the function does not claim to obey.
    on_start : callable, optional
        Called once the function is known to be usable, with the report so far.
    on_law : callable, optional
        Called with the name of each law before it is checked.
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
    target = Target(function, form, **how)
    chosen = select(target.form, laws, except_for)
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
        hint = "; if it should, ask for that dtype" if getattr(error, "kind", "") == "dtype" else ""
        return replace(report, unusable=f"the target {error}{hint}", seconds=time.perf_counter() - start)
    report = replace(report, remarks=remarks)
    if on_start is not None:
        on_start(report)
    findings = []
    for verdict in verdicts(target, chosen, except_for, examples=examples, seed=seed, strict=strict, on_law=on_law):
        findings.append(finding(verdict, target, _cause(target, verdict)))
        if on_finding is not None:
            on_finding(findings[-1])
    report = replace(report, findings=findings, seconds=time.perf_counter() - start)
    if not report.checked:  # to say that all laws hold would be wrong
        return replace(report, unusable="none of the laws that were asked for could be checked")
    return report


def verdicts(
    target: Target,
    laws: Collection[Law],
    except_for: Collection[str],
    *,
    examples: int,
    seed: int,
    strict: bool,
    on_law: Callable[[str], None] | None = None,
) -> Iterator[Verdict]:
    """One verdict a law; after the target has hung, no further law is tried."""
    hung = False
    for law in laws:
        why = why_not(law, except_for, strict) or ("the target hung before" if hung else "")
        if why:
            yield Verdict(law, "not checked", why)
            continue
        if on_law is not None:
            on_law(law.name)
        verdict = hold_to(law, target, examples=examples, seed=seed)
        hung = verdict.counterexample is not None and verdict.counterexample.kind == "hung"
        yield verdict


def why_not(law: Law, except_for: Collection[str], strict: bool) -> str:
    """Why a law is not asked for; empty if it is."""
    if law.name in map(_spaced, except_for):
        return "exempted"
    return "asked for with strict only" if law.strict and not strict else ""


def select(form: str, laws: Collection[str] = (), except_for: Collection[str] = ()) -> list[Law]:
    """The laws of these names, or all of the form; names may have underscores for spaces.

    >>> [law.name for law in select("softmax_attention", ["a_call_remembers_nothing"])]
    ['a call remembers nothing']
    """
    known = [law.name for law in LAWS]
    for name in map(_spaced, (*laws, *except_for)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"laws: there is none of the name {name!r}{hint}")
    return [law for law in LAWS if (law.name in map(_spaced, laws) if laws else form in law.forms)]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _cause(target: Target, verdict: Verdict) -> str:
    """The likely cause of a broken law. Looking for it calls the target, which may do anything once more."""
    found = verdict.counterexample
    if found is None or found.kind == "hung":  # it cannot be asked again
        return ""
    try:
        return likely_cause(target, verdict)
    except (MisbehavedError, HungError):
        return verdict.law.hint


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
    function, form, examples, strict, except_for, **how
        As for :func:`verify`.
    seed : int, optional
        By default that of the environment, ``KVQ_REF_SEED``, or a new one for each run of pytest, the same for all
        workers of pytest-xdist. A failure says which it was.

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
    seed = _seed_of_the_run() if seed is None else seed
    state = {"probed": False, "unusable": "", "hung": False}

    def probe() -> None:
        if not state["probed"]:
            state["probed"] = True
            try:
                target.probe()
            except (MisbehavedError, HungError) as error:
                state["unusable"] = f"the target {error}"
        if state["unusable"]:
            pytest.fail(str(state["unusable"]), pytrace=False)

    def method(law: Law) -> Callable[[Any], None]:
        def test(self: Any) -> None:
            why = why_not(law, except_for, strict) or ("the target hung before" if state["hung"] else "")
            if why:
                pytest.skip(why)
            probe()
            verdict = hold_to(law, target, examples=examples, seed=seed)
            if verdict.status == "not checked":
                pytest.skip(verdict.why)
            if verdict.status == "broken":
                assert verdict.counterexample is not None
                state["hung"] = verdict.counterexample.kind == "hung"
                text = explain(finding(verdict, target, _cause(target, verdict)))
                pytest.fail(f"{text}\n  the same inputs again: KVQ_REF_SEED={seed}, or seed={seed}", pytrace=False)

        test.__doc__ = law.statement
        return test

    laws = [law for law in select(target.form, (), except_for) if strict or not law.strict]
    return type("TestLaws", (), {f"test_{law.name.replace(' ', '_')}": method(law) for law in laws})


def _seed_of_the_run() -> int:
    """The same in all processes of one run of pytest: given by hand, or made of pytest-xdist's name for the run."""
    if given := os.environ.get("KVQ_REF_SEED"):
        return int(given)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return secrets.randbelow(2**32) if run is None else zlib.crc32(run.encode())
