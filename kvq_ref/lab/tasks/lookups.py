"""Nested lookups: a random table is shown, then it is applied to itself.

    a f(a)  b f(b)  c f(c)  ...   x_0   x_1 = f(f(.. f(x_0)))   x_2   ...

f is a random permutation of N symbols, shown as pairs in random order. Each
further token is f applied ``depth`` times to the one before: depth 1 is
associative recall, and each depth more is one lookup more in a single step.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab.tasks.held_out import EIGHTH, FEW, draw, threshold
from kvq_ref.lab.tasks.task import Batch, SequenceTask, next_tokens

CHAIN = 8  # tokens after the table


@dataclass(frozen=True)
class Lookup(SequenceTask):
    """Tables of N pairs, applied ``depth`` times.

    Attributes
    ----------
    N : int
        Symbols.
    depth : int
        Lookups a token.

    Raises
    ------
    ValueError
        For N below 4 (there must be enough tables to hold some out) or a depth below 1.

    Examples
    --------
    >>> task = Lookup(N=5, depth=2)
    >>> x = task.sample(np.random.default_rng(0), batch=1).tokens[0]
    >>> f = dict(zip(x[:10:2].tolist(), x[1:10:2].tolist()))
    >>> f[f[x[10].item()]] == x[11].item()
    True
    """

    N: int
    depth: int = 1

    def __post_init__(self) -> None:
        if self.N < 4:
            raise ValueError(f"N: expected at least 4 symbols, got {self.N}")
        if self.depth < 1:
            raise ValueError(f"terms: expected a depth of at least 1, got {self.depth}")

    @functools.cached_property
    def held_out_below(self) -> int:
        """Tables whose hash is less are kept for the test."""
        if math.factorial(self.N) > FEW:
            return EIGHTH
        return threshold(np.array(list(itertools.permutations(range(self.N)))))

    @property
    def vocabulary(self) -> int:
        return self.N

    outputs = vocabulary

    @property
    def length(self) -> int:
        return 2 * self.N + CHAIN

    @property
    def kinds(self) -> tuple[str, ...]:
        return (f"N={self.N} depth={self.depth}",)

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Batch:
        """Fresh tables; those for the test are kept out of training.

        Parameters
        ----------
        rng : numpy.random.Generator
        batch : int
        held_out : bool

        Returns
        -------
        Batch
        """

        def propose(count: int) -> np.ndarray:
            return rng.permuted(np.tile(np.arange(self.N), (count, 1)), axis=1)

        f = draw(propose, batch, held_out, self.held_out_below)
        order = rng.permuted(np.tile(np.arange(self.N), (batch, 1)), axis=1)
        shown = np.stack([order, np.take_along_axis(f, order, axis=1)], axis=2).reshape(batch, 2 * self.N)
        steps = f
        for _ in range(self.depth - 1):
            steps = np.take_along_axis(f, steps, axis=1)
        chain = [rng.integers(0, self.N, (batch, 1))]
        for _ in range(CHAIN):
            chain.append(np.take_along_axis(steps, chain[-1], axis=1))
        return next_tokens(np.concatenate([shown, *chain], axis=1), first=2 * self.N + 1)
