"""What is told about the findings: text for the terminal, figures, and one HTML page.

Sentences that depend on numbers are made from the numbers.
"""

from __future__ import annotations

import re
import textwrap
from html import escape

from kvq_ref.lab import report
from kvq_ref.lab.correctness import ROUNDINGS
from kvq_ref.lab.evaluate import CHOICE_ROWS, FOLDS
from kvq_ref.lab.figures import geometry_figure, limits_figure, prediction_figure
from kvq_ref.lab.picture import Picture
from kvq_ref.lab.table import Table
from kvq_ref.lab.tables import (
    checks_table,
    correctness_table,
    grid_table,
    prediction_table,
    timing_table,
    verdict_on,
)
from kvq_ref.tour import equations
from kvq_ref.tour.findings import Findings

HOW_PREDICTED = (
    "Context rows are keys, their targets values, rows not seen queries; nothing is trained. Features are "
    "standardised with the context's mean and spread; values lose their context mean, which is added to every "
    f"prediction. Each predictor's setting is chosen by {FOLDS}-fold cross-validation inside the context (at most "
    f"{CHOICE_ROWS} of its rows), never on the rows that are scored. Spread: standard deviation over the splits."
)
HOW_TIMED = (
    "Median milliseconds in float32 on one thread each, nothing masked; f+b: forward and backward. Reference and "
    "compiled take turns; outputs are allocated in every call. Ratios are what to compare: absolute times depend on "
    "what else the machine does."
)


# ---- For the terminal ----------------------------------------------------------------


def as_text(findings: Findings, step: str) -> str:
    """What to print after a step."""
    if step == "checks":
        return _block("Every form, relative errors and their bars", correctness_table(findings.correctness).as_text())
    if step == "prediction":
        parts = [_block("Attention as a predictor, nothing trained")]
        for evaluation in findings.predictions:
            parts += [
                f"\n{evaluation.data.name}: {evaluation.n_context} context rows, {evaluation.n_test} to predict, "
                f"{len(evaluation.results[0].scores)} random splits",
                *(f"  {note}" for note in evaluation.data.notes),
                prediction_table(evaluation).as_text(),
                textwrap.fill(verdict_on(evaluation), 100),
                evaluation.ridge.sentence(),
            ]
        return "\n".join(parts)
    if step == "limits" and findings.limits is not None:
        return _block("Linear attention is the limit of Intention", checks_table(findings.limits.checks).as_text())
    if step == "geometry" and findings.geometry is not None:
        return _block(
            "Weight against the angle between query and key", checks_table(findings.geometry.checks).as_text()
        )
    return _block("Reference against compiled, milliseconds on one thread", _timings(findings))


def _block(title: str, *lines: str) -> str:
    return "\n".join(("", title, "=" * len(title), *lines))


def _timings(findings: Findings) -> str:
    return findings.no_kernels or timing_table(findings.timings).as_text()


