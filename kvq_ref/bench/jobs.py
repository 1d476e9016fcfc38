"""What is measured: a form, a shape, forward or forward and backward, causal or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, int, int, int]

FORMS = {
    "softmax": "softmax_attention",
    "expressive": "expressive_attention",
    "linear": "linear_attention",
    "intention": "intention",
    "sigma_intention": "sigma_intention",
}
DEFAULT_FORMS = ("softmax", "expressive", "linear", "intention")
SHAPES: tuple[Shape, ...] = ((1, 8, 1024, 64), (1, 8, 4096, 64), (8, 8, 128, 32), (32, 4, 16, 16), (256, 1, 64, 64))
QUICK_SHAPES: tuple[Shape, ...] = ((8, 8, 128, 32), (32, 4, 16, 16))
LONG = 4096  # T from which on only softmax is measured unless shapes are named: the others take minutes there
WHATS = {"f": "forward", "fb": "forward and backward", "vjp": "forward that keeps what backward needs"}
ALPHA = 1.0


@dataclass(frozen=True)
class Job:
    """One thing to measure.

    Attributes
    ----------
    form : str
        A key of FORMS.
    shape : tuple of int
        Batch, heads, T, d: the shape of q, k, v and of the result.
    what : str
        A key of WHATS.
    causal : bool
    dtype : str
        "float32" or "float64".
    """

    form: str
    shape: Shape
    what: str = "f"
    causal: bool = False
    dtype: str = "float32"

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Job:
        """A job that was plain data for a while."""
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    @property
    def column(self) -> str:
        """Its column in a table: "f", "f causal", ..."""
        return f"{self.what} causal" if self.causal else self.what

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def is_solved(self) -> bool:
        """Whether least squares are in it."""
        return "intention" in self.form

    def __str__(self) -> str:
        return f"{self.form} ({shape_text(self.shape)}) {self.column}"


def shape_text(shape: Iterable[int]) -> str:
    """As it is given on the command line.

    >>> shape_text((1, 8, 1024, 64))
    '1,8,1024,64'
    """
    return ",".join(map(str, shape))


def jobs(
    forms: Iterable[str] = DEFAULT_FORMS,
    shapes: Iterable[Shape] | None = None,
    whats: Iterable[str] = ("f", "fb"),
    causal: Iterable[bool] = (False, True),
    dtype: str = "float32",
) -> list[Job]:
    """All combinations; without shapes, the usual ones of each form.

    Examples
    --------
    >>> [str(job) for job in jobs(["linear"], [(1, 1, 8, 4)], ["f"])]
    ['linear (1,1,8,4) f', 'linear (1,1,8,4) f causal']
    >>> sum(job.shape[2] == 4096 for job in jobs())  # of softmax alone
    4
    """
    wanted, columns = list(whats), list(causal)
    named = None if shapes is None else list(shapes)
    return [
        Job(form, shape, what, is_causal, dtype)
        for form in forms
        for shape in (SHAPES if named is None else named)
        if named is not None or form == "softmax" or shape[2] < LONG
        for what in wanted
        for is_causal in columns
    ]


def inputs(job: Job, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """q, k, v and dout: the same in every process.

    Examples
    --------
    >>> {name: x.shape for name, x in inputs(Job("linear", (1, 2, 8, 4)), 0).items()}
    {'q': (1, 2, 8, 4), 'k': (1, 2, 8, 4), 'v': (1, 2, 8, 4), 'dout': (1, 2, 8, 4)}
    """
    rng = np.random.default_rng([seed, *job.shape])
    return {name: rng.standard_normal(job.shape).astype(job.dtype) for name in ("q", "k", "v", "dout")}


def flops(job: Job) -> float | None:
    """Operations that the definition asks for, where that number does not depend on the algorithm; else None.

    Softmax and expressive: two products of T x T x d forward and five backward,
    of which one is the scores again, and of which causal attention needs what is
    on and below the diagonal. Linear, not causal: two products of T x d x d
    forward and four backward.

    Examples
    --------
    >>> flops(Job("softmax", (1, 1, 8, 4))), flops(Job("softmax", (1, 1, 8, 4), "fb"))
    (1024.0, 3584.0)
    >>> flops(Job("linear", (1, 1, 8, 4), causal=True)) is None
    True
    """
    batch, heads, T, d = job.shape
    if job.form in ("softmax", "expressive"):
        pairs = T * (T + 1) / 2 if job.causal else T * T
        return batch * heads * pairs * d * 2.0 * (7 if job.what == "fb" else 2)
    if job.form == "linear" and not job.causal:
        return batch * heads * T * d * d * 2.0 * (6 if job.what == "fb" else 2)
    return None
