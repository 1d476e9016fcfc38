"""Train the cells of a sweep on a Dask cluster.

A cell is a task of :class:`distributed.Client`. Nothing is asked of the workers'
disks: what there is of a cell travels to the worker, and what came of it travels
back as the bytes of its files, which are written here. Where a worker is lost,
the scheduler gives its cells to another, where they begin where they stood when
they were sent. Where so many workers are lost as the scheduler allows
(``distributed.scheduler.allowed-failures``, 3 unless configured), it gives up what
they had, and does not know what it was that killed them: so such a cell is sent
again at the end, by itself, and has failed if that is given up, too.

Tasks are submitted one by one, and not through joblib's Dask backend: there, one
cell that kills its workers ends the whole call and with it all the others.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvq_ref.lab.cell import Outcome, as_files, failure, folder_of, put_files, result_in, run_cell
from kvq_ref.lab.config import Config

ONE_AT_A_TIME = threading.Lock()
"""The number of threads is the process's, so a worker with several threads trains one cell after the other."""


class ClusterError(Exception):
    """A scheduler that does not answer, or no longer."""


def run_on_cluster(configs: Sequence[Config], out: Path, scheduler: str, timeout: float = 10.0) -> Iterator[Outcome]:
    """Train all the runs that have not finished, and give each as it ends.

    Parameters
    ----------
    configs : sequence of Config
        No two of them the same.
    out : Path
        Run ``c`` is kept in ``out/cells/<c.name>``, here.
    scheduler : str
        Its address, such as ``tcp://10.0.0.7:8786``.
    timeout : float
        Seconds that it has to answer.

    Yields
    ------
    Outcome

    Raises
    ------
    ClusterError
        If it does not answer.
    OSError
        If the disk is full, here.
    """
    waiting = []
    for config in configs:
        if (result := result_in(folder_of(config, out))) is not None:
            yield Outcome(config, folder_of(config, out), "finished", result, is_new=False)
        else:
            waiting.append(config)
    if not waiting:
        return
    import distributed

    connect: Any = distributed.Client
    try:
        client = connect(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"{scheduler}: no scheduler answers ({error})") from None
    with client, _quiet():
        suspects = []
        for config, future in _together(client, waiting, out):
            if _killed(future):
                suspects.append(config)
            else:
                yield _outcome(config, folder_of(config, out), future)
        for suspect in suspects:
            for config, future in _together(client, [suspect], out):
                yield _outcome(config, folder_of(config, out), future)


def _together(client: Any, configs: Sequence[Config], out: Path) -> Iterator[tuple[Config, Any]]:
    """Submit the cells, and give each with its future as it ends."""
    import distributed

    as_completed: Any = distributed.as_completed
    futures = {}
    for config in configs:
        folder = folder_of(config, out)
        files = as_files(folder) if folder.is_dir() else {}
        futures[client.submit(run_from_files, config.settings, files, pure=False)] = config
    for future in as_completed(list(futures), loop=client.loop):
        if future.status not in ("finished", "error"):  # lost or cancelled: nobody has it any more
            raise ClusterError(f"{client.scheduler.addr}: the scheduler was lost")
        yield futures.pop(future), future
        future.release()


def _killed(future: Any) -> bool:
    return future.status == "error" and type(future.exception()).__name__ == "KilledWorker"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a traceback of a lost connection: that is reported in a line."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _outcome(config: Config, folder: Path, future: Any) -> Outcome:
    """What a task gave, written into the cell's folder."""
    if future.status != "finished":
        error = future.exception()
        what = f"it was lost with its workers: {error}" if _killed(future) else repr(error)
        return failure(config, folder, what)
    files, error = future.result()
    if error:
        put_files(folder, {name: content for name, content in files.items() if name != "error.txt"})
        return failure(config, folder, error, files.get("error.txt", b"").decode())
    put_files(folder, files)
    result = result_in(folder)
    assert result is not None
    return Outcome(config, folder, "finished", result)


def run_from_files(settings: dict[str, Any], files: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """Train a cell in a folder of its own, from the files of one and to the files of one; and the error, if any.

    Examples
    --------
    >>> small = Config(tau=2, steps=2, width=8, evaluate_every=2, evaluate_on=8)
    >>> files, error = run_from_files(small.settings, {})
    >>> sorted(files), error
    (['checkpoint.safetensors', 'config.toml', 'cost.json', 'metrics.jsonl', 'result.json'], '')
    """
    config = Config.of(settings)
    with ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="kvq-ref-") as name:
        folder = Path(name)
        put_files(folder, files)
        outcome = run_cell(config, folder)
        return as_files(folder), outcome.error
