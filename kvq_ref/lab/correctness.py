"""Every form against brute force, against finite differences, and against its compiled kernel.

Three cases of random numbers, new ones for each seed:

    plain    every query sees every key
    causal   query i sees keys 0..i
    masked   a random mask, and a bias where the form takes one; query 1 sees no key, and the
             last key, which nobody sees, is NaN: it must leave no trace
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.dispatch import capabilities
from kvq_ref.lab.check import Check, failed, measure
from kvq_ref.testing import ORACLES, check_vjp

F64 = NDArray[np.float64]

FORWARD_BAR = 1e-12
GRADIENT_BAR = 1e-6
COMPILED_BARS = {"float64": 1e-12, "float32": 1e-5}
ROUNDINGS = 4  # a kernel in float32 may be off by so many times what the reference in float32 is off from float64
BEND = 0.3
CASES = ("plain", "causal", "masked")


@dataclass(frozen=True)
class Row:
    """What was found for one form and one case.

    Attributes
    ----------
    form, case : str
    forward, gradient : Check
    compiled : dict of Check
        By dtype; empty where no kernel serves.
    no_kernel : str
        Why it is empty: "no kernel" or "not installed".
    """

    form: str
    case: str
    forward: Check
    gradient: Check
    compiled: dict[str, Check]
    no_kernel: str

    @property
    def checks(self) -> list[Check]:
        return [self.forward, self.gradient, *self.compiled.values()]


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call."""

    q: Any
    k: Any
    v: Any
    options: dict[str, Any]


def check_form(name: str, seed: int) -> list[Row]:
    """Check one form, in three cases.

    Parameters
    ----------
    name : str
        The public name of a form.
    seed : int
        Of the random inputs.

    Returns
    -------
    list of Row

    Examples
    --------
    >>> rows = check_form("linear_attention", seed=0)
    >>> [row.case for row in rows], all(check.holds for row in rows for check in row.checks)
    (['plain', 'causal', 'masked'], True)
    """
    form = getattr(kvq, name)
    rng = np.random.default_rng([seed, *name.encode()])
    no_kernel = why_no_kernel(name)
    rows = []
    for case in CASES:
        small = random_inputs(name, case, rng, batch=(2,), Tq=5, Tk=6, d=3, dv=2)
        large = random_inputs(name, case, rng, batch=(2, 3), Tq=37, Tk=45, d=8, dv=11)
        forward = measure(f"{name}, {case}: forward against brute force", FORWARD_BAR, _forward_error, form, small)
        claim = f"{name}, {case}: gradient against finite differences"
        gradient = measure(claim, GRADIENT_BAR, _gradient_error, form, small, seed)
        compiled = {} if no_kernel else _compiled_checks(name, case, large)
        rows.append(Row(name, case, forward, gradient, compiled, no_kernel))
    return rows


def why_no_kernel(name: str) -> str:
    """Why no compiled kernel serves this form here; empty if one does.

    Examples
    --------
    >>> why_no_kernel("linear_attention") in ("", "not installed")
    True
    """
    rows = [row for row in capabilities() if row["form"] == name and row["implementation"] == "compiled"]
    if not rows:
        return "no kernel"
    return "" if rows[0]["available"] == "yes" else "not installed"


def random_inputs(
    name: str, case: str, rng: np.random.Generator, *, batch: tuple[int, ...], Tq: int, Tk: int, d: int, dv: int
) -> Inputs:
    """Normal numbers in float64, with the options of the case that the form takes.

    A query whose scores are all within BEND of 0 is drawn again. There an
    expressive weight, z^2 over a sum of such squares, bends too sharply for
    finite differences, and for float32, to tell right from wrong.
    """
    takes = inspect.signature(getattr(kvq, name)).parameters
    q, k, v = (rng.standard_normal((*batch, *shape)) for shape in ((Tq, d), (Tk, d), (Tk, dv)))
    options: dict[str, Any] = {}
    sums = Tk if "solver" in takes else 1  # comparable with K^T K, or with a covariance
    if "alpha" in takes:
        options["alpha"] = sums * rng.uniform(0.5, 1.5, batch)
    if "scale" in takes:
        options["scale"] = float(rng.uniform(0.5, 1.5)) * (2 * Tk if "solver" in takes else 1)
    if case == "causal":
        options["is_causal"] = True
    if case == "masked":
        mask = rng.random((*batch, Tq, Tk)) < 0.7
        mask[..., 1, :] = False
        mask[..., -1] = False
        k[..., -1, :], v[..., -1, :] = np.nan, np.nan
        options["mask"] = mask
        if "bias" in takes:
            options["bias"] = rng.standard_normal((*batch, Tq, Tk))
    for _ in range(100):
        scores = _scores(q, k, options, "solver" in takes)
        bad = np.any(scores != 0, axis=-1) & np.all(np.abs(scores) < BEND, axis=-1)
        q[bad] = rng.standard_normal((np.count_nonzero(bad), d))
    return Inputs(q, k, v, options)


