"""What a verification found, as plain data: strings and numbers that JSON can hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kvq_ref.testing.calls import Call
from kvq_ref.testing.laws.law import Comparison
from kvq_ref.testing.run import Counterexample, Verdict
from kvq_ref.testing.target import Target

HOLDS, BROKEN, UNUSABLE = 0, 1, 2


@dataclass(frozen=True)
class Breakage:
    """How a law is broken, on the simplest call that was found.

    Attributes
    ----------
    what : str
        What differs, or what the target did.
    got, expected : str
        The two sides, as NumPy prints them; empty if there was nothing to compare.
    code : str
        The call as NumPy code that can be pasted.
    cause : str
        What the likely cause is; empty where no pattern is known.
    """

    what: str
    got: str
    expected: str
    code: str
    cause: str = ""


@dataclass(frozen=True)
class Finding:
    """What came of one law.

    Attributes
    ----------
    law, statement, latex : str
        Which.
    status : {"holds", "broken", "not checked"}
    why : str
        Why it was not checked.
    examples : int
        Calls that were tried.
    units, limit : float or None
        The largest error in units of the best achievable rounding error, and how many are allowed.
        None where both sides were equal to the last bit, or the target did not return numbers.
    seconds : float
    broken : Breakage or None
    """

    law: str
    statement: str
    latex: str
    status: str
    why: str = ""
    examples: int = 0
    units: float | None = None
    limit: float | None = None
    seconds: float = 0.0
    broken: Breakage | None = None

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Finding:
        """The inverse of ``dataclasses.asdict``."""
        broken = fields["broken"]
        return cls(**{**fields, "broken": None if broken is None else Breakage(**broken)})


@dataclass(frozen=True)
class Report:
    """The verdict on a target.

    Attributes
    ----------
    target, form, framework, layout, device, dtype : str
        What was verified, and how it was called.
    seed, examples : int
        The same seed and number draw the same calls.
    strict : bool
        Whether the laws that only this package promises were asked for.
    options : list of str
        Options that it was given.
    remarks : list of str
        What it was not given, and why.
    findings : list of Finding
        One for each law.
    seconds : float
    unusable : str
        Why it could not be verified at all; empty if it could.
    command : str
        What repeats it in a shell, with the same calls; empty if it was not asked for from one.

    Examples
    --------
    >>> import kvq_ref as kvq
    >>> from kvq_ref.testing import verify
    >>> report = verify(kvq.softmax_attention, "softmax", examples=5, laws=["definition"])
    >>> report.status, [x.law for x in report.checked]
    (0, ['definition'])
    """

    target: str
    form: str
    framework: str = "numpy"
    layout: str = "any"
    device: str = ""
    dtype: str = "float32"
    seed: int = 0
    examples: int = 0
    strict: bool = False
    options: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    unusable: str = ""
    command: str = ""

    @property
    def broken(self) -> list[Finding]:
        return [x for x in self.findings if x.status == "broken"]

    @property
    def checked(self) -> list[Finding]:
        return [x for x in self.findings if x.status != "not checked"]

    @property
    def status(self) -> int:
        """0 if all laws hold, 1 if one is broken, 2 if the target could not be used."""
        return UNUSABLE if self.unusable else BROKEN if self.broken else HOLDS

    def to_json(self) -> str:
        """JSON with all fields, and the status."""
        return json.dumps({**asdict(self), "status": self.status}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report of which that is the JSON."""
        fields: dict[str, Any] = json.loads(text)
        fields.pop("status")
        findings = [Finding.from_fields(one) for one in fields.pop("findings")]
        return cls(**fields, findings=findings)


def finding(verdict: Verdict, target: Target, cause: str = "") -> Finding:
    """A verdict as plain data."""
    law, found = verdict.law, verdict.counterexample
    compared = found is None or found.broken is not None
    units = float(verdict.units) if verdict.status != "not checked" and compared else None
    limit = float(verdict.limit) if units is not None and np.isfinite(verdict.limit) else None
    return Finding(
        law=law.name,
        statement=law.statement,
        latex=law.latex,
        status=verdict.status,
        why=verdict.why,
        examples=verdict.examples,
        units=units if units is not None and np.isfinite(units) else None,
        limit=limit,
        seconds=verdict.seconds,
        broken=None if found is None else breakage(found, target, cause),
    )


