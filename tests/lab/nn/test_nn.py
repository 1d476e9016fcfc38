"""Gradients by hand against differences and PyTorch: every layer, and the whole model on every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref import dispatch
from kvq_ref.lab.nn.layers import embedding, gelu, layer_norm, linear, relu
from kvq_ref.lab.nn.losses import cross_entropy, squared_error
from kvq_ref.lab.nn.model import Transformer
from kvq_ref.lab.nn.optimizers import SGD, AdamW
from kvq_ref.lab.nn.parameters import Parameters
from kvq_ref.lab.nn.positions import rotary, sinusoidal

FORMS: dict[Callable[..., Any], dict[str, float]] = {
    kvq.softmax_attention: {},
    kvq.expressive_attention: {},
    kvq.quadratic_attention: {},
    kvq.taylor_attention: {},
    kvq.sigmoid_attention: {"offset": -2.0},
    kvq.local_linear_attention: {"alpha": 0.5},
    kvq.linear_attention: {"scale": 0.1},  # unscaled and without a norm it grows as a cube
    kvq.intention: {"alpha": 0.5},
    kvq.sigma_intention: {"alpha": 0.5},
    kvq.expressive_intention: {"alpha": 0.5},
}
STEP = 1e-5


def slope(function: Callable[[float], float], step: float = STEP) -> float:
    """The derivative at 0, by differences of order six."""
    terms = ((45, 1), (-9, 2), (1, 3))
    return sum(c * (function(n * step) - function(-n * step)) for c, n in terms) / (60 * step)


def assert_pullback(layer: Callable[..., Any], *arguments: np.ndarray, rng: np.random.Generator) -> None:
    """dy . (J dx) = (J^T dy) . dx for random dy and dx."""
    y, pullback = layer(*arguments)
    dy = rng.standard_normal(y.shape)
    grads = pullback(dy)
    grads = grads if isinstance(grads, tuple) else (grads,)
    moves = [rng.standard_normal(x.shape) for x in arguments]
    moved = slope(lambda h: float((dy * layer(*(x + h * dx for x, dx in zip(arguments, moves, strict=True)))[0]).sum()))
    expected = sum(float((g * dx).sum()) for g, dx in zip(grads, moves, strict=True))
    assert abs(moved - expected) < 1e-8 * max(1, abs(expected), np.abs(dy).sum())


def test_layers_against_differences(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 5, 6))
    assert_pullback(linear, x, rng.standard_normal((6, 3)), rng.standard_normal(3), rng=rng)
    assert_pullback(layer_norm, x, rng.standard_normal(6), rng.standard_normal(6), rng=rng)
    assert_pullback(gelu, x, rng=rng)
    assert_pullback(rotary, x, rng=rng)
    away_from_the_kink = x + np.sign(x)
    assert_pullback(relu, away_from_the_kink, rng=rng)
    tokens = rng.integers(0, 4, (2, 5))
    assert_pullback(lambda table: embedding(tokens, table), rng.standard_normal((4, 6)), rng=rng)


def test_losses_against_differences(rng: np.random.Generator) -> None:
    logits, targets = rng.standard_normal((2, 5, 4)), rng.integers(0, 4, (2, 5))
    counts = rng.random((2, 5)) < 0.5
    goal = rng.standard_normal(logits.shape)
    move = rng.standard_normal(logits.shape)
    losses = (
        lambda y: cross_entropy(y, targets),
        lambda y: cross_entropy(y, targets, counts),
        lambda y: squared_error(y, goal),
    )
    for loss in losses:
        moved = slope(lambda h, loss=loss: float(loss(logits + h * move)[0]))
        assert abs(moved - float((loss(logits)[1] * move).sum())) < 1e-8
    nothing = cross_entropy(logits, targets, np.zeros((2, 5), bool))
    assert nothing[0] == 0
    assert not nothing[1].any()
    with pytest.raises(ValueError, match=r"^targets: expected the shape of y, \(2, 5, 4\), got \(2, 5\)$"):
        squared_error(logits, targets)


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_whole_model_against_differences(form: Callable[..., Any], norm: str, rng: np.random.Generator) -> None:
    places = ["rotary", "learned", "sinusoidal"]
    if "bias" in dispatch.FORMS[form.__name__].options:
        places.append("alibi")
    model = Transformer(5, 4, form, FORMS[form], width=8, norm=norm, positions=str(rng.choice(places)), context=7)
    p = model.init(rng, "float64")
    tokens, targets = rng.integers(0, 5, (3, 7)), rng.integers(0, 4, (3, 7))
    logits, pullback = model.apply(p, tokens)
    g = pullback(cross_entropy(logits, targets)[1])
    assert np.isfinite(g.flat).all()
    for name in p:  # part by part, so that none hides behind another
        move = rng.standard_normal(p[name].shape)

        def loss(h: float, name: str = name, move: np.ndarray = move) -> float:
            moved = Parameters(p.shapes, p.flat.copy())
            moved[name][...] += h * move
            return float(cross_entropy(model.apply(moved, tokens)[0], targets)[0])

        # expressive weights can bend so sharply that a step is too long: then a shorter one must agree
        got = float((g[name] * move).sum())
        slopes = (slope(loss), slope(loss, STEP / 100))
        assert any(abs(got - expected) < 1e-6 * max(abs(expected), 1e-2) for expected in slopes), (model, name, slopes)


@pytest.mark.oracle
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_whole_model_against_torch(norm: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    model = Transformer(5, 4, kvq.softmax_attention, width=8, norm=norm, positions="learned", context=7)
    p = model.init(rng, "float64")
    tokens, targets = rng.integers(0, 5, (3, 7)), rng.integers(0, 4, (3, 7))
    logits, pullback = model.apply(p, tokens)
    loss, dlogits = cross_entropy(logits, targets)
    g = pullback(dlogits)

    how: dict[str, Any] = {"norm_first": norm == "pre", "activation": torch.nn.GELU(approximate="tanh")}
    how |= {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    layers = [torch.nn.TransformerEncoderLayer(8, 2, **how) for _ in range(2)]
    theirs = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out.weight": "self_attn.out_proj.weight",
        "attention.out.bias": "self_attn.out_proj.bias",
        "attention.norm.gain": "norm1.weight",
        "attention.norm.shift": "norm1.bias",
        "mlp.in.weight": "linear1.weight",
        "mlp.in.bias": "linear1.bias",
        "mlp.out.weight": "linear2.weight",
        "mlp.out.bias": "linear2.bias",
        "mlp.norm.gain": "norm2.weight",
        "mlp.norm.shift": "norm2.bias",
    }
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for ours, name in theirs.items():
                layer.get_parameter(name).copy_(torch.tensor(p[f"{number}.{ours}"].T))
    free = {name: torch.tensor(x, requires_grad=True) for name, x in p.items() if not name[0].isdigit()}
    x = free["embedding"][tokens] + free["positions"]
    for layer in layers:
        x = layer(x, src_mask=torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64))
    if norm == "pre":
        x = torch.nn.functional.layer_norm(x, (8,), free["norm.gain"], free["norm.shift"])
    out = x @ free["readout.weight"] + free["readout.bias"]
    cost = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(targets).flatten())
    cost.backward()
    assert abs(float(loss) - cost.item()) < 1e-12
    np.testing.assert_allclose(logits, out.detach().numpy(), atol=1e-10)
    for name, x in free.items():
        np.testing.assert_allclose(g[name], x.grad.numpy(), atol=1e-10, err_msg=name)
    for number, layer in enumerate(layers):
        for ours, name in theirs.items():
            expected = layer.get_parameter(name).grad.numpy().T
            np.testing.assert_allclose(g[f"{number}.{ours}"], expected, atol=1e-10, err_msg=ours)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (SGD(momentum=0.9, weight_decay=0.1), "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        (SGD(), "SGD", {}),
        (AdamW(weight_decay=0.1), "AdamW", {"weight_decay": 0.1}),
    ],
    ids=["momentum", "plain", "adamw"],
)
def test_optimizers_against_torch(ours: Any, name: str, options: dict[str, float], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(20)
    theirs = torch.tensor(x.copy(), requires_grad=True)
    optimizer = getattr(torch.optim, name)([theirs], lr=0.01, **options)
    for step in range(30):
        g = rng.standard_normal(20)
        theirs.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = rate = 0.01 * (1 + step % 3)
        optimizer.step()
        ours.step(x, g, rate)
    np.testing.assert_allclose(x, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_rotary_products_depend_on_the_distance_alone(rng: np.random.Generator) -> None:
    q, k = (np.tile(rng.standard_normal((1, 6)), (9, 1)) for _ in range(2))
    products = rotary(q)[0] @ rotary(k)[0].T
    for lag in range(9):
        np.testing.assert_allclose(np.diagonal(products, lag), products[0, lag], atol=1e-12)


def test_sinusoidal_has_the_width_asked_for() -> None:
    assert sinusoidal(3, 5).shape == (3, 5)


def test_no_token_sees_a_later_one(rng: np.random.Generator) -> None:
    for form, options in FORMS.items():
        model = Transformer(5, 4, form, options, positions="rotary")
        p = model.init(rng)
        tokens = rng.integers(0, 5, (2, 9))
        before = model.apply(p, tokens)[0]
        tokens[:, 6:] = (tokens[:, 6:] + 1) % 5
        np.testing.assert_allclose(model.apply(p, tokens)[0][:, :6], before[:, :6], rtol=1e-5, atol=1e-5)


def test_parameters_are_views_of_one_array() -> None:
    model = Transformer(3, 3, positions="learned")
    p = model.init(np.random.default_rng(0))
    assert p.flat.dtype == "float32"
    assert list(p) == list(model.shapes())
    assert len(p) == len(model.shapes())
    p["readout.bias"][-1] = 7
    assert p.flat[-1] == 7
    with pytest.raises(ValueError, match=r"^flat: expected shape \(2,\), got \(3,\)$"):
        Parameters({"x": (2,)}, np.zeros(3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of the width, 32, got 5"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"norm": "before"}, "norm: expected one of pre, post, none, got 'before'"),
        ({"width": 6, "heads": 2, "positions": "rotary"}, "positions: rotary needs an even width a head, got 3"),
        (
            {"form": kvq.intention},
            "positions: alibi is a bias, and intention takes none; try rotary, sinusoidal or learned",
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_an_impossible_model_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Transformer(3, 3, **wrong)


def test_more_tokens_than_the_context() -> None:
    model = Transformer(3, 3, positions="learned", context=4)
    p = model.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match="tokens: expected at most 4 places, the model's context, got 5"):
        model.apply(p, np.zeros((1, 5), int))


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=["sgd", "adamw"])
def test_it_learns_to_copy(optimizer: Any, rng: np.random.Generator) -> None:
    """The token before the last: chance is 1/3."""
    model = Transformer(3, 3, kvq.softmax_attention, positions="rotary")
    p = model.init(rng)
    rate = 0.1 if isinstance(optimizer, SGD) else 3e-3
    for _ in range(150):
        tokens = rng.integers(0, 3, (32, 8))
        logits, pullback = model.apply(p, tokens[:, 1:])
        _, dlogits = cross_entropy(logits[:, 1:], tokens[:, 1:-1])
        whole = np.zeros_like(logits)
        whole[:, 1:] = dlogits
        optimizer.step(p.flat, pullback(whole).flat, rate)
    assert (logits[:, 1:].argmax(-1) == tokens[:, 1:-1]).mean() > 0.95
