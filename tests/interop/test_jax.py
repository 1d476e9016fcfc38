"""The forms inside JAX models: grad, jit and vmap, beside JAX's own differentiation of the equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import each_form, public, relative_error

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form
from kvq_ref.grid import GRID

pytestmark = pytest.mark.oracle

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
interop = pytest.importorskip("kvq_ref.interop.jax")

BAR = 1e-9  # float64; the systems that are solved have condition numbers of at most about 1e3

Function = Callable[..., Any]
Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def given(form: Form, rng: np.random.Generator) -> tuple[Arrays, dict[str, Any]]:
    """(arrays, the rest) of a call with everything that the form takes; one sequence."""
    Tq, Tk, d, dv = 4, 5, 3, 2
    arrays = {"q": rng.standard_normal((Tq, d)), "k": rng.standard_normal((Tk, d)), "v": rng.standard_normal((Tk, dv))}
    takes = {
        "mask": rng.random((Tq, Tk)) < 0.7,
        "bias": rng.standard_normal((Tq, Tk)),
        "alpha": np.asarray(0.7),
        "beta": rng.uniform(0.2, 0.9, (Tk, 1)),
        "decay": rng.uniform(0.2, 0.9, (Tk, 1)),
    }
    takes["mask"][:, 0] = True
    arrays |= {name: x for name, x in takes.items() if name in form.options}
    rest = {"is_causal": True, "scale": 0.8, "offset": -0.4}
    return arrays, {name: x for name, x in rest.items() if name in form.options}


# ---- The equations -------------------------------------------------------------------

SCORES: dict[str, Function] = {
    "z": lambda z: z,
    "exp": lambda z: jnp.exp(z),
    "z^2/(1+z^2)": lambda z: z**2 / (1 + z**2),
    "z^2": lambda z: z**2,
    "1+z+z^2/2": lambda z: 1 + z + z**2 / 2,
    "sigmoid": lambda z: jax.nn.sigmoid(z),
}


def equation(name: str, arrays: Arrays, rest: dict[str, Any]) -> Any:
    """A form from its equation, one query after the other."""
    k, v = arrays["k"], arrays["v"]
    Tq, Tk, d = len(arrays["q"]), *k.shape
    place, eye, alpha = GRID[name], jnp.eye(d), arrays.get("alpha", 0.0)
    beta, decay = (arrays.get(x, jnp.ones((Tk, 1))) for x in ("beta", "decay"))
    mask = arrays["mask"] & np.tri(Tq, Tk, dtype=bool)
    scale = rest.get("scale", 1.0)

    def attend(q: Any, seen: Any, bias: Any) -> Any:
        if name in ("delta_rule", "gated_linear_attention", "mesa_attention"):
            H, S = jnp.zeros((d, d)), jnp.zeros((d, v.shape[-1]))
            for j in np.flatnonzero(seen):
                told = v[j] - S.T @ k[j] if name == "delta_rule" else v[j]
                S = decay[j] * S + beta[j] * jnp.outer(k[j], told)
                H = decay[j] * H + jnp.outer(k[j], k[j])
            return jnp.linalg.solve(H + alpha * eye, q) @ S if name == "mesa_attention" else scale * q @ S
        if place.query == "preconditioned":
            q = jnp.linalg.solve(k.T @ (seen[:, None] * k) + alpha * eye, q)
        w = seen * jnp.exp(bias) * SCORES[place.score](scale * k @ q + rest.get("offset", 0.0))
        if place.row == "sum":
            return w @ v
        p = w / w.sum()
        if place.row == "mean":
            return p @ v
        line = jnp.concatenate([jnp.ones((Tk, 1)), k - q], axis=-1)  # its value at q, and its slope
        penalty = alpha * jnp.diag(jnp.ones(d + 1).at[0].set(0.0))
        return jnp.linalg.solve(line.T @ (p[:, None] * line) + penalty, line.T @ (p[:, None] * v))[0]

    bias = arrays.get("bias", jnp.zeros((Tq, Tk)))
    return jnp.stack([attend(*row) for row in zip(arrays["q"], mask, bias, strict=True)])


# ---- What holds ----------------------------------------------------------------------


def test_every_form_is_there() -> None:
    assert interop.__all__ == [*FORMS]
    assert all(getattr(interop, name).__name__ == name for name in FORMS)


@each_form
def test_grad_and_jit_agree_with_jax_and_with_vjp(form: Form, rng: np.random.Generator) -> None:
    """Of everything that a form takes: the wrapper, JAX's own derivative of the equation, and kvq_ref.vjp."""
    arrays, rest = given(form, rng)
    dout = rng.standard_normal((4, 2))
    smooth = {name: jnp.asarray(x) for name, x in arrays.items() if name != "mask"}
    mask = arrays["mask"]

    def ours(xs: Arrays) -> Any:
        return jnp.sum(dout * getattr(interop, form.name)(**xs, mask=jnp.asarray(mask), **rest))

    def theirs(xs: Arrays) -> Any:
        return jnp.sum(dout * equation(form.name, xs | {"mask": mask}, rest))

    value, grads = jax.value_and_grad(ours)(smooth)
    value_jit, grads_jit = jax.jit(jax.value_and_grad(ours))(smooth)
    expected, expected_grads = jax.value_and_grad(theirs)(smooth)
    out, pullback = kvq.vjp(public(form), **arrays, **rest)
    from_vjp = pullback(dout)
    assert relative_error(value_jit, value) < BAR
    assert relative_error(value, expected) < BAR
    assert relative_error(value, np.sum(dout * out)) < BAR
    for name in smooth:
        assert np.array_equal(grads[name], grads_jit[name]), name
        assert relative_error(grads[name], expected_grads[name]) < BAR, name
        assert relative_error(grads[name], getattr(from_vjp, name)) < BAR, name


