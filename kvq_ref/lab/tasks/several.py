"""Several NT tasks for one model: a token in front says which one a sequence is of."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab.tasks.recurrences import Recurrence, nt
from kvq_ref.lab.tasks.task import Batch, SequenceTask


@dataclass(frozen=True)
class Several(SequenceTask):
    """NT tasks of several N and tau; each row is of one of them, drawn at random.

    Attributes
    ----------
    pairs : sequence of (N, tau)
    T : int, optional
        Tokens that the model sees, the one in front included.

    Raises
    ------
    ValueError
        If there are no pairs, or one of them is no NT task.

    Examples
    --------
    >>> task = Several(((2, 3), (5, 2)))
    >>> task.vocabulary, task.outputs, task.kinds
    (7, 5, ('N=2 tau=3', 'N=5 tau=2'))
    """

    pairs: Sequence[tuple[int, int]]
    T: int | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("tasks: expected pairs such as 2:5, got none")
        self.tasks  # noqa: B018 (each of them checks itself)

    @functools.cached_property
    def tasks(self) -> tuple[Recurrence, ...]:
        """One for each pair, all of one length."""
        longest = max(nt(N, tau).length for N, tau in self.pairs)
        return tuple(nt(N, tau, self.T - 1 if self.T else longest) for N, tau in self.pairs)

    @property
    def outputs(self) -> int:
        return max(N for N, _ in self.pairs)

    @property
    def vocabulary(self) -> int:
        """The numbers, then a token for each task."""
        return self.outputs + len(self.pairs)

    @property
    def length(self) -> int:
        return 1 + self.tasks[0].length

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(f"N={N} tau={tau}" for N, tau in self.pairs)

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Batch:
        """Sequences of all the tasks, as many of each as chance has it; the test has equally many.

        Parameters
        ----------
        rng : numpy.random.Generator
        batch : int
        held_out : bool

        Returns
        -------
        Batch
        """
        n = len(self.pairs)
        kinds = np.tile(np.arange(n), math.ceil(batch / n))[:batch] if held_out else rng.integers(0, n, batch)
        tokens = np.empty((batch, self.length), np.int64)
        targets, determined = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        for kind, task in enumerate(self.tasks):
            rows = kinds == kind
            part = task.sample(rng, int(rows.sum()), held_out)
            tokens[rows, 0] = self.outputs + kind
            tokens[rows, 1:] = part.tokens
            targets[rows, 0] = part.tokens[:, 0]
            targets[rows, 1:] = part.targets
            determined[rows, 1:] = part.determined
        return Batch(tokens, targets, determined, kinds)
