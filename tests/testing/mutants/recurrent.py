"""The sequential forms with a bug: in what is written, in the order, in the mask, in a chunk or in the state."""

from __future__ import annotations

from typing import Any

import numpy as np

import kvq_ref as kvq
from testing.mutants import plain
from testing.mutants.mutant import mutant, wrong_gradient
from testing.mutants.plain import Array, sees

# ---- The delta rule ------------------------------------------------------------------


@mutant("delta_rule")
def delta_adds(q: Array, k: Array, v: Array, *, beta: Any = None, **options: Any) -> Array:
    """Values are added, and nothing is taken away: linear attention."""
    return plain.linear(q, k, plain.rows_of(k, beta) * v, **options)


@mutant("delta_rule")
def beta_ignored(q: Array, k: Array, v: Array, *, beta: Any = None, **options: Any) -> Array:
    """The option beta does nothing."""
    return plain.delta(q, k, v, **options)


@mutant("delta_rule")
def beta_on_the_value_alone(q: Array, k: Array, v: Array, *, beta: Any = None, **options: Any) -> Array:
    """All of what is there is taken away, and a part beta of the value is written."""
    return plain.delta(q, k, plain.rows_of(k, beta) * v, **options)


@mutant("delta_rule")
def keys_normalised(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Keys are divided by their length on the way in."""
    length = np.linalg.norm(k, axis=-1, keepdims=True)
    return plain.delta(q, k / np.where(length == 0, 1, length).astype(k.dtype), v, **options)


@mutant("delta_rule")
def last_key_first(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, beta: Any = None
) -> Array:
    """The keys are taken in the reverse order."""
    beta = plain.rows_of(k, beta)[..., ::-1, :]
    return plain.delta(q, k[..., ::-1, :], v[..., ::-1, :], mask=sees(q, k, mask, is_causal)[..., ::-1], beta=beta)


@mutant("delta_rule")
def memory_read_before_it_is_written(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """A causal query reads the state before its own key is written."""
    return plain.delta(q, k, v, mask=sees(q, k, None, is_causal, shift=-1))


@mutant("delta_rule")
def hidden_key_erases(q: Array, k: Array, v: Array, *, mask: Any = None, beta: Any = None) -> Array:
    """A mask of keys sets values to zero: the key still takes away what the memory says of it."""
    if mask is None or mask.shape[-2] != 1:
        return plain.delta(q, k, v, mask=mask, beta=beta)
    return plain.delta(q, k, np.where(np.swapaxes(mask, -1, -2), v, 0), beta=beta)


@mutant("delta_rule")
def errors_of_a_chunk_from_its_start(
    q: Array, k: Array, v: Array, *, is_causal: bool = False, beta: Any = None
) -> Array:
    """In a chunk of two, what is wrong is measured at the state before the chunk: the triangular system is left out."""
    seen, beta = sees(q, k, None, is_causal), plain.rows_of(k, beta)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, beta)))
    s = before = np.zeros((*lead, q.shape[-2], k.shape[-1], v.shape[-1]), q.dtype)
    for j in range(k.shape[-2]):
        before = s if j % 2 == 0 else before
        k_j, v_j, beta_j = (x[..., None, j, :] for x in (k, v, beta))
        wrong = v_j - (k_j[..., None, :] @ before)[..., 0, :]
        s = s + np.where(seen[..., j, None, None], k_j[..., :, None] * (beta_j * wrong)[..., None, :], 0)
    return (q[..., None, :] @ s)[..., 0, :]


@mutant("delta_rule", breaks="pieces give the whole")
def memory_starts_anew(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The state that is given is added to the outputs, but what is written is measured from zero."""
    if options.get("mask") is not None and options["mask"].shape[-2] > 1:
        return kvq.delta_rule(q, k, v, **options)
    out, state = kvq.delta_rule(q, k, v, output_final_state=True, **options)
    if initial_state is not None:
        out = out + (options.get("scale") or 1) * q @ initial_state.kv
        state = kvq.DeltaRuleState(state.kv + initial_state.kv)
    return (out, state) if output_final_state else out


def delta_gradients(dout: Array, q: Array, k: Array, v: Array, options: dict[str, Any]) -> dict[str, Array]:
    return kvq.vjp(kvq.delta_rule, q, k, v, **options)[1](dout)._asdict()


@wrong_gradient("delta_rule")
def erasing_has_no_gradient(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """Keys get no gradient through what they take away."""
    beta = plain.rows_of(k, options.pop("beta", None))
    through = kvq.vjp(kvq.linear_attention, q, k, beta * v, **options)[1](dout)
    return delta_gradients(dout, q, k, v, {**options, "beta": np.array(beta)}) | {"k": through.k}


@wrong_gradient("delta_rule")
def gradient_of_beta_from_the_value_alone(
    dout: Array, q: Array, k: Array, v: Array, **options: Any
) -> dict[str, Array]:
    """The gradient of beta is that of a factor of v: what is taken away has none."""
    grads = delta_gradients(dout, q, k, v, options)
    if grads["beta"] is None:
        return grads
    beta = np.where(options["beta"] == 0, 1, options["beta"])
    return grads | {"beta": np.sum(grads["v"] * v / beta, axis=-1, keepdims=True)}


# ---- Gated linear attention ----------------------------------------------------------


@mutant("gated_linear", breaks="a decay of zero forgets all")
def decay_ignored(q: Array, k: Array, v: Array, *, decay: Any = None, **options: Any) -> Array:
    """The option decay does nothing."""
    return plain.linear(q, k, v, **options)


@mutant("gated_linear")
def own_pair_fades(q: Array, k: Array, v: Array, *, decay: Any = None, **options: Any) -> Array:
    """A pair is added first, and fades with its own decay."""
    return plain.gated(q, plain.rows_of(k, decay) * k, v, decay=decay, **options)


@mutant("gated_linear", breaks="a decay acts on all that came before")
def decay_of_the_key_before(q: Array, k: Array, v: Array, *, decay: Any = None, **options: Any) -> Array:
    """Off by one: the memory fades with the decay of the key before, the first with none."""
    decay = plain.rows_of(k, decay)
    late = np.concatenate([np.ones_like(decay[..., :1, :]), decay[..., :-1, :]], axis=-2)
    return plain.gated(q, k, v, decay=late, **options)


@mutant("gated_linear")
def decay_of_the_first_coordinate(q: Array, k: Array, v: Array, *, decay: Any = None, **options: Any) -> Array:
    """One decay is read for all coordinates of a key."""
    return plain.gated(q, k, v, decay=plain.rows_of(k, decay)[..., :1], **options)


@mutant("gated_linear", breaks="a mask is deletion")
def hidden_key_fades(q: Array, k: Array, v: Array, *, mask: Any = None, decay: Any = None) -> Array:
    """A mask of keys sets values to zero: the memory still fades with the decays of hidden keys."""
    if mask is None or mask.shape[-2] != 1:
        return plain.gated(q, k, v, mask=mask, decay=decay)
    return plain.gated(q, k, np.where(np.swapaxes(mask, -1, -2), v, 0), decay=decay)


@mutant("gated_linear", breaks="pieces give the whole")
def past_does_not_fade(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The state that is given is added as it was, however many keys have come since."""
    if options.get("mask") is not None and options["mask"].shape[-2] > 1:
        return kvq.gated_linear_attention(q, k, v, **options)
    out, state = kvq.gated_linear_attention(q, k, v, output_final_state=True, **options)
    if initial_state is not None:
        out = out + (options.get("scale") or 1) * q @ initial_state.kv
        state = kvq.GatedLinearState(state.kv + initial_state.kv)
    return (out, state) if output_final_state else out


@wrong_gradient("gated_linear")
def gradient_of_decay_without_what_faded(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """The gradient of a decay is taken at the state after its key, with the pair that was added."""
    grads = kvq.vjp(kvq.gated_linear_attention, q, k, v, **options)[1](dout)._asdict()
    if grads["decay"] is None:
        return grads
    added = grads["k"] * k
    shared = grads["decay"].shape[-1] == 1
    return grads | {"decay": grads["decay"] + (np.sum(added, axis=-1, keepdims=True) if shared else added)}


@wrong_gradient("gated_linear")
def gradient_does_not_fade(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """Backward, the gradient of the state is handed on without the decay."""
    grads = kvq.vjp(kvq.gated_linear_attention, q, k, v, **options)[1](dout)._asdict()
    options.pop("decay", None)
    through = kvq.vjp(kvq.linear_attention, q, k, v, **options)[1](dout)
    return grads | {"k": through.k, "v": through.v}


# ---- Mesa attention ------------------------------------------------------------------


@mutant("mesa", breaks="a decay of zero forgets all")
def mesa_forgets_nothing(q: Array, k: Array, v: Array, *, alpha: Any, decay: Any = None, **options: Any) -> Array:
    """The option decay does nothing: Intention."""
    return plain.mesa(q, k, v, alpha=alpha, **options)


@mutant("mesa", breaks="mesa is gated linear attention of other queries")
def gram_does_not_fade(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False, decay: Any = None
) -> Array:
    """The sum of k v^T fades, and that of k k^T does not."""
    seen = sees(q, k, mask, is_causal)
    return plain.faded_fit(q, k, v, alpha, seen.astype(float), plain.left(seen, plain.rows_of(k, decay)))


@mutant("mesa", breaks="mesa is gated linear attention of other queries")
def gram_fades_twice(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False, decay: Any = None
) -> Array:
    """Keys are multiplied by what is left of them, so that the Gram matrix has its square."""
    c = plain.left(sees(q, k, mask, is_causal), plain.rows_of(k, decay))
    return plain.faded_fit(q, k, v, alpha, c**2, c)


@mutant("mesa", breaks="the fading fit solves its normal equations")
def alpha_fades(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False, decay: Any = None
) -> Array:
    """H begins with alpha I, and so alpha fades like a key before the first."""
    seen, decay = sees(q, k, mask, is_causal), plain.rows_of(k, decay)
    c = plain.left(seen, decay)
    of_alpha = np.prod(np.where(seen, np.swapaxes(decay, -1, -2), 1), axis=-1)
    d = k.shape[-1]
    h = np.einsum("...ij,...jd,...je->...ide", c, k, k)
    h = h + (np.asarray(alpha)[..., None] * of_alpha + 1e-12)[..., None, None] * np.eye(d)
    y = np.linalg.solve(h, q[..., None])[..., 0]
    return (((y @ np.swapaxes(k, -1, -2)) * c) @ v).astype(q.dtype)


@mutant("mesa", breaks="a mask is deletion")
def hidden_key_fades_the_sums(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, decay: Any = None
) -> Array:
    """A hidden key is in no sum, but what came before it fades with its decay all the same."""
    seen = sees(q, k, mask)
    c = plain.left(np.ones_like(seen), plain.rows_of(k, decay)) * seen
    return plain.faded_fit(q, k, v, alpha, c, c)


@mutant("mesa")
def future_in_the_fading_gram(
    q: Array, k: Array, v: Array, *, alpha: Any, is_causal: bool = False, decay: Any = None
) -> Array:
    """In a causal call H is that of all keys: the future leaks through the fit."""
    decay = plain.rows_of(k, decay)
    all_keys, own = (plain.left(sees(q, k, None, causal), decay) for causal in (False, is_causal))
    return plain.faded_fit(q, k, v, alpha, all_keys, own)


@mutant("mesa", breaks="pieces give the whole")
def gram_lost_from_the_mesa_state(
    q: Array, k: Array, v: Array, *, alpha: Any, initial_state: Any = None, output_final_state: bool = False
) -> Any:
    """The state carries the sum of k v^T, and starts that of k k^T anew."""
    if initial_state is not None:
        initial_state = kvq.MesaState(0 * initial_state.kk, initial_state.kv)
    out, state = kvq.mesa_attention(q, k, v, alpha=alpha, initial_state=initial_state, output_final_state=True)
    return (out, state) if output_final_state else out


@wrong_gradient("mesa")
def gradient_of_decay_through_one_sum(
    dout: Array, q: Array, k: Array, v: Array, *, alpha: Any, **options: Any
) -> dict[str, Array]:
    """The gradient of a decay comes through k v^T alone: what the fit forgets of the keys has none."""
    grads = kvq.vjp(kvq.mesa_attention, q, k, v, alpha=alpha, **options)[1](dout)._asdict()
    if grads["decay"] is None:
        return grads
    c = plain.left(sees(q, k, options.get("mask"), bool(options.get("is_causal"))), options["decay"])
    h = np.einsum("...ij,...jd,...je->...ide", c, k, k) + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    y = np.linalg.solve(h, q[..., None])[..., 0].astype(q.dtype)
    through = kvq.vjp(kvq.gated_linear_attention, y, k, v, **options)[1](dout)
    return grads | {"decay": through.decay}
