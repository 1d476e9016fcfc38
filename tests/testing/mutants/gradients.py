"""Backward passes with a bug, behind forward passes that are right.

Most are small edits of the two functions below, which are correct: the gradient
of a weighted mean of values, by scores and values; and that of q* = H^-1 q.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import kvq_ref as kvq
from testing.mutants import plain
from testing.mutants.mutant import wrong_gradient
from testing.mutants.plain import Array, default_scale, exp_rows, grams, sees, t

Gradients = dict[str, Any]


def right(form: str, dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """What this package gives, to spoil one of."""
    _, pullback = kvq.vjp(getattr(kvq, form), q, k, v, **options)
    return {name: g for name, g in pullback(dout)._asdict().items() if g is not None}


def softmax_weights(q: Array, k: Array, **options: Any) -> Array:
    """The weights of softmax attention, each row of sum 1 or 0."""
    z = default_scale(q, options.get("scale")) * q @ t(k)
    z = z + (0 if options.get("bias") is None else options["bias"])
    w = exp_rows(z, sees(q, k, options.get("mask"), options.get("is_causal", False)))
    total = w.sum(axis=-1, keepdims=True)
    return w / np.where(total == 0, 1, total)


def through_scores(p: Array, dout: Array, v: Array) -> Array:
    """dz of a softmax."""
    dp = dout @ t(v)
    return p * (dp - np.sum(p * dp, axis=-1, keepdims=True))


# ---- Softmax attention ---------------------------------------------------------------


@wrong_gradient("softmax", "q lacks the factor scale")
def dq_without_scale(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dq = dz k, without the scale."""
    dz = through_scores(softmax_weights(q, k, **options), dout, v)
    return right("softmax_attention", dout, q, k, v, **options) | {"q": dz @ k}


