"""Train the cells of a sweep, and lose nothing.

A cell is trained by a process of joblib's. It may raise: that is kept, and the
rest goes on. It may kill its process: the pool breaks, and what had not finished
goes to a new pool, where it continues from its checkpoint. What was at work
twice when a pool broke is then trained by itself, so that it takes no other cell
with it; what breaks a third pool has failed.

Whoever trains a cell holds its lock, so that two sweeps may share a folder.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvq_ref.lab.cell import Outcome, belongs_to, failure, folder_of, run_cell
from kvq_ref.lab.config import Config

MOST_LOSSES = 3  # of a worker, by one cell
WAIT = 1.0  # seconds, where all that is left is being trained elsewhere
WATCH = 0.5  # seconds, between two looks of a worker at whether its sweep is there


def run_sweep(configs: Sequence[Config], out: Path, jobs: int = 1) -> Iterator[Outcome]:
    """Train all the runs that have not finished, and give each as it ends.

    Parameters
    ----------
    configs : sequence of Config
        No two of them the same.
    out : Path
        Run ``c`` is kept in ``out/cells/<c.name>``.
    jobs : int
        Processes. With one, the runs are trained in this process, one after the other.

    Yields
    ------
    Outcome
        One for each config: those first that had finished before.

    Raises
    ------
    OSError
        If the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> from kvq_ref.lab.grid import grid
    >>> small = {"tau": 2, "steps": 2, "width": 8, "evaluate_every": 2, "evaluate_on": 8}
    >>> configs = grid(small, [("form", ["softmax", "linear"])])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for outcome in run_sweep(configs, Path(folder)):
    ...         print(outcome.config.form, outcome.state, outcome.result["steps"])
    softmax finished 2
    linear finished 2
    """
    sweep = f"{os.getpid()} {secrets.token_hex(8)}"
    waiting = {config.name: config for config in configs}
    losses: Counter[str] = Counter()
    while waiting:
        together = [config for config in waiting.values() if losses[config.name] < MOST_LOSSES - 1]
        batch = together or [next(iter(waiting.values()))]
        was_busy = False
        for outcome in _pool(batch, out, jobs, sweep, alone=not together):
            if outcome.state == "busy":
                was_busy = True
            else:
                del waiting[outcome.config.name]
                yield outcome
        for config in [x for x in batch if x.name in waiting and belongs_to(folder_of(x, out), sweep)]:
            losses[config.name] += 1
            if losses[config.name] == MOST_LOSSES:
                del waiting[config.name]
                yield failure(config, folder_of(config, out), f"it killed its process {MOST_LOSSES} times")
        if was_busy:
            time.sleep(WAIT)


def _pool(batch: Sequence[Config], out: Path, jobs: int, sweep: str, alone: bool) -> Iterator[Outcome]:
    """The outcomes of one pool of processes, for as long as it holds."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    tasks = [delayed(run_cell)(config, folder_of(config, out), sweep) for config in batch]
    how: dict[str, Any] = {}
    if jobs > 1 or alone:
        threads = max(config.threads for config in batch)
        how = {"backend": "loky", "inner_max_num_threads": threads, "initializer": _begin_worker, "initargs": (sweep,)}
    with parallel_config(n_jobs=max(jobs, 2) if alone else jobs, **how):
        outcomes = Parallel(return_as="generator_unordered", batch_size=1, max_nbytes=None)(tasks)
    try:
        yield from outcomes
    except TerminatedWorkerError:
        pass
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is closed before its end, as it is where one stops it
            outcomes.close()


def _begin_worker(sweep: str) -> None:
    """Have this process heed no Ctrl-C (its sweep does), and end if its sweep is no more, also where it only waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = int(sweep.split()[0])

    def end_if_orphaned() -> None:
        while os.getppid() == owner:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=end_if_orphaned, daemon=True).start()
