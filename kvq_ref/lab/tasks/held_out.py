"""Which starts of a sequence are kept for the test: an eighth of them, always the same ones.

A start is a row of numbers. Its hash decides, so that no list of them is needed
(there may be 16^12), and training never meets one that a test will ask for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ONE_IN = 8
FEW = 4096  # so many starts can be listed


def hashed(starts: np.ndarray) -> np.ndarray:
    """A number of 64 bits for each row, by the mixing of splitmix64 (Steele, Lea & Flood 2014).

    Parameters
    ----------
    starts : array of int, shape (n, m)

    Returns
    -------
    array of uint64, shape (n,)

    Examples
    --------
    >>> a, b = hashed(np.array([[0, 1], [1, 0]]))
    >>> bool(a == b)
    False
    """
    h = np.zeros(len(starts), np.uint64)
    for column in starts.T.astype(np.uint64):
        h += column + np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return h


def threshold(starts: np.ndarray) -> int:
    """Hashes below it are held out, where these are all the starts there are: an eighth, but one at least."""
    if len(starts) < 2:
        raise ValueError(f"there are {len(starts)} starts, and it takes two: one to learn from and one to test")
    ranked = np.sort(hashed(starts))
    return int(ranked[max(1, len(ranked) // ONE_IN)])


EIGHTH = 2**64 // ONE_IN  # the threshold where there are too many starts to list


def draw(propose: Callable[[int], np.ndarray], n: int, held_out: bool, below: int = EIGHTH) -> np.ndarray:
    """n starts that are held out, or n that are not: proposals of the other kind are dropped.

    Parameters
    ----------
    propose : callable
        A count to that many starts, shape (count, m).
    n : int
    held_out : bool
    below : int
        From :func:`threshold`.

    Returns
    -------
    array of int, shape (n, m)

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> draw(lambda count: rng.integers(0, 100, (count, 3)), 5, held_out=True).shape
    (5, 3)
    """
    kept = [propose(0)]
    missing = n
    while missing > 0:
        starts = propose(8 + (2 * ONE_IN * missing if held_out else missing + missing // 4))
        starts = starts[(hashed(starts) < np.uint64(below)) == held_out][:missing]
        kept.append(starts)
        missing -= len(starts)
    return np.concatenate(kept)
