"""Few-shot classification of handwritten digits: the 1797 of 8 x 8 pixels that scikit-learn bundles.

Classes 0, 2, 4, 6, 8 are learned from; 1, 3, 5, 7, 9 are held out for the test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from kvq_ref.lab import data
from kvq_ref.lab.tasks.few_shot import FewShot
from kvq_ref.types import Array

BRIGHTEST = 16.0


@dataclass(frozen=True)
class Digits(FewShot):
    """N digits, 2 to 5, and K examples of each.

    Examples
    --------
    >>> batch = Digits(N=3, K=2).sample(np.random.default_rng(0), batch=4)
    >>> batch.x.shape, batch.y.shape, batch.targets.shape
    ((4, 6, 64), (4, 6, 3), (4, 6))
    """

    to_learn, held_out = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
    fewest = 174  # the eights

    @classmethod
    @functools.cache
    def images(cls) -> tuple[Array, Array]:
        digits = data.digits()
        counts = np.bincount(digits.target.astype(int))
        found = np.zeros((len(counts), counts.max(), digits.features.shape[1]))
        for n, count in enumerate(counts):
            found[n, :count] = digits.features[digits.target == n] / BRIGHTEST
        return found, counts
