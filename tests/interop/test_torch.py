"""The forms inside PyTorch models: gradcheck, training beside PyTorch's own formulas, and what is told of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Case, cases, each_form, public, relative_error

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")
interop = pytest.importorskip("kvq_ref.interop.torch")

Function = Callable[..., Any]


def tensors(
    case: Case, dtype: Any = torch.float64, requires_grad: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what has gradients, all else), by name, in memory of their own."""
    arrays = {name: torch.tensor(x, dtype=dtype, requires_grad=requires_grad) for name, x in case.arrays().items()}
    rest = {name: x for name, x in case.options.items() if name not in arrays}
    return arrays, {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in rest.items()}


def plain(form: Form, rng: np.random.Generator) -> Case:
    return next(iter(cases(form, rng, (3, 4, 2, 3))))


def test_every_form_is_there() -> None:
    assert interop.__all__ == [*FORMS]
    assert all(getattr(interop, name).__name__ == name for name in FORMS)


@each_form
def test_gradcheck(form: Form, rng: np.random.Generator) -> None:
    """PyTorch's check against differences, of every argument that has a gradient, for every kind of call."""
    for case in cases(form, rng, (2, 3, 2, 2)):
        arrays, rest = tensors(case)

        def function(*xs: Any, names: Any = tuple(arrays), rest: Any = rest) -> Any:
            return getattr(interop, form.name)(**dict(zip(names, xs, strict=True)), **rest)

        assert torch.autograd.gradcheck(function, tuple(arrays.values())), case.name


@each_form
def test_results_are_those_of_kvq_ref(form: Form, rng: np.random.Generator) -> None:
    """The same function on the same memory: equal to the bit, in float32 too."""
    case = plain(form, rng)
    arrays, rest = tensors(case, torch.float32)
    out = getattr(interop, form.name)(**arrays, **rest)
    dout = torch.ones_like(out)
    grads = torch.autograd.grad(out, list(arrays.values()), dout)
    expected, pullback = kvq.vjp(public(form), **{n: x.detach().numpy() for n, x in arrays.items()}, **case.options)
    assert np.array_equal(out.detach().numpy(), expected)
    for name, got in zip(arrays, grads, strict=True):
        assert np.array_equal(got.numpy(), getattr(pullback(dout.numpy()), name)), name


@each_form
def test_the_reference_can_be_asked_for(form: Form, rng: np.random.Generator) -> None:
    arrays, rest = tensors(plain(form, rng), requires_grad=False)
    got = getattr(interop, form.name)(**arrays, **rest, implementation="reference")
    expected = public(form)(**{n: x.numpy() for n, x in arrays.items()}, **rest, implementation="reference")
    assert np.array_equal(got.numpy(), expected)


# ---- Models --------------------------------------------------------------------------