@each_form
def test_vmap_is_a_loop(form: Form, rng: np.random.Generator) -> None:
    """Over q and whatever else the form takes, beside k and v that have axes of their own and are shared."""
    arrays, rest = given(form, rng)
    shared = {"k": jnp.asarray(rng.standard_normal((2, 5, 3))), "v": jnp.asarray(arrays["v"])}
    batch = {name: jnp.stack([x, x[..., ::-1] if x.ndim else x / 2]) for name, x in arrays.items() if name not in "kv"}

    def gradients(one: Arrays) -> Any:
        mask = one["mask"]
        smooth = {name: x for name, x in one.items() if name != "mask"}
        return jax.grad(lambda xs: jnp.sum(getattr(interop, form.name)(**xs, **shared, mask=mask, **rest) ** 2))(smooth)

    got = jax.jit(jax.vmap(gradients))(batch)
    for i in range(2):
        expected = gradients({name: x[i] for name, x in batch.items()})
        for name, x in expected.items():
            assert relative_error(got[name][i], x) < BAR, name


def test_options_that_broadcast() -> None:
    """A mask of one axis, an alpha for each sequence: gradients have the shapes of what was given."""
    x = jnp.ones((2, 3, 4, 2))
    mask = jnp.asarray([True, True, True, False])

    def loss(k: Any, alpha: Any, bias: Any) -> Any:
        return jnp.sum(interop.sigma_intention(x, k, x, alpha=alpha, mask=mask, bias=bias))

    arguments = (x[0, 0], jnp.ones(3), jnp.ones(4))
    grads = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    assert [g.shape for g in grads] == [a.shape for a in arguments]


def test_half_precision() -> None:
    x = jnp.linspace(-1, 1, 8).reshape(4, 2).astype("bfloat16")
    out = interop.softmax_attention(x, x, x)
    wide = interop.softmax_attention(*[x.astype("float32")] * 3)
    assert np.array_equal(out, wide.astype("bfloat16"))
    assert jax.grad(lambda x: interop.softmax_attention(x, x, x).sum())(x).dtype == x.dtype


# ---- Mistakes ------------------------------------------------------------------------


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "NumPy": (lambda x: interop.softmax_attention(np.ones((4, 2)), x, x), TypeError, "q: expected a JAX array, got"),
    "mask": (
        lambda x: interop.softmax_attention(x, x, x, mask=np.ones((4, 4), bool)),
        TypeError,
        "mask: expected a JAX array, got numpy",
    ),
    "mask of numbers": (
        lambda x: interop.softmax_attention(x, x, x, mask=jnp.ones((4, 4))),
        TypeError,
        "mask: expected dtype bool",
    ),
    "dtypes": (lambda x: interop.softmax_attention(x, x.astype("float32"), x), TypeError, "k: expected dtype float64"),
    "shape": (lambda x: interop.softmax_attention(x, x, x[1:]), ValueError, "v: expected Tk = 4 rows"),
    "keyword": (lambda x: interop.softmax_attention(x, x, x, alpha=1), TypeError, "its options here are mask, bias"),
    "number": (lambda x: interop.intention(x, x, x, alpha=-1.0), ValueError, "alpha: expected a finite number >= 0"),
    "word": (lambda x: interop.intention(x, x, x, alpha=1.0, solver="lu"), ValueError, "solver: expected one of"),
    "implementation": (
        lambda x: interop.delta_rule(x, x, x, implementation="compiled"),
        Exception,
        "there is no kernel for this form",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_when_a_function_is_traced(name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        jax.jit(call)(jnp.ones((4, 2)))


def test_values_are_checked_when_a_function_runs() -> None:
    x = jnp.ones((4, 2))
    run = jax.jit(lambda alpha: interop.intention(x, x, x, alpha=alpha))
    with pytest.raises(Exception, match="alpha: expected finite numbers >= 0"):
        run(jnp.asarray(-1.0)).block_until_ready()


def test_no_second_derivative_and_no_forward_mode() -> None:
    x = jnp.ones((4, 2))

    def loss(x: Any) -> Any:
        return jnp.sum(interop.softmax_attention(x, x, x) ** 2)

    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        jax.grad(lambda x: jnp.sum(jax.grad(loss)(x)))(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (x,), (x,))
