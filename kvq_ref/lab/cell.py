"""A cell of a sweep: one run in a folder that has its settings' hash for a name.

Beside what :mod:`kvq_ref.lab.train` keeps there, a cell has

    cost.json   seconds and steps per second, which no two runs share
    error.txt   what went wrong, and the command that repeats it
    lock        held by the process that trains it; it says which sweep that belongs to
"""

from __future__ import annotations

import contextlib
import errno
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvq_ref.files import to_json, write_atomically
from kvq_ref.lab.config import Config
from kvq_ref.lab.train import Report, train

try:
    import fcntl
except ImportError:  # Windows: two sweeps that train one cell at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

FILES = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json", "cost.json", "error.txt", "lock")
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes
    ----------
    config : Config
    folder : Path
    state : {"finished", "failed", "busy"}
        Busy: another process is training it.
    result : dict
        As result.json has it, of one that is finished.
    error : str
        One line, of one that failed.
    is_new : bool
        Whether something was done; a cell that had finished before is not.
    """

    config: Config
    folder: Path
    state: Literal["finished", "failed", "busy"]
    result: dict[str, Any]
    error: str = ""
    is_new: bool = True


def folder_of(config: Config, out: Path) -> Path:
    """Where a run is kept under ``out``.

    >>> folder_of(Config(), Path("kvq-runs")).parent.as_posix()
    'kvq-runs/cells'
    """
    return out / "cells" / config.name


def result_in(folder: Path) -> dict[str, Any] | None:
    """The result of a finished cell; None for any other."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def run_cell(config: Config, folder: Path, sweep: str = "", report: Report | None = None) -> Outcome:
    """Train a cell, from where it stands to its end.

    An error is caught and kept, so that the rest of a sweep goes on; except that
    a full disk, where no other cell would fare better, is raised.

    Parameters
    ----------
    config : Config
    folder : Path
        Made if need be.
    sweep : str
        Stands for the sweep that it is a part of, while it is trained.
    report : callable, optional
        As :func:`kvq_ref.lab.train.train` takes it.

    Returns
    -------
    Outcome
    """
    if (result := result_in(folder)) is not None:
        return Outcome(config, folder, "finished", result, is_new=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, sweep), _stopwatch(folder, report) as timed:
            result = train(config, folder, resume=True, report=timed)
    except BlockingIOError:
        return Outcome(config, folder, "busy", {})
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            raise
        return failure(config, folder, f"{type(error).__name__}: {error}", traceback.format_exc())
    (folder / "error.txt").unlink(missing_ok=True)
    return Outcome(config, folder, "finished", result)


def failure(config: Config, folder: Path, error: str, details: str = "") -> Outcome:
    """The outcome of a cell that failed, which is also written into its folder."""
    text = f"{error}\n\nrepeat it: {config.command()}\n\n{config.to_toml()}\n{details}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "error.txt", text)
    except OSError as also:  # what cannot be written is still told
        if also.errno in DISK_IS_FULL:
            raise
    return Outcome(config, folder, "failed", {}, error.partition("\n")[0])


def forget(folder: Path) -> None:
    """Remove a cell, so that it is trained anew. Files that are none of a cell's stay."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def belongs_to(folder: Path, sweep: str) -> bool:
    """Whether a process of that sweep was training the cell, and ended without putting the lock back."""
    try:
        return (folder / "lock").read_text(encoding="utf-8") == sweep
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, sweep: str) -> Iterator[None]:
    """Hold the lock, which the system takes back from a process that dies.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    with open(folder / "lock", "a", encoding="utf-8") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in FILES:
            for left_behind in folder.glob(f".{name}.*"):  # by a writer that was killed
                left_behind.unlink()
        file.truncate(0)
        file.write(sweep)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _stopwatch(folder: Path, report: Report | None) -> Iterator[Report]:
    """Write what the run cost, in all its parts, however it ends; a part that was killed is not counted."""
    path = folder / "cost.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        seconds, steps = float(before["seconds"]), int(before["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        seconds, steps = 0.0, 0
    begin = time.perf_counter()

    def counted(step: int, row: dict[str, Any]) -> None:
        nonlocal steps
        steps += 1
        if report is not None:
            report(step, row)

    try:
        yield counted
    finally:
        seconds += time.perf_counter() - begin
        cost = {"seconds": round(seconds, 3), "steps": steps, "steps_per_second": round(steps / seconds, 2)}
        with contextlib.suppress(OSError):  # a full disk has been reported by the run itself
            write_atomically(path, to_json(cost))


def as_files(folder: Path) -> dict[str, bytes]:
    """What a cell's folder holds, to be sent to another machine."""
    return {name: (folder / name).read_bytes() for name in FILES if name != "lock" and (folder / name).exists()}


def put_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write them, the result last: a cell is finished once its result is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == "result.json"):
        write_atomically(folder / name, files[name])
