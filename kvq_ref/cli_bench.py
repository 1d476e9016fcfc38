"""``kvq-ref bench``: side by side with PyTorch and JAX, in one run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_ref.cli import CHECK_FAILED, INTERRUPTED, OK, positive, refuse, seed

if TYPE_CHECKING:
    from kvq_ref.bench.jobs import Job
    from kvq_ref.bench.run import Options

DESCRIPTION = """\
Time every form side by side: our kernels, our readable reference, and, as
installed, PyTorch (SDPA with each backend, eager formulations and torch.compile;
its fastest counts) and JAX (jit). A process for each, pinned to the same cores,
with the same number of threads; they take turns, round after round, and what is
reported is the median of each round's ratio. Between the turns a matrix product
measures the machine itself: rounds in which it was busy are dropped.

Every variant's results, and gradients, are first compared with the reference's.
Writes bench.md (the tables), bench.json (every window) and bench.png.
"""
EXAMPLES = """\
examples:
  kvq-ref bench                                    everything on one thread; takes half an hour
  kvq-ref bench --quick                            two shapes, three rounds, no torch.compile
  kvq-ref bench --threads 2 --out bench-2
  kvq-ref bench --forms softmax linear --shapes 4,8,512,64 --jobs fb --causal
  kvq-ref bench --peers torch --dtype float64
  kvq-ref bench --latency --mixed --memory         these instead of the ratios
  kvq-ref bench train                              training steps of small models
  kvq-ref bench cost                               what a token costs as T grows

exit status: 0 measured, 1 a variant disagrees with the reference or a process died
(it is named), 2 unusable arguments, 130 interrupted (what was measured is written).
"""
TRAIN_DESCRIPTION = """\
Time a training step of a small transformer (forward, cross-entropy, backward,
AdamW) side by side: our kernels, our formulas in NumPy, and, where it is
installed, PyTorch, eager and under torch.compile, with SDPA and fused AdamW. The
same model, parameters, data, dtype and number of threads; processes, turns and
rounds are those of `kvq-ref bench`. Losses and gradients are compared first.

small: 2 layers, width 32, 2 heads, batch 64, T 12
large: 4 layers, width 128, 4 heads, batch 32, T 64

Writes train.md (the tables), train.json (every window) and train.png.
"""
TRAIN_EXAMPLES = """\
examples:
  kvq-ref bench train --threads 1,2                both models; takes ten minutes
  kvq-ref bench train --quick                      the small one, three rounds, no torch.compile
  kvq-ref bench train --models small --positions alibi

exit status: as of kvq-ref bench
"""
COST_DESCRIPTION = """\
Time a token of each form while T grows, in powers of 2: forward, and forward and
backward, causal and not, with as many sequences as make the tokens of the longest.
A process for each form; they take turns, and rounds in which the machine was busy
are dropped, as by `kvq-ref bench`. Only kvq_ref is timed, and nothing is compared
but times: for results, and other libraries, see `kvq-ref bench`.