def breakage(found: Counterexample, target: Target, cause: str = "") -> Breakage:
    """A counterexample as plain data."""
    code = as_code(found.call, target.form, target.dtype)
    if found.asked is not None and found.asked is not found.call:
        code += "\n\n# The law also made this call of it:\n"
        code += as_code(found.asked, target.form, target.dtype).partition("\n")[2]
    if found.more:
        code += "\n" + "\n".join(f"# {name} = {value!r}" for name, value in found.more.items())
    if found.broken is None:
        return Breakage(f"the target {found.misbehaviour}", "", "", code, cause)
    text = found.misbehaviour and f" ({found.misbehaviour})"
    return Breakage(how_far(found.broken) + text, _print(found.broken.got), _print(found.broken.expected), code, cause)


def how_far(broken: Comparison) -> str:
    """The worst entry of a comparison, in words."""
    error, unit = np.broadcast_arrays(np.atleast_1d(broken.error), broken.unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = np.unravel_index(int(np.argmax(np.where(error > 0, error / unit, 0.0))), error.shape)
    got, expected = (np.broadcast_to(x, error.shape)[worst] for x in (broken.got, broken.expected))
    allowed = broken.limit * unit[worst]
    where = f"[{', '.join(map(str, worst))}]" if np.ndim(broken.error) else ""
    text = f"{broken.what}{where}: got {got:.6g}, expected {expected:.6g}"
    if not np.isfinite([got, expected]).all():
        return text
    # What an underflow may lose is not worth a word.
    return text + (f"; they may differ by {allowed:.2g}" if allowed > 1e-300 else "; they must be equal")


def as_code(call: Call, form: str, dtype: str = "float64") -> str:
    """NumPy code that makes the arrays of a call, and calls the readable form with them.

    >>> call = Call(np.array([[0.5]]), np.array([[1.0]]), np.array([[2.0]]), {"is_causal": True})
    >>> print(as_code(call, "softmax_attention", "float32"))
    import numpy as np, kvq_ref
    q = np.array([[0.5]], dtype=np.float32)
    k = np.array([[1.0]], dtype=np.float32)
    v = np.array([[2.0]], dtype=np.float32)
    options = dict(is_causal=True)
    kvq_ref.softmax_attention(q, k, v, **options)
    """
    kind = "float32" if dtype == "bfloat16" else dtype
    lines = ["import numpy as np, kvq_ref"]
    lines += [f"{name} = {_array_code(x, kind)}" for name, x in (("q", call.q), ("k", call.k), ("v", call.v))]
    options = {
        name: _array_code(np.asarray(x), kind) if isinstance(x, np.ndarray) else repr(x)
        for name, x in call.options.items()
    }
    lines.append(f"options = dict({', '.join(f'{name}={x}' for name, x in options.items())})")
    lines.append(f"kvq_ref.{form}(q, k, v, **options)")
    return "\n".join(lines)


def _array_code(x: np.ndarray, dtype: str) -> str:
    if x.dtype == bool:
        return f"np.array({x.tolist()})"
    if x.size > 100:
        return f"...  # {x.dtype} of shape {x.shape}: too long to print; the seed draws it again"
    values = x.astype(dtype) if dtype != "float64" else x
    numbers = repr(np.asarray(values, dtype=object).tolist()) if dtype == "float64" else _short(values)
    return f"np.array({numbers.replace('nan', 'np.nan').replace('inf', 'np.inf')}, dtype=np.{dtype})"


def _short(values: np.ndarray) -> str:
    """The shortest decimals that give the same numbers in their dtype."""
    if values.ndim == 0:
        return str(values)
    return f"[{', '.join(map(_short, values))}]"


def _print(x: np.ndarray) -> str:
    return np.array2string(np.asarray(x), precision=7, threshold=100, edgeitems=3)
