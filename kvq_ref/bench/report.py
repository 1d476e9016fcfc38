"""What was measured as text: Markdown tables, aligned so that a terminal shows them as well."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from kvq_ref.bench.jobs import shape_text
from kvq_ref.bench.memory import SHAPE as MEMORY_SHAPE
from kvq_ref.bench.special import LATENCY_SHAPE, MIXED_SHAPE, MIXED_SIDE, MIXED_THREADS
from kvq_ref.bench.summary import Case, Summary, best_probe, summarise

COLUMNS = ("f", "f causal", "fb", "fb causal")
PEER_LABELS = {"torch": "torch", "jax": "JAX", "reference": "reference"}
MIXED_BAR = 1.15


@dataclass
class Results:
    """Everything of a run.

    Attributes
    ----------
    config : dict
        Versions, processor, threads, dtype, and how long was measured.
    cases, latency : list of Case
    memory : list of dict
        Job, variant, and bytes or why not.
    mixed : list of dict
        Seconds, round by round.
    missing : dict
        Peers that did not take part, and why.
    scaling : float or None
        How much faster the threads together are than one of them; None for one thread.
    """

    config: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    latency: list[Case] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    mixed: list[dict[str, float]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    scaling: float | None = None

    def fields(self) -> dict[str, Any]:
        """As plain data: all raw windows."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """The way back."""
        cases = {name: [Case.from_fields(x) for x in fields[name]] for name in ("cases", "latency")}
        return cls(**{**fields, **cases})

    def summaries(self) -> list[Summary]:
        """Of the cases in which ours was timed."""
        return _summaries(self.cases)

    @property
    def failures(self) -> list[str]:
        """What must not happen: a variant that disagrees, a process that died, anything wrong with ours."""
        found = []
        for case in [*self.cases, *self.latency]:
            found += [f"{case.job}: {name} {why}" for name, why in case.wrong.items()]
            found += [
                f"{case.job}: {name} {why}"
                for name, why in case.failed.items()
                if name.startswith("ours/") or "died" in why
            ]
        return found


def _summaries(cases: list[Case]) -> list[Summary]:
    best = {case.job.dtype: best_probe(cases, case.job.dtype) for case in cases}
    return [x for case in cases if (x := summarise(case, best[case.job.dtype])) is not None]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table whose columns are aligned.

    >>> print(table(("form", "ratio"), [("linear", "1.25"), ("softmax", "11.00")]))
    | form    | ratio |
    |---------|------:|
    | linear  |  1.25 |
    | softmax | 11.00 |
    """
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "".join(f"|{'-' * (w + 2)}" if i < text_columns else f"|{'-' * (w + 1)}:" for i, w in enumerate(widths))
    return "\n".join([line(lines[0]), rule + "|", *map(line, lines[1:])])


def as_text(results: Results) -> str:
    """The whole report."""
    parts = [ratio_tables(results), detail_table(results), latency_table(results), memory_table(results)]
    parts += [mixed_text(results), notes(results)]
    return "\n\n".join(part for part in parts if part)


def ratio_tables(results: Results) -> str:
    """For each form and peer, the peer's best time over ours, a row for each shape."""
    summaries = results.summaries()
    parts = []
    for form in dict.fromkeys(x.job.form for x in summaries):
        of_form = [x for x in summaries if x.job.form == form]
        columns = [c for c in COLUMNS if any(x.job.column == c for x in of_form)]
        for peer, label in PEER_LABELS.items():
            cells = {(x.job.shape, x.job.column): ratio_text(x, peer) for x in of_form if peer in x.ratio}
            if not cells:
                continue
            shapes = dict.fromkeys(x.job.shape for x in of_form)
            rows = [(shape_text(shape), *(cells.get((shape, c), "") for c in columns)) for shape in shapes]
            parts.append(f"**{form}: {label}'s best / ours**\n\n" + table(("batch,heads,T,d", *columns), rows))
    return "\n\n".join(parts)


def ratio_text(summary: Summary, peer: str) -> str:
    """A ratio; ~ if the machine was too busy for it to be trusted, * if ours has no kernel there."""
    marks = "~" * summary.noisy + "*" * (summary.ours == "ours/reference" and peer != "reference")
    return f"{summary.ratio[peer]:.3g}{marks}" if summary.ratio[peer] < 100 else f"{summary.ratio[peer]:.0f}{marks}"