Writes cost.md (tables, slopes, and what they say of the abstract's "exactly the
same complexity"), cost.json (every window), cost.png and cost-dark.png.
"""
COST_EXAMPLES = """\
examples:
  kvq-ref bench cost                               takes some minutes
  kvq-ref bench cost --forms softmax intention --longest 4096 --jobs f --no-causal
  kvq-ref bench cost --threads 2 --out cost-2

exit status: as of kvq-ref bench
"""
BAR = "{desc:<44} {n_fmt}/{total_fmt} |{bar}| {elapsed}"


def bench(options: argparse.Namespace) -> int:
    """The command."""
    from kvq_ref.bench.processes import available_threads
    from kvq_ref.bench.report import as_text
    from kvq_ref.bench.run import BenchError, Run, length
    from kvq_ref.bench.special import MIXED_THREADS

    needed = max(options.threads, MIXED_THREADS if options.mixed else 1)
    if needed > available_threads():
        what = "--mixed" if needed > options.threads else f"--threads {needed}"
        return refuse("bench", f"{what} needs {needed} cores, and this process may use {available_threads()}")
    try:
        with _Bar(length(wanted := _options(options))) as bar:
            run = Run(wanted, bar)
            status = OK
            try:
                run.measure()
            except KeyboardInterrupt:
                status = INTERRUPTED
            run.write(figures=True)
    except BenchError as error:
        return refuse("bench", str(error))
    print(f"{as_text(run.results)}\n\nreport   {wanted.out / 'bench.md'}")
    if status == INTERRUPTED:
        print("kvq-ref bench: interrupted; what was measured so far is written", file=sys.stderr)
        return status
    return CHECK_FAILED if run.results.failures else OK


def train(options: argparse.Namespace) -> int:
    """The command ``kvq-ref bench train``."""
    from kvq_ref.bench.processes import available_threads
    from kvq_ref.bench.run import BenchError, Options
    from kvq_ref.bench.schedule import Effort
    from kvq_ref.bench.training import MODELS, QUICK_MODELS, steps
    from kvq_ref.bench.training_run import TrainingRun, as_text

    if max(options.threads) > (cores := available_threads()):
        return refuse("bench train", f"--threads {max(options.threads)}: this process may use {cores}")
    rounds, budget = (3, 1.0) if options.quick else (15, 40.0)
    models: Any = steps(options.models or (QUICK_MODELS if options.quick else MODELS), options.positions, options.dtype)
    wanted = Options(
        out=options.out,
        jobs=models,
        peers=("ours", *options.peers),
        dtype=options.dtype,
        effort=Effort(
            options.rounds or rounds, options.budget or budget, compiled=not options.quick, slow=float("inf")
        ),
        seed=options.seed,
    )
    try:
        with _Bar(len(models) * len(options.threads)) as bar:
            run = TrainingRun(wanted, options.threads, bar)
            status = OK
            try:
                run.measure()
            except KeyboardInterrupt:
                status = INTERRUPTED
            run.write(figures=True)
    except BenchError as error:
        return refuse("bench train", str(error))
    print(f"{as_text(run.results)}\n\nreport   {wanted.out / 'train.md'}")
    if status == INTERRUPTED:
        print("kvq-ref bench train: interrupted; what was measured so far is written", file=sys.stderr)
        return status
    return CHECK_FAILED if run.results.failures else OK


def cost(options: argparse.Namespace) -> int:
    """The command ``kvq-ref bench cost``."""
    from kvq_ref.bench.cost import SHORTEST, CostRun, as_text, cost_jobs, failures
    from kvq_ref.bench.processes import available_threads
    from kvq_ref.bench.run import BenchError, Options
    from kvq_ref.bench.schedule import Effort

    if options.threads > (cores := available_threads()):
        return refuse("bench cost", f"--threads {options.threads}: this process may use {cores}")
    if options.longest < SHORTEST:
        return refuse("bench cost", f"--longest: expected at least {SHORTEST}, got {options.longest}")
    columns = (False, True) if options.causal is None else (options.causal,)
    wanted = Options(
        out=options.out,
        jobs=cost_jobs(options.longest, options.d, options.jobs, columns, options.dtype),
        peers=tuple(dict.fromkeys(options.forms)),
        threads=options.threads,
        dtype=options.dtype,
        effort=Effort(options.rounds, options.budget),
        seed=options.seed,
    )
    try:
        with _Bar(len(wanted.jobs)) as bar:
            run = CostRun(wanted, bar)
            status = OK
            try:
                run.measure()
            except KeyboardInterrupt:
                status = INTERRUPTED
            run.write(figures=True)
    except BenchError as error:
        return refuse("bench cost", str(error))
    print(f"{as_text(run.results)}\n\nreport   {wanted.out / 'cost.md'}")
    if status == INTERRUPTED:
        print("kvq-ref bench cost: interrupted; what was measured so far is written", file=sys.stderr)
        return status
    return CHECK_FAILED if failures(run.results) else OK


def _options(options: argparse.Namespace) -> Options:
    from kvq_ref.bench.run import Options
    from kvq_ref.bench.schedule import Effort

    special = options.latency or options.memory or options.mixed
    rounds, budget = (3, 1.0) if options.quick else (9, 8.0)
    return Options(
        out=options.out,
        jobs=_jobs(options) if options.ratios or not special else [],
        latency=options.latency,
        memory=options.memory,
        mixed=options.mixed,
        peers=("ours", *options.peers),
        threads=options.threads,
        dtype=options.dtype,
        effort=Effort(options.rounds or rounds, options.budget or budget, compiled=not options.quick),
        seed=options.seed,
    )


def _jobs(options: argparse.Namespace) -> list[Job]:
    from kvq_ref.bench.jobs import DEFAULT_FORMS, QUICK_SHAPES, jobs

    return jobs(
        options.forms or DEFAULT_FORMS,
        options.shapes or (QUICK_SHAPES if options.quick else None),
        options.jobs,
        (False, True) if options.causal is None else (options.causal,),
        options.dtype,
    )


class _Bar:
    """A progress bar for a run, and for each step of a job."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, disable=None, leave=False, bar_format=BAR, file=sys.stderr)
        self.what = ""

    def start(self, what: str) -> None:
        self.what = what
        self.bar.set_description(what)

    def detail(self, what: str) -> None:
        self.bar.set_description(f"{self.what}, {what}")

    def done(self) -> None:
        self.bar.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


# ---- Arguments -----------------------------------------------------------------------


def _shape(text: str) -> tuple[int, int, int, int]:
    """Batch, heads, T, d.

    >>> _shape("1,8,1024,64")
    (1, 8, 1024, 64)
    """
    numbers = tuple(int(x) for x in text.split(",")) if text.replace(",", "").isdigit() else ()
    if len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected BATCH,HEADS,T,D, as in 1,8,1024,64, got {text!r}")
    return numbers


def _whats(text: str) -> list[str]:
    """Of "f" and "fb".

    >>> _whats("f,fb")
    ['f', 'fb']
    """
    words = text.split(",")
    if not set(words) <= {"f", "fb"}:
        raise argparse.ArgumentTypeError(f"expected f, fb or f,fb, got {text!r}")
    return words


def _threads(text: str) -> list[int]:
    """One number of threads or several.

    >>> _threads("1,2")
    [1, 2]
    """
    if not text.replace(",", "").isdigit() or "0" in (words := text.split(",")) or "" in words:
        raise argparse.ArgumentTypeError(f"expected numbers of threads, as in 1,2, got {text!r}")
    return [int(word) for word in dict.fromkeys(words)]


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds > 0, got {text}")
    return number


DEFAULTS: dict[str, Any] = {
    "jobs": ["f", "fb"],
    "dtype": "float32",
    "peers": ["torch", "jax"],
    "threads": 1,
    "seed": 0,
    "out": Path("kvq-bench"),
}
_seconds.__name__ = "number of seconds"  # argparse puts it into its message


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``kvq-ref``."""
    from kvq_ref.bench.jobs import FORMS

    parser = commands.add_parser(
        "bench",
        help="time every form against PyTorch and JAX",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kvq-ref bench [options]",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--forms", nargs="+", choices=FORMS, metavar="FORM", help=f"of {', '.join(FORMS)}")
    what.add_argument("--shapes", nargs="+", type=_shape, metavar="B,H,T,D", help="batch, heads, T, d, with commas")
    what.add_argument("--jobs", type=_whats, metavar="f,fb", help="forward, forward and backward (default: both)")
    what.add_argument("--causal", action=argparse.BooleanOptionalAction, help="only causal, or not (default: both)")
    what.add_argument("--dtype", choices=("float32", "float64"), help="of the arrays (default: float32)")
    what.add_argument("--peers", nargs="*", choices=("torch", "jax"), metavar="PEER", help="torch, jax (default: both)")
    what.add_argument(
        "--ratios", action="store_true", help="tables of ratios: the default, unless one of these is given:"
    )
    what.add_argument("--latency", action="store_true", help="microseconds of the smallest calls")
    what.add_argument("--memory", action="store_true", help="how much one call at T = 32768 raises the peak memory")
    what.add_argument("--mixed", action="store_true", help="kernels and NumPy products in turns, on two threads")

    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=positive, metavar="N", help="of every process (default: 1)")
    how.add_argument("--rounds", type=positive, metavar="N", help="that count, for each job (default: 9)")
    how.add_argument("--budget", type=_seconds, metavar="SECONDS", help="for the rounds of a job (default: 8)")
    how.add_argument("--quick", action="store_true", help="two small shapes, three rounds, no torch.compile")
    how.add_argument("--seed", type=seed, metavar="N", help="of the random inputs (default: 0)")
    how.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: ./kvq-bench)")
    parser.set_defaults(command=bench, **DEFAULTS)
    instead = parser.add_subparsers(title="instead of the forms", metavar="train | cost")
    _add_train(instead)
    _add_cost(instead)


def _add_train(commands: argparse._SubParsersAction[Any]) -> None:
    from kvq_ref.bench.training import MODELS, POSITIONS

    parser = commands.add_parser(
        "train",
        help="time training steps of small models: kvq-ref bench train --help",
        description=TRAIN_DESCRIPTION,
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kvq-ref bench train [options]",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--positions", choices=POSITIONS, help="none, or alibi: a bias (default: none)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the parameters (default: float32)")
    parser.add_argument("--peers", nargs="*", choices=("torch",), metavar="PEER", help="torch (default), or nobody")
    parser.add_argument("--threads", type=_threads, metavar="N,N", help="one number or several (default: 1)")
    parser.add_argument("--rounds", type=positive, metavar="N", help="that count, for each model (default: 15)")
    parser.add_argument("--budget", type=_seconds, metavar="SECONDS", help="for the rounds of a model (default: 40)")
    parser.add_argument("--quick", action="store_true", help="the small model, three rounds, no torch.compile")
    parser.add_argument("--seed", type=seed, metavar="N", help="of data and parameters (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: ./kvq-bench)")
    parser.set_defaults(**{**DEFAULTS, "command": train, "threads": [1], "peers": ["torch"], "positions": "none"})


def _add_cost(commands: argparse._SubParsersAction[Any]) -> None:
    from kvq_ref.bench.jobs import DEFAULT_FORMS, FORMS

    parser = commands.add_parser(
        "cost",
        help="time a token of each form as T grows: kvq-ref bench cost --help",
        description=COST_DESCRIPTION,
        epilog=COST_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kvq-ref bench cost [options]",
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, metavar="FORM", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--longest", type=positive, metavar="T", help="the largest T, from 64 on (default: 16384)")
    parser.add_argument("--d", type=positive, metavar="N", help="of queries, keys and values (default: 64)")
    parser.add_argument("--jobs", type=_whats, metavar="f,fb", help="forward, forward and backward (default: both)")
    parser.add_argument("--causal", action=argparse.BooleanOptionalAction, help="only causal, or not (default: both)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the arrays (default: float32)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of every process (default: 1)")
    parser.add_argument("--rounds", type=positive, metavar="N", help="that count, for each T (default: 7)")
    parser.add_argument("--budget", type=_seconds, metavar="SECONDS", help="for the rounds of a T (default: 10)")
    parser.add_argument("--seed", type=seed, metavar="N", help="of the random inputs (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: ./kvq-bench)")
    start = {"command": cost, "forms": list(DEFAULT_FORMS), "longest": 16384, "d": 64, "rounds": 7, "budget": 10.0}
    parser.set_defaults(**DEFAULTS | start)
