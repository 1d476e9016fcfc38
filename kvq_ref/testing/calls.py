"""Calls to hold a law against: arrays and options, drawn by Hypothesis.

Every number comes from one string of bytes through :data:`SIMPLE`, which lists
the multiples of 1/64 in [-2, 2) from simple to less simple: 0, 1, -1, -2, 1/2, ...
So Hypothesis shrinks a failing call towards few, small, round numbers; they are
exact in every dtype, bfloat16 included, so what a call loses to rounding is
lost in the computation. Half of the calls multiply all by a number with no
short binary form, as a kernel that drops digits of its inputs would not be
noticed otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvq_ref.dispatch import FORMS

F64 = NDArray[np.float64]

SIMPLE: F64 = np.array(sorted(range(-128, 128), key=lambda n: (-np.gcd(n, 64), abs(n), n < 0))) / 64.0
UNROUND = 0.9731059

ALPHAS = (1.0, 0.125, 8.0)
SCALES = (None, None, 0.5, 1.25)  # the default is what most kernels get wrong
OFFSETS = (None, -1.5, 0.75)
OPTIONAL = (
    *("mask", "bias", "is_causal", "scale", "offset", "alpha"),
    *("feature_map", "normalize", "beta", "decay"),
)
PER_PAIR = ("mask", "bias")
PER_KEY = ("beta", "decay")


@dataclass(frozen=True)
class Call:
    """One call of a form: arrays in float64, options, and a seed for what a law draws by itself.

    Laws make another call out of it with :meth:`but`, or ask it for what follows from it.
    """

    q: F64
    k: F64
    v: F64
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def but(self, **changes: Any) -> Call:
        """The same call with other arrays or options; an option that becomes None is left out.

        >>> call = Call(np.zeros((2, 1)), np.zeros((3, 1)), np.zeros((3, 1)), {"scale": 0.5})
        >>> call.but(scale=None, is_causal=True).options
        {'is_causal': True}
        """
        arrays = {name: changes.pop(name) for name in ("q", "k", "v") if name in changes}
        options = {name: x for name, x in {**self.options, **changes}.items() if x is not None}
        return replace(self, **arrays, options=options)

    def keys(self, at: Any) -> Call:
        """The call with some of its keys, or in another order: at is an index, or a mask of one axis.

        >>> call = Call(np.zeros((2, 1)), np.array([[1.0], [2.0]]), np.zeros((2, 1)))
        >>> call.keys([1]).k
        array([[2.]])
        """
        given = {name: self.options[name][..., at] for name in PER_PAIR if name in self.options}
        given |= {name: self.options[name][..., at, :] for name in PER_KEY if name in self.options}
        return self.but(k=self.k[..., at, :], v=self.v[..., at, :], **given)

    def queries(self, at: Any) -> Call:
        """The call with some of its queries, or in another order."""
        given = {name: self.options[name] for name in ("mask", "bias") if name in self.options}
        rows = {name: x[..., at, :] if x.shape[-2] > 1 or self.q.shape[-2] == 1 else x for name, x in given.items()}
        return self.but(q=self.q[..., at, :], **rows)

    def entry(self, index: tuple[Any, ...]) -> Call:
        """An entry of the batch."""
        given = {name: self.options[name][index] for name in (*PER_PAIR, *PER_KEY) if name in self.options}
        return self.but(q=self.q[index], k=self.k[index], v=self.v[index], **given)

    def rng(self) -> np.random.Generator:
        """A new generator of this call's seed: a law that is checked twice draws the same."""
        return np.random.default_rng(self.seed)

    def get(self, option: str) -> Any:
        return self.options.get(option)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(Tq, Tk, d, dv)."""
        return self.q.shape[-2], self.k.shape[-2], self.q.shape[-1], self.v.shape[-1]

    @property
    def is_causal(self) -> bool:
        return bool(self.options.get("is_causal", False))

    @property
    def arrays(self) -> dict[str, F64]:
        """What has a gradient, by name."""
        given = {"q": self.q, "k": self.k, "v": self.v}
        names = ("bias", "alpha", *PER_KEY)
        return given | {n: np.asarray(self.options[n]) for n in names if self.options.get(n) is not None}

    def visible(self) -> NDArray[np.bool_]:
        """Which query sees which key, shape (..., Tq, Tk)."""
        Tq, Tk, _, _ = self.sizes
        mask = np.asarray(self.options.get("mask", True))
        mask = mask & np.tri(Tq, Tk, dtype=bool) if self.is_causal else mask
        return np.asarray(np.broadcast_to(mask, (*self.q.shape[:-1], Tk)))

    def left(self) -> F64:
        """How much of each key is left for each query, shape (..., Tq, Tk): 1 without a decay, and 0 if it is not seen.

        The product of the decays of the keys after it, of those that the query sees; for a decay of one column.
        """
        visible = self.visible()
        if "decay" not in self.options:
            return visible.astype(float)
        fades = np.where(visible, np.swapaxes(self.options["decay"], -1, -2), 1.0)
        from_here = np.cumprod(fades[..., ::-1], axis=-1)[..., ::-1]
        after = np.concatenate([from_here[..., 1:], np.ones_like(from_here[..., :1])], axis=-1)
        return np.where(visible, after, 0.0)

    def sums_seen(self) -> tuple[F64, F64]:
        """(K^T K, K^T V) of the keys that each query sees, shapes (..., Tq, d, d) and (..., Tq, d, dv).

        Where there is a decay, a key counts with what is left of it.
        """
        _, _, d, dv = self.sizes
        visible = self.left()
        sums = []
        for x, n in ((self.k, d), (self.v, dv)):
            products = self.k[..., :, None] * x[..., None, :]
            flat = visible @ products.reshape(*products.shape[:-2], d * n)
            sums.append(flat.reshape(*visible.shape[:-1], d, n))
        return sums[0], sums[1]

    def dout(self) -> F64:
        """A random gradient from above, of short binary numbers."""
        shape = (*self.q.shape[:-1], self.v.shape[-1])
        return self.rng().choice(SIMPLE, shape)


def simple_array(draw: st.DrawFn, shape: Sequence[int], label: str) -> F64:
    """An array of simple numbers, out of a single draw.

    It is the corner of a larger one, so that an entry keeps its place, and its value, while sizes shrink.
    """
    full = (*(max(n, 2) for n in shape[:-2]), max(shape[-2], 8), max(shape[-1], 8))
    n = int(np.prod(full))
    data = draw(st.binary(min_size=n, max_size=n), label=label)
    return SIMPLE[np.frombuffer(data, np.uint8)].reshape(full)[tuple(slice(n) for n in shape)].copy()


@st.composite
def calls(
    draw: st.DrawFn,
    form: str,
    accepts: frozenset[str],
    *,
    assumed: Mapping[str, Any] | None = None,
    leading: Sequence[tuple[int, ...]] = ((), (2,), (2, 1)),
    sizes: Sequence[tuple[int, int, int, int]] | None = None,
    without: frozenset[tuple[str, str]] = frozenset(),
    causal: bool | None = None,
    masks: Sequence[str] = ("none", "keys", "pairs"),
    bias: bool = True,
    square: bool = False,
    same_widths: bool = False,
    batch: bool = True,
    max_d: int = 4,
    shortest: int = 1,
    empty_rows: bool = False,
    features: bool = True,
    reserved: frozenset[str] = frozenset(),
) -> Call:
    """Draw a call with a random subset of the options that are accepted.

    Parameters
    ----------
    draw : callable
        Hypothesis's own.
    form : str
        A name in ``kvq_ref.dispatch.FORMS``.
    accepts : frozenset of str
        Options that may be given; of :data:`OPTIONAL`, ``alpha`` is given wherever the form has one.
    assumed : mapping, optional
        Options with a fixed value, drawn neither here nor passed on, but in force.
    leading : sequence of tuples
        Shapes of the leading axes to draw from.
    sizes : sequence of (Tq, Tk, d, dv), optional
        To draw from; by default every size up to (6, 8, 4, 3). A library that
        compiles for every shape is better off with a few.
    without : frozenset of pairs
        Options that cannot be given together.
    causal : bool, optional
        Whether the call is causal; None draws that too.
    masks : sequence of {"none", "keys", "pairs"}
        Kinds of mask to draw from: one for all queries, or one for each.
    bias, batch : bool
        Whether a bias, and whether leading axes may be drawn.
    square, same_widths : bool
        Whether Tq = Tk, and whether d = dv.
    max_d : int
        The largest d.
    shortest : int
        The smallest Tq and Tk, but for ``sizes``.
    empty_rows : bool
        Whether a query may see no key at all.
    features : bool
        Whether a feature map may be drawn, and normalisation with it.
    reserved : frozenset of str
        Options that a law gives by itself: nothing is drawn that cannot be given beside them.

    Returns
    -------
    Call
    """
    assumed = dict(assumed or {})
    fits = [s for s in sizes or () if (not square or s[0] == s[1]) and s[2] <= max_d]
    if sizes:
        Tq, Tk, d, dv = draw(st.sampled_from(fits), label="(Tq, Tk, d, dv)")
    else:
        # A single key, or a single dimension, hides many mistakes: half of the calls have more.
        least = draw(st.sampled_from([1, 2]), label="least size")
        Tq, Tk = (draw(st.integers(max(least, shortest), n)) for n in (6, 8))
        d, dv = (draw(st.integers(min(least, n), n)) for n in (max_d, 3))
        Tq = Tk if square else Tq
    dv = d if same_widths else dv
    lead = draw(st.sampled_from(list(leading) if batch else [min(leading, key=np.prod)]), label="leading axes")
    options: dict[str, Any] = dict(assumed)

    def may(name: str) -> bool:
        clash = any(name in pair and set(pair) - {name} <= set(options) | (reserved - {name}) for pair in without)
        return name in accepts and name in FORMS[form].options and not clash

    if "is_causal" not in assumed:
        is_causal = draw(st.booleans(), label="is_causal") if causal is None and may("is_causal") else bool(causal)
        if is_causal:
            options["is_causal"] = True
    if may("mask"):
        kind = draw(st.sampled_from(list(masks)), label="mask")
        if kind != "none":
            shape = (*lead, 1 if kind == "keys" else Tq, Tk)
            mask = simple_array(draw, shape, "mask") >= (0.0 if empty_rows else -0.7)
            options["mask"] = mask if empty_rows else _with_a_key_each(mask, bool(options.get("is_causal")))
    if bias and may("bias") and draw(st.booleans(), label="bias?"):
        options["bias"] = simple_array(draw, (*lead, Tq, Tk), "bias")
    if may("scale"):
        scale = draw(st.sampled_from(SCALES), label="scale")
        if scale is not None:
            options["scale"] = scale
    if may("offset"):
        offset = draw(st.sampled_from(OFFSETS), label="offset")
        if offset is not None:
            options["offset"] = offset
    if may("alpha"):
        options["alpha"] = draw(st.sampled_from(ALPHAS), label="alpha")
    if features and may("feature_map"):
        kind = draw(st.sampled_from(["none", "a map", "and a mean"]), label="features")
        if kind != "none":
            options["feature_map"] = "elu+1"
        if kind == "and a mean" and may("normalize"):
            options["normalize"] = True
    q, k, v = (
        simple_array(draw, (*lead, *shape), name) for name, shape in (("q", (Tq, d)), ("k", (Tk, d)), ("v", (Tk, dv)))
    )
    if "beta" in FORMS[form].options:
        # beta |k|^2 <= 2, or the state would grow from key to key, and its rounding with it.
        k = k / (2 if d < 3 else 4)
    if may("beta") and draw(st.booleans(), label="beta?"):
        options["beta"] = simple_array(draw, (*lead, Tk, 1), "beta") / 2
    if may("decay") and draw(st.booleans(), label="decay?"):
        # One for each coordinate, or for all; a regression forgets all coordinates alike.
        columns = 1 if "alpha" in FORMS[form].options else draw(st.sampled_from([1, d]), label="decays")
        options["decay"] = np.abs(simple_array(draw, (*lead, Tk, columns), "decay")) / 2
    if draw(st.booleans(), label="all digits"):
        q, k, v = (UNROUND * x for x in (q, k, v))
    return Call(q, k, v, options, draw(st.integers(0, 99), label="seed"))


def _with_a_key_each(mask: NDArray[np.bool_], is_causal: bool) -> NDArray[np.bool_]:
    """Every query sees its first key, or the causal and the mask together might leave it none."""
    mask = mask.copy()
    if is_causal:
        mask[..., 0] = True
    else:
        mask[..., 0] |= ~mask.any(axis=-1)
    return mask
