"""Sequences over Z_N in which a token follows from a few earlier ones.

    nt         x_t = x_{t-1} + x_{t-tau}                          mod N
    sums       x_t = the sum of x_{t-delay} for several delays    mod N
    products   x_t = x_{t-1} * x_{t-tau}                          mod N
    copy       x_t = x_{t-tau}

nt is delayed XOR for N = 2. That the NT task of the expressive-attention abstract
is this recurrence was chosen here: the abstract does not spell it out.

The first tau tokens are random and not all zero, for zeros stay zeros. The
factors of a product are drawn from the units mod N (what divides 1), so that
it cannot get stuck at 0.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab.tasks.held_out import EIGHTH, FEW, draw, threshold
from kvq_ref.lab.tasks.task import Batch, SequenceTask, next_tokens

MORE = 16  # determined tokens beyond the first, by default


@dataclass(frozen=True)
class Recurrence(SequenceTask):
    """A sum or a product of earlier tokens, mod N.

    Attributes
    ----------
    N : int
        Tokens are 0 to N - 1.
    delays : tuple of int
        How far back it looks, the furthest last.
    is_product : bool
        Multiply, rather than add.
    T : int, optional
        Tokens that the model sees: by default the furthest delay and 16 more.

    Raises
    ------
    ValueError
        For N below 2 (3, for a product), a delay below 1, or too few tokens for any to be determined.

    Examples
    --------
    >>> task = Recurrence(N=2, delays=(1, 3))
    >>> x = task.sample(np.random.default_rng(0), batch=1).tokens[0]
    >>> bool((x[3:] == x[2:-1] ^ x[:-3]).all())
    True
    """

    N: int
    delays: tuple[int, ...]
    is_product: bool = False
    T: int | None = None

    def __post_init__(self) -> None:
        least = 3 if self.is_product else 2
        if self.N < least:
            why = ", for 1 is the only unit mod 2" if self.is_product else ""
            raise ValueError(f"N: expected at least {least}{why}, got {self.N}")
        if min(self.delays) < 1:
            raise ValueError(f"tau: expected at least 1, got {min(self.delays)}")
        if self.T is not None and self.T < self.order:
            raise ValueError(f"T: expected at least {self.order}, the tokens that determine the next, got {self.T}")
        try:
            self.held_out_below  # noqa: B018 (it is kept)
        except ValueError as error:
            raise ValueError(f"tau: {self.order} is too little for N = {self.N}: {error}") from None

    @functools.cached_property
    def held_out_below(self) -> int:
        """Starts whose hash is less are kept for the test."""
        if len(self.values) ** self.order > FEW:
            return EIGHTH
        starts = np.array(list(itertools.product(self.values, repeat=self.order)))
        return threshold(starts[starts.any(axis=1)])

    @property
    def order(self) -> int:
        """So many tokens determine the next."""
        return max(self.delays)

    @property
    def values(self) -> tuple[int, ...]:
        """What a sequence may start with."""
        return tuple(x for x in range(self.N) if not self.is_product or math.gcd(x, self.N) == 1)

    @property
    def vocabulary(self) -> int:
        return self.N

    outputs = vocabulary

    @property
    def length(self) -> int:
        return self.T or self.order + MORE

    @property
    def kinds(self) -> tuple[str, ...]:
        return (f"N={self.N} tau={self.order}",)

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Batch:
        """Sequences from fresh random starts.

        Parameters
        ----------
        rng : numpy.random.Generator
        batch : int
        held_out : bool
            From the starts that are kept for the test, or from the others.

        Returns
        -------
        Batch
        """
        values = np.array(self.values)

        def propose(count: int) -> np.ndarray:
            starts = values[rng.integers(0, len(values), (count, self.order))]
            return starts[starts.any(axis=1)]

        starts = draw(propose, batch, held_out, self.held_out_below)
        x = np.empty((self.length + 1, batch), np.int64)  # a row is a time
        x[: self.order] = starts.T
        for t in range(self.order, len(x)):
            x[t] = x[t - self.delays[0]]
            for delay in self.delays[1:]:
                x[t] = x[t] * x[t - delay] if self.is_product else x[t] + x[t - delay]
            x[t] %= self.N
        return next_tokens(np.ascontiguousarray(x.T), first=self.order)


def nt(N: int, tau: int, T: int | None = None) -> Recurrence:
    """x_t = x_{t-1} + x_{t-tau} mod N."""
    return Recurrence(N, (1, tau), T=T)


def sums(N: int, tau: int, terms: int, T: int | None = None) -> Recurrence:
    """As many terms, their delays spread evenly from 1 to tau.

    >>> sums(2, 7, 3).delays
    (1, 4, 7)
    """
    if not 1 <= terms <= tau:
        raise ValueError(f"terms: expected 1 to tau, {tau}, got {terms}")
    spread = np.linspace(1, tau, terms) if terms > 1 else [tau]
    return Recurrence(N, tuple(round(delay) for delay in spread), T=T)


def products(N: int, tau: int, T: int | None = None) -> Recurrence:
    """x_t = x_{t-1} * x_{t-tau} mod N."""
    return Recurrence(N, (1, tau), is_product=True, T=T)


def copy(N: int, tau: int, T: int | None = None) -> Recurrence:
    """x_t = x_{t-tau}."""
    return Recurrence(N, (tau,), T=T)
