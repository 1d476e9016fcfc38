"""What runs say: reading them, intervals and paired tests, and the report."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kvq_ref.files import to_json
from kvq_ref.lab import statistics
from kvq_ref.lab.analysis import choose, compare, summarise
from kvq_ref.lab.cell import folder_of
from kvq_ref.lab.config import Config
from kvq_ref.lab.results import Run, Runs, axes_of, read_runs, varying, where
from kvq_ref.lab.sweep_report import analyse, as_dict, as_markdown, write_report


def run(accuracy: float = 1.0, steps: int = 100, solved: bool | None = None, **settings: Any) -> Run:
    solved = accuracy == 1.0 if solved is None else solved
    return Run(Config(**settings), {"solved": solved, "diverged": False, "steps": steps, "accuracy": accuracy})


def keep(runs: list[Run], out: Path) -> None:
    """As a sweep would."""
    for one in runs:
        folder = folder_of(one.config, out)
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(one.config.to_toml())
        (folder / "result.json").write_text(to_json(one.result))
        rows = [{"step": step, "accuracy": one.accuracy * step / 100} for step in (50, 100)]
        (folder / "metrics.jsonl").write_text("".join(to_json(row, indent=None) + "\n" for row in rows))


# ---- Reading ---------------------------------------------------------------------------


def test_what_has_not_finished_is_named(tmp_path: Path) -> None:
    keep([run(tau=tau) for tau in (2, 3, 4, 5, 6)], tmp_path)
    cells = [folder_of(Config(tau=tau), tmp_path) for tau in (2, 3, 4, 5, 6)]
    (cells[1] / "result.json").unlink()
    (cells[2] / "result.json").unlink()
    (cells[2] / "error.txt").write_text("ValueError: no\n\nmore")
    (cells[3] / "result.json").write_text("{")
    (cells[4] / "config.toml").write_text("taw = 3")
    (tmp_path / "cells/notes.txt").write_text("no cell")
    found = read_runs([tmp_path])
    assert [one.config.tau for one in found.finished] == [2]
    assert found.unfinished == [cells[1]]
    assert found.failed == {cells[2]: "ValueError: no"}
    assert set(found.broken) == {cells[3], cells[4]}
    assert "did you mean 'tau'" in found.broken[cells[4]]


def test_runs_of_several_folders_count_once(tmp_path: Path) -> None:
    keep([run(tau=2), run(tau=3)], tmp_path / "a")
    keep([run(tau=3), run(tau=4)], tmp_path / "b")
    found = read_runs([tmp_path / "a", tmp_path / "b"])
    assert sorted(one.config.tau for one in found.finished) == [2, 3, 4]
    with pytest.raises(ValueError, match="no runs in it"):
        read_runs([tmp_path])


def test_the_command_of_a_run_says_no_more_than_it_must(tmp_path: Path) -> None:
    keep([run(form="intention", tau=3), run(form="intention", tau=3, T=9, alpha=2.0)], tmp_path)
    commands = {one.config.command() for one in read_runs([tmp_path]).finished}
    assert commands == {
        "kvq-ref run nt --tau 3 --form intention",
        "kvq-ref run nt --tau 3 --T 9 --form intention --alpha 2.0",
    }


def test_where() -> None:
    runs = [run(tau=tau, form=form) for tau in (2, 3) for form in ("softmax", "expressive")]
    assert len(where(runs, "tau", [3, 4])) == 2
    assert len(where(runs, "form", ["softmax_attention"])) == 2
    assert where(runs, "alpha", [1.0]) == []


def test_axes_are_settings_that_vary_and_do_not_follow_from_others() -> None:
    configs = [
        Config(tau=tau, form=form, seed=seed) for tau in (2, 3) for form in ("softmax", "intention") for seed in (0, 1)
    ]
    assert varying(configs) == ["tau", "T", "form", "alpha"]
    assert axes_of(configs) == ["tau", "form"]
    assert axes_of(configs, keep=["T"]) == ["T", "form"]
    assert axes_of([Config(tau=2), Config(tau=2, seed=1)]) == []


def test_a_form_does_not_bring_its_task_along() -> None:
    """Each form tried on a task of its own: what they reached there is not to be compared."""
    tried = (("nt", "softmax"), ("nt", "expressive"), ("copy", "linear"), ("copy", "intention"))
    assert "task" in axes_of([Config(task=task, form=form) for task, form in tried], keep=["form"])


# ---- Statistics ------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1)])
def test_wilson(successes: int, n: int) -> None:
    """By the formula, as Wilson has it."""
    z = stats.norm.ppf(0.975)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = statistics.share(successes, n)
    np.testing.assert_allclose([found.value, found.low, found.high], [p, centre - reach, centre + reach], atol=1e-12)


def test_students_interval(rng: np.random.Generator) -> None:
    x = rng.normal(0.8, 0.1, 7)
    expected = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    found = statistics.mean(list(x))
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high])
    assert math.isnan(statistics.mean([0.5]).low)
    assert statistics.mean([0.5, 0.5]) == statistics.Estimate(0.5, 0.5, 0.5)


def test_signs_and_ranks() -> None:
    signs = statistics.signs([3, 1, math.inf, 2, 9], [2, 2, math.inf, 1, 1])
    assert str(signs) == "3/1/1"
    assert signs.p == stats.binomtest(3, 4).pvalue
    differences = [0.1, -0.2, 0.3, 0.4, 0.5, 0.0]
    assert statistics.wilcoxon(differences) == stats.wilcoxon([x for x in differences if x]).pvalue
    assert statistics.holm([]) == []


def test_holm_is_never_below_and_keeps_the_order(rng: np.random.Generator) -> None:
    p = rng.random(8)
    adjusted = np.array(statistics.holm(list(p)))
    assert np.all(adjusted >= p)
    assert adjusted.min() == min(1.0, 8 * p.min())
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


# ---- Points and pairs ------------------------------------------------------------------


def test_a_point_over_its_seeds() -> None:
    runs = [run(1.0, 100, seed=0), run(1.0, 300, seed=1), run(0.4, 999, seed=2), run(tau=3)]
    first, second = summarise(runs)
    assert first.settings["tau"] == 3
    assert second.n == 3
    assert second.solved.value == pytest.approx(2 / 3)
    assert second.accuracy.value == pytest.approx(0.8)
    assert (second.steps, second.fewest, second.most) == (300, 100, math.inf)
    assert second.command == "kvq-ref run nt"
    assert summarise([run(0.5), run(0.5, seed=1), run(seed=2), run(seed=3)])[0].steps == math.inf


def test_pairs_are_of_equal_seeds_and_points() -> None:
    softmax = [run(0.5 + seed / 10, tau=tau, seed=seed) for tau in (2, 3) for seed in (0, 1, 2)]
    expressive = [
        run(0.7 + seed / 10 + tau / 100, form="expressive", tau=tau, seed=seed) for tau in (2, 4) for seed in (1, 2, 3)
    ]
    (found,) = compare([*softmax, *expressive], "form")
    assert (found.first, found.second) == ("expressive", "softmax")
    assert found.settings == {"tau": 2}
    assert found.n == 2
    assert found.difference.value == pytest.approx(0.22)
    assert str(found.accuracy) == "2/0/0"
    assert str(found.speed) == "0/2/0"
    assert found.by_speed == "equal"


def test_speed_counts_what_is_not_reached_as_slowest() -> None:
    softmax = [run(1.0, 200, seed=seed) for seed in range(8)]
    expressive = [run(1.0, 100, seed=seed, form="expressive") for seed in range(7)] + [
        run(0.9, 50, seed=7, form="expressive")
    ]
    (found,) = compare([*softmax, *expressive], "form")
    assert str(found.speed) == "7/0/1"
    assert found.both == 7
    assert found.ratio.value == pytest.approx(2)
    assert found.speed.p == stats.binomtest(7, 8).pvalue
    assert found.by_speed == "open"
    assert (found.accuracy.wins, found.accuracy.ties, found.accuracy.losses) == (0, 7, 1)
    assert found.by_accuracy == "open"


def test_what_is_compared_may_have_settings_of_its_own() -> None:
    """A rate that was chosen for each form does not keep the forms apart; one that was swept does."""
    own = [
        run(0.5, seed=s, form=form, rate=rate) for s in (0, 1) for form, rate in (("softmax", 0.1), ("expressive", 0.2))
    ]
    assert [x.settings for x in compare(own, "form")] == [{}]
    swept = [run(0.5, form=form, rate=rate) for form in ("softmax", "expressive") for rate in (0.1, 0.2)]
    assert [x.settings for x in compare(swept, "form")] == [{"rate": 0.1}, {"rate": 0.2}]


def test_the_best_is_chosen_for_each_form_and_on_other_seeds() -> None:
    merit = {("softmax", 0.1): 0.9, ("softmax", 0.2): 0.6, ("expressive", 0.1): 0.5, ("expressive", 0.2): 0.8}
    runs = [run(x + s / 100, form=f, rate=r, seed=s) for (f, r), x in merit.items() for s in (0, 1)]
    best = choose(runs, ["rate"], "form")
    assert {(x.config.form, x.config.rate) for x in best} == {("softmax", 0.1), ("expressive", 0.2)}
    assert len(best) == 4
    assert {x.config.seed for x in choose(runs, ["rate"], "form", seeds=[0])} == {1}
    assert {x.config.rate for x in choose(runs[:4], ["rate"], None)} == {0.1}


# ---- The report ------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page loads, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def sweep() -> list[Run]:
    rng = np.random.default_rng(0)
    forms, seeds = ("softmax", "expressive", "intention"), range(3)
    return [
        run(
            1.0 if tau < 4 else float(rng.random()),
            int(rng.integers(50, 500)),
            form=form,
            tau=tau,
            rate=rate,
            seed=seed,
        )
        for tau in (2, 3, 4)
        for rate in (0.001, 0.01)
        for form in forms
        for seed in seeds
    ]


def test_the_page_and_the_files(sweep: list[Run], tmp_path: Path) -> None:
    keep(sweep, tmp_path)
    (tmp_path / "cells/0123456789ab").mkdir()
    found = read_runs([tmp_path])
    page = write_report(analyse(found.finished, found, "form", ["tau"], ["A <note>."]), tmp_path).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.html", "report.md", "report.json", "cells"),
        *("accuracy-tau.png", "solved-tau.png", "steps-tau.png", "learning.png"),
    }
    parser = Links()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.loads) == 8  # four figures, light and dark
    assert all(link.startswith("data:image/png;base64,") for link in parser.loads)
    for words in ("A &lt;note&gt;.", "Not finished, and left out: 1 run (0123456789ab)", "expressive against softmax"):
        assert words in page
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert len(numbers["points"]) == 18
    assert len(numbers["runs"]) == 54
    assert len(numbers["comparisons"]) == 3 * 6
    assert numbers["unfinished"] == ["0123456789ab"]
    text = (tmp_path / "report.md").read_text()
    assert text.count("    kvq-ref run nt") == 18
    assert len(re.findall(r"^\| \d", text, re.MULTILINE)) == 18 + 2 * 18


def test_one_run_is_enough_for_a_report(tmp_path: Path) -> None:
    keep([run(0.5)], tmp_path)
    found = read_runs([tmp_path])
    write_report(analyse(found.finished, found, None, []), tmp_path)
    assert "1 run at 1 point of the grid, 1 seed: 0 reached the target." in (tmp_path / "report.md").read_text()


def test_a_setting_that_is_no_form_can_be_compared(sweep: list[Run], tmp_path: Path) -> None:
    found = Runs(sweep)
    findings = analyse(sweep, found, "rate", ["tau"])
    assert {(x.first, x.second) for x in findings.comparisons} == {(0.01, 0.001)}
    assert len(findings.comparisons) == 9
    assert "0.01 against 0.001" in as_markdown(findings)
    assert as_dict(findings)["compare"] == "rate"
    write_report(findings, tmp_path)
