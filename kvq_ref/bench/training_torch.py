"""The same training step in PyTorch, eager and compiled: the same model, data, dtype and parameters; fused AdamW."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.bench.peers import Arrays, Variant
from kvq_ref.bench.training import RATE, VOCABULARY, Step, parameters

torch: Any = importlib.import_module("torch")
nn: Any = importlib.import_module("torch.nn")
functional: Any = importlib.import_module("torch.nn.functional")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def prepare(step: Step, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """Eager, and with forward, loss and backward under torch.compile."""
    variants = {"eager": _variant(step, arrays, is_compiled=False)}
    if compiled:
        torch.compiler.reset()  # what was compiled for the job before
        variants["compile"] = _variant(step, arrays, is_compiled=True)
    return variants, {}


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a two-layer perceptron, each on a norm of its input and beside the identity."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        width = step.width
        self.heads = step.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any, bias: Any) -> Any:
        batch, T, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, T, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
        x = x + self.out(o.transpose(1, 2).reshape(batch, T, width))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):  # type: ignore[misc]
    """Tokens and targets to the loss."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, step.width)
        self.blocks = nn.ModuleList(Block(step) for _ in range(step.layers))
        self.norm, self.readout = nn.LayerNorm(step.width), nn.Linear(step.width, VOCABULARY)
        self.bias = None
        if step.positions == "alibi":
            later = np.triu(np.full((step.T, step.T), -np.inf), 1)
            self.bias = torch.tensor((kvq.masks.alibi(step.heads, step.T, step.T) + later).astype(step.dtype))

    def forward(self, tokens: Any, targets: Any) -> Any:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.bias)
        return functional.cross_entropy(self.readout(self.norm(x)).flatten(0, 1), targets.flatten())


def our_names(step: Step) -> dict[str, str]:
    """By our name of a parameter, PyTorch's; its matrices are ours transposed, but for the embedding.

    Examples
    --------
    >>> from kvq_ref.bench.training import steps
    >>> our_names(steps(["small"])[0])["1.attention.norm.gain"]
    'blocks.1.norm1.weight'
    """
    names = {"embedding": "embedding.weight", "norm.gain": "norm.weight", "norm.shift": "norm.bias"}
    names |= {"readout.weight": "readout.weight", "readout.bias": "readout.bias"}
    inside = {"attention.norm.gain": "norm1.weight", "attention.norm.shift": "norm1.bias"}
    inside |= {"mlp.norm.gain": "norm2.weight", "mlp.norm.shift": "norm2.bias"}
    layers = {"attention.qkv": "qkv", "attention.out": "out", "mlp.in": "mlp_in", "mlp.out": "mlp_out"}
    inside |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}
    return names | {
        f"{i}.{ours}": f"blocks.{i}.{theirs}" for i in range(step.layers) for ours, theirs in inside.items()
    }


def _variant(step: Step, arrays: Arrays, is_compiled: bool) -> Variant:
    model = Model(step).to(getattr(torch, step.dtype))
    names = our_names(step)
    with torch.no_grad():
        for name, x in parameters(step, arrays["parameters"]).items():
            model.get_parameter(names[name]).copy_(torch.from_numpy(_turned(name, x)))
    loss_of = torch.compile(model, dynamic=False) if is_compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    tokens, targets = torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["targets"])

    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        optimizer.step()
        return loss

    def results(loss: Any) -> Arrays:
        grads = {name: _turned(name, model.get_parameter(theirs).grad.numpy()) for name, theirs in names.items()}
        return {"loss": loss.detach().numpy(), **grads}

    return Variant(call, results)


def _turned(name: str, x: Any) -> Any:
    return x.T if x.ndim == 2 and name != "embedding" else x