@wrong_gradient("softmax", "k has the factor scale once too often")
def dk_with_scale_twice(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The saved query was scaled already."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    return grads | {"k": grads["k"] * np.asarray(default_scale(q, options.get("scale")), q.dtype)}


@wrong_gradient("softmax", "reshaped")
def dk_reshaped(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dk = dz^T q, with dz reshaped and not transposed."""
    dz = through_scores(softmax_weights(q, k, **options), dout, v)
    dk = default_scale(q, options.get("scale")) * dz.reshape(*dz.shape[:-2], k.shape[-2], q.shape[-2]) @ q
    return right("softmax_attention", dout, q, k, v, **options) | {"k": dk.astype(k.dtype)}


@wrong_gradient("softmax", "row's sum")
def no_row_sum_term(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dz = p dp: that the weights sum to one is forgotten."""
    dz = softmax_weights(q, k, **options) * (dout @ t(v))
    scale = np.asarray(default_scale(q, options.get("scale")), q.dtype)
    grads = right("softmax_attention", dout, q, k, v, **options)
    return grads | {"q": scale * (dz @ k), "k": scale * (t(dz) @ q)} | ({"bias": dz} if "bias" in grads else {})


@wrong_gradient("softmax", "of bias", "row's sum")
def dbias_without_row_sum(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dbias = p dp, while dq and dk are right."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    if "bias" in grads:
        grads["bias"] = softmax_weights(q, k, **options) * (dout @ t(v))
    return grads


@wrong_gradient("softmax", "of bias", "the factor scale")
def dbias_scaled(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dbias = scale dz, as if the bias were added before the scale."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    if "bias" in grads:
        grads["bias"] = grads["bias"] * np.asarray(default_scale(q, options.get("scale")), q.dtype)
    return grads


@wrong_gradient("softmax", "v", "not divided by their sum")
def dv_of_plain_weights(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dv uses the weights before their normalisation."""
    z = default_scale(q, options.get("scale")) * q @ t(k) + (0 if options.get("bias") is None else options["bias"])
    w = exp_rows(z, sees(q, k, options.get("mask"), options.get("is_causal", False)))
    return right("softmax_attention", dout, q, k, v, **options) | {"v": t(w).astype(v.dtype) @ dout}


@wrong_gradient("softmax", "mask")
def backward_without_mask(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The backward pass recomputes the weights without the mask: keys that are hidden have a gradient."""
    return right("softmax_attention", dout, q, k, v, **{n: x for n, x in options.items() if n != "mask"})


@wrong_gradient("softmax", "is_causal")
def backward_not_causal(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The backward pass recomputes the weights of all keys: the future has a gradient."""
    return right("softmax_attention", dout, q, k, v, **{n: x for n, x in options.items() if n != "is_causal"})


@wrong_gradient("softmax", "float16")
def backward_in_float16(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The gradient goes through float16."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    return {name: g.astype(np.float16).astype(g.dtype) for name, g in grads.items()}


@wrong_gradient("softmax", "divided by the number of batch entries")
def divided_by_batch(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The gradient is averaged over the batch."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    n = np.asarray(np.prod(q.shape[:-2]) or 1, q.dtype)
    return {name: g / n for name, g in grads.items()}


@wrong_gradient("softmax", "dout")
def dout_is_ignored(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The gradient is that of the sum of the output: tests with out.sum().backward() do not notice."""
    return right("softmax_attention", np.ones_like(dout), q, k, v, **options)


@wrong_gradient("softmax", "NaN", breaks="a query that sees nothing gives zero")
def gradient_of_an_empty_row_is_nan(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The logarithm of an empty row's sum is -inf, and -inf - (-inf) is NaN."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    seen = sees(q, k, options.get("mask"), options.get("is_causal", False))
    dead = np.broadcast_to(~seen.any(axis=-1, keepdims=True), (*q.shape[:-1], 1))
    return grads | {"q": np.where(dead, np.float32(np.nan), grads["q"])}


_TOTAL: dict[tuple[int, ...], Array] = {}


@wrong_gradient("softmax", "kept from")
def dq_accumulates(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dq is added with atomics to a buffer that is not cleared."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    _TOTAL[q.shape] = _TOTAL.get(q.shape, 0) + grads["q"]
    return grads | {"q": _TOTAL[q.shape].copy()}


@wrong_gradient("softmax", "zero")
def dbias_is_zero(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The bias has a gradient of zero: it was not implemented."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    return grads | ({"bias": np.zeros_like(grads["bias"])} if "bias" in grads else {})


@wrong_gradient("softmax", "last", "dropped")
def dk_of_the_last_tile_dropped(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """Gradients of keys beyond the last whole tile of four are never written."""
    grads = right("softmax_attention", dout, q, k, v, **options)
    n = k.shape[-2] // 4 * 4 or k.shape[-2]
    return grads | {"k": np.where(np.arange(k.shape[-2])[:, None] < n, grads["k"], 0)}


@wrong_gradient("softmax", "Tq and Tk differ")
def backward_of_square_calls_only(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dk = dz q: the transpose is missing, which fails where Tq and Tk differ."""
    dz = through_scores(softmax_weights(q, k, **options), dout, v)
    dk = default_scale(q, options.get("scale")) * dz @ q
    return right("softmax_attention", dout, q, k, v, **options) | {"k": dk.astype(k.dtype)}


# ---- Expressive attention ------------------------------------------------------------


@wrong_gradient("expressive", "row's sum", drop=("scale", "bias"))
def expressive_no_row_sum_term(
    dout: Array, q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False
) -> Gradients:
    """dz = f'(z) dp / sum: that the weights sum to one is forgotten."""
    z, seen = q @ t(k), sees(q, k, mask, is_causal)
    total = np.where(seen, plain.expressive_weight(z), 0).sum(axis=-1, keepdims=True)
    dz = np.where(seen, 2 * z / (1 + z**2) ** 2, 0) * (dout @ t(v)) / np.where(total == 0, 1, total)
    grads = right("expressive_attention", dout, q, k, v, mask=mask, is_causal=is_causal)
    return grads | {"q": (dz @ k).astype(q.dtype), "k": (t(dz) @ q).astype(k.dtype)}


@wrong_gradient("expressive", "slope", drop=("scale", "bias"))
def slope_of_log(dout: Array, q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Gradients:
    """f' = 2 z / (1 + z^2): the denominator is not squared."""
    z, seen = q @ t(k), sees(q, k, mask, is_causal)
    w = np.where(seen, plain.expressive_weight(z), 0)
    total = w.sum(axis=-1, keepdims=True)
    total, dp = np.where(total == 0, 1, total), dout @ t(v)
    dz = np.where(seen, 2 * z / (1 + z**2), 0) * (dp - np.sum(w / total * dp, axis=-1, keepdims=True)) / total
    grads = right("expressive_attention", dout, q, k, v, mask=mask, is_causal=is_causal)
    return grads | {"q": (dz @ k).astype(q.dtype), "k": (t(dz) @ q).astype(k.dtype)}


# ---- Linear attention ----------------------------------------------------------------


@wrong_gradient("linear", "k", "is_causal")
def linear_dk_not_causal(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dk = sum over all queries, and not over those that come after."""
    grads = right("linear_attention", dout, q, k, v, **options)
    return grads | {
        "k": right("linear_attention", dout, q, k, v, **{n: x for n, x in options.items() if n != "is_causal"})["k"]
    }


@wrong_gradient("linear", "row's sum")
def normaliser_is_a_constant(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """The sum that normalises is detached."""
    grads = right("linear_attention", dout, q, k, v, **options)
    if not options.get("normalize"):
        return grads
    plain_options = {n: x for n, x in options.items() if n != "normalize"}
    total = plain.linear(q, k, np.ones_like(v[..., :1]), **plain_options)
    return right("linear_attention", dout / np.where(total == 0, np.inf, total), q, k, v, **plain_options)


@wrong_gradient("linear", "feature map")
def feature_map_without_derivative(
    dout: Array, q: Array, k: Array, v: Array, *, feature_map: Any = None, **options: Any
) -> Gradients:
    """The gradients of phi(q) and phi(k) are returned as those of q and k."""
    if feature_map is None:
        return right("linear_attention", dout, q, k, v, **options)
    return right("linear_attention", dout, plain.feature(q, feature_map), plain.feature(k, feature_map), v, **options)


@wrong_gradient("linear", "v has the wrong sign")
def dv_with_wrong_sign(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> Gradients:
    """dv = -dv."""
    grads = right("linear_attention", dout, q, k, v, **options)
    return grads | {"v": -grads["v"]}


# ---- Least squares -------------------------------------------------------------------


def through_solve(
    form: str, dout: Array, q: Array, k: Array, v: Array, alpha: Any, **options: Any
) -> tuple[Gradients, Array, Array]:
    """Gradients of a form by q* = H^-1 q, k and v; q*, and u = H^-1 dq*."""
    seen = sees(q, k, options.get("mask"), options.get("is_causal", False))
    h = grams(k.astype(np.float64), seen) + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    y = np.linalg.solve(h, q[..., None].astype(np.float64))[..., 0].astype(q.dtype)
    if form == "softmax_attention":
        options = {**options, "scale": options.get("scale") or 1.0}
    inner = right(form, dout, y, k, v, **options)
    u = np.linalg.solve(h, inner["q"][..., None].astype(np.float64))[..., 0].astype(q.dtype)
    return inner, y, u


@wrong_gradient("intention", "Gram matrix")
def no_gram_term(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """dk is that of the last product alone: K^T K has no gradient."""
    inner, _, u = through_solve("linear_attention", dout, q, k, v, alpha, **options)
    return {"q": u, "k": inner["k"], "v": inner["v"]}


@wrong_gradient("sigma_intention", "half", "Gram matrix")
def half_a_gram_term(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """Of d(k k^T) = dk k^T + k dk^T only one half is there."""
    inner, y, u = through_solve("softmax_attention", dout, q, k, v, alpha, **options)
    seen = sees(q, k, options.get("mask"), options.get("is_causal", False))
    half = t(np.where(seen, y @ t(k), 0)) @ u
    return {"q": u, "k": inner["k"] - half.astype(k.dtype), "v": inner["v"]}


@wrong_gradient("expressive_intention", "wrong sign", "Gram matrix")
def gram_term_added(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """The gradient of an inverse has a minus, which is forgotten."""
    inner, _, u = through_solve("expressive_attention", dout, q, k, v, alpha, **options)
    good = right("expressive_intention", dout, q, k, v, alpha=alpha, **options)
    return {"q": u, "k": 2 * inner["k"] - good["k"], "v": inner["v"]}


@wrong_gradient("intention", "q", "preconditioner")
def dq_not_solved(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """The gradient of the preconditioned query is returned as that of the query."""
    inner, _, _ = through_solve("linear_attention", dout, q, k, v, alpha, **options)
    return right("intention", dout, q, k, v, alpha=alpha, **options) | {"q": inner["q"]}


@wrong_gradient("sigma_intention", "query itself")
def dk_of_the_query_itself(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """dk = dz^T q, with q where the preconditioned query should stand."""
    _, y, _ = through_solve("softmax_attention", dout, q, k, v, alpha, **options)
    scale = options.get("scale") or 1.0
    dz = through_scores(softmax_weights(y, k, **{**options, "scale": scale}), dout, v)
    good = right("sigma_intention", dout, q, k, v, alpha=alpha, **options)
    return good | {"k": good["k"] + np.asarray(scale, q.dtype) * (t(dz) @ (q - y))}


@wrong_gradient("intention", "alpha has the wrong sign")
def dalpha_with_wrong_sign(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """dalpha = + sum u y."""
    grads = right("intention", dout, q, k, v, alpha=np.asarray(alpha, q.dtype), **options)
    return grads | {"alpha": -grads["alpha"]}


@wrong_gradient("expressive_intention", "alpha is zero")
def dalpha_is_zero(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """Alpha is taken for a constant, and its gradient handed back as zero."""
    grads = right("expressive_intention", dout, q, k, v, alpha=np.asarray(alpha, q.dtype), **options)
    return grads | {"alpha": np.zeros_like(grads["alpha"])}


@wrong_gradient("intention", "hidden")
def gram_term_of_hidden_keys(dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Gradients:
    """The Gram matrix's part of dk reaches keys that the query does not see."""
    inner, y, u = through_solve("linear_attention", dout, q, k, v, alpha, **options)
    to_k = t(y @ t(k)) @ u + t(u @ t(k)) @ y
    return {"q": u, "k": inner["k"] - to_k.astype(k.dtype), "v": inner["v"]}
