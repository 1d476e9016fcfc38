"""Models that read a context: gradients by hand against differences and PyTorch, and what they are before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import linalg

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS
from kvq_ref.lab.nn.cross_attention import learned_numbers
from kvq_ref.lab.nn.in_context import InContext
from kvq_ref.lab.nn.losses import squared_error
from kvq_ref.lab.nn.parameters import Parameters

STEP = 1e-5
MODELS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "separate, heads": {"encoder": "separate", "heads": 2},
    "deep": {"layers": 3, "heads": 2, "norm": "pre", "mlp": 1, "depth": 1},
    "encoded": {"values": "encoded", "layers": 2, "heads": 2, "mlp": 0, "depth": 1, "learn": "each"},
    "unit": {"layers": 2, "heads": 2, "norm": "unit", "mlp": 0, "depth": 1},
    "no encoder": {"encoder": "none", "layers": 2},
    "logits": {"is_logits": True, "encoder": "separate"},
}


def slope(function: Callable[[float], float], step: float = STEP) -> float:
    """The derivative at 0, by differences of order six."""
    terms = ((45, 1), (-9, 2), (1, 3))
    return sum(c * (function(n * step) - function(-n * step)) for c, n in terms) / (60 * step)


def episode(rng: np.random.Generator, d: int = 2, dy: int = 2) -> tuple[np.ndarray, ...]:
    return rng.standard_normal((3, 5, d)), rng.standard_normal((3, 5, dy)), rng.standard_normal((3, 4, d))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_against_differences(form: str, name: str, rng: np.random.Generator) -> None:
    model = InContext(2, 2, 2, form=getattr(kvq, form), width=6, **MODELS[name])
    p = model.init(rng, "float64")
    seen = episode(rng)
    y, pullback = model.apply(p, *seen)
    targets = rng.standard_normal(y.shape)
    g = pullback(squared_error(y, targets)[1])
    for part in p:  # part by part, so that none hides behind another
        move = rng.standard_normal(p[part].shape)

        def loss(h: float, part: str = part, move: np.ndarray = move) -> float:
            moved = Parameters(p.shapes, p.flat.copy())
            moved[part][...] += h * move
            return float(squared_error(model.apply(moved, *seen)[0], targets)[0])

        # expressive weights can bend so sharply that a step is too long: then a shorter one must agree
        got = float((g[part] * move).sum())
        slopes = (slope(loss, step) for step in (STEP, STEP / 100))
        # a loss of size L has differences that are right to some 1e-11 L / STEP
        floor = max(1e-2, float(loss(0.0)))
        assert any(abs(got - expected) < 1e-6 * max(abs(expected), floor) for expected in slopes), (part, got)


def test_untrained_intention_is_ridge_regression(rng: np.random.Generator) -> None:
    """One layer, no encoder, alpha = variance of the noise over that of the weights: what Bayes would answer."""
    noise, d = 0.5, 6
    for K in (3, 6, 20):
        x, queries = rng.standard_normal((4, K, d)), rng.standard_normal((4, 7, d))
        y = x @ rng.standard_normal((4, d, 1)) + noise * rng.standard_normal((4, K, 1))
        model = InContext(d, 1, 1, form=kvq.intention, options={"alpha": noise**2}, encoder="none")
        answers, _ = model.apply(model.init(rng, "float64"), x, y, queries)
        for b in range(4):
            posterior_mean = linalg.solve(x[b].T @ x[b] + noise**2 * np.eye(d), x[b].T @ y[b], assume_a="pos")
            np.testing.assert_allclose(answers[b], queries[b] @ posterior_mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["one layer", "separate, heads", "deep", "logits"])
def test_every_form_has_equally_many_parameters(name: str) -> None:
    models = [InContext(2, 2, 2, form=getattr(kvq, form), width=6, **MODELS[name]) for form in FORMS]
    assert len({model.init(np.random.default_rng(0)).flat.size for model in models}) == 1
    assert {learned_numbers(model.form, "one") for model in models} == {("alpha",), ("scale",)}


def test_alpha_starts_where_it_is_told(rng: np.random.Generator) -> None:
    model = InContext(2, 2, 2, form=kvq.intention, options={"alpha": 0.25}, heads=2, layers=2)
    p = model.init(rng, "float64")
    np.testing.assert_allclose(np.exp(p["1.alpha"]), 0.25)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of the width, 64, got 5"),
        ({"encoder": "none", "heads": 2}, "heads: expected a divisor of the width, 3, got 2"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"norm": "post"}, "norm: expected one of pre, unit, none, got 'post'"),
        ({"encoder": "both"}, "encoder: expected one of shared, separate, none, got 'both'"),
        (
            {"outputs": 2},
            "values: this task's values have 1 dimensions and answers 2: they must be 'encoded'",
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_an_impossible_model_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        InContext(**{"inputs": 3, "values_in": 1, "outputs": 1, **wrong})


@pytest.mark.oracle
def test_softmax_against_torch(rng: np.random.Generator) -> None:
    """Two layers with everything that there is, by scaled_dot_product_attention and autograd."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    how: dict[str, Any] = {"encoder": "separate", "values": "encoded", "layers": 2, "heads": 2, "norm": "pre"}
    model = InContext(2, 3, 1, width=6, **how)
    p = model.init(rng, "float64")
    p.flat[...] += 0.1 * rng.standard_normal(p.flat.shape)  # no scale is 1, no bias 0
    seen = episode(rng, dy=3)
    answers, pullback = model.apply(p, *seen)
    danswers = rng.standard_normal(answers.shape)
    g = pullback(danswers)

    free = {name: torch.tensor(x, requires_grad=True) for name, x in p.items()}
    x, y, queries = (torch.tensor(part) for part in seen)

    def gelu(h: Any) -> Any:
        return F.gelu(h, approximate="tanh")

    def encode(end: str, h: Any) -> Any:
        for i in range(3):
            h = h @ free[f"{end}.{i}.weight"] + free[f"{end}.{i}.bias"]
            h = gelu(h) if i < 2 else h
        return h

    def heads(h: Any) -> Any:
        return h.unflatten(-1, (2, 3)).transpose(-2, -3)

    def attend(layer: int, h: Any, first: int) -> Any:
        z = F.layer_norm(h, (6,), free[f"{layer}.norm.gain"], free[f"{layer}.norm.shift"])
        q = heads(z[:, first:]) * free[f"{layer}.scale"].exp()[:, None, None]
        return F.scaled_dot_product_attention(q, heads(z[:, :5]), v).transpose(-2, -3).flatten(-2)

    v = heads(encode("values", y))
    h = torch.cat([encode("keys", x), encode("queries", queries)], 1)
    h = h + attend(0, h, 0) @ free["0.out.weight"] + free["0.out.bias"]
    z = F.layer_norm(h, (6,), free["0.mlp.norm.gain"], free["0.mlp.norm.shift"])
    inside = gelu(z @ free["0.mlp.in.weight"] + free["0.mlp.in.bias"])
    h = h + inside @ free["0.mlp.out.weight"] + free["0.mlp.out.bias"]
    theirs = encode("decoder", attend(1, h, 5))
    np.testing.assert_allclose(answers, theirs.detach().numpy(), atol=1e-10)
    (theirs * torch.tensor(danswers)).sum().backward()
    for name, tensor in free.items():
        np.testing.assert_allclose(g[name], tensor.grad.numpy(), atol=1e-10, err_msg=name)
