"""The tables of a tour: built once as rows of text, then aligned for a terminal or marked up as HTML."""

from __future__ import annotations

from kvq_ref.bench.implementations import Comparison
from kvq_ref.lab.check import Check
from kvq_ref.lab.correctness import COMPILED_BARS, FORWARD_BAR, GRADIENT_BAR, Row
from kvq_ref.lab.evaluate import Evaluation, lead
from kvq_ref.lab.looks import LOOKS
from kvq_ref.lab.predict import describe, predictors
from kvq_ref.lab.table import Table

FEW_SPLITS = 5


def correctness_table(rows: list[Row]) -> Table:
    """Errors of every form and case; the first row has the bars, ! marks what is over."""
    head = ("form", "case", "forward", "gradient", *(f"compiled {dtype[0]}{dtype[-2:]}" for dtype in COMPILED_BARS))
    bars = [f"{bar:.0e}" for bar in (FORWARD_BAR, GRADIENT_BAR, *COMPILED_BARS.values())]
    lines: list[tuple[str, ...]] = [("at most", "", *bars)]
    for row in rows:
        compiled = [_error(row.compiled[dtype]) if row.compiled else row.no_kernel for dtype in COMPILED_BARS]
        lines.append((LOOKS[row.form].label, row.case, _error(row.forward), _error(row.gradient), *compiled))
    bad = {i for i, row in enumerate(rows, start=1) if not all(check.holds for check in row.checks)}
    return Table(head, lines, text_columns=2, bad=bad)


def prediction_table(evaluation: Evaluation) -> Table:
    """Scores of every predictor, best first."""
    metric = evaluation.data.metric
    lines = []
    for result in evaluation.ranked():
        settings = [describe(setting) for setting in result.settings]
        often = max(set(settings), key=lambda x: (settings.count(x), -settings.index(x)))
        share = f" ({settings.count(often)} of {len(settings)})" if often else ""
        scores = [_three(x) for x in (result.mean, result.spread, min(result.scores), max(result.scores))]
        lines.append((LOOKS[result.predictor].label, *scores, f"{often}{share}" or "-"))
    return Table(("predictor", metric, "spread", "least", "most", "chosen most often"), lines)


def grid_table(task: str) -> Table:
    """What each predictor may choose from."""
    lines = []
    for predictor in predictors(task):
        names = predictor.grid[0]
        values = {name: sorted({setting[name] for setting in predictor.grid}) for name in names}
        grid = "; ".join(f"{name}: {', '.join(f'{x:g}' for x in values[name])}" for name in names)
        lines.append((LOOKS[predictor.name].label, predictor.formula, grid or "-"))
    return Table(("predictor", "settings", "grid"), lines, text_columns=3)


def checks_table(checks: list[Check]) -> Table:
    """Single checks, one a row."""
    lines = [(c.name, f"{c.value:.2g}", f"{c.bar:.2g}", "holds" if c.holds else c.note or "FAILS") for c in checks]
    return Table(("check", "measured", "at most", ""), lines, bad={i for i, c in enumerate(checks) if not c.holds})


def timing_table(comparisons: list[Comparison]) -> Table:
    """Median milliseconds on one thread, and the ratio of reference to compiled; f+b: forward and backward."""
    head = ("form", "batch,heads,T,d", "forward ref", "compiled", "ratio", "f+b ref", "compiled", "ratio")
    lines = []
    for c in comparisons:
        cells: list[str] = []
        for what, times in (("forward", c.forward), ("both", c.both)):
            cells += [_ms(times["reference"]), _ms(times["compiled"]), f"{c.ratio(what):.1f}x"]
        lines.append((LOOKS[c.form].label, ",".join(map(str, c.shape)), *cells))
    return Table(head, lines, text_columns=2)


def verdict_on(evaluation: Evaluation) -> str:
    """Which form predicts best, and whether by more than the splits' luck, in words made from the numbers."""
    data = evaluation.data
    best, second, gap, spread, wins = lead(evaluation)
    splits = len(best.scores)
    of = f"on {wins} of {splits} split{'s' * (splits > 1)}"
    if splits < FEW_SPLITS:
        close = "too few splits to decide"
    else:
        close = "a clear lead" if gap > spread and wins == splits else "within the luck of the splits"
    text = (
        f"{data.name}: of the forms {LOOKS[best.predictor].label} predicts best, {data.metric} {best.mean:.3f}, "
        f"ahead of {LOOKS[second.predictor].label} ({second.mean:.3f}) by {gap:.3f} \N{PLUS-MINUS SIGN} {spread:.3f} "
        f"and {of}: {close}."
    )
    ahead = [r for r in evaluation.ranked() if LOOKS[r.predictor].score == "yardstick" and r.mean > best.mean + 1e-9]
    if ahead:
        label = LOOKS[ahead[0].predictor].label
        text += f" {label[0].upper()}{label[1:]} as a yardstick: {ahead[0].mean:.3f}, ahead of every form."
    return text


def _three(x: float) -> str:
    return f"{round(x, 3) + 0.0:.3f}"  # no -0.000


def _ms(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _error(check: Check) -> str:
    if check.note:
        return check.note.partition(":")[0].removeprefix("raised ") + " !"
    return f"{check.value:.1e}" + ("" if check.holds else " !")
