"""Tables to predict from: a target and numeric features. Two come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Dataset:
    """A table to predict from.

    Attributes
    ----------
    name : str
    features : array, shape (rows, columns)
        Finite numbers, not standardised.
    target : array, shape (rows,)
        Numbers for regression, class labels for classification.
    task : {"regression", "classification"}
    notes : tuple of str
        What was done to the data before it came here, for the reader.
    """

    name: str
    features: F64
    target: NDArray[np.generic]
    task: str
    notes: tuple[str, ...] = field(default=())

    @property
    def metric(self) -> str:
        """How predictions are scored; larger is better."""
        return "R\N{SUPERSCRIPT TWO}" if self.task == "regression" else "accuracy"


def diabetes() -> Dataset:
    """442 patients, 10 measurements, and how far the disease had gone a year later.

    Examples
    --------
    >>> diabetes().features.shape
    (442, 10)
    """
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    return Dataset("diabetes", features, target, "regression")


def digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels.

    Examples
    --------
    >>> digits().features.shape
    (1797, 64)
    """
    from sklearn.datasets import load_digits

    features, target = load_digits(return_X_y=True)
    return Dataset("digits", features, target, "classification")


def subset(data: Dataset, rows: int, seed: int) -> Dataset:
    """At most ``rows`` rows, drawn at random; the notes say so.

    Examples
    --------
    >>> subset(digits(), 100, seed=0).notes
    ('100 of 1797 rows, drawn at random',)
    """
    if len(data.target) <= rows:
        return data
    chosen = np.sort(np.random.default_rng(seed).choice(len(data.target), rows, replace=False))
    note = f"{rows} of {len(data.target)} rows, drawn at random"
    return Dataset(data.name, data.features[chosen], data.target[chosen], data.task, (*data.notes, note))
