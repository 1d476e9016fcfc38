"""Linear attention with a bug: in the feature map, the normaliser, the chunks or the state."""

from __future__ import annotations

from typing import Any

import numpy as np

import kvq_ref as kvq
from testing.mutants import plain
from testing.mutants.mutant import mutant
from testing.mutants.plain import Array, feature, sees, t


@mutant("linear", "the option scale is ignored")
def linear_scale_ignored(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """A scale that is given is not applied."""
    return plain.linear(q, k, v, **options)


@mutant("linear", "1/sqrt(d)")
def linear_softmaxs_scale(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The default scale is softmax attention's."""
    return plain.linear(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **options)


@mutant("linear", "not divided by their sum")
def normaliser_forgotten(q: Array, k: Array, v: Array, *, normalize: bool = False, **options: Any) -> Array:
    """The option normalize does nothing."""
    return plain.linear(q, k, v, **options)


@mutant("linear", "of all keys", "sees")
def normaliser_sees_the_future(
    q: Array,
    k: Array,
    v: Array,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    feature_map: str | None = None,
    normalize: bool = False,
) -> Array:
    """The sum that normalises runs over all keys, in a causal call too."""
    out = plain.linear(q, k, v, is_causal=is_causal, scale=scale, feature_map=feature_map)
    total = np.sum(feature(q, feature_map) @ t(feature(k, feature_map)), axis=-1, keepdims=True)
    total = (1 if scale is None else scale) * np.where(total == 0, 1, total)
    return out / total.astype(q.dtype) if normalize else out


@mutant("linear", "the feature map is applied to q alone")
def feature_map_on_q_alone(q: Array, k: Array, v: Array, *, feature_map: str | None = None, **options: Any) -> Array:
    """phi is applied to the queries, and not to the keys."""
    return plain.linear(feature(q, feature_map), k, v, **options)


@mutant("linear", "the feature map is ignored")
def feature_map_ignored(q: Array, k: Array, v: Array, *, feature_map: str | None = None, **options: Any) -> Array:
    """The feature map is not applied at all."""
    return plain.linear(q, k, v, **options)


@mutant("linear", "elu, without the + 1")
def elu_without_the_one(q: Array, k: Array, v: Array, *, feature_map: str | None = None, **options: Any) -> Array:
    """The feature map is elu, and the + 1 is forgotten."""
    if feature_map is not None:
        q, k = feature(q, feature_map) - 1, feature(k, feature_map) - 1
    return plain.linear(q, k, v, **options)


@mutant("linear", "not see its own")
def state_read_before_it_is_updated(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """The recurrence reads its state before the token's own key is added."""
    return plain.linear(q, k, v, mask=sees(q, k, None, is_causal, shift=-1))


@mutant("linear", "causal over tiles")
def chunk_sees_itself_whole(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The keys of a chunk of four are all added before its queries read."""
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
    seen = sees(q, k, mask)
    return plain.linear(q, k, v, mask=seen & (j // 4 <= i // 4) if is_causal else seen)


@mutant("linear")
def chunk_boundary_lost(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """Off by one at the end of a chunk of four: its last key is not carried into the next."""
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
    lost = (j % 4 == 3) & (i // 4 > j // 4)
    return plain.linear(q, k, v, mask=sees(q, k, None, True) & ~lost if is_causal else sees(q, k))


# ---- State: what is right, and what is spoiled of it ---------------------------------

State = kvq.LinearState


def right(q: Array, k: Array, v: Array, initial_state: State | None, options: dict[str, Any]) -> tuple[Array, State]:
    if options.get("mask") is not None and options["mask"].shape[-2] > 1:  # then there is no state to give
        return kvq.linear_attention(q, k, v, **options), None
    return kvq.linear_attention(q, k, v, initial_state=initial_state, output_final_state=True, **options)


@mutant("linear", "state", breaks="pieces give the whole")
def state_is_ignored(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The state that is given is not read."""
    out, state = right(q, k, v, None, options)
    return (out, state) if output_final_state else out


@mutant("linear", "state", breaks="pieces give the whole")
def state_counts_twice(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The state that is given is added once when it is read, and once more when the new one is written."""
    out, state = right(q, k, v, initial_state, options)
    if initial_state is not None:
        state = State(state.kv + initial_state.kv, state.k_sum + initial_state.k_sum)
    return (out, state) if output_final_state else out


@mutant("linear", "state", breaks="pieces give the whole")
def state_forgets_the_normaliser(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The sum of the keys is not carried over, only that of keys and values."""
    out, state = right(q, k, v, initial_state, options)
    if initial_state is not None:
        state = State(state.kv, state.k_sum - initial_state.k_sum)
    return (out, state) if output_final_state else out


@mutant("linear", "state", breaks="pieces give the whole")
def state_lacks_the_last_key(
    q: Array, k: Array, v: Array, *, initial_state: Any = None, output_final_state: bool = False, **options: Any
) -> Any:
    """The state is written before the last key is added."""
    out, state = right(q, k, v, initial_state, options)
    if output_final_state and options.get("mask") is None:
        _, state = right(q, k[..., :-1, :], v[..., :-1, :], initial_state, options)
    return (out, state) if output_final_state else out


@mutant("intention", "state", breaks="pieces give the whole")
def gram_lost_from_the_state(
    q: Array, k: Array, v: Array, *, alpha: Any, initial_state: Any = None, output_final_state: bool = False
) -> Any:
    """Intention's state carries K^T V, and starts K^T K anew."""
    if initial_state is not None:
        initial_state = kvq.IntentionState(0 * initial_state.gram, initial_state.kv)
    out, state = kvq.intention(q, k, v, alpha=alpha, initial_state=initial_state, output_final_state=True)
    return (out, state) if output_final_state else out
