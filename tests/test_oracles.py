"""The forms against other people's code: ONNX, scikit-learn, SciPy, HIPS autograd and PyTorch.

None of these oracles shares a line with the package. What they take for
granted they do in their own way: ONNX evaluates a graph, scikit-learn fits a
model, autograd and PyTorch differentiate the equations as they are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from cases import ALL_FORMS, SERVED, each_implementation, public, relative_error, skip_if_missing

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form
from kvq_ref.grid import GRID

BARS = {"float64": 1e-12, "float32": 1e-5}

each_dtype = pytest.mark.parametrize("dtype", BARS)


def implementations(*names: str) -> Any:
    """Parametrise over the implementations of the forms of these names."""
    served = [(form, x) for form, x in SERVED if form.name in names]
    return pytest.mark.parametrize(("form", "implementation"), served, ids=[f"{form.name}-{x}" for form, x in served])


def heads(rng: np.random.Generator, dtype: str = "float64", shape: tuple[int, ...] = (2, 3)) -> list[np.ndarray]:
    """q (..., 5, 4), k (..., 7, 4), v (..., 7, 6)."""
    return [rng.standard_normal((*shape, *size)).astype(dtype) for size in ((5, 4), (7, 4), (7, 6))]


def visible_somewhere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random mask in which every query sees the first key, at least."""
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True
    return mask


# ---- ONNX ----------------------------------------------------------------------------


