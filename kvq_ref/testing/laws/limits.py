"""As alpha grows, the least-squares forms tend to the plain ones: how far they are is bounded, and checked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.laws.dense import PLAIN_FORM, dense, preconditioned, reference_gradients, transpose
from kvq_ref.testing.laws.law import Comparison, law
from kvq_ref.testing.laws.least_squares import INTENTION, NO_PAIRS, seen_keys, spectral
from kvq_ref.testing.laws.measured import FLOAT64, Measured, ask, ask_gradients, at_most, computed
from kvq_ref.testing.target import Target

LARGE = {"alpha": st.sampled_from([2.0**n for n in (-7, 0, 7, 13, 20)])}
PRECONDITIONED = ("sigma_intention", "expressive_intention")


def _lengths(x: Measured) -> Measured:
    """The length of each row."""
    return Measured(np.linalg.norm(x.value, axis=-1), np.linalg.norm(x.unit, axis=-1), x.limit)


def _norms(x: Measured) -> Measured:
    """The spectral norm of each matrix; that of its error is at most the Frobenius norm."""
    return Measured(spectral(x.value), np.linalg.norm(x.unit, axis=(-2, -1)), x.limit)


@law(
    r"|\alpha I_\alpha - L| \le |Q|\,|K^\top V|\,\tfrac{\lambda_{\max}}{\lambda_{\max} + \alpha}",
    forms=INTENTION,
    needs={"alpha"},
    draw=NO_PAIRS,
    more=LARGE,
)
def intention_tends_to_linear_attention(target: Target, call: Call, alpha: float) -> Iterator[Comparison]:
    """alpha times Intention is within |Q| |K^T V| lambda_max / (lambda_max + alpha) of linear attention.

    In spectral norms; the resolvent identity, and |G (G + alpha I)^-1| = lambda_max / (lambda_max + alpha).
    """
    call = call.but(alpha=alpha)
    k, v = seen_keys(call)
    linear = computed(call.q @ transpose(k) @ v, 2 * np.abs(call.q) @ np.abs(transpose(k)) @ np.abs(v))
    s = _shrinkage(spectral(k) ** 2, alpha)
    bound = spectral(call.q) * spectral(transpose(k) @ v) * s
    yield at_most("distance to linear attention", _norms(alpha * ask(target, call) - linear), bound)


def _shrinkage(largest: F64, alpha: float) -> F64:
    return np.asarray(largest / (largest + alpha))


@law(
    r"|\alpha I_\alpha - L|_t \le |q_t|\,|K_t^\top V_t|\,\tfrac{\lambda}{\lambda + \alpha},"
    r"\quad \lambda = \lambda_{\max}(G_t)",
    forms=INTENTION,
    needs={"alpha", "causal"},
    draw={"causal": True},
    more=LARGE,
)
def causal_intention_tends_to_causal_linear_attention(target: Target, call: Call, alpha: float) -> Iterator[Comparison]:
    """The same bound, query by query, with the G and the K^T V of what the query sees."""
    call = call.but(alpha=alpha)
    gram, kv = call.sums_seen()
    visible = call.visible().astype(float)
    q_length = np.linalg.norm(call.q, axis=-1)
    terms = visible @ (np.linalg.norm(call.k, axis=-1, keepdims=True) * np.abs(call.v))
    linear = computed((call.q[..., None, :] @ kv)[..., 0, :], 2 * q_length[..., None] * terms)
    bound = q_length * spectral(kv) * _shrinkage(spectral(gram), alpha)
    yield at_most("distance to linear attention", _lengths(alpha * ask(target, call) - linear), bound)


@law(
    r"|\alpha \bar X_{I_\alpha} - \bar X_L| = O(1/\alpha),\quad X = Q, K, V",
    forms=INTENTION,
    needs={"alpha", "gradient"},
    draw={**NO_PAIRS, "masks": ("none",)},
    more=LARGE,
)
def gradients_of_intention_tend_to_those_of_linear_attention(
    target: Target, call: Call, alpha: float
) -> Iterator[Comparison]:
    """alpha times the gradients of Intention differ from those of linear attention by no more than O(1/alpha).

    With R = alpha (G + alpha I)^-1, |R| <= 1 and |R - I| = s = lambda_max / (lambda_max + alpha):
    dQ = dO V^T K R, so |error| <= s |dO| |K^T V|;
    dV = K R Q^T dO, so |error| <= s |K| |Q^T dO|;
    dK = V (R Q^T dO)^T - (K R K^T V (R Q^T dO)^T + K R Q^T dO (R K^T V)^T) / alpha, so
    |error| <= (s |V| + 2 |K| |K^T V| / alpha) |Q^T dO|.
    """
    call, dout = call.but(alpha=alpha), call.dout()
    q, k, v = call.q, call.k, call.v
    kv, dw = transpose(k) @ v, transpose(q) @ dout
    s = _shrinkage(spectral(k) ** 2, alpha)
    q_, k_, v_, d_ = (np.abs(x) for x in (q, k, v, dout))
    linear = {
        "q": computed(dout @ transpose(kv), 2 * d_ @ transpose(v_) @ k_),
        "k": computed(v @ transpose(dw), 2 * v_ @ transpose(d_) @ q_),
        "v": computed(k @ dw, 2 * k_ @ transpose(q_) @ d_),
    }
    bounds = {
        "q": s * spectral(dout) * spectral(kv),
        "k": (s * spectral(v) + 2 * spectral(k) * spectral(kv) / alpha) * spectral(dw),
        "v": s * spectral(k) * spectral(dw),
    }
    grads = ask_gradients(target, call, dout)
    for name, expected in linear.items():
        yield at_most(f"gradient of {name}, distance", _norms(alpha * grads[name] - expected), bounds[name])


@law(
    r"f_\alpha(\text{scale} = \alpha s) \to f_{\text{plain}}(\text{scale} = s)",
    forms=PRECONDITIONED,
    needs={"alpha", "scale"},
    more={**LARGE, "s": st.sampled_from([0.5, 1.0, -1.25])},
)
def preconditioned_forms_tend_to_plain_ones(target: Target, call: Call, alpha: float, s: float) -> Iterator[Comparison]:
    """As alpha grows, with scale = alpha s, the form tends to the one of the same column with scale s.

    alpha H^-1 = I - H^-1 G, so a score is off by at most e_i = |s| |q_i| |k| lambda_max / (lambda_max + alpha).
    Softmax: every weight is within exp(+-2 e) of what it should be, so the output is
    within (exp(2 e) - 1) max|v|. Expressive: |f'| <= 3 sqrt(3) / 8, so it is
    within 2 max|v| sum_j exp(b_ij) 3 sqrt(3) / 8 e / sum_j w_ij. Both are within 2 max|v| at any alpha.
    """
    call, plain = call.but(alpha=alpha, scale=alpha * s), call.but(alpha=None, scale=s)
    gram, _ = call.sums_seen()
    visible = call.visible()
    longest = np.max(np.where(visible, np.linalg.norm(call.k, axis=-1)[..., None, :], 0.0), axis=-1)
    e = abs(s) * np.linalg.norm(call.q, axis=-1) * longest * _shrinkage(spectral(gram), alpha)
    largest = np.max(np.abs(call.v), axis=(-2, -1))[..., None]
    if target.form == "sigma_intention":
        bound = np.expm1(np.minimum(2 * e, 50.0)) * largest
    else:
        b = np.exp(np.where(visible, call.options.get("bias", 0.0), -np.inf))
        z = s * call.q @ transpose(call.k)
        total = np.sum(b * z**2 / (1 + z**2), axis=-1)
        lipschitz = 3 * np.sqrt(3) / 8 * e * np.sum(b, axis=-1)
        bound = 2 * largest * np.where(total > 0, lipschitz / np.where(total > 0, total, 1.0), 1.0)
    out = ask(target, call)
    limit = dense(PLAIN_FORM[target.form], plain)
    distance = Measured(np.abs(out.value - limit), out.unit + FLOAT64 * np.abs(limit), out.limit)
    yield at_most("distance to the plain form", distance, np.minimum(bound, 2 * largest)[..., None])


@law(
    r"\bar X_\alpha(\text{scale} = \alpha s) - \bar X_{\text{plain}}(\alpha Q^*; s) = O(1/\alpha),\quad X = Q, K, V",
    forms=PRECONDITIONED,
    needs={"alpha", "scale", "gradient"},
    more={**LARGE, "s": st.sampled_from([0.5, 1.0])},
)
def gradients_of_preconditioned_forms_tend_to_plain_ones(
    target: Target, call: Call, alpha: float, s: float
) -> Iterator[Comparison]:
    """With scale = alpha s the gradients tend to those of the plain form at the queries alpha q*, which tend to q.

    Let R_i = alpha H_i^-1, so |R_i| <= 1, |R_i - I| <= s_i = lambda_max / (lambda_max + alpha), and
    alpha q* = R q. With d the gradients of the plain form there: dQ = R d, so |error| <= s_i |d_i|; dV and
    dbias have no error;
    dK_j is d_j less sum_i (u_i (y_i.k_j) + y_i (u_i.k_j)) / alpha, with u = R d and y = R q, over the queries that
    see key j, so |error| <= 2 |k_j| sum_i |d_i| |R q_i| / alpha.
    """
    call, dout = call.but(alpha=alpha, scale=alpha * s), call.dout()
    gram, _ = call.sums_seen()
    y = alpha * preconditioned(call)
    plain = reference_gradients(PLAIN_FORM[target.form], call.but(q=y, alpha=None, scale=s), dout)
    d_length, y_length, k_length = (np.linalg.norm(x, axis=-1) for x in (plain["q"], y, call.k))
    through = transpose(call.visible().astype(float)) @ (d_length * y_length)[..., None]
    bounds = {
        "q": _shrinkage(spectral(gram), alpha) * d_length,
        "k": 2 / alpha * k_length * through[..., 0],
        "v": np.zeros(k_length.shape),
        "bias": np.zeros(d_length.shape),
    }
    for name, g in ask_gradients(target, call, dout).items():
        if name in plain:
            error = Measured(g.value - plain[name], g.unit + FLOAT64 * np.abs(plain[name]), g.limit)
            yield at_most(f"gradient of {name}, distance", _lengths(error), bounds[name])


LIMITS = (
    intention_tends_to_linear_attention,
    causal_intention_tends_to_causal_linear_attention,
    gradients_of_intention_tend_to_those_of_linear_attention,
    preconditioned_forms_tend_to_plain_ones,
    gradients_of_preconditioned_forms_tend_to_plain_ones,
)