def _scores(q: F64, k: F64, options: dict[str, Any], is_preconditioned: bool) -> F64:
    """z for each pair that is visible, and 0 for the others."""
    pairs = (q.shape[-2], k.shape[-2])
    visible = np.tri(*pairs, dtype=bool) if "is_causal" in options else np.ones(pairs, bool)
    visible = visible & options.get("mask", True)
    k = np.nan_to_num(k)
    if is_preconditioned:
        grams = np.einsum("...ij,...ja,...jb->...iab", visible.astype(np.float64), k, k)
        q = np.linalg.solve(grams + options["alpha"][..., None, None, None] * np.eye(q.shape[-1]), q[..., None])[..., 0]
    return np.where(visible, options.get("scale", 1.0) * (q @ np.swapaxes(k, -1, -2)), 0.0)


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry of ``expected``; NaN if there is one in ``got``.

    Examples
    --------
    >>> import numpy as np
    >>> relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    0.25
    """
    difference = float(np.max(np.abs(np.asarray(got, np.float64) - expected), initial=0.0))
    size = float(np.max(np.abs(expected), initial=0.0))
    return difference / size if size else difference


def _forward_error(form: Any, x: Inputs) -> float:
    return relative_error(form(x.q, x.k, x.v, **x.options), ORACLES[form.__name__](x.q, x.k, x.v, **x.options))


def _gradient_error(form: Any, x: Inputs, seed: int) -> float:
    return float(np.max(list(check_vjp(form, x.q, x.k, x.v, seed=seed, **x.options).values())))


def _compiled_checks(name: str, case: str, x: Inputs) -> dict[str, Check]:
    return {
        dtype: _compiled_check(f"{name}, {case}: compiled against reference, {dtype}", name, x, dtype)
        for dtype in COMPILED_BARS
    }


def _compiled_check(claim: str, name: str, x: Inputs, dtype: str) -> Check:
    """The worst of the output and all gradients, under one random gradient from above."""
    try:
        compiled, reference, precise = (
            _out_and_gradients(name, x, dtype, implementation, wide)
            for implementation, wide in (("compiled", dtype), ("reference", dtype), ("reference", "float64"))
        )
    except Exception as error:
        return failed(claim, COMPILED_BARS[dtype], error)
    rounding = 0.0 if dtype == "float64" else _worst(reference, precise)
    return Check(claim, _worst(compiled, reference), max(COMPILED_BARS[dtype], ROUNDINGS * rounding))


def _out_and_gradients(name: str, x: Inputs, dtype: str, implementation: str, wide: str) -> list[Any]:
    """Of inputs rounded to ``dtype``, computed in ``wide``."""

    def rounded(array: Any) -> Any:
        return array.astype(dtype).astype(wide)

    options = {key: rounded(y) if key in ("bias", "alpha") else y for key, y in x.options.items()}
    arguments = (rounded(x.q), rounded(x.k), rounded(x.v))
    out, pullback = kvq.vjp(getattr(kvq, name), *arguments, implementation=implementation, **options)
    dout = rounded(np.random.default_rng(0).standard_normal(out.shape))
    grads = pullback(dout)
    if dtype == "float32":
        # One number, the sum of a term for each query, most of which cancels: float32 leaves too few digits of it.
        grads = grads._replace(alpha=None)
    return [out, *(grad for grad in grads if grad is not None)]


def _worst(got: list[Any], expected: list[Any]) -> float:
    return float(np.max([relative_error(a, b) for a, b in zip(got, expected, strict=True)]))
