"""``kvq-ref run``: train small models, one or a grid of them."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_ref.cli import CHECK_FAILED, INTERRUPTED, OK, positive, refuse

if TYPE_CHECKING:
    from kvq_ref.lab.cell import Outcome
    from kvq_ref.lab.config import Config

DESCRIPTION = """\
Train a small model on a task, or a whole grid of them.

TASK is one of, of sequences in which what comes next follows from what was,
  nt         x_t = x_{t-1} + x_{t-tau}                      mod N
  sums       x_t = the sum of as many earlier ones as --terms
  products   x_t = x_{t-1} * x_{t-tau}                      mod N
  copy       x_t = x_{t-tau}
  lookup     a table is shown, then applied to itself, --terms times for a token
  several    several nt tasks for one model: --tasks "2:5 3:4"
or, where a model reads a context of --K pairs (x, y) and answers queries,
  sinusoid           sinusoids of random amplitude and phase
  linear_regression  linear functions of --d variables, with --noise
  digits             images of --N classes not seen before, --K of each (needs scikit-learn)
  photographs        which of --N photographs is a patch from? (needs scikit-image)
  recall             which of --N symbols went with this key?
  registration       affine maps of point clouds, with a --outlier-share
  outliers           which point of a set follows another linear function?
or, where the pairs are of states and actions, acts as the teacher of a context does, in the real environment
(these need gymnasium; with slips of the teacher, a share up to --noise),
  cartpole           CartPole-v1; teachers hold the cart at places of their own
  mountain_car       MountainCar-v0; teachers have more skill or less
  fetch              MiniGrid-Fetch-6x6-N2-v0; teachers want different things (needs minigrid)

The latter start from settings of their own: mostly one layer of width 64, 4000
steps at a rate of 0.001, no weight decay, and no target where they are judged by
their error.

TASK may also be all, with --quick: a small version of every task, with a few forms,
in some minutes, and a page that leads to a report of each. What the settings are is
said in kvq_ref/lab/catalogue.py; those that are given go before them.

Every run has a folder, DIR/cells/HASH, named by its settings. A run that has
finished is not done again, and one that was interrupted, at whatever instant,
goes on from its last checkpoint and ends with the same bits: so the same
command continues a run or a sweep, and one with more values extends it.
"""
EXAMPLES = """\
examples:
  kvq-ref run nt --form expressive --N 2 --tau 5
  kvq-ref run nt --set form=softmax,expressive --set tau=2:12 --seeds 10 --jobs 2
  kvq-ref run nt --set form=softmax,expressive --set rate=1e-3,2e-3,4e-3 --tau 8 --out rates
  kvq-ref run sinusoid --form intention
  kvq-ref run sinusoid --set form=intention,softmax --set K=2,5,10,20 --seeds 3
  kvq-ref run cartpole --form intention
  kvq-ref run --config my.toml --seeds 5:9
  kvq-ref run nt --set tau=2:12 --seeds 10 --scheduler tcp://10.0.0.7:8786
  kvq-ref run all --quick --jobs 2
  kvq-ref run all --quick --set task=nt,sinusoid --seeds 3
  kvq-ref report kvq-runs

