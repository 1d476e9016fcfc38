"""Train a small model, and be able to stop at any instant.

A run is a folder:

    config.toml              what it is
    metrics.jsonl            a line for each evaluation
    checkpoint.safetensors   parameters, what the optimiser remembers, and the step
    result.json              how it ended; it is there once it has

The data of a step come from the seed and the number of the step, so the state of
a run is its numbers and nothing else: what resumes, at whatever checkpoint, ends
with the same bits as what never stopped. Every file is replaced in one move.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import kvq_ref as kvq
from kvq_ref.arrays import creation_namespace
from kvq_ref.files import to_json, write_atomically
from kvq_ref.lab.config import Config
from kvq_ref.lab.nn.in_context import InContext
from kvq_ref.lab.nn.losses import cross_entropy, squared_error
from kvq_ref.lab.nn.model import Transformer
from kvq_ref.lab.nn.optimizers import SGD, AdamW
from kvq_ref.lab.nn.parameters import Parameters
from kvq_ref.lab.nn.schedules import cosine, warm_up
from kvq_ref.lab.scores import Score, marks
from kvq_ref.lab.tasks.episodes import EpisodeTask
from kvq_ref.lab.tasks.task import Task
from kvq_ref.types import Array

PARAMETERS, DATA, TEST, ACTING = range(4)  # streams of random numbers
CHECKPOINT_EVERY = 1.0  # seconds, at an evaluation

Report = Callable[[int, dict[str, Any]], None]
Model = Transformer | InContext


class RunError(Exception):
    """A folder that cannot be used, with what to do about it."""


@dataclass
class State:
    """Where a run stands. ``rows`` are its evaluations so far."""

    parameters: Parameters
    optimizer: SGD | AdamW
    step: int
    rows: list[dict[str, Any]]


def train(config: Config, folder: Path, *, resume: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Train until the target is met, the steps are spent, or a loss is not finite.

    Parameters
    ----------
    config : Config
    folder : Path
        Made if need be. It holds this run and no other.
    resume : bool
        Continue the run that the folder holds, if it holds one.
    report : callable, optional
        Called after each step with the number of steps and the last evaluation.

    Returns
    -------
    dict
        ``solved``, ``diverged``, ``steps``, the task's score (``accuracy`` or ``error``) and the like: what
        result.json has; of policies, also what came of them in their environment.

    Raises
    ------
    RunError
        If the folder holds a run and ``resume`` is false, or another run.
    """
    _claim(config, folder, resume)
    finished = folder / "result.json"
    if finished.exists():
        found: dict[str, Any] = json.loads(finished.read_text())
        return found
    with _threads(config.threads), kvq.use_backend(config.backend):
        state = _load(config, folder) if (folder / "checkpoint.safetensors").exists() else _begin(config)
        _advance(config, folder, state, report or (lambda step, row: None))
        _save(config, folder, state)
        result = _result(config, state) | _act(config, state)
    write_atomically(finished, to_json(result))
    return result


def read_model(folder: Path) -> tuple[Config, Parameters]:
    """What a run is, and the parameters that it has learned by its last checkpoint.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    config : Config
        ``config.model().apply(parameters, ...)`` gives the model's answers.
    parameters : Parameters

    Raises
    ------
    RunError
        If the folder holds no run, or no checkpoint of it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(Config(task="sinusoid", steps=2), Path(folder))
    ...     config, parameters = read_model(Path(folder))
    >>> x = np.zeros((1, 3, 1), np.float32)
    >>> config.model().apply(parameters, x, x, x)[0].shape
    (1, 3, 1)
    """
    if not (folder / "checkpoint.safetensors").exists():
        raise RunError(f"{folder}: there is no checkpoint of a run in it")
    config = Config.from_toml((folder / "config.toml").read_text(encoding="utf-8"))
    return config, _load(config, folder).parameters


