"""The process of one peer: ``python -m kvq_ref.bench.worker PEER``.

It is asked in JSON, a line on standard input for each question, and answers with
a line each. Its own standard output goes to standard error, so that nothing which
a library prints is taken for an answer. It ends with its input.

"probe" is a peer that knows one question: how fast is this machine now?
"""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvq_ref.bench import jobs, memory, peers, special, training
from kvq_ref.bench.peers import Arrays, Variant
from kvq_ref.bench.training import Step

SIDE = 512  # of the matrices whose product is the probe
PRODUCTS = 3


class Worker:
    """Answers questions; each method is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer = peers.load(name)
        self.variants: dict[str, Variant] = {}
        self.what = "f"

    def versions(self) -> dict[str, Any]:
        return {"versions": self.peer.versions()}

    def prepare(self, job: dict[str, Any], seed: int, compiled: bool) -> dict[str, Any]:
        """The names of all variants of a job, and why others are left out."""
        wanted = training.as_job(job)
        self.variants = {}  # frees what the one before held
        gc.collect()
        if isinstance(wanted, Step):
            prepare = peers.load(self.name, "training").prepare
            self.variants, left_out = prepare(wanted, training.inputs(wanted, seed), compiled)
        else:
            self.variants, left_out = self.peer.prepare(wanted, jobs.inputs(wanted, seed), compiled)
        return {"variants": list(self.variants), "left_out": left_out}

    def expect(self, variant: str, path: str) -> dict[str, Any]:
        """Write down the results of a variant, for the others to be compared with."""
        np.savez(path, **self._results(variant))  # type: ignore[arg-type]
        return {}

    def check(self, variant: str, path: str) -> dict[str, Any]:
        """The errors of its results against those that were written down."""
        with np.load(Path(path)) as expected:
            return {"errors": peers.errors(self._results(variant), dict(expected))}

    def _results(self, variant: str) -> Arrays:
        chosen = self.variants[variant]
        with chosen.around():
            return chosen.results(chosen.call())

    def window(self, variant: str, seconds: float, warm: float = 0.0) -> dict[str, Any]:
        """Seconds of all calls together, and how many they were."""
        gc.collect()
        gc.disable()
        try:
            total, calls = peers.window(self.variants[variant], seconds, warm)
        finally:
            gc.enable()
        return {"total": total, "calls": calls}

    def forget(self, variant: str) -> dict[str, Any]:
        """Drop a variant that is not timed again, and the memory that it holds."""
        del self.variants[variant]
        return {}

    def memory(self, variant: str) -> dict[str, Any]:
        """Bytes by which one call raises this process's peak."""
        return {"bytes": memory.peak_of(self.variants[variant])}

    def mixed(self, rounds: int, seed: int) -> dict[str, Any]:
        """A NumPy product, a kernel, and both in turns."""
        return {"rounds": special.mixed_rounds(rounds, seed)}


class Probe:
    """The rate of matrix products of this machine: one on each thread, each with a single-threaded BLAS.

    So there is no thread pool that would still be spinning when it is another's turn.
    """

    def __init__(self, threads: int) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.threads = threads
        rng = np.random.default_rng(0)
        self.operands = {
            dtype: [tuple(rng.standard_normal((3, SIDE, SIDE)).astype(dtype)) for _ in range(threads)]
            for dtype in ("float32", "float64")
        }

    def rate(self, dtype: str, threads: int | None = None, warm: float = 0.0) -> dict[str, Any]:
        """Operations a second, of so many threads together, after so many seconds that are not timed."""
        chosen = self.operands[dtype][:threads]
        begin = time.perf_counter()
        self._multiply(chosen, 1)  # wakes the threads and fills their caches
        while time.perf_counter() - begin < warm:
            self._multiply(chosen, PRODUCTS)
        begin = time.perf_counter()
        self._multiply(chosen, PRODUCTS)
        return {"rate": len(chosen) * PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - begin)}

    def _multiply(self, chosen: list[Any], times: int) -> None:
        for done in [self.pool.submit(_multiply, operands, times) for operands in chosen]:
            done.result()


def _multiply(operands: Any, times: int) -> None:
    a, b, out = operands
    for _ in range(times):
        np.matmul(a, b, out=out)


def main(name: str) -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Any = Probe(int(os.environ["KVQ_REF_BENCH_THREADS"])) if name == "probe" else Worker(name)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(worker, question.pop("do"))(**question)
        except Exception as error:
            text = str(error).strip().split("\n")[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