exit status: 0 all runs finished, 1 a run failed (it is named; the others finish), or
the disk is full or the cluster lost, 2 unusable arguments, 130 interrupted (the same command goes on).
"""
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "the task": {
        "N": ("N", "tokens are numbers mod N; classes, symbols (default: 2)"),
        "tau": ("N", "the furthest that the task looks back (default: 5)"),
        "terms": ("N", "terms of a sum; lookups for a token (default: 2)"),
        "tasks": ("PAIRS", "pairs N:tau for several (default: 2:5 3:4)"),
        "T": ("N", "tokens that the model sees (default: the task's choice)"),
        "K": ("N", "pairs in a context; digits, photographs: of each class (default: 10)"),
        "K_least": ("N", "training draws the number of pairs from this to K (default: always K)"),
        "d": ("N", "dimensions of x (default: 8)"),
        "noise": ("X", "added to y in the context; teachers' slips, at most (default: 0)"),
        "outlier_share": ("X", "of the pairs; they tell nothing (default: 0)"),
    },
    "the model": {
        "form": ("FORM", "softmax, expressive, linear, intention, ...: see kvq-ref forms (default: softmax)"),
        "scale": ("X", "of the scores (default: the form's own)"),
        "alpha": ("X", "of the least-squares forms; where it is learned, its start (default: 1)"),
        "encoder": ("WORD", "in context, of x: shared, separate, none (default: shared)"),
        "values": ("WORD", "in context: plain, the y as they are, or encoded (default: plain)"),
        "learn": ("WORD", "in context: one number a head, or each of alpha and scale (default: one)"),
        "depth": ("N", "in context: hidden layers of an encoder (default: 2)"),
        "positions": ("WORD", "none, learned, sinusoidal, rotary, alibi (default: rotary)"),
        "layers": ("N", "blocks (default: 2)"),
        "width": ("N", "of the model (default: 32)"),
        "heads": ("N", "they divide the width (default: 2)"),
        "mlp": ("N", "hidden units of a perceptron, in units of the width (default: 4)"),
        "activation": ("WORD", "gelu, relu (default: gelu)"),
        "norm": ("WORD", "pre, post, none; in context pre, unit, none (default: pre)"),
        "gain": ("X", "initial queries and keys are so many times as large (default: 1)"),
    },
    "the training": {
        "optimizer": ("WORD", "adamw, sgd (default: adamw)"),
        "rate": ("X", "step size (default: 0.002)"),
        "momentum": ("X", "of sgd (default: 0.9)"),
        "weight_decay": ("X", "(default: 0.1)"),
        "warm_up": ("N", "steps until the rate is reached (default: 50)"),
        "schedule": ("WORD", "of the rate, afterwards: constant, cosine (default: constant)"),
        "batch": ("N", "sequences or episodes in a step (default: 64)"),
        "steps": ("N", "at most (default: 5000)"),
        "loss": ("WORD", "determined, all: whether tokens that cannot be known count (default: all)"),
        "target": (
            "X",
            "stop at this held-out accuracy (above 1, never), or error (0, never) (default: 1)",
        ),
        "evaluate_every": ("N", "steps (default: 50)"),
        "evaluate_on": ("N", "held-out sequences or episodes (default: 512)"),
        "seed": ("N", "of everything random (default: 0)"),
        "dtype": ("WORD", "float32, float64 (default: float32)"),
        "threads": ("N", "of each run (default: 1)"),
        "backend": ("WORD", "numpy, or cupy for the GPU (default: numpy)"),
    },
}
PACKAGES = {
    "run": ("joblib", "safetensors", "threadpoolctl", "tomli_w"),
    "report": ("matplotlib", "safetensors", "tomli_w"),
    "cluster": ("dask", "distributed"),
    "digits": ("sklearn",),
    "photographs": ("skimage",),
    "cartpole": ("gymnasium",),
    "mountain_car": ("gymnasium",),
    "fetch": ("gymnasium", "minigrid"),
}


def run(options: argparse.Namespace) -> int:
    """The command ``run``."""
    if missing := packages_missing("run") or (options.scheduler and packages_missing("cluster")):
        return refuse("run", missing)
    from kvq_ref import cli_progress, cli_run_all

    if options.task == "all":
        return cli_run_all.run_all(options)
    try:
        if options.quick:
            raise ValueError(f"--quick goes with all: kvq-ref run all --quick --set task={options.task or 'nt'}")
        configs = _configs(options)
        for task in {config.task for config in configs} & set(PACKAGES):
            if missing := packages_missing(task):
                return refuse("run", missing)
        if options.resume and options.restart:
            raise ValueError("--resume continues what is there, --restart removes it: not both")
        (options.out / "cells").mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError) as error:
        return refuse("run", str(error))
    except OSError as error:
        return refuse("run", f"{error.filename}: {error.strerror}")
    return _train(options, configs, cli_progress)


def _train(options: argparse.Namespace, configs: list[Config], cli_progress: Any) -> int:
    heed_what_is_there(options, {options.out: configs})
    watch: Any = cli_progress.One(configs[0]) if _is_single(options) else cli_progress.Many(len(configs))
    if (stopped := follow(options, watch, _outcomes(options, configs, watch))) is not None:
        return stopped
    print(watch.summary(options.out))
    return CHECK_FAILED if watch.failed else OK


def heed_what_is_there(options: argparse.Namespace, runs: Mapping[Path, Sequence[Config]]) -> None:
    """What --restart and --resume ask for, of runs by the folder that keeps them."""
    from kvq_ref.lab.cell import folder_of, forget

    folders = [folder_of(config, out) for out, configs in runs.items() for config in configs]
    if options.restart:
        for folder in folders:
            forget(folder)
    if options.resume and not any(folder.exists() for folder in folders):
        print(f"kvq-ref run: nothing to resume in {options.out}; this is a beginning", file=sys.stderr)


def follow(options: argparse.Namespace, watch: Any, outcomes: Iterable[Outcome]) -> int | None:
    """Watch runs to their end; the exit status where something stops them, and the command that goes on."""
    from kvq_ref.lab.cell import DISK_IS_FULL
    from kvq_ref.lab.cluster import ClusterError

    again = _command(options)
    try:
        with watch:
            for outcome in outcomes:
                watch.ended(outcome)
    except KeyboardInterrupt:
        print(f"kvq-ref run: interrupted, {watch.so_far()}; the same command goes on:\n  {again}", file=sys.stderr)
        return INTERRUPTED
    except ClusterError as error:
        print(f"kvq-ref run: {error}; the same command goes on:\n  {again}", file=sys.stderr)
        return CHECK_FAILED
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        where = error.filename or options.out
        print(
            f"kvq-ref run: the disk is full ({where}); nothing that was written is lost. "
            f"Make room, and the same command goes on:\n  {again}",
            file=sys.stderr,
        )
        return CHECK_FAILED
    return None


def _outcomes(options: argparse.Namespace, configs: list[Config], watch: Any) -> Iterator[Outcome]:
    from kvq_ref.lab.cell import folder_of, run_cell

    if _is_single(options):
        yield run_cell(configs[0], folder_of(configs[0], options.out), report=watch.step)
    else:
        yield from sweep(options, configs, options.out)


def sweep(options: argparse.Namespace, configs: Sequence[Config], out: Path) -> Iterator[Outcome]:
    """Train them here or on a cluster."""
    if options.scheduler:
        from kvq_ref.lab.cluster import run_on_cluster

        return run_on_cluster(configs, out, options.scheduler)
    from kvq_ref.lab.sweep import run_sweep

    return run_sweep(configs, out, options.jobs)


def _is_single(options: argparse.Namespace) -> bool:
    return not (options.set or options.seeds or options.scheduler)


# ---- From arguments to settings --------------------------------------------------------


def _configs(options: argparse.Namespace) -> list[Config]:
    """All runs, every one of them checked.

    Raises
    ------
    OSError, TypeError, ValueError
    """
    from kvq_ref.lab.catalogue import TASKS
    from kvq_ref.lab.grid import grid

    settings, axes = wanted(options)
    if "task" not in settings and "task" not in dict(axes):
        raise ValueError(f"TASK is missing: {', '.join(TASKS)}")
    return grid(settings, axes)


def wanted(options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, list[Any]]]]:
    """Settings and axes, as a file and the command line have them.

    Raises
    ------
    OSError, TypeError, ValueError
    """
    from kvq_ref.lab.grid import axis, read_settings, seeds

    settings = read_settings(options.config) if options.config else {}
    given = _given(options)
    axes = [axis(text) for text in options.set]
    for name, _ in axes:
        settings.pop(name, None)  # what a file has may be changed; what the command line has, not twice
    if options.seeds:
        settings.pop("seed", None)
        axes.append(("seed", seeds(options.seeds)))
    return settings | given, axes


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that have an option of their own, as far as they were given."""
    from kvq_ref.lab.config import FIELDS, parse

    found = {}
    for name in FIELDS:
        text = getattr(options, name)
        if text is None:
            continue
        try:
            found[name] = parse(name, text)
        except ValueError as error:
            several = f"; several values go with --set {name}={text}" if "," in text or ":" in text else ""
            raise ValueError(f"{error}{several}") from None
    return found