def _advance(config: Config, folder: Path, state: State, report: Report) -> None:
    """From where the state stands to the end of the run."""
    task, model = config.task_of(), config.model()
    tests = [_on_device(batch, state) for batch in held_out(config)]
    saved = time.monotonic()
    losses: list[Array] = []
    while not _is_over(config, task.score, state):
        losses.append(_step(config, task, model, state))
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            row = {"step": state.step, "loss": float(np.mean([float(x) for x in losses]))}
            state.rows.append(row | _evaluate(task, model, state.parameters, tests))
            losses.clear()
            if time.monotonic() - saved > CHECKPOINT_EVERY:  # only here, where no loss is left to report
                _save(config, folder, state)
                saved = time.monotonic()
        report(state.step, state.rows[-1] if state.rows else {})


def held_out(config: Config) -> Sequence[Any]:
    """What the run is tested on: the same for every model of that task and seed.

    >>> [batch.tokens.shape for batch in held_out(Config(evaluate_on=8))]
    [(8, 21)]
    """
    return config.task_of().test(np.random.default_rng([config.seed, TEST]), config.evaluate_on)


def _step(config: Config, task: Task, model: Model, state: State) -> Array:
    """Learn from fresh rows; gives the loss."""
    batch = _on_device(task.sample(np.random.default_rng([config.seed, DATA, state.step]), config.batch), state)
    y, pullback = model.apply(state.parameters, *batch.inputs)
    loss, dy = _loss(task, y, batch, batch.determined if config.loss == "determined" else None)
    rate = config.rate * warm_up(state.step, config.warm_up)
    if config.schedule == "cosine":
        rate *= cosine(state.step, config.steps)
    state.optimizer.step(state.parameters.flat, pullback(dy).flat, rate)
    state.step += 1
    return loss


def _loss(task: Task, y: Array, batch: Any, counts: Array | None) -> tuple[Array, Array]:
    """The task's loss, and its gradient."""
    if task.loss == "squared":
        return squared_error(y, batch.targets)
    if task.loss == "choice":
        loss, dy = cross_entropy(y[..., 0], batch.targets)
        return loss, dy[..., None]
    return cross_entropy(y, batch.targets, counts)


def _evaluate(task: Task, model: Model, parameters: Parameters, tests: Sequence[Any]) -> dict[str, Any]:
    """Loss and score on what is held out: where tokens are determined, and of the kinds that training draws from."""
    losses, answers = [], []
    for batch in tests:
        y, _ = model.apply(parameters, *batch.inputs)
        losses.append(float(_loss(task, y, batch, batch.determined)[0]))
        answers.append(y)
    return {"test_loss": float(np.mean(losses[: task.trained]))} | scored(task, answers, tests)


def scored(task: Task, answers: Sequence[Array], tests: Sequence[Any]) -> dict[str, float]:
    """The score of answers to what is held out: of all that training draws from, and of each kind."""
    found = [(*marks(task.score, y, batch), batch.kinds) for y, batch in zip(answers, tests, strict=True)]
    sums, counts, kinds = (np.concatenate([_to_numpy(x) for x in part]) for part in zip(*found, strict=True))
    rows = kinds < task.trained
    numbers = {task.score.name: float(sums[rows].sum() / counts[rows].sum())}
    if len(task.kinds) > 1:
        for kind, name in enumerate(task.kinds):
            rows = kinds == kind
            numbers[f"{task.score.name} {name or 'as trained'}"] = float(sums[rows].sum() / counts[rows].sum())
    return numbers


def _is_over(config: Config, score: Score, state: State) -> bool:
    if not state.rows:
        return False
    last = state.rows[-1]
    return score.reaches(last[score.name], config.target) or state.step >= config.steps or _diverged(last)


def _diverged(row: dict[str, Any]) -> bool:
    return row["loss"] is None or not math.isfinite(row["loss"])  # JSON has no NaN: it reads as None


def _result(config: Config, state: State) -> dict[str, Any]:
    last, score = state.rows[-1], config.task_of().score
    return {
        "solved": score.reaches(last[score.name], config.target),
        "diverged": _diverged(last),
        "steps": state.step,
        f"best_{score.name}": score.best(row[score.name] for row in state.rows),
        "parameters": state.parameters.flat.size,
        **{name: value for name, value in last.items() if name != "step"},
    }