class Graph:
    """An ONNX graph, written down one node at a time and run by ONNX's reference evaluator."""

    def __init__(self, opset: int = 18) -> None:
        self.onnx = pytest.importorskip("onnx")
        self.opset = opset
        self.nodes: list[Any] = []
        self.inputs: dict[str, np.ndarray] = {}

    def feed(self, name: str, x: Any) -> str:
        self.inputs[name] = np.asarray(x)
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; gives the name of its first output."""
        names = [f"{op}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def run(self, *outputs: str) -> list[np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        helper = self.onnx.helper
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in self.inputs.items()
        ]
        undefined = self.onnx.TensorProto.UNDEFINED
        results = [helper.make_tensor_value_info(name, undefined, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "oracle", inputs, results)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        found: list[np.ndarray] = ReferenceEvaluator(model).run(list(outputs), self.inputs)
        return found


def has_operator(name: str, opset: int) -> bool:
    onnx = pytest.importorskip("onnx")
    return bool(onnx.defs.onnx_opset_version() >= opset and onnx.defs.has(name, opset))


def scores(graph: Graph, q: np.ndarray, k: np.ndarray, scale: float) -> str:
    """scale * q k^T as nodes."""
    last = k.ndim - 1
    kt = graph.add("Transpose", graph.feed("k", k), perm=[*range(last - 1), last, last - 1])
    product = graph.add("MatMul", graph.feed("q", q), kt)
    return graph.add("Mul", product, graph.feed("scale", np.asarray(scale, q.dtype)))


@pytest.mark.parametrize("is_causal", [False, True])
@each_dtype
@implementations("softmax_attention")
def test_softmax_attention_is_the_onnx_graph(
    form: Form, implementation: str, dtype: str, is_causal: bool, rng: np.random.Generator
) -> None:
    """MatMul, Mul, Add, Where, Softmax, MatMul."""
    skip_if_missing(form, implementation)
    q, k, v = heads(rng, dtype)
    bias = rng.standard_normal((2, 3, 5, 7)).astype(dtype)
    mask = visible_somewhere(rng, (2, 1, 5, 7))
    scale = 0.7
    graph = Graph()
    z = graph.add("Add", scores(graph, q, k, scale), graph.feed("bias", bias))
    visible = mask & np.tri(5, 7, dtype=bool) if is_causal else mask
    z = graph.add("Where", graph.feed("mask", visible), z, graph.feed("hidden", np.asarray(-np.inf, dtype)))
    (expected,) = graph.run(graph.add("MatMul", graph.add("Softmax", z, axis=-1), graph.feed("v", v)))
    options = {"mask": mask, "bias": bias, "is_causal": is_causal, "scale": scale}
    out = kvq.softmax_attention(q, k, v, implementation=implementation, **options)
    assert relative_error(out, expected) < BARS[dtype]


@each_dtype
@implementations("expressive_attention")
def test_expressive_attention_is_the_onnx_graph(
    form: Form, implementation: str, dtype: str, rng: np.random.Generator
) -> None:
    """z^2, z^2 / (1 + z^2), Exp, Where, ReduceSum, Div, MatMul."""
    skip_if_missing(form, implementation)
    q, k, v = heads(rng, dtype)
    bias = rng.standard_normal((2, 3, 5, 7)).astype(dtype)
    mask = visible_somewhere(rng, (2, 1, 5, 7))
    graph = Graph()
    z = scores(graph, q, k, -0.7)
    squared = graph.add("Mul", z, z)
    w = graph.add("Div", squared, graph.add("Add", squared, graph.feed("one", np.asarray(1, dtype))))
    w = graph.add("Mul", w, graph.add("Exp", graph.feed("bias", bias)))
    w = graph.add("Where", graph.feed("mask", mask), w, graph.feed("zero", np.asarray(0, dtype)))
    total = graph.add("ReduceSum", w, graph.feed("axis", np.array([-1])), keepdims=1)
    (expected,) = graph.run(graph.add("MatMul", graph.add("Div", w, total), graph.feed("v", v)))
    out = kvq.expressive_attention(q, k, v, mask=mask, bias=bias, scale=-0.7, implementation=implementation)
    assert relative_error(out, expected) < BARS[dtype]


@each_dtype
@implementations("linear_attention")
def test_linear_attention_is_the_onnx_graph(
    form: Form, implementation: str, dtype: str, rng: np.random.Generator
) -> None:
    """MatMul, Mul, MatMul, in either bracketing."""
    skip_if_missing(form, implementation)
    q, k, v = heads(rng, dtype)
    graph = Graph()
    (expected,) = graph.run(graph.add("MatMul", scores(graph, q, k, 0.7), graph.feed("v", v)))
    out = kvq.linear_attention(q, k, v, scale=0.7, implementation=implementation)
    assert relative_error(out, expected) < BARS[dtype]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", ["no mask", "mask", "bias"])
@each_dtype
@implementations("softmax_attention")
def test_softmax_attention_is_the_onnx_operator(
    form: Form, implementation: str, dtype: str, kind: str, is_causal: bool, rng: np.random.Generator
) -> None:
    """ONNX's own Attention: its mask, its bias, its causal rule, and zeros for a row that sees nothing."""
    skip_if_missing(form, implementation)
    if not has_operator("Attention", 23):
        pytest.skip("this onnx has no Attention operator")
    q, k, v = heads(rng, dtype)
    options: dict[str, Any] = {}
    graph = Graph(opset=23)
    inputs = [graph.feed(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
    if kind == "mask":
        options["mask"] = rng.random((2, 3, 5, 7)) < 0.6
        options["mask"][0, 0, 2] = False
        inputs.append(graph.feed("mask", options["mask"]))
    elif kind == "bias":
        options["bias"] = rng.standard_normal((2, 3, 5, 7)).astype(dtype)
        inputs.append(graph.feed("mask", options["bias"]))
    (expected,) = graph.run(graph.add("Attention", *inputs, is_causal=int(is_causal)))
    out = kvq.softmax_attention(q, k, v, is_causal=is_causal, implementation=implementation, **options)
    assert relative_error(out, expected) < BARS[dtype]


def test_causal_linear_attention_is_the_onnx_operator(rng: np.random.Generator) -> None:
    """ONNX's LinearAttention, state and all; its evaluator works in float32 whatever it is given."""
    if not has_operator("LinearAttention", 27):
        pytest.skip("this onnx has no LinearAttention operator")
    q, k, v = (rng.standard_normal((2, 6, 3 * n)).astype("float32") for n in (4, 4, 5))
    past = kvq.LinearState(*(rng.standard_normal((2, 3, 4, n)).astype("float32") for n in (5, 1)))
    graph = Graph(opset=27)
    arrays = {"q": q, "k": k, "v": v, "past": past.kv}
    inputs = [graph.feed(name, x) for name, x in arrays.items()]
    attributes = {"q_num_heads": 3, "kv_num_heads": 3, "scale": 0.5, "update_rule": "linear"}
    node = graph.add("LinearAttention", *inputs, outputs=2, **attributes)
    expected, expected_state = graph.run(node, node.removesuffix("0") + "1")
    split = [kvq.split_heads(x, heads=3) for x in (q, k, v)]
    out, state = kvq.linear_attention(
        *split, scale=0.5, is_causal=True, initial_state=past, output_final_state=True, implementation="reference"
    )
    assert relative_error(kvq.merge_heads(out), expected) < BARS["float32"]
    assert relative_error(state.kv, expected_state) < BARS["float32"]


# ---- scikit-learn and SciPy: least squares -------------------------------------------

SOLVERS = ("auto", "cholesky", "qr", "svd", "lstsq", "cg")
MINIMUM_NORM_SOLVERS = ("auto", "svd", "lstsq", "cg")


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Ten measurements of 442 patients, and the disease a year later with its square root and its logarithm."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_diabetes(return_X_y=True)
    return x, np.stack([y, np.sqrt(y), np.log(y)], axis=-1)


@pytest.mark.parametrize("rows", [400, 7], ids=["primal", "dual"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_intention_is_ridge_regression(solver: str, alpha: float, rows: int, rng: np.random.Generator) -> None:
    """intention(q, k, v, alpha) = Ridge(alpha, fit_intercept=False).fit(k, v).predict(q)."""
    ridge = pytest.importorskip("sklearn.linear_model").Ridge(alpha=alpha, fit_intercept=False, solver="svd")
    x, y = diabetes()
    x, y = (a[rng.permutation(len(x))] for a in (x, y))
    expected = ridge.fit(x[:rows], y[:rows]).predict(x[400:])
    out = kvq.intention(x[400:], x[:rows], y[:rows], alpha=alpha, solver=solver)
    assert relative_error(out, expected) < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
def test_intention_without_penalty_is_least_squares(solver: str, rng: np.random.Generator) -> None:
    """More keys than dimensions, alpha = 0: scipy.linalg.lstsq."""
    x, y = diabetes()
    order = rng.permutation(len(x))
    q, k, v = x[order[400:]], x[order[:400]], y[order[:400]]
    expected = q @ scipy.linalg.lstsq(k, v)[0]
    assert relative_error(kvq.intention(q, k, v, alpha=0.0, solver=solver), expected) < 1e-10


@pytest.mark.parametrize("kind", ["fewer rows than columns", "dependent columns", "repeated rows", "all zero"])
@pytest.mark.parametrize("solver", MINIMUM_NORM_SOLVERS)
def test_intention_without_penalty_is_of_minimum_norm(solver: str, kind: str, rng: np.random.Generator) -> None:
    """Where the keys leave a choice at alpha = 0, it is that of the pseudo-inverse."""
    k = rng.standard_normal((12, 5))
    if kind == "fewer rows than columns":
        k = k[:3]
    elif kind == "dependent columns":
        k = k[:, :3] @ rng.standard_normal((3, 5))
    elif kind == "repeated rows":
        k = k[[0, 1, 0, 1]]
    else:
        k = np.zeros((4, 5))
    q, v = rng.standard_normal((6, 5)), rng.standard_normal((len(k), 2))
    out = kvq.intention(q, k, v, alpha=0.0, solver=solver)
    # "cg" works with K^T K, which squares the condition number of the keys on their span.
    s = np.linalg.svd(k, compute_uv=False)
    condition = s[0] / s[s > 1e-12 * s[0]][-1] if s[0] > 0 else 1.0
    bar = max(1e-10, 100 * np.finfo(float).eps * condition**2)
    assert relative_error(out, q @ scipy.linalg.lstsq(k, v, cond=1e-12)[0]) < bar
    assert relative_error(out, q @ np.linalg.pinv(k, rcond=1e-12) @ v) < bar


# ---- Automatic differentiation of the printed equations ------------------------------


# With the decay left at 1, what nothing is forgotten by.
AT_DECAY_1 = ("gated_linear_attention", "mesa_attention")


def printed_equation(form: str, xp: Any, q: Any, k: Any, v: Any, seen: list[list[int]], **options: Any) -> Any:
    """One head of a form in the words of ``xp``, a query at a time, over the keys that it sees."""
    alpha, bias = options.get("alpha"), options.get("bias")
    default_scale = GRID[form].default_scale(q.shape[-1])
    scale = default_scale if options.get("scale") is None else options["scale"]
    rows = []
    for i, visible in enumerate(seen):
        if not visible:
            rows.append(0 * q[i, :1].sum() * v[0])
            continue
        keys, values = k[visible], v[visible]
        if form == "delta_rule":
            rows.append(scale * (q[i] @ written_one_by_one(keys, values)))
            continue
        query = preconditioned(xp, q[i], keys, alpha) if GRID[form].query == "preconditioned" else q[i]
        w = weights(form, xp, scale * (keys @ query) + (options.get("offset") or 0.0))
        if options.get("feature_map") == "elu+1":
            w = scale * (elu_plus_one(xp, keys) @ elu_plus_one(xp, query))
        if bias is not None:
            w = w * xp.exp(bias[i][visible])
        if GRID[form].row != "sum" or options.get("normalize"):
            w = w / w.sum()
        if GRID[form].row == "line":
            w = w * (
                1
                + (keys - w @ keys)
                @ preconditioned(xp, query - w @ keys, xp.sqrt(w)[:, None] * (keys - w @ keys), alpha)
            )
        rows.append(w @ values)
    return xp.stack(rows)


def written_one_by_one(keys: Any, values: Any) -> Any:
    """S <- S + k (v - S^T k)^T."""
    s = 0 * keys[0][:, None] * values[0]
    for key, value in zip(keys, values, strict=True):
        s = s + key[:, None] * (value - key @ s)
    return s


def weights(form: str, xp: Any, z: Any) -> Any:
    functions = {
        "z": lambda: z,
        "exp": lambda: xp.exp(z),
        "z^2/(1+z^2)": lambda: z**2 / (1 + z**2),
        "z^2": lambda: z**2,
        "1+z+z^2/2": lambda: 1 + z + z**2 / 2,
        "sigmoid": lambda: 1 / (1 + xp.exp(-z)),
    }
    return functions[GRID[form].score]()


def preconditioned(xp: Any, query: Any, keys: Any, alpha: Any) -> Any:
    """(K^T K + alpha I)^-1 q, and the pseudo-inverse where alpha is None's stand-in "pinv"."""
    if isinstance(alpha, str):
        inverse = xp.linalg.pinv(keys)
        return inverse @ (inverse.T @ query)
    return xp.linalg.solve(keys.T @ keys + alpha * xp.eye(query.shape[0], dtype=query.dtype), query)


def elu_plus_one(xp: Any, x: Any) -> Any:
    return xp.where(x > 0, x + 1, xp.exp(x * (x < 0)))


def seen_keys(mask: np.ndarray | None, is_causal: bool, Tq: int, Tk: int) -> list[list[int]]:
    visible = np.broadcast_to(True if mask is None else mask, (Tq, Tk))
    return [[j for j in range(Tk) if visible[i, j] and (j <= i or not is_causal)] for i in range(Tq)]


Call = tuple[str, dict[str, np.ndarray], dict[str, Any]]


def calls(form: Form, rng: np.random.Generator) -> Iterator[Call]:
    """(name, arrays to differentiate, options): causal and not, masked in every way, with rows that see nothing."""
    pair_mask = rng.random((5, 7)) < 0.6
    pair_mask[1] = False
    masks = {"all": None, "keys": rng.random((1, 7)) < 0.6, "pairs": pair_mask}
    for is_causal in (False, True):
        for kind, mask in masks.items():
            q, k, v = heads(rng, shape=())
            arrays, options = {"q": q, "k": k, "v": v}, {"mask": mask, "is_causal": is_causal}
            if "bias" in form.options:
                arrays["bias"] = rng.standard_normal((5, 7))
            if "alpha" in form.options:
                arrays["alpha"] = rng.uniform(0.3, 2.0, ())
            if "scale" in form.options and kind == "keys":
                options["scale"] = 0.7
            if "offset" in form.options and kind == "pairs":
                options["offset"] = -1.3
            if "normalize" in form.options and kind == "pairs":
                options |= {"normalize": True, "feature_map": "elu+1"}
            yield f"{kind}, {is_causal=}", arrays, options


def our_gradients(form: Form, arrays: dict[str, Any], dout: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    extra = {name: x for name, x in arrays.items() if name not in "qkv"}
    out, pullback = kvq.vjp(public(form), arrays["q"], arrays["k"], arrays["v"], **extra, **options)
    grads = pullback(dout)
    return out, {name: getattr(grads, name) for name in arrays}


def compare(
    got: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]], where: str, bar: float = 1e-10
) -> None:
    """Output and gradients, relative to their size; one that is nearly zero, and a scalar, by that of the largest."""
    assert relative_error(got[0], np.asarray(expected[0])) < bar, where
    assert set(got[1]) == set(expected[1])
    sizes = {name: float(np.max(np.abs(np.asarray(x)), initial=0.0)) for name, x in expected[1].items()}
    for name, x in expected[1].items():
        assert got[1][name].shape == x.shape, (where, name)
        error = float(np.max(np.abs(np.asarray(got[1][name]) - np.asarray(x)), initial=0.0))
        floor = (1e-3 if np.ndim(x) else 1.0) * max(sizes.values())
        assert error <= bar * max(sizes[name], floor), (where, name, error)


@each_implementation
def test_gradients_equal_autograd(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """HIPS autograd, through the equation as it is printed, under a random gradient from above."""
    anp = pytest.importorskip("autograd.numpy")
    make_vjp = pytest.importorskip("autograd").make_vjp
    skip_if_missing(form, implementation)
    for where, arrays, options in calls(form, rng):
        seen = seen_keys(options["mask"], options["is_causal"], 5, 7)
        settings = {n: options.get(n) for n in ("scale", "offset", "normalize", "feature_map")}

        def plain(given: dict[str, Any], seen: list[list[int]] = seen, settings: dict[str, Any] = settings) -> Any:
            return printed_equation(
                form.name, anp, given["q"], given["k"], given["v"], seen, **given_options(given), **settings
            )

        back, out = make_vjp(plain)(arrays)
        dout = rng.standard_normal(out.shape)
        expected = {name: np.asarray(x) for name, x in back(dout).items()}
        got = our_gradients(form, arrays, dout, implementation=implementation, **options)
        compare(got, (out, expected), where)


def given_options(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("bias", "alpha") if name in given}


@implementations("intention", "sigma_intention", "expressive_intention")
def test_gradients_of_the_minimum_norm_equal_autograd(
    form: Form, implementation: str, rng: np.random.Generator
) -> None:
    """At alpha = 0 with fewer keys than dimensions: autograd differentiates the pseudo-inverse."""
    anp = pytest.importorskip("autograd.numpy")
    make_vjp = pytest.importorskip("autograd").make_vjp
    skip_if_missing(form, implementation)
    for is_causal in (False, True):
        arrays = {"q": rng.standard_normal((4, 6)), "k": rng.standard_normal((3, 6)), "v": rng.standard_normal((3, 2))}
        seen = seen_keys(None, is_causal, 4, 3)

        def plain(given: dict[str, Any], seen: list[list[int]] = seen) -> Any:
            return printed_equation(form.name, anp, given["q"], given["k"], given["v"], seen, alpha="pinv")

        back, out = make_vjp(plain)(arrays)
        dout = rng.standard_normal(out.shape)
        options = {"alpha": 0.0, "is_causal": is_causal, "implementation": implementation}
        got = our_gradients(form, arrays, dout, **options)
        # The keys' condition number enters squared, and once more in the derivative.
        condition = np.linalg.cond(arrays["k"])
        compare(got, (out, back(dout)), f"{is_causal=}", bar=max(1e-10, 100 * np.finfo(float).eps * condition**4))


# ---- PyTorch -------------------------------------------------------------------------


def leaves(torch: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.asarray(x.copy()).requires_grad_() for name, x in arrays.items()}


def torch_gradients(torch: Any, function: Callable[..., Any], given: dict[str, Any], dout: np.ndarray) -> Any:
    """Output and gradients by torch.autograd, as NumPy arrays."""
    out = function(given)
    found = torch.autograd.grad(out, list(given.values()), torch.asarray(dout.copy()), materialize_grads=True)
    return out.detach().numpy(), {name: g.numpy() for name, g in zip(given, found, strict=True)}


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "bias", "everything"])
@each_dtype
@implementations("softmax_attention")
def test_softmax_attention_is_torch_sdpa(
    form: Form, implementation: str, dtype: str, kind: str, rng: np.random.Generator
) -> None:
    """torch.nn.functional.scaled_dot_product_attention, forward and backward; its attn_mask may be a float bias."""
    torch = pytest.importorskip("torch")
    skip_if_missing(form, implementation)
    q, k, v = heads(rng, dtype)
    arrays, options = {"q": q, "k": k, "v": v}, {}
    if kind in ("bias", "everything"):
        arrays["bias"] = rng.standard_normal((2, 3, 5, 7)).astype(dtype)
    if kind in ("mask", "everything"):
        options["mask"] = visible_somewhere(rng, (2, 3, 5, 7))
    if kind in ("causal", "everything"):
        options["is_causal"] = True
    if kind in ("bias", "everything"):
        options["scale"] = 0.4

    def sdpa(given: dict[str, Any]) -> Any:
        attn_mask = given.get("bias")
        if kind == "mask":
            attn_mask = torch.asarray(options["mask"])
        elif kind == "everything":  # torch takes one mask at a time
            visible = torch.asarray(options["mask"] & np.tri(5, 7, dtype=bool))
            attn_mask = attn_mask.masked_fill(~visible, -torch.inf)
        return torch.nn.functional.scaled_dot_product_attention(
            given["q"], given["k"], given["v"], attn_mask, is_causal=kind == "causal", scale=options.get("scale")
        )

    dout = rng.standard_normal((2, 3, 5, 6)).astype(dtype)
    expected = torch_gradients(torch, sdpa, leaves(torch, arrays), dout)
    got = our_gradients(form, arrays, dout, implementation=implementation, **options)
    assert relative_error(got[0], expected[0]) < BARS[dtype]
    compare(got, expected, kind, bar=1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("form", [x for x in ALL_FORMS if x.name != "softmax_attention"], ids=lambda form: form.name)
def test_gradients_equal_torch_autograd(form: Form, rng: np.random.Generator) -> None:
    """torch.autograd, through the equation as it is printed; torch.linalg.solve for the least squares."""
    torch = pytest.importorskip("torch")
    for where, arrays, options in calls(form, rng):
        seen = seen_keys(options["mask"], options["is_causal"], 5, 7)
        settings = {n: options.get(n) for n in ("scale", "offset", "normalize", "feature_map")}

        def plain(given: dict[str, Any], seen: list[list[int]] = seen, settings: dict[str, Any] = settings) -> Any:
            return printed_equation(
                form.name, torch, given["q"], given["k"], given["v"], seen, **given_options(given), **settings
            )

        dout = rng.standard_normal((5, 6))
        expected = torch_gradients(torch, plain, leaves(torch, arrays), dout)
        compare(our_gradients(form, arrays, dout, **options), expected, where)


@pytest.mark.oracle
@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
def test_torch_differentiates_our_forward(form: Form, rng: np.random.Generator) -> None:
    """torch.autograd through this package's own forward gives what this package's backward gives."""
    torch = pytest.importorskip("torch")
    for where, arrays, options in calls(form, rng):
        on_torch = options | ({} if options["mask"] is None else {"mask": torch.asarray(options["mask"])})

        def forward(given: dict[str, Any], on_torch: dict[str, Any] = on_torch) -> Any:
            return public(form)(given["q"], given["k"], given["v"], **given_options(given), **on_torch)

        dout = rng.standard_normal((5, 6))
        expected = torch_gradients(torch, forward, leaves(torch, arrays), dout)
        tensors = {name: torch.asarray(x.copy()) for name, x in arrays.items()}
        out, grads = our_gradients(form, tensors, torch.asarray(dout), **on_torch)
        compare((out.numpy(), {name: g.numpy() for name, g in grads.items()}), expected, where)


@pytest.mark.oracle
def test_jax_differentiates_our_forward(rng: np.random.Generator) -> None:
    """And so does JAX, for every form."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    for form in FORMS.values():
        arrays = dict(zip("qkv", heads(rng, shape=()), strict=True))
        alpha = {"alpha": 0.5} if "alpha" in form.options else {}
        dout = rng.standard_normal((5, 6))
        on_jax = [jax.numpy.asarray(x) for x in arrays.values()]

        def forward(q: Any, k: Any, v: Any, form: Form = form, alpha: dict[str, float] = alpha) -> Any:
            return public(form)(q, k, v, **alpha)

        out, pullback = jax.vjp(forward, *on_jax)
        expected = dict(zip("qkv", pullback(jax.numpy.asarray(dout)), strict=True))
        compare(our_gradients(form, arrays, dout, **alpha), (out, expected), form.name)
