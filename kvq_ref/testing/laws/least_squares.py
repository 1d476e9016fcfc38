"""Intention is least squares: the normal equations, interpolation, and attention of preconditioned queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.laws.dense import PLAIN_FORM, dense, preconditioned, transpose
from kvq_ref.testing.laws.law import LEAST_SQUARES, SEQUENTIAL, WITH_ALPHA, Comparison, law, suppose
from kvq_ref.testing.laws.measured import Measured, ask, at_most, computed, exactly, same
from kvq_ref.testing.rounding import Solve
from kvq_ref.testing.target import Target

INTENTION = ("intention",)
NO_PAIRS = {"causal": False, "masks": ("none", "keys")}


def spectral(x: Any) -> Any:
    """The largest singular value."""
    return np.linalg.norm(x, 2, axis=(-2, -1))


def seen_keys(call: Call) -> tuple[F64, F64]:
    """Keys and values with zeros for those behind a mask of keys: they add nothing to K^T K and K^T V."""
    mask = transpose(call.options["mask"]) if "mask" in call.options else True
    return np.where(mask, call.k, 0.0), np.where(mask, call.v, 0.0)


@law(
    r"f(Q, K, V) = f_{\text{plain}}(Q^*, K, V),\quad q^*_i = (G_i + \alpha I)^{-1} q_i",
    forms=LEAST_SQUARES - SEQUENTIAL,
    hint="the keys that a query's regression uses are not those that it sees",
)
def least_squares_forms_are_plain_forms_of_other_queries(target: Target, call: Call) -> Iterator[Comparison]:
    """Intention is linear attention, sigma-Intention softmax attention, expressive Intention expressive attention,
    of the queries (G_i + alpha I)^-1 q_i.

    G_i is the sum of k k^T over the keys that query i sees.
    """
    scale = call.options.get("scale", 1.0)
    plain = call.but(q=preconditioned(call), alpha=None, scale=scale)
    out = ask(target, call)
    yield Comparison("output", out.value, dense(PLAIN_FORM[target.form], plain), out.unit, out.limit)


@law(r"K^\top (K W - V) + \alpha W = 0", forms=INTENTION, needs={"keys apart"}, draw=NO_PAIRS)
def the_fit_solves_the_normal_equations(target: Target, call: Call) -> Iterator[Comparison]:
    """The output at q = I is W, where the gradient of |K W - V|^2 + alpha |W|^2 is zero: no other W does better."""
    d = call.k.shape[-1]
    identity = np.broadcast_to(np.eye(d), (*call.q.shape[:-2], d, d))
    w = ask(target, call.but(q=identity))
    k, v = seen_keys(call)
    h = transpose(k) @ k + call.options["alpha"] * np.eye(d)
    left = Measured(h @ w.value, np.abs(h) @ w.unit, w.limit)
    right = computed(transpose(k) @ v, np.abs(transpose(k)) @ np.abs(v) + np.abs(h) @ np.abs(w.value))
    yield same("(K^T K + alpha I) W, against K^T V", left, right)


@law(
    r"\alpha I_\alpha = L - Q G (G + \alpha I)^{-1} K^\top V",
    forms=INTENTION,
    needs={"alpha"},
    more={"alpha": st.sampled_from([2.0**-7, 1.0, 2.0**7, 2.0**13])},
)
def resolvent_identity(target: Target, call: Call, alpha: float) -> Iterator[Comparison]:
    """alpha times Intention is linear attention less Q G (G + alpha I)^-1 K^T V, for every alpha above 0.

    As alpha (G + alpha I)^-1 = I - G (G + alpha I)^-1; for each query with the keys that it sees.
    """
    call = call.but(alpha=alpha)
    gram, kv = call.sums_seen()
    rest = gram @ np.linalg.solve(gram + alpha * np.eye(gram.shape[-1]), kv)
    expected = (call.q[..., None, :] @ (kv - rest))[..., 0, :]
    cond = 2 + Solve.of(call).cond
    size = np.linalg.norm(call.q, axis=-1) * cond
    terms = call.visible() @ (np.linalg.norm(call.k, axis=-1, keepdims=True) * np.abs(call.v))
    yield same("alpha times the output", alpha * ask(target, call), computed(expected, size[..., None] * terms))


@law(
    r"K K^\top = c^2 I \text{ or } K^\top K = c^2 I \Rightarrow (c^2 + \alpha) I_\alpha = L",
    forms=INTENTION,
    draw={**NO_PAIRS, "masks": ("none",)},
    more={"c": st.sampled_from([0.5, 1.0, 2.0])},
)
def orthonormal_keys_make_intention_linear(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """For orthogonal keys of length c, or orthogonal columns, Intention is linear attention / (c^2 + alpha).

    K^T K K^T = c^2 K^T in both cases. Such keys, without rounding: signed unit vectors, and the
    Hadamard matrix of order four divided by two.
    """
    rng, (_, Tk, d, _) = call.rng(), call.sizes
    n = min(Tk, d)
    block = np.eye(n)
    if n >= 4 and rng.random() < 0.5:
        pairs = np.array([[1.0, 1.0], [1.0, -1.0]])
        block[:4, :4] = np.kron(pairs, pairs) / 2
    k = np.zeros((Tk, d))
    k[np.ix_(rng.permutation(Tk)[:n], rng.permutation(d)[:n])] = c * rng.choice([-1.0, 1.0], (n, 1)) * block
    call = call.but(k=np.broadcast_to(k, call.k.shape))
    linear = computed(call.q @ k.T @ call.v, np.abs(call.q) @ np.abs(k.T) @ np.abs(call.v))
    yield same("output times (c^2 + alpha)", (c**2 + call.options["alpha"]) * ask(target, call), linear)


def _independent_keys(call: Call) -> Call:
    """The call with no more keys than dimensions, far from dependent, and with the keys for queries."""
    n = min(call.k.shape[-2:])
    k = np.round(16 * call.k[..., :n, :]) / 64 + 4 * np.eye(n, call.k.shape[-1])
    return call.but(q=k, k=k, v=call.v[..., :n, :])


@law(
    r"|f(K, K, V) - V| \le \tfrac{\alpha}{\lambda_{\min}(K K^\top) + \alpha} |V|",
    forms=INTENTION,
    needs={"keys apart"},
    draw={**NO_PAIRS, "masks": ("none",)},
)
def intention_remembers(target: Target, call: Call) -> Iterator[Comparison]:
    """With independent keys the output at q = k_j is v_j up to a part alpha / (lambda_min(K K^T) + alpha) of |V|.

    K (K^T K + alpha I)^-1 K^T V = V - alpha (K K^T + alpha I)^-1 V.
    """
    call = _independent_keys(call)
    alpha = call.options["alpha"]
    least = np.linalg.svd(call.k, compute_uv=False)[..., -1] ** 2
    error = ask(target, call) - exactly(call.v)
    length = Measured(spectral(error.value), np.linalg.norm(error.unit, axis=(-2, -1)), error.limit)
    yield at_most("distance to the values", length, alpha / (least + alpha) * spectral(call.v))


@law(
    r"f(K, K, V; \alpha = 0) = V",
    forms=INTENTION,
    needs={"alpha", "keys apart"},
    draw={**NO_PAIRS, "masks": ("none",)},
    strict=True,
    hint="alpha = 0 is not the fit of minimum norm",
)
def intention_without_penalty_interpolates(target: Target, call: Call) -> Iterator[Comparison]:
    """At alpha = 0, with independent keys, the output at q = k_j is v_j: an associative memory without error."""
    call = _independent_keys(call).but(alpha=0.0)
    yield same("output, against the values", ask(target, call), exactly(call.v))


@law(
    r"f(Q, K, V; \alpha)_b = f(Q_b, K_b, V_b; \alpha_b)",
    forms=WITH_ALPHA,
    needs={"alpha"},
    strict=True,
    hint="one alpha is used for every entry of the batch",
)
def each_entry_of_a_batch_may_have_its_alpha(target: Target, call: Call) -> Iterator[Comparison]:
    """An array of alphas, one for each entry of the batch, is what each alpha gives its entry."""
    leading = call.q.shape[:-2]
    suppose(np.prod(leading) > 1)
    alphas = call.rng().permutation(2.0 ** np.arange(np.prod(leading))).reshape(leading)
    whole = ask(target, call.but(alpha=alphas))
    for index in np.ndindex(leading):
        at = tuple(slice(i, i + 1) for i in index)
        alone = call.entry(at).but(alpha=float(alphas[index]))
        yield same(f"output of entry {index} with its alpha", whole[at], ask(target, alone))


FITS = (
    least_squares_forms_are_plain_forms_of_other_queries,
    the_fit_solves_the_normal_equations,
    resolvent_identity,
    orthonormal_keys_make_intention_linear,
    intention_remembers,
    intention_without_penalty_interpolates,
    each_entry_of_a_batch_may_have_its_alpha,
)
