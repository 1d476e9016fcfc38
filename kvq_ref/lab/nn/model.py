"""A transformer on any form: embedding, blocks of attention and two-layer perceptrons, a linear read-out.

    x = embedding(tokens) (+ positions)
    in each block    x = x + attention(norm(x)),  x = x + perceptron(norm(x))      norm = "pre"
                     x = norm(x + attention(x)),  x = norm(x + perceptron(x))      norm = "post"
    logits = norm(x) W + b                                                         ("post" has had its norm)

No form is named here but as a default.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.lab.nn.attention import attention_shapes, multi_head_attention
from kvq_ref.lab.nn.layers import ACTIVATIONS, embedding, layer_norm, linear
from kvq_ref.lab.nn.parameters import Parameters
from kvq_ref.lab.nn.perceptron import perceptron, perceptron_shapes
from kvq_ref.lab.nn.positions import POSITIONS, sinusoidal
from kvq_ref.types import Array

NORMS = ("pre", "post", "none")

Pullback = Callable[[Array], tuple[Array, dict[str, Array]]]
Layer = Callable[[Mapping[str, Array], Array], tuple[Array, Pullback]]


@dataclass(frozen=True)
class Transformer:
    """What a model is. Its numbers are :class:`Parameters`.

    Attributes
    ----------
    vocabulary : int
        Tokens are 0 to vocabulary - 1.
    outputs : int
        Logits a token.
    form : callable
        The attention: ``kvq_ref.softmax_attention`` or any other form.
    options : mapping
        Its keyword arguments, such as ``scale`` or ``alpha``.
    width, layers, heads : int
    mlp : int
        Hidden units of a perceptron, in units of the width.
    activation : {"gelu", "relu"}
    norm : {"pre", "post", "none"}
        Where layer norm stands.
    positions : {"none", "learned", "sinusoidal", "rotary", "alibi"}
    context : int
        The most tokens of a sequence, for learned positions.

    Raises
    ------
    ValueError
        For a number below one, heads that do not divide the width, another
        word, or positions that the form or the width cannot have.
    """

    vocabulary: int
    outputs: int
    form: Callable[..., Any] = kvq.softmax_attention
    options: Mapping[str, Any] = field(default_factory=dict)
    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 4
    activation: str = "gelu"
    norm: str = "pre"
    positions: str = "alibi"
    context: int = 64

    def __post_init__(self) -> None:
        for name in ("vocabulary", "outputs", "width", "layers", "heads", "mlp", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width, {self.width}, got {self.heads}")
        words = {"activation": tuple(ACTIVATIONS), "norm": NORMS, "positions": POSITIONS}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"positions: rotary needs an even width a head, got {self.width // self.heads}")
        if self.positions == "alibi" and "bias" not in inspect.signature(self.form).parameters:
            takes = f"{self.form.__name__} takes none"
            raise ValueError(f"positions: alibi is a bias, and {takes}; try rotary, sinusoidal or learned")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters."""
        width, parts = self.width, self._parts
        norm: dict[str, tuple[int, ...]] = {"gain": (width,), "shift": (width,)}
        if self.norm != "none":
            parts = parts | {f"{part}.norm": norm for part in parts}
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, width)}
        if self.positions == "learned":
            shapes["positions"] = (self.context, width)
        for layer in range(self.layers):
            shapes |= {f"{layer}.{part}.{name}": s for part, names in parts.items() for name, s in names.items()}
        if self.norm == "pre":
            shapes |= {f"norm.{name}": shape for name, shape in norm.items()}
        return shapes | {"readout.weight": (width, self.outputs), "readout.bias": (self.outputs,)}

    @functools.cached_property
    def _parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The layers of a block, and their parameters."""
        width = self.width
        return {"attention": attention_shapes(width), "mlp": perceptron_shapes(width, self.mlp * width)}

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Parameters:
        """Fresh parameters.

        Weights are normal with variance 1 / (inputs of the layer), those that
        write into the residual stream smaller by sqrt(2 layers), so that the
        stream does not grow with depth; gains are one; all else is zero.

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
            if name.endswith("gain"):
                x[...] = 1
            elif x.ndim == 2:
                inputs = 1 if name in ("embedding", "positions") else x.shape[0]
                writes = 2 * self.layers if name.endswith("out.weight") else 1
                x[...] = rng.standard_normal(x.shape) / math.sqrt(inputs * writes)
        return p

    def apply(self, p: Parameters, tokens: Array) -> tuple[Array, Callable[[Array], Parameters]]:
        """Logits of every token.

        Parameters
        ----------
        p : Parameters
        tokens : array of int, shape (batch, T)

        Returns
        -------
        logits : array, shape (batch, T, outputs)
        pullback : callable
            dlogits to the gradients of ``p``.

        Examples
        --------
        >>> model = Transformer(vocabulary=3, outputs=3, form=kvq.expressive_attention)
        >>> p = model.init(np.random.default_rng(0))
        >>> logits, pullback = model.apply(p, np.array([[0, 1, 2, 1]]))
        >>> logits.shape, pullback(logits)["readout.weight"].shape
        ((1, 4, 3), (32, 3))
        """
        T = tokens.shape[-1]
        x, from_embedding = embedding(tokens, p["embedding"])
        if self.positions == "learned":
            if self.context < T:
                raise ValueError(f"tokens: expected at most {self.context} places, the model's context, got {T}")
            x += p["positions"][:T]
        elif self.positions == "sinusoidal":
            x += np.asarray(sinusoidal(T, self.width).astype(x.dtype), like=x)
        options = dict(self.options)
        if self.positions == "alibi":
            options["bias"] = np.asarray(kvq.masks.alibi(self.heads, T, T).astype(x.dtype), like=x)
        how: dict[str, Any] = {"form": self.form, "heads": self.heads, "options": options}
        attend = functools.partial(multi_head_attention, **how, is_rotary=self.positions == "rotary")
        think = functools.partial(perceptron, activation=self.activation)

        pullbacks = []
        for layer in range(self.layers):
            x, from_attention = self._residual(p, layer, "attention", attend, x)
            x, from_mlp = self._residual(p, layer, "mlp", think, x)
            pullbacks += [from_attention, from_mlp]
        if self.norm == "pre":
            x, from_norm = layer_norm(x, p["norm.gain"], p["norm.shift"])
        logits, from_readout = linear(x, p["readout.weight"], p["readout.bias"])

        def pullback(dlogits: Array) -> Parameters:
            g = p.empty_like()
            dx, g["readout.weight"][...], g["readout.bias"][...] = from_readout(dlogits)
            if self.norm == "pre":
                dx, g["norm.gain"][...], g["norm.shift"][...] = from_norm(dx)
            for back in reversed(pullbacks):
                dx, grads = back(dx)
                for name, grad in grads.items():
                    g[name][...] = grad
            if self.positions == "learned":
                g["positions"][...] = 0
                g["positions"][:T] = dx.sum(axis=0)
            g["embedding"][...] = from_embedding(dx)
            return g

        return logits, pullback

    def _residual(self, p: Parameters, layer: int, part: str, inner: Layer, x: Array) -> tuple[Array, Pullback]:
        """A layer beside the identity, with layer norm before it, after their sum, or nowhere."""
        name = f"{layer}.{part}"
        gain, shift = f"{name}.norm.gain", f"{name}.norm.shift"
        inside = {key: p[f"{name}.{key}"] for key in self._parts[part]}
        h = x
        if self.norm == "pre":
            h, from_norm = layer_norm(x, p[gain], p[shift])
        y, from_inner = inner(inside, h)
        y += x
        if self.norm == "post":
            y, from_norm = layer_norm(y, p[gain], p[shift])

        def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
            grads = {}
            if self.norm == "post":
                dy, grads[gain], grads[shift] = from_norm(dy)
            dh, within = from_inner(dy)
            if self.norm == "pre":
                dh, grads[gain], grads[shift] = from_norm(dh)
            dh += dy
            return dh, grads | {f"{name}.{key}": grad for key, grad in within.items()}

        return y, pullback
