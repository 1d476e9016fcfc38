"""What every task is; and those of sequences: tokens, some of which follow from those before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kvq_ref.lab.scores import ACCURACY, Score


class Batch(NamedTuple):
    """Sequences to learn from, one a row.

    Attributes
    ----------
    tokens : array of int64, shape (batch, T)
        What the model sees.
    targets : array of int64, shape (batch, T)
        At each place, the token that comes next.
    determined : array of bool, shape (batch, T)
        Whether that follows from what the model has seen.
    kinds : array of int64, shape (batch,)
        Which of the task's kinds a row is of.
    """

    tokens: np.ndarray
    targets: np.ndarray
    determined: np.ndarray
    kinds: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray]:
        """What the model sees."""
        return (self.tokens,)


class Task(Protocol):
    """What training asks of a task, whatever it is about.

    Attributes
    ----------
    loss : {"cross_entropy", "squared", "choice"}
        What is made small.
    score : Score
        What a run is judged by.
    kinds : tuple of str
        The names of the kinds of rows; one, but for several tasks at once.
    trained : int
        So many of the kinds, the first, are what training draws from, and make the score.
    """

    @property
    def loss(self) -> str: ...
    @property
    def score(self) -> Score: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def trained(self) -> int: ...

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Any:
        """Fresh rows: of those to learn from, or of those that are kept for the test."""
        ...

    def test(self, rng: np.random.Generator, n: int) -> Sequence[Any]:
        """What is held out, n rows in all, in batches."""
        ...


class SequenceTask:
    """What tasks of sequences share; each of them is a frozen dataclass that says the rest.

    Attributes
    ----------
    vocabulary : int
        Tokens that a model may see are 0 to vocabulary - 1.
    outputs : int
        Targets are 0 to outputs - 1.
    length : int
        T, the tokens that a model sees.
    """

    loss, score = "cross_entropy", ACCURACY

    @property
    def vocabulary(self) -> int:
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        raise NotImplementedError

    @property
    def length(self) -> int:
        raise NotImplementedError

    @property
    def kinds(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def trained(self) -> int:
        return len(self.kinds)

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Batch:
        """Fresh sequences: of the starts to learn from, or of those that are kept for the test."""
        raise NotImplementedError

    def test(self, rng: np.random.Generator, n: int) -> list[Batch]:
        """One batch of sequences that are held out."""
        return [self.sample(rng, n, held_out=True)]


def next_tokens(x: np.ndarray, first: int, kind: int = 0) -> Batch:
    """A batch of whole sequences x, shape (batch, T + 1), of which x[:, first:] is determined.

    Examples
    --------
    >>> next_tokens(np.array([[1, 0, 1]]), first=2).determined
    array([[False,  True]])
    """
    rows, length = x.shape[0], x.shape[1] - 1
    determined = np.broadcast_to(np.arange(1, length + 1) >= first, (rows, length))
    return Batch(x[:, :-1], x[:, 1:], determined, np.full(rows, kind))