def _act(config: Config, state: State) -> dict[str, float]:
    """What comes of the model's answers where they are actions; nothing, for other tasks."""
    task, model = config.task_of(), config.model()
    if not isinstance(task, EpisodeTask):
        return {}

    def read(x: Array, y: Array) -> Callable[[Array, Array], Array]:
        def answer(rows: Array, queries: Array) -> Array:
            inputs = (_array_on_device(part, state) for part in (x[rows], y[rows], queries))
            return _to_numpy(model.apply(state.parameters, *inputs)[0])

        return answer

    return task.act(read, [config.seed, ACTING], config.evaluate_on)


# ---- The state, and the folder that it is kept in --------------------------------------


def _begin(config: Config) -> State:
    parameters = config.model().init(np.random.default_rng([config.seed, PARAMETERS]), config.dtype)
    for name, x in parameters.items():
        if name.endswith("attention.qkv.weight"):
            x[:, : 2 * config.width] *= config.gain  # those of queries and keys
    parameters = Parameters(parameters.shapes, creation_namespace().asarray(parameters.flat))
    if config.optimizer == "sgd":
        optimizer: SGD | AdamW = SGD(momentum=config.momentum, weight_decay=config.weight_decay)
    else:
        optimizer = AdamW(weight_decay=config.weight_decay)
    return State(parameters, optimizer, step=0, rows=[])


def _save(config: Config, folder: Path, state: State) -> None:
    """Metrics first: lines beyond the checkpoint's step are dropped when it is loaded."""
    write_atomically(folder / "metrics.jsonl", "".join(to_json(row, indent=None) + "\n" for row in state.rows))
    arrays = {f"model.{name}": x for name, x in state.parameters.items()}
    arrays |= {f"optimizer.{name}": x for name, x in state.optimizer.state.items() if name != "steps"}
    on_host = {name: np.ascontiguousarray(_to_numpy(x)) for name, x in arrays.items()}
    write_atomically(folder / "checkpoint.safetensors", save(on_host, {"step": str(state.step)}))


def _load(config: Config, folder: Path) -> State:
    state = _begin(config)
    path = folder / "checkpoint.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            state.step = int(file.metadata()["step"])
            for name, x in state.parameters.items():
                x[...] = np.asarray(file.get_tensor(f"model.{name}"), like=x)
            kept = [name for name in file.keys() if name.startswith("optimizer.")]  # noqa: SIM118 (it is no dict)
            memory: dict[str, Any] = {name: np.asarray(file.get_tensor(name), like=x) for name in kept}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: this is no checkpoint of the run ({error}); remove it to begin anew") from None
    state.optimizer.state.update({name.removeprefix("optimizer."): x for name, x in memory.items()})
    if config.optimizer == "adamw":
        state.optimizer.state["steps"] = state.step
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    state.rows = [row for row in map(json.loads, lines) if row["step"] <= state.step]
    return state


def _claim(config: Config, folder: Path, resume: bool) -> None:
    """Make the folder this run's, or raise."""
    description = folder / "config.toml"
    if description.exists():
        try:
            found = Config.from_toml(description.read_text())
        except ValueError as error:
            raise RunError(f"{description}: {error}") from None
        if found.settings != config.settings:
            names = [name for name in config.settings if config.settings[name] != found.settings.get(name)]
            raise RunError(f"{folder} holds another run: it differs in {', '.join(names) or 'its task'}")
        if not resume:
            raise RunError(f"{folder} holds this run already; resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(description, config.to_toml())


# ---- Devices and threads ---------------------------------------------------------------


def _on_device(batch: Any, state: State) -> Any:
    return type(batch)(*(_array_on_device(x, state) for x in batch))


def _array_on_device(x: np.ndarray, state: State) -> Array:
    """Numbers that are not whole take the dtype of the parameters."""
    flat = state.parameters.flat
    x = x.astype(flat.dtype) if x.dtype.kind == "f" else x
    return x if isinstance(flat, np.ndarray) else np.asarray(x, like=flat)


def _to_numpy(x: Array) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()


@contextlib.contextmanager
def _threads(limit: int) -> Iterator[None]:
    """The matrix products' and the kernels'."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limit), kvq.use_num_threads(limit):
        yield