def _command(options: argparse.Namespace) -> str:
    """The command itself, but for --restart."""
    words = ["kvq-ref", "run", *([options.task] if options.task else [])]
    for name in ("config", *(name for group in GROUPS.values() for name in group)):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for text in options.set:
        words += ["--set", text]
    for name in ("seeds", "scheduler"):
        if getattr(options, name):
            words += [f"--{name}", getattr(options, name)]
    words += ["--quick"] if options.quick else []
    words += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
    words += ["--out", str(options.out)] if options.out != OUT else []
    return shlex.join(words)


def packages_missing(what: str) -> str:
    """What to install for it, or an empty word."""
    missing = [name for name in PACKAGES[what] if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    of_control = dict.fromkeys(("cartpole", "mountain_car", "fetch"), "lab,control")
    extras = {"cluster": "cluster", "digits": "lab,tour", "photographs": "photographs"} | of_control
    extra = extras.get(what, "lab")
    return f'this needs {", ".join(missing)}: pip install "kvq_ref[{extra}]"'


# ---- Arguments -----------------------------------------------------------------------

OUT = Path("kvq-runs")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``kvq-ref``."""
    parser = commands.add_parser(
        "run",
        help="train small models on any form, one or a grid of them",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kvq-ref run TASK [--SETTING VALUE ...] [--set NAME=VALUES ...] [--seeds N] [--jobs N] [--out DIR]",
        allow_abbrev=False,
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="nt, ..., sinusoid, ..., all: see above")

    many = parser.add_argument_group("a grid of runs")
    many.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="form=softmax,expressive; tau=2:12; tau=2:12:2",
    )
    many.add_argument("--seeds", metavar="N", help="so many, from 0 on; or FIRST:LAST, as in 3:8")
    many.add_argument("--quick", action="store_true", help="with all: few steps, so that all take some minutes")
    many.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    many.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that trains them, tcp://host:port")

    where = parser.add_argument_group("where from, where to")
    where.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML; options go before them")
    where.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="folder of the runs (default: ./kvq-runs)")
    where.add_argument("--resume", action="store_true", help="continue what DIR has of these runs: the default")
    where.add_argument("--restart", action="store_true", help="forget what DIR has of these runs")

    for title, settings in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, (metavar, text) in settings.items():
            group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    parser.set_defaults(command=run)
