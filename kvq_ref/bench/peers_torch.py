"""PyTorch on the CPU, eager and compiled, in the mode that costs it least.

A forward alone runs in inference mode. alpha is a number there, and its gradient
is not asked for; ours returns one. Both are to PyTorch's advantage.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

from kvq_ref.bench.jobs import Job
from kvq_ref.bench.peers import Arrays, Variant, too_large
from kvq_ref.bench.torch_formulas import Formula, formulas

torch: Any = importlib.import_module("torch")
attention: Any = importlib.import_module("torch.nn.attention")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def prepare(job: Job, arrays: Arrays, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """Every formulation as it is, and every one compiled."""
    if compiled:
        torch.compiler.reset()  # what was compiled for the job before
    wraps: dict[str, Callable[..., Any]] = {"": lambda function: function}
    if compiled:
        wraps[", compiled"] = functools.partial(torch.compile, dynamic=False)
    variants: dict[str, Variant] = {}
    left_out: dict[str, str] = {}
    for ending, wrap in wraps.items():
        for formula in formulas(job, wrap, compiled=ending != ""):
            if reason := too_large(formula.needs):
                left_out[formula.name + ending] = reason
            else:
                variants[formula.name + ending] = _variant(job, formula, arrays)
    return variants, left_out


def _variant(job: Job, formula: Formula, arrays: Arrays) -> Variant:
    function = formula.function
    q, k, v, dout = (torch.from_numpy(arrays[name]) for name in ("q", "k", "v", "dout"))
    with_gradient = job.what != "f"
    if with_gradient:
        q, k, v = (x.clone().requires_grad_() for x in (q, k, v))

    def forward() -> Any:
        return (function(q, k, v),)

    def both() -> Any:
        out = function(q, k, v)
        return out, *torch.autograd.grad(out, (q, k, v), dout)

    @contextlib.contextmanager
    def around() -> Any:
        with contextlib.ExitStack() as stack:
            if not with_gradient:
                stack.enter_context(torch.inference_mode())
            if formula.backend is not None:
                stack.enter_context(attention.sdpa_kernel(formula.backend))
            yield

    return Variant(both if job.what == "fb" else forward, _results, around)


def _results(returned: Any) -> Arrays:
    return {name: x.detach().numpy() for name, x in zip(("out", "dq", "dk", "dv"), returned, strict=False)}


def versions() -> dict[str, str]:
    """Of PyTorch, and the vector instructions that it uses."""
    return {"torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"}
