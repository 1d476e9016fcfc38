"""What every task is: sequences of tokens, some of which follow from those before them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


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


class Task(Protocol):
    """A source of sequences.

    Attributes
    ----------
    vocabulary : int
        Tokens that a model may see are 0 to vocabulary - 1.
    outputs : int
        Targets are 0 to outputs - 1.
    length : int
        T, the tokens that a model sees.
    kinds : tuple of str
        The names of the kinds of rows; one, but for several tasks at once.
    """

    @property
    def vocabulary(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...

    def sample(self, rng: np.random.Generator, batch: int, held_out: bool = False) -> Batch:
        """Fresh sequences: of the starts to learn from, or of those that are kept for the test."""
        ...


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
