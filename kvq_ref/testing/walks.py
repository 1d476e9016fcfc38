"""The sequential forms in array code and float64, for calls that are too long for loops: the states after each key."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvq_ref.dispatch import FORMS
from kvq_ref.testing.calls import F64, Call


class Walk(NamedTuple):
    """Keys one after the other: R = 1 walk where the queries see the same keys or prefixes of them, else one for each.

    Attributes
    ----------
    k, v : array, shapes (..., R, Tk, d) and (..., 1, Tk, dv)
        k is zero where the walk does not pass the key.
    beta : array, shape (..., R, Tk, 1)
    decay : array, shape (..., R, Tk, 1 or d)
        1 where the walk does not pass the key.
    erases : bool
        Whether what the memory says of a key is taken away before its value is written.
    sees : array of bool, shape (..., R, Tk, 1)
    reads : list of int
        After how many keys each query reads its state.
    is_shared : bool
        Whether there is one walk for all queries.
    scale : float
    """

    k: F64
    v: F64
    beta: F64
    decay: F64
    erases: bool
    sees: NDArray[np.bool_]
    reads: list[int]
    is_shared: bool
    scale: float

    @classmethod
    def of(cls, form: str, call: Call) -> Walk:
        Tq, Tk, _, _ = call.sizes
        mask = np.asarray(call.options.get("mask", np.ones((1, Tk), bool)))
        is_shared = mask.shape[-2] == 1
        sees = np.asarray(mask if is_shared else call.visible())[..., None]
        k = np.where(sees, call.k[..., None, :, :], 0.0)
        reads = [min(i + 1, Tk) for i in range(Tq)] if is_shared and call.is_causal else [Tk] * Tq
        scale = 1.0 if call.get("scale") is None else float(call.options["scale"])
        beta = per_key(call, "beta") * np.ones((*k.shape[:-1], 1))
        decay = np.where(sees, per_key(call, "decay"), 1.0) * np.ones((*k.shape[:-1], 1))
        erases = "beta" in FORMS[form].options
        return cls(k, call.v[..., None, :, :], beta, decay, erases, sees, reads, is_shared, scale)

    def states(self) -> list[F64]:
        """S after 0, 1, ..., Tk keys, of shape (..., R, d, dv)."""
        s = np.zeros(np.shape(self.k[..., 0, :, None] * self.v[..., 0, None, :]))
        found = [s]
        for j in range(self.k.shape[-2]):
            k_j = self.k[..., j, None, :]
            s = self.decay[..., j, :, None] * s + np.swapaxes(k_j, -1, -2) * (self.beta * self.v)[..., j, None, :]
            if self.erases:
                s = s - np.swapaxes(k_j, -1, -2) * (self.beta[..., j, None, :] * (k_j @ found[j]))
            found.append(s)
        return found

    def of_queries(self, found: list[F64], axis: int) -> F64:
        """What each query reads of something that is known after each key; axis is that of the walks."""
        if not self.is_shared:
            return found[-1]
        return np.concatenate([found[n] for n in self.reads], axis=axis)


def per_key(call: Call, name: str) -> F64:
    """An option with a row for each key, with an axis for the walks before it; 1 where it is not given."""
    x = np.asarray(call.options.get(name, 1.0), float)
    return x if x.ndim == 0 else x[..., None, :, :]


def scale_in_order(call: Call) -> float:
    return 1.0 if call.get("scale") is None else float(call.options["scale"])


def out_in_order(form: str, call: Call) -> F64:
    """The output."""
    walk = Walk.of(form, call)
    s = walk.of_queries(walk.states(), axis=-3)
    return np.asarray(walk.scale * (call.q[..., None, :] @ s)[..., 0, :])
