"""What a run is judged by, on what is held out: accuracy, where more is better, or error, where less is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.types import Array


@dataclass(frozen=True)
class Score:
    """A number that tells how well a model does.

    Attributes
    ----------
    name : str
        What it is called in metrics.jsonl, in result.json and in tables.
    sign : {1, -1}
        1: more is better.
    words : str
        For the axis of a figure.
    better, equal, worse : str
        For the reader of a table.
    """

    name: str
    sign: int
    words: str
    better: str
    equal: str
    worse: str

    def reaches(self, value: float | None, target: float) -> bool:
        """Whether a value is as good as the target; None, which a NaN reads back as, is not.

        >>> ACCURACY.reaches(0.9, 1.0), ERROR.reaches(0.1, 0.2), ERROR.reaches(None, 0.2)
        (False, True, False)
        """
        return value is not None and self.sign * value >= self.sign * target

    def best(self, values: Iterable[float | None]) -> float:
        """The best of them.

        >>> ACCURACY.best([0.5, 0.75]), ERROR.best([2.0, None, 1.0])
        (0.75, 1.0)
        """
        numbers = [self.sign * x for x in values if x is not None and not math.isnan(x)]
        return self.sign * max(numbers) if numbers else math.nan

    def has_target(self, target: float) -> bool:
        """Whether a run aims at the target: an error of 0 stands for none.

        >>> ACCURACY.has_target(1.0), ERROR.has_target(0.1), ERROR.has_target(0.0)
        (True, True, False)
        """
        return self.sign > 0 or target > 0

    def as_word(self, value: float) -> str:
        """The number, to so many digits that two runs can be told apart.

        >>> ACCURACY.as_word(0.5), ERROR.as_word(0.000684), ERROR.as_word(float("nan"))
        ('0.5000', '0.000684', 'nan')
        """
        return f"{value:.4f}" if self.sign > 0 else f"{value:.3g}"


ACCURACY = Score("accuracy", 1, "accuracy on held-out data", "more accurate", "as accurate", "less accurate")
ERROR = Score("error", -1, "mean squared error on held-out data", "of less error", "of equal error", "of more error")
SCORES = {score.name: score for score in (ACCURACY, ERROR)}


def marks(score: Score, y: Array, batch: Any) -> tuple[Array, Array]:
    """What every row of a batch contributes to the score, and how much that counts: the score is the ratio of the sums.

    Parameters
    ----------
    score : Score
    y : array
        Answers: shape (rows, places, n); logits, for accuracy; (rows, places, 1) where a place is the answer.
    batch : Batch or Episodes

    Returns
    -------
    sums, counts : array, shape (rows,)

    Examples
    --------
    >>> from kvq_ref.lab.tasks.episodes import episodes
    >>> x = np.zeros((1, 3, 1))
    >>> marks(ERROR, np.array([[[1.0], [3.0]]]), episodes(x, x, targets=np.zeros((1, 2, 1)), queries=x[:, :2]))
    (array([10.]), array([2]))
    """
    rows = len(y)
    if score is ERROR:
        off = (y - batch.targets).reshape(rows, -1).astype("float64")
        return np.square(off).sum(axis=1), np.full(rows, off.shape[1], like=off)
    if batch.targets.ndim == 1:  # which of the places: one choice a row
        right = y[..., 0].argmax(axis=-1) == batch.targets
        return right.astype("int64"), np.ones_like(right, dtype="int64")
    counts = batch.determined
    right = y.argmax(axis=-1) == batch.targets
    if counts is None:
        counts = np.ones_like(right)
    return (right & counts).sum(axis=1), counts.sum(axis=1)