def detail_table(results: Results) -> str:
    """Times, rates, and which variant was each peer's best, a row for each job."""
    peers = [peer for peer in ("torch", "jax") if any(peer in x.best for x in results.summaries())]
    blas = "sgemm" if results.config.get("dtype") != "float64" else "dgemm"
    head = ("job", *(f"{PEER_LABELS[peer]}'s best" for peer in peers), "ours ms", "GFLOP/s", f"of {blas}", "rounds")
    rows = []
    for x in results.summaries():
        names = [x.best[peer].partition("/")[2] if peer in x.best else "" for peer in peers]
        rate = (
            ("", "")
            if x.rate is None or x.share is None
            else (f"{x.rate / 1e9:.1f}", f"{100 * x.share:.0f} %{'~' * x.noisy}")
        )
        counted = f"{x.rounds} of {x.rounds + x.dropped}"
        rows.append((str(x.job), *names, _number(1e3 * x.median[x.ours]), *rate, counted))
    return table(head, rows, 1 + len(peers)) if rows else ""


def latency_table(results: Results) -> str:
    """Microseconds of the smallest calls."""
    head = ("microseconds a call", "variant", "f", "forward, kept for backward", "fb")
    rows: dict[str, dict[str, str]] = {}
    for x in _summaries(results.latency):
        for name, seconds in x.median.items():
            rows.setdefault(name, {})[x.job.what] = _number(1e6 * seconds)
    shape = f"softmax {shape_text(LATENCY_SHAPE)}"
    lines = [(shape, name, *(row.get(what, "") for what in ("f", "vjp", "fb"))) for name, row in rows.items()]
    return table(head, lines, 2) if lines else ""


def memory_table(results: Results) -> str:
    """MiB by which one call raises the peak."""
    lines = [
        (x["job"], x["variant"], "" if x["bytes"] is None else f"{x['bytes'] / 2**20:.1f}", x["why"])
        for x in results.memory
    ]
    head = (f"peak memory at {shape_text(MEMORY_SHAPE)}", "variant", "MiB more", "")
    return table(head, lines, 2) if lines else ""


def mixed_text(results: Results) -> str:
    """NumPy and a kernel in turns, against the two alone."""
    if not results.mixed:
        return ""
    ratio = statistics.median(x["turns"] / (x["product"] + x["kernel"]) for x in results.mixed)
    product, kernel, both = (1e3 * statistics.median(x[name] for x in results.mixed) for name in results.mixed[0])
    threads = max(MIXED_THREADS, int(results.config.get("threads", "1")))
    return (
        f"Mixed with NumPy, {threads} threads: a {MIXED_SIDE}^3 product {product:.2f} ms, "
        f"softmax ({shape_text(MIXED_SHAPE)}) {kernel:.2f} ms, in turns {both:.2f} ms: "
        f"{ratio:.2f} times the sum of the two alone (aim: at most {MIXED_BAR:g})."
    )


def notes(results: Results) -> str:
    """What a reader must know to read the tables, and what went wrong."""
    lines = [f"{name}: {value}" for name, value in results.config.items()]
    if results.scaling is not None:
        lines.append(f"threads together: {results.scaling:.2f} times as fast as one")
    lines += [f"left out: {peer}, {why}" for peer, why in results.missing.items()]
    cases = [*results.cases, *results.latency]
    if any(x.noisy for x in _summaries(results.cases)):
        lines.append("~ the machine was busy: fewer than three good rounds, the least bad ones stand in")
    if any(x.ours == "ours/reference" for x in results.summaries()):
        lines.append("* ours is the NumPy reference there: no kernel serves it")
    raised: dict[str, str] = {}
    for case in cases:
        raised |= {f"{name} {why}": str(case.job) for name, why in case.failed.items()}
        raised |= {f"{name} {why}": str(case.job) for name, why in case.left_out.items() if name[:4] != "ours"}
    lines += [f"not timed: {what} (as in {job})" for what, job in raised.items() if "died" not in what]
    lines += [f"WRONG: {failure}" for failure in results.failures]
    return "\n".join(f"- {line}" for line in lines)


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