def softmax(q: Any, k: Any, v: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def intention(q: Any, k: Any, v: Any, alpha: Any) -> Any:
    ridge = k.mT @ k + alpha[:, None, None] * torch.eye(k.shape[-1], dtype=k.dtype)
    return q @ torch.linalg.solve(ridge, k.mT @ v)


class Model(torch.nn.Module):
    """Two layers of attention of two heads, and what stands around them."""

    def __init__(self, attention: Function, has_alpha: bool) -> None:
        super().__init__()
        self.attention = attention
        self.project = torch.nn.ModuleList(torch.nn.Linear(8, 24) for _ in range(2))
        self.mix = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.alphas = torch.nn.ParameterList(torch.full((2,), 0.5) for _ in range(2)) if has_alpha else [None, None]

    def forward(self, x: Any) -> Any:
        for project, mix, alpha in zip(self.project, self.mix, self.alphas, strict=True):
            q, k, v = (y.unflatten(-1, (2, 4)).transpose(-2, -3) for y in project(x).chunk(3, -1))
            options = {} if alpha is None else {"alpha": alpha}
            x = x + mix(self.attention(q, k, v, **options).transpose(-2, -3).flatten(-2))
        return x


def trained(attention: Function, has_alpha: bool, x: Any, target: Any) -> list[Any]:
    torch.manual_seed(0)
    model = Model(attention, has_alpha).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


@pytest.mark.parametrize("name", ["softmax_attention", "intention"])
def test_a_model_trains_as_with_pytorchs_own_formula(name: str, rng: np.random.Generator) -> None:
    """Twenty steps of AdamW, which ends far from where it began and, by either, in the same place."""
    x, target = (torch.tensor(rng.standard_normal((3, 6, 8))) for _ in range(2))
    ours = {
        "softmax_attention": lambda q, k, v: interop.softmax_attention(q, k, v, is_causal=True),
        "intention": interop.intention,
    }
    theirs = {"softmax_attention": softmax, "intention": intention}
    has_alpha = name == "intention"
    got = trained(ours[name], has_alpha, x, target)
    expected = trained(theirs[name], has_alpha, x, target)
    torch.manual_seed(0)
    start = [p.detach().numpy() for p in Model(theirs[name], has_alpha).double().parameters()]
    for a, b, c in zip(got, expected, start, strict=True):
        assert relative_error(a, b) < 1e-6  # float64; AdamW magnifies the rounding of gradients that are almost zero
        assert np.max(np.abs(b - c)) > 1e-3


# ---- PyTorch's ways ------------------------------------------------------------------


def qkv(requires_grad: bool = True, dtype: Any = torch.float64) -> Any:
    return torch.randn(3, 4, 2, dtype=dtype, requires_grad=requires_grad).unbind()


def test_only_what_needs_a_gradient_has_one() -> None:
    q, k, v = (x.detach() for x in qkv())
    alpha = torch.tensor(0.3, dtype=q.dtype, requires_grad=True)
    interop.intention(q, k, v, alpha=alpha).sum().backward()
    assert alpha.grad.shape == ()
    assert q.grad is k.grad is v.grad is None


def test_forward_alone_keeps_nothing() -> None:
    q, k, v = qkv()
    assert interop.softmax_attention(*(x.detach() for x in (q, k, v))).grad_fn is None
    with torch.no_grad():
        assert interop.softmax_attention(q, k, v).grad_fn is None


def test_the_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy on the way in."""
    seen: dict[str, Any] = {}
    vjp = kvq.vjp

    def look(form: Function, **arguments: Any) -> Any:
        seen.update(arguments)
        return vjp(form, **arguments)

    monkeypatch.setattr(kvq, "vjp", look)
    arrays = dict(zip("qkv", qkv(), strict=True))
    interop.softmax_attention(**arrays)
    assert all(seen[name].ctypes.data == x.data_ptr() for name, x in arrays.items())


def test_backward_twice() -> None:
    """The graph can be kept, and the results written into."""
    x = torch.randn(4, 2, requires_grad=True)
    out = interop.softmax_attention(x, x, x)
    (first,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    out.detach().zero_()
    first_again = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(first_again, second)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype: str) -> None:
    x = torch.randn(4, 2, dtype=getattr(torch, dtype), requires_grad=True)
    alpha = torch.tensor(0.5, dtype=x.dtype, requires_grad=True)
    wide, wide_alpha = (y.detach().float().requires_grad_() for y in (x, alpha))
    dout = torch.ones(4, 2)
    out = interop.intention(x, x, x, alpha=alpha, mask=torch.ones(4, dtype=torch.bool))
    expected = interop.intention(wide, wide, wide, alpha=wide_alpha)
    assert torch.equal(out, expected.to(x.dtype))
    got = torch.autograd.grad(out, alpha, dout.to(x.dtype))
    assert torch.equal(got[0], torch.autograd.grad(expected, wide_alpha, dout)[0].to(x.dtype))


@pytest.mark.filterwarnings("default")  # PyTorch's compiler looks at attributes that PyTorch warns of
def test_compiled_models_leave_it_whole() -> None:
    q, k, v = (x.detach().requires_grad_() for x in qkv())
    model = torch.compile(lambda x: interop.softmax_attention(2 * x, k, v).sum(), backend="eager")
    model(q).backward()
    got, q.grad = q.grad, None
    interop.softmax_attention(2 * q, k, v).sum().backward()
    assert torch.equal(got, q.grad)


def test_no_second_derivative() -> None:
    q, k, v = qkv()
    (dq,) = torch.autograd.grad(interop.softmax_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_arguments_changed_in_place_are_an_error() -> None:
    q, k, v = (1 * x for x in qkv())
    out = interop.softmax_attention(q, k, v)
    k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- Mistakes ------------------------------------------------------------------------


def test_another_device() -> None:
    q, k, v = (x.to("meta") for x in qkv())
    with pytest.raises(ValueError, match=r"q: expected a tensor on the CPU, got one on meta; kvq_ref\.softmax_att"):
        interop.softmax_attention(q, k, v)


MISTAKES: dict[str, tuple[Callable[[Any, Any, Any], Any], type[Exception], str]] = {
    "NumPy": (lambda q, k, v: interop.softmax_attention(q.numpy(), k, v), TypeError, "q: expected a PyTorch tensor"),
    "list": (lambda q, k, v: interop.softmax_attention(q, k, [v]), TypeError, "v: expected a PyTorch tensor, got list"),
    "mask": (
        lambda q, k, v: interop.softmax_attention(q, k, v, mask=np.ones((4, 4), bool)),
        TypeError,
        "mask: expected a PyTorch tensor, got numpy",
    ),
    "dtypes": (
        lambda q, k, v: interop.softmax_attention(q, k.float(), v),
        TypeError,
        "k: expected dtype float64, as q has, got float32",
    ),
    "integers": (
        lambda q, k, v: interop.softmax_attention(*(x.long() for x in (q, k, v))),
        TypeError,
        "q: expected dtype float16, bfloat16, float32, float64, got int64",
    ),
    "shape": (lambda q, k, v: interop.softmax_attention(q, k, v[1:]), ValueError, "v: expected Tk = 4 rows"),
    "keyword": (
        lambda q, k, v: interop.softmax_attention(q, k, v, alpha=1),
        TypeError,
        "softmax_attention: got an unexpected keyword argument 'alpha'; its options here are mask, bias, is_causal",
    ),
    "out": (lambda q, k, v: interop.softmax_attention(q, k, v, out=q), TypeError, "unexpected keyword argument 'out'"),
    "no alpha": (lambda q, k, v: interop.intention(q, k, v), TypeError, "missing a required argument: 'alpha'"),
    "negative alpha": (lambda q, k, v: interop.intention(q, k, v, alpha=-1), ValueError, "alpha: expected a finite"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call(*qkv(requires_grad=False))
