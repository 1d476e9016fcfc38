"""Few-shot classification of texture: which photograph is a patch of 8 x 8 pixels from?

A class is one of the 18 photographs that scikit-image bundles, an example a patch of it, grey, the photograph halved
in size. Every other photograph by name is learned from; the others are held out for the test. The files are read from
the package itself, never by ``skimage.data``, which may download what it does not find.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np

from kvq_ref.lab.tasks.few_shot import FewShot
from kvq_ref.types import Array

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
SIDE = 8
SMALLER = 2  # times, by the mean of so many pixels squared
PATCHES = 256  # of each photograph: the smallest has seven more


@dataclass(frozen=True)
class Photographs(FewShot):
    """N photographs, 2 to 9, and K patches of each.

    Examples
    --------
    >>> Photographs(N=9).inputs, Photographs.fewest
    (64, 256)
    """

    to_learn, held_out = tuple(range(0, 18, 2)), tuple(range(1, 18, 2))
    fewest = PATCHES

    @classmethod
    @functools.cache
    def images(cls) -> tuple[Array, Array]:
        found = np.stack([_spread(_patches(_grey(name))) for name in PHOTOGRAPHS])
        return found, np.full(len(found), PATCHES)


def _grey(name: str) -> Array:
    """A photograph from 0 to 1."""
    from PIL import Image

    with as_file(files("skimage") / "data" / name) as path, Image.open(path) as image:
        return np.asarray(image.convert("L")) / 255


def _patches(photograph: Array) -> Array:
    """All that lie beside each other, row by row; of those that are equal, such as all black, the first.

    >>> _patches(np.arange(32 * 48.0).reshape(32, 48)).shape
    (6, 64)
    """
    side = SIDE * SMALLER
    rows, columns = (n // side for n in photograph.shape)
    whole = photograph[: rows * side, : columns * side]
    small = whole.reshape(rows * SIDE, SMALLER, columns * SIDE, SMALLER).mean(axis=(1, 3))
    patches = small.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2).reshape(-1, SIDE * SIDE)
    return patches[np.sort(np.unique(patches, axis=0, return_index=True)[1])]


def _spread(patches: Array) -> Array:
    """As many as there are to be of each photograph, from all over it."""
    return patches[np.arange(PATCHES) * len(patches) // PATCHES]