def verdict(findings: Findings) -> str:
    """One line: whether all checks hold, and which do not."""
    total, failures = len(findings.checks), findings.failures
    if failures:
        named = "; ".join(check.sentence() for check in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        return f"{len(failures)} of {total} checks FAILED: {named}{more}"
    text = "the one check holds" if total == 1 else f"all {total} checks hold"
    return f"{text}; compiled kernels are not installed and were not checked" if findings.no_kernels else text


# ---- For the page --------------------------------------------------------------------


def figures(findings: Findings) -> dict[str, Picture]:
    """The figures of the steps that were taken, by file name."""
    pictures = {prediction_name(e.data.name): prediction_figure(e) for e in findings.predictions}
    if findings.limits is not None:
        pictures["limits"] = limits_figure(findings.limits)
    if findings.geometry is not None:
        pictures["geometry"] = geometry_figure(findings.geometry)
    return pictures


def prediction_name(data: str) -> str:
    """The file name of a data set's figure.

    >>> prediction_name("my data/é")
    'prediction-my-data-é'
    """
    return "prediction-" + re.sub(r"[^\w]+", "-", data)


def as_html(findings: Findings, pictures: dict[str, Picture]) -> str:
    """The page: what was checked, how well attention predicts, the theorem, the geometry, timings, configuration."""
    tellers = (_checked, _predicted, _limit, _geometry, _timed, _configuration)
    sections = [tell(findings, pictures) for tell in tellers]
    title = "A tour of attention forms" if findings.correctness else "Attention as a predictor"
    introduction = report.paragraph(
        f"Seed {findings.seed}{', quick' if findings.quick else ''}; {findings.seconds:.0f} seconds; all numbers "
        "are in tour.json beside this page.",
        "soft",
    )
    line = verdict(findings)
    return report.page(title, line[0].upper() + line[1:], not findings.failures, introduction, filter(None, sections))


def _checked(findings: Findings, pictures: dict[str, Picture]) -> str:
    if not findings.correctness:
        return ""
    grid = Table(
        ("", "f(z) = z, N = 1", "f(z) = exp z, N = row sum", "f(z) = z\u00b2 / (1 + z\u00b2), N = row sum"),
        [
            ("q* = q", "linear attention", "softmax attention", "expressive attention"),
            ("q* = (K\u1d40K + \u03b1I)\u207b\u00b9 q", "Intention", "sigma-Intention", "expressive Intention"),
        ],
        text_columns=4,
    )
    return report.section(
        "What was checked",
        report.paragraph(
            "Every form is a choice of what the query becomes, what a score becomes, and how a row is normalised:"
        ),
        equations.FORM,
        report.table(grid),
        report.paragraph(
            "Forward: against loops over queries and keys in float64, written from the equations alone. Gradient: "
            "against central differences. Compiled: output and all gradients against the readable reference; in "
            "float32 without the gradient of alpha, a sum that cancels, and "
            f"{ROUNDINGS} times as far as that reference itself is from float64 will do, where that is more. Each "
            "number is the largest difference, relative to the largest entry. The masked case has a bias where the "
            "form takes one, a query that sees no key, and NaN in a key and value that nobody sees."
        ),
        report.table(correctness_table(findings.correctness)),
    )


def _predicted(findings: Findings, pictures: dict[str, Picture]) -> str:
    parts = [report.paragraph(HOW_PREDICTED)]
    for evaluation in findings.predictions:
        data = evaluation.data
        parts += [
            f"<h3>{escape(data.name)} ({data.task})</h3>",
            *(report.paragraph(note, "soft") for note in data.notes),
            report.paragraph(verdict_on(evaluation)),
            report.figure(
                pictures[prediction_name(data.name)],
                f"{data.metric} of every predictor on {data.name}",
                "Small dots: single splits. Markers with bars: mean and spread over "
                f"{len(evaluation.results[0].scores)} splits, {evaluation.n_context} context rows and "
                f"{evaluation.n_test} to predict in each. Colour: what becomes of a score; hollow q, filled q*; "
                "grey yardsticks; an arrow: too far below to show.",
            ),
            report.table(prediction_table(evaluation)),
            report.details("The grids", report.table(grid_table(data.task)) + report.paragraph(GRID_NOTE, "soft")),
            report.paragraph(evaluation.ridge.sentence() + ", the worst of the splits.", "soft"),
        ]
    parts.append(report.paragraph(READING))
    return report.section("Attention as a predictor", *parts) if findings.predictions else ""


GRID_NOTE = (
    "n is the number of context rows: in these units a setting that was chosen on a part of the context fits the "
    "whole. Below the least s, expressive weights no longer depend on it: f(z) is z\u00b2 there, and the "
    "normalisation cancels s."
)
READING = (
    "How to read this: Intention is ridge regression, so it should score as scikit-learn's Ridge does; the check says "
    "how far the two are apart. Expressive weights are even in q: a query and its negative get the same prediction, so "
    "a target that rises along a centred feature can hardly be seen through them. Linear attention is what Intention "
    "would be, up to a factor, if the columns of K were uncorrelated and of equal spread."
)


def _limit(findings: Findings, pictures: dict[str, Picture]) -> str:
    if findings.limits is None:
        return ""
    limits = findings.limits
    low, high = limits.fitted["intention"]
    return report.section(
        "Linear attention is the limit of Intention",
        report.paragraph("Intention with a growing ridge penalty, times that penalty, becomes linear attention:"),
        equations.LIMIT,
        report.paragraph("so that, in spectral norms,"),
        equations.BOUND,
        report.figure(
            pictures["limits"],
            "distance of three forms to their limits against alpha, falling with slope -1",
            "Measured on random queries, keys and values. Slopes fitted for alpha above 100 times the largest "
            f"eigenvalue of G and errors well above rounding (for Intention {low:.0e} to {high:.0e}). The forms "
            "built on preconditioned queries have limits too: with scale = alpha, sigma-Intention tends to softmax "
            "and expressive Intention to expressive attention.",
        ),
        report.table(checks_table(limits.checks)),
    )


def _geometry(findings: Findings, pictures: dict[str, Picture]) -> str:
    if findings.geometry is None:
        return ""
    return report.section(
        "Which keys are attended to",
        report.paragraph(
            "360 keys around a circle, one query. Softmax attends to keys that point the same way as the query; "
            "expressive attention to those that point the same or the opposite way, and it suppresses the "
            "orthogonal ones. The abstract states that expressive attention is based on the squared dot product; "
            "that its weight is z\u00b2 / (1 + z\u00b2) is this package's choice."
        ),
        report.figure(
            pictures["geometry"],
            "attention weight against the angle between query and key, for softmax and expressive attention",
            "1 is the weight that each key has if all have the same. Large |q||k| sharpens softmax; it flattens "
            "expressive attention except for a narrow notch at 90 degrees.",
        ),
        report.table(checks_table(findings.geometry.checks)),
    )


def _timed(findings: Findings, pictures: dict[str, Picture]) -> str:
    if findings.no_kernels:
        return report.section(
            "Timings", report.paragraph(findings.no_kernels[0].upper() + findings.no_kernels[1:] + ".")
        )
    if not findings.timings:
        return ""
    return report.section("Timings", report.paragraph(HOW_TIMED), report.table(timing_table(findings.timings)))


def _configuration(findings: Findings, pictures: dict[str, Picture]) -> str:
    return report.section("Configuration", report.table(Table(("", ""), list(findings.config.items()), text_columns=2)))
