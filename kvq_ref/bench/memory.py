"""Peak memory: how much one long call adds to what its process had before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

from kvq_ref.bench.jobs import Job
from kvq_ref.bench.peers import Variant
from kvq_ref.bench.processes import Answers, WorkerDiedError, WorkerError

FORMS = ("softmax", "expressive", "linear", "intention")
SHAPE = (1, 1, 32768, 64)
WARM_UP = 512  # T of a call before: what a library allocates once is not the call's


def memory_jobs(dtype: str) -> list[Job]:
    """One head, a long sequence; causal Intention takes too long there.

    >>> len(memory_jobs("float32"))
    14
    """
    return [
        Job(form, SHAPE, what, causal, dtype)
        for form in FORMS
        for what in ("f", "fb")
        for causal in ((False, True) if form != "intention" else (False,))
    ]


def measure(job: Job, peer: str, seed: int, worker: Answers) -> dict[str, Any]:
    """Ask a peer's process: our kernel, or its first formulation that is not too large.

    Parameters
    ----------
    job : Job
    peer : str
    seed : int
    worker : Answers
        A process that has done nothing yet.

    Returns
    -------
    dict
        Job and variant, and bytes, or why there are none.
    """
    entry: dict[str, Any] = {"job": str(job), "variant": peer, "bytes": None, "why": ""}
    batch, heads, T, d = job.shape
    small = Job(job.form, (batch, heads, min(T, WARM_UP), d), job.what, job.causal, job.dtype)
    question: dict[str, Any] = {"seed": seed, "compiled": False}
    try:
        variants = worker.ask("prepare", job=vars(job), **question)["variants"]
        variant = next((name for name in variants if name != "reference"), None)
        if variant is None:
            return {**entry, "why": "nothing that fits"}
        entry["variant"] = f"{peer}/{variant}"
        worker.ask("prepare", job=vars(small), **question)
        worker.ask("window", variant=variant, seconds=0.0)
        worker.ask("prepare", job=vars(job), **question)
        return {**entry, "bytes": worker.ask("memory", variant=variant)["bytes"]}
    except (WorkerError, WorkerDiedError) as error:
        return {**entry, "why": str(error)}


def peak_of(variant: Variant) -> int:
    """Bytes by which a call raises the peak of this process's resident memory; its results are among them.

    Examples
    --------
    >>> peak_of(Variant(lambda: bytearray(b"x" * 60_000_000), dict)) > 50_000_000
    True
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, or the call would find its memory there
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = _peak()
    with variant.around():
        kept = variant.call()
    after = _peak()
    del kept
    return after - before


def _peak() -> int:
    """In bytes. On Linux not from getrusage, whose peak begins with that of the process which started this one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
