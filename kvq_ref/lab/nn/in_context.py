"""A model that reads a context of pairs (x_j, y_j) and answers queries: stacked cross-attention, any form.

    h   = encode(x) of the context's points and the queries     keys and queries: one encoder, or one each
    u_j = y_j ("plain") or encode(y_j) ("encoded")              values
    in every layer but the last, for points and queries alike, which all attend to the context
        h = h + form(h; h_context, u) W
        h = h + perceptron(h)                                   unless mlp = 0
    in the last
        o = form(h_queries; h_context, u)
    y   = mean of o over the heads ("plain") or decode(o) ("encoded")

With norm = "pre" there is a layer norm before each attention and perceptron; with "unit" the queries and keys of
each head have length 1, which recurrences such as the delta rule ask for. Logits of plain values are
multiplied by a learned positive number, for a mean of one-hot rows is too flat a logit.

With one layer, no encoder and plain values the model is the form itself: Intention is then ridge regression.

No form is named here but as a default: what is learned is decided by the options that a form takes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.lab.nn.attention import merge, split
from kvq_ref.lab.nn.cross_attention import LEARN, cross_attention, learned_numbers
from kvq_ref.lab.nn.encoder import encode, encoder_shapes
from kvq_ref.lab.nn.layers import ACTIVATIONS, layer_norm, linear
from kvq_ref.lab.nn.parameters import Parameters
from kvq_ref.lab.nn.perceptron import perceptron, perceptron_shapes
from kvq_ref.types import Array

ENCODERS = ("shared", "separate", "none")
VALUES = ("plain", "encoded")
NORMS = ("pre", "unit", "none")
SHARPNESS = 10.0  # of logits, before it is learned

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InContext:
    """What a model is. Its numbers are :class:`Parameters`.

    Attributes
    ----------
    inputs, values_in, outputs : int
        Dimensions of x, of a context's y, and of an answer.
    form : callable
        The attention: ``kvq_ref.softmax_attention`` or any other form.
    options : mapping
        Its keyword arguments; ``alpha`` is where the learned one starts.
    is_logits : bool
        Whether an answer is the logits of classes.
    encoder : {"shared", "separate", "none"}
        Of keys and queries.
    values : {"plain", "encoded"}
    learn : {"one", "each"}
        As :func:`~kvq_ref.lab.nn.cross_attention.learned_numbers` has it.
    width, depth : int
        Of the stream, and hidden layers of each encoder; with no encoder the width is that of x.
    layers, heads : int
    mlp : int
        Hidden units of a perceptron between layers, in units of the width; 0 for none.
    activation : {"gelu", "relu"}
    norm : {"pre", "unit", "none"}

    Raises
    ------
    ValueError
        For a number that is too small, heads that do not divide the width, another
        word, or plain values that are not what an answer is.

    Examples
    --------
    Untrained Intention without an encoder is ridge regression:

    >>> model = InContext(1, 1, 1, form=kvq.intention, options={"alpha": 1.0}, encoder="none")
    >>> p = model.init(np.random.default_rng(0), "float64")
    >>> x, y, queries = np.array([[[1.0], [2.0]]]), np.array([[[1.0], [3.0]]]), np.array([[[1.0]]])
    >>> answer, _ = model.apply(p, x, y, queries)  # (1 + 6) / (1 + 4 + alpha)
    >>> answer.round(6).tolist()
    [[[1.166667]]]
    """

    inputs: int
    values_in: int
    outputs: int
    form: Callable[..., Any] = kvq.softmax_attention
    options: Mapping[str, Any] = field(default_factory=dict)
    is_logits: bool = False
    encoder: str = "shared"
    values: str = "plain"
    learn: str = "one"
    width: int = 64
    depth: int = 2
    layers: int = 1
    heads: int = 1
    mlp: int = 2
    activation: str = "gelu"
    norm: str = "none"

    def __post_init__(self) -> None:
        least = {"inputs": 1, "values_in": 1, "outputs": 1, "width": 1, "depth": 0, "layers": 1, "heads": 1, "mlp": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name}: expected at least {number}, got {getattr(self, name)}")
        words = {"encoder": ENCODERS, "values": VALUES, "learn": LEARN, "norm": NORMS, "activation": tuple(ACTIVATIONS)}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for width in {self._stream, self.width if self.values == "encoded" else self._stream}:
            if width % self.heads:
                raise ValueError(f"heads: expected a divisor of the width, {width}, got {self.heads}")
        if self.options.get("alpha", 1.0) <= 0:
            raise ValueError(f"alpha: expected more than 0, where the learned one starts, got {self.options['alpha']}")
        if self.values == "plain" and self.values_in != self.outputs:
            pair = f"values have {self.values_in} dimensions and answers {self.outputs}"
            raise ValueError(f"values: this task's {pair}: they must be 'encoded'")

    @property
    def _stream(self) -> int:
        """The width of h."""
        return self.inputs if self.encoder == "none" else self.width

    @functools.cached_property
    def _encoders(self) -> dict[str, dict[str, Shape]]:
        """Perceptrons at the ends, and their parameters."""
        of_points = encoder_shapes(self.inputs, self.width, self.depth, self.width)
        names = {"shared": ("encoder",), "separate": ("keys", "queries"), "none": ()}[self.encoder]
        found = dict.fromkeys(names, of_points)
        if self.values == "encoded":
            found["values"] = encoder_shapes(self.values_in, self.width, self.depth, self.width)
            found["decoder"] = encoder_shapes(self.width, self.width, self.depth, self.outputs)
        return found

    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters."""
        h, norm = self._stream, self.norm == "pre"
        norms: dict[str, Shape] = {"norm.gain": (h,), "norm.shift": (h,)} if norm else {}
        shapes: dict[str, Shape] = {}
        for end, names in self._encoders.items():
            shapes |= {f"{end}.{name}": shape for name, shape in names.items()}
        for layer in range(self.layers):
            parts = norms | dict.fromkeys(learned_numbers(self.form, self.learn), (self.heads,))
            if layer < self.layers - 1:
                seen = self.width if self.values == "encoded" else self.heads * self.values_in
                parts |= {"out.weight": (seen, h), "out.bias": (h,)}
                if self.mlp:
                    inside = norms | perceptron_shapes(h, self.mlp * h)
                    parts |= {f"mlp.{name}": shape for name, shape in inside.items()}
            shapes |= {f"{layer}.{name}": shape for name, shape in parts.items()}
        return shapes | ({"sharpness": (1,)} if self.is_logits and self.values == "plain" else {})

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Parameters:
        """Fresh parameters.

        Weights are normal with variance 1 / (inputs of the layer), those that write
        into the stream smaller by sqrt(2 layers); gains are one. Biases of the
        encoders of points are normal, so that their units bend at different x; all
        others are zero. Scales start at the form's own, alpha where ``options`` says.

        Parameters
        ----------
        rng : numpy.random.Generator
        dtype : {"float32", "float64"}

        Returns
        -------
        p : Parameters
        """
        shapes = self.shapes()
        p = Parameters(shapes, np.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype))
        for name, x in p.items():
            if x.ndim == 2:
                writes = 2 * self.layers if "out.weight" in name else 1
                x[...] = rng.standard_normal(x.shape) / math.sqrt(x.shape[0] * writes)
            elif name.endswith("gain"):
                x[...] = 1
            elif name.endswith("alpha"):
                x[...] = math.log(self.options.get("alpha", 1.0))
            elif name == "sharpness":
                x[...] = math.log(SHARPNESS)
            elif name.endswith("bias") and name.startswith(("encoder", "keys", "queries")):
                x[...] = rng.standard_normal(x.shape)
        return p

    def apply(self, p: Parameters, x: Array, y: Array, queries: Array) -> tuple[Array, Callable[[Array], Parameters]]:
        """The answers to all queries.

        Parameters
        ----------
        p : Parameters
        x : array, shape (batch, K, inputs)
        y : array, shape (batch, K, values_in)
        queries : array, shape (batch, M, inputs)

        Returns
        -------
        answers : array, shape (batch, M, outputs)
        pullback : callable
            danswers to the gradients of ``p``.
        """
        K = x.shape[-2]
        h, from_points = self._points(p, x, queries)
        v, from_values = self._values(p, y)
        pullbacks = []
        for layer in range(self.layers - 1):
            h, back = self._block(p, layer, h, v, K)
            pullbacks.append(back)
        o, from_last = self._attend(p, self.layers - 1, h, v, K, first=K)
        answers, from_answers = self._answers(p, o)

        def pullback(danswers: Array) -> Parameters:
            g = p.empty_like()
            do = from_answers(danswers, g)
            dh, dv = from_last(do, g)
            for back in reversed(pullbacks):
                dh, dv_more = back(dh, g)
                dv = dv + dv_more
            from_values(dv, g)
            from_points(dh, g)
            return g

        return answers, pullback

    # ---- The ends: each gives its value, and a pullback that writes its parameters' gradients into g ----

    def _encode(self, p: Parameters, end: str, x: Array) -> tuple[Array, Callable[[Array, Parameters], Array]]:
        inside = {name: p[f"{end}.{name}"] for name in self._encoders[end]}
        y, from_encoder = encode(inside, x, activation=self.activation)

        def pullback(dy: Array, g: Parameters) -> Array:
            dx, grads = from_encoder(dy)
            _put(g, end, grads)
            return dx

        return y, pullback

    def _points(self, p: Parameters, x: Array, queries: Array) -> tuple[Array, Callable[[Array, Parameters], Any]]:
        """The stream: the context's points, then the queries."""
        K = x.shape[-2]
        if self.encoder == "separate":
            keys, from_keys = self._encode(p, "keys", x)
            asked, from_queries = self._encode(p, "queries", queries)

            def pullback(dh: Array, g: Parameters) -> None:
                from_keys(np.ascontiguousarray(dh[:, :K]), g)
                from_queries(np.ascontiguousarray(dh[:, K:]), g)

            return np.concatenate([keys, asked], axis=-2), pullback
        both = np.concatenate([x, queries], axis=-2)
        return self._encode(p, "encoder", both) if self.encoder == "shared" else (both, lambda dh, g: None)

    def _values(self, p: Parameters, y: Array) -> tuple[Array, Callable[[Array, Parameters], Any]]:
        """(batch, 1, K, values_in): plain values serve all heads. Encoded: (batch, heads, K, width / heads)."""
        if self.values == "plain":
            return y[:, None], lambda dv, g: None
        u, from_encoder = self._encode(p, "values", y)
        (v,), from_split = split(u, 1, self.heads)
        return v, lambda dv, g: from_encoder(from_split((dv,)), g)

    def _answers(self, p: Parameters, o: Array) -> tuple[Array, Callable[[Array, Parameters], Array]]:
        """From what the heads say, (batch, heads, M, dv)."""
        if self.values == "encoded":
            together, from_merge = merge(o)
            answers, from_decoder = self._encode(p, "decoder", together)
            return answers, lambda danswers, g: from_merge(from_decoder(danswers, g))
        mean = o.mean(axis=1)
        sharpness = np.exp(p["sharpness"]) if self.is_logits else None

        def pullback(danswers: Array, g: Parameters) -> Array:
            if sharpness is not None:
                g["sharpness"][...] = (danswers * mean).sum() * sharpness
                danswers = danswers * sharpness
            return np.repeat(danswers[:, None] / danswers.dtype.type(self.heads), self.heads, axis=1)

        return mean if sharpness is None else mean * sharpness, pullback

    # ---- What is stacked ----

    def _norm(self, p: Parameters, name: str, h: Array) -> tuple[Array, Callable[[Array, Parameters], Array]]:
        if self.norm != "pre":
            return h, lambda dh, g: dh
        y, from_norm = layer_norm(h, p[f"{name}.gain"], p[f"{name}.shift"])

        def pullback(dy: Array, g: Parameters) -> Array:
            dh, g[f"{name}.gain"][...], g[f"{name}.shift"][...] = from_norm(dy)
            return dh

        return y, pullback

    def _attend(
        self, p: Parameters, layer: int, h: Array, v: Array, K: int, first: int
    ) -> tuple[Array, Callable[[Array, Parameters], tuple[Array, Array]]]:
        """From the stream's rows from ``first`` on to the context, its first K rows; the pullback gives (dh, dv)."""
        z, from_norm = self._norm(p, f"{layer}.norm", h)
        q, k = (np.ascontiguousarray(rows) for rows in (z[:, first:], z[:, :K]))
        inside = {name: p[f"{layer}.{name}"] for name in learned_numbers(self.form, self.learn)}
        fixed = {name: x for name, x in self.options.items() if name not in inside or name == "scale"}
        how: dict[str, Any] = {"form": self.form, "heads": self.heads, "is_unit": self.norm == "unit"}
        o, from_attention = cross_attention(inside, q, k, v, options=fixed, **how)

        def pullback(do: Array, g: Parameters) -> tuple[Array, Array]:
            dq, dk, dv, logs = from_attention(do)
            _put(g, str(layer), logs)
            dz = np.zeros_like(z)
            dz[:, first:] = dq
            dz[:, :K] += dk
            return from_norm(dz, g), dv

        return o, pullback

    def _block(
        self, p: Parameters, layer: int, h: Array, v: Array, K: int
    ) -> tuple[Array, Callable[[Array, Parameters], tuple[Array, Array]]]:
        """h + attention W, then h + perceptron(h)."""
        o, from_attention = self._attend(p, layer, h, v, K, first=0)
        together, from_merge = merge(o)
        y, from_out = linear(together, p[f"{layer}.out.weight"], p[f"{layer}.out.bias"])
        h = h + y
        if self.mlp:
            z, from_norm = self._norm(p, f"{layer}.mlp.norm", h)
            names = perceptron_shapes(1, 1)
            inside = {name: p[f"{layer}.mlp.{name}"] for name in names}
            y, from_perceptron = perceptron(inside, z, activation=self.activation)
            h = h + y

        def pullback(dh: Array, g: Parameters) -> tuple[Array, Array]:
            if self.mlp:
                dz, grads = from_perceptron(dh)
                _put(g, f"{layer}.mlp", grads)
                dh = dh + from_norm(dz, g)
            dtogether, g[f"{layer}.out.weight"][...], g[f"{layer}.out.bias"][...] = from_out(dh)
            dh_more, dv = from_attention(from_merge(dtogether), g)
            return dh + dh_more, dv

        return h, pullback


def _put(g: Parameters, part: str, grads: Mapping[str, Array]) -> None:
    for name, grad in grads.items():
        g[f"{part}.{name}"][...] = grad
