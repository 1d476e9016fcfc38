"""Policy distillation: teachers in the real environments, what they show, and who acts in their place."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.cli import main
from kvq_ref.lab import sweep_figures as figures
from kvq_ref.lab import train as training
from kvq_ref.lab import yardsticks
from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.config import Config
from kvq_ref.lab.environments import family as families
from kvq_ref.lab.environments.cartpole import CARTPOLE, Balance
from kvq_ref.lab.environments.family import Family, play, shown, starts
from kvq_ref.lab.environments.fetch import FETCH, FORWARD, LEFT, PICK_UP, RIGHT, STEPS, shortest_way
from kvq_ref.lab.environments.mountain_car import MOUNTAIN_CAR, Rock
from kvq_ref.lab.results import Run, Runs, read_runs
from kvq_ref.lab.sweep_report import analyse, as_markdown, write_report
from kvq_ref.lab.tasks.episodes import predictions
from kvq_ref.lab.tasks.policies import CartPole, Fetch, MountainCar, Policies, _to_compare
from kvq_ref.lab.train import train

pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

POLICIES: dict[str, type[Policies]] = {"cartpole": CartPole, "mountain_car": MountainCar, "fetch": Fetch}
each_task = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
SEED = (0, training.ACTING)
TINY: dict[str, Any] = {"K": 8, "steps": 4, "evaluate_every": 2, "width": 8, "batch": 8, "evaluate_on": 4}
ARGUMENTS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def returns(family: Family, begun: list[tuple[int, int]], teachers: Any) -> np.ndarray:
    """Of these teachers, from those starts."""
    acts = lambda rows, envs: [teachers[i].act(env) for i, env in zip(rows, envs, strict=True)]  # noqa: E731
    return play(family, begun, acts).returns


# ---- Teachers ----------------------------------------------------------------------------


def test_skilled_teachers_keep_the_pole_up_and_others_drop_it(rng: np.random.Generator) -> None:
    begun = starts(CARTPOLE, rng, 8)
    skilled = [Balance(goal, (0.07, 0.14, 1.0, 0.25)) for goal in np.linspace(-1, 1, 8)]
    assert set(returns(CARTPOLE, begun, skilled)) == {500}
    assert returns(CARTPOLE, begun, [Balance(x.goal, (0.07, 0.14, 1.0, 0.0)) for x in skilled]).max() < 200


def test_a_cart_is_held_at_the_teachers_place() -> None:
    """From the start, 0, it takes at most 200 of the 500 steps to get there."""
    for i, teacher in enumerate(CARTPOLE.held_out[:8]):
        if teacher.weights[-1] > 0.2:  # type: ignore[attr-defined]
            played = play(CARTPOLE, [(i, 7)], lambda rows, envs, teacher=teacher: [teacher.act(envs[0])])
            assert played.goal[0] > 0.6, teacher


def test_who_pushes_as_the_car_moves_is_up_soonest(rng: np.random.Generator) -> None:
    """About 115 steps, with a deviation of 27 by where it starts; to be slack costs 30 steps and more."""
    begun = starts(MOUNTAIN_CAR, rng, 100)
    best, slack = (returns(MOUNTAIN_CAR, begun, [Rock(x, 0.0)] * 100).mean() for x in (0.0, 0.008))
    assert best > -130
    assert slack < best - 30


def test_everything_is_fetched_by_the_shortest_way(rng: np.random.Generator) -> None:
    begun = starts(FETCH, rng, 20)
    found = returns(FETCH, begun, [FETCH.held_out[i] for i, _ in begun])
    assert found.min() >= 1 - 0.9 * 9 / 60 - 1e-12  # in 9 steps at most
    assert set(starts(FETCH, np.random.default_rng(3), 5)) == set(starts(FETCH, np.random.default_rng(3), 5))


def test_no_way_is_shorter(rng: np.random.Generator) -> None:
    """Against the lengths that relaxation finds, one step at a time; each step of the plan is one step nearer."""
    cells = [(x, y) for x in range(1, 5) for y in range(1, 5)]
    for _ in range(10):
        liked, other = (cells[i] for i in rng.choice(16, 2, replace=False))
        plan = shortest_way(6, frozenset({liked, other}), frozenset({liked}))
        free = set(cells) - {liked, other}

        def after(state: tuple[int, int, int], action: int, free: set[Any] = free) -> tuple[int, int, int]:
            x, y, d = state
            if action == FORWARD:
                there = (x + STEPS[d][0], y + STEPS[d][1])
                return (*there, d) if there in free else state
            return x, y, (d + (1 if action == RIGHT else -1)) % 4

        states = [(x, y, d) for x, y in free for d in range(4)]
        far = {s: 1 if (s[0] + STEPS[s[2]][0], s[1] + STEPS[s[2]][1]) == liked else 99 for s in states}
        for _ in range(20):
            far = {s: min(far[s], *(1 + far[after(s, a)] for a in (LEFT, RIGHT, FORWARD))) for s in states}
        for state, action in plan.items():
            assert far[state] == 1 if action == PICK_UP else far[after(state, action)] == far[state] - 1


# ---- What they show ----------------------------------------------------------------------


@each_task
def test_a_batch_is_what_the_task_says(make: type[Policies], rng: np.random.Generator) -> None:
    task = make(K=5)
    for held_out in (False, True):
        batch = task.sample(rng, 6, held_out)
        assert batch.x.shape == (6, 5, task.inputs)
        assert batch.y.shape == (6, 5, task.outputs)
        assert batch.queries.shape == (6, 16, task.inputs)
        assert batch.targets.shape == (6, 16)
        assert set(np.unique(batch.y)) == {0, 1}
        assert set(np.unique(batch.targets)) <= set(range(task.outputs))


@each_task
def test_teachers_of_the_test_are_never_learned_from(make: type[Policies], rng: np.random.Generator) -> None:
    family = make.family
    assert not set(family.to_learn) & set(family.held_out)
    if family is not CARTPOLE:
        return  # few states, or one that all cars that hit the wall are in: states do not tell whose they are
    mine = {row.tobytes() for row in shown(family, 0.2, True).states.reshape(-1, family.inputs)}
    other = {row.tobytes() for row in shown(family, 0.2, False).states.reshape(-1, family.inputs)}
    assert not mine & other
    task = make()
    mean, spread = task._usual
    for held_out in (False, True):
        batch = task.sample(rng, 10, held_out)
        there = np.array([[*map(float, np.frombuffer(x))] for x in (mine if held_out else other)])
        for x in np.concatenate([batch.x, batch.queries], axis=1).reshape(-1, task.inputs)[:40]:
            assert np.abs((there - mean) / spread - x[:-1]).max(axis=1).min() < 1e-12


def test_queries_are_new_states(rng: np.random.Generator) -> None:
    batch = CartPole(K=50).sample(rng, 20)
    for x, queries in zip(batch.x, batch.queries, strict=True):
        rows = {row.tobytes() for row in x}
        assert not rows & {row.tobytes() for row in queries}


@each_task
def test_what_is_shown_does_not_depend_on_what_was_asked_before(make: type[Policies]) -> None:
    """One held-out teacher's pairs for queries, again: after other episodes, and in new environments."""
    family, number, part = make.family, 3, families.QUERIES
    share = 0.2 * np.random.default_rng([families.SHARES, True]).random(len(family.held_out))[number]
    play(family, [(0, 1), (1, 2)], lambda rows, envs: [0] * len(rows))
    for _ in range(2):
        rng = np.random.default_rng([families.PAIRS, True, number, part])
        again = families._pairs_of(family, family.held_out[number], share, 2 + part, rng)
        for x, y in zip(shown(family, 0.2, True), again, strict=True):
            np.testing.assert_array_equal(x[number, part], y)
        families._environment.cache_clear()
        families._fitting.cache_clear()


@each_task
def test_the_same_seed_gives_the_same(make: type[Policies]) -> None:
    one, other = (make().sample(np.random.default_rng(5), 4, held_out=True) for _ in range(2))
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


def test_teachers_slip_but_targets_are_what_they_mean(rng: np.random.Generator) -> None:
    careful, careless = (shown(CARTPOLE, share, True) for share in (0.0, 0.5))
    assert (careful.done == careful.meant).all()
    # a share of 0 to 0.5, half of which is right by chance: 0.125 in the mean, over 40 teachers
    assert 0.05 < (careless.done != careless.meant).mean() < 0.2


def test_colours_are_named_anew_for_each_context(rng: np.random.Generator) -> None:
    batch = Fetch(K=300).sample(rng, 40, held_out=True)
    there = batch.x[..., :24].reshape(40, -1, 8, 3)[..., 0].mean(axis=1).argsort(axis=1)
    assert len({tuple(row[row < 6].tolist()) for row in there}) > 4  # one order for each of 4 teachers, without names
    assert np.isfinite(batch.x).all()


# ---- Acting in their place ---------------------------------------------------------------


@pytest.mark.parametrize("make", [CartPole, MountainCar])
def test_who_answers_as_the_teacher_does_has_its_return(make: type[Policies]) -> None:
    task = make(K=4)
    begun, _, _ = _to_compare(task.family, SEED, 12)
    mean, spread = task._usual

    def read(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def answer(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
            states = queries[:, 0, :-1] * spread + mean
            teachers: Any = [task.family.held_out[begun[i][0]] for i in rows]
            seen = states if make is CartPole else states[:, 1]
            meant = [teacher.means(state) for teacher, state in zip(teachers, seen, strict=True)]
            return np.eye(task.outputs)[meant][:, None]

        return answer

    found = task.act(read, SEED, 12)
    assert found["return"] == found["teacher_return"]
    assert found["goal"] == found["teacher_goal"]
    assert found["gap"] == 0
    assert found["teacher_return"] > found["random_return"]
    assert found["teacher_goal"] > found["random_goal"]


def test_who_answers_at_random_has_the_return_of_chance(rng: np.random.Generator) -> None:
    found = CartPole().act(lambda x, y: lambda rows, queries: rng.random((len(rows), 1, 2)), SEED, 100)
    # a return of about 22, with a standard deviation of 12: four times that of a difference of means of 100
    assert abs(found["return"] - found["random_return"]) < 4 * 12 * np.sqrt(2 / 100)
    assert found["teacher_return"] > 350


def test_ridge_is_untrained_intention_and_logistic_regression_is_scikit_learns(rng: np.random.Generator) -> None:
    from sklearn.linear_model import LogisticRegression

    for make in POLICIES.values():
        task = make(K=12)
        batch = task.sample(rng, 20, held_out=True)
        (_, (ridge, by_ridge), (logistic, by_logistic)) = task.yardsticks.items()
        penalty, other = (float(name.rpartition(" ")[-1][:-1]) for name in (ridge, logistic))
        intention = kvq.intention(batch.queries, batch.x, batch.y, alpha=penalty)
        np.testing.assert_allclose(predictions(by_ridge, batch), intention, rtol=0, atol=1e-9)
        for x, y, queries in zip(*batch.inputs, strict=True):
            labels = y.argmax(axis=1)
            answers = by_logistic(x, y, queries).argmax(axis=1)
            if len(set(labels)) == 1:
                assert set(answers) == set(labels)
                continue
            model = LogisticRegression(C=1 / other, fit_intercept=False, max_iter=1000).fit(x, labels)
            np.testing.assert_array_equal(answers, model.predict(queries))


def test_a_model_acts_at_the_end_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for task in POLICIES:
        assert main(["run", task, "--form", "intention", *ARGUMENTS]) == 0
        assert "acting    return " in capsys.readouterr().out
    for run in read_runs([tmp_path / "kvq-runs"]).finished:
        acted = {name for name in run.result if name.split("_")[-1] in ("return", "goal", "gap")}
        assert acted == {"return", "goal", "gap"} | {"teacher_return", "teacher_goal"} | {
            f"random_{x}" for x in ("return", "goal", "gap")
        }
        assert 0 <= run.result["goal"] <= 1
    assert main(["run", "fetch", "--set", "form=intention,linear", *ARGUMENTS]) == 0
    assert "mean return  teacher's" in capsys.readouterr().out
    assert main(["report", "kvq-runs", "--where", "task=fetch"]) == 0
    assert "the teacher itself" in capsys.readouterr().out


class StopHereError(Exception):
    pass


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its training, and while it acts."""
    config = Config(task="cartpole", form="intention", **TINY)
    whole = train(config, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0.0)
    act = CartPole.act

    def stop(*_: object) -> Any:
        raise StopHereError

    def stop_at_3(step: int, row: dict[str, Any]) -> None:
        if step == 3:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(config, tmp_path / "other", report=stop_at_3)
    monkeypatch.setattr(CartPole, "act", stop)
    with pytest.raises(StopHereError):
        train(config, tmp_path / "other", resume=True)
    assert not (tmp_path / "other/result.json").exists()
    monkeypatch.setattr(CartPole, "act", act)
    assert train(config, tmp_path / "other", resume=True, report=stop_at_3) == whole
    for name in ("result.json", "checkpoint.safetensors", "metrics.jsonl"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---- Told --------------------------------------------------------------------------------


def acted(form: str, seed: int, own: float, **settings: Any) -> Run:
    others = {"teacher_return": 400.0, "teacher_goal": 0.75, "random_return": 20.0, "random_goal": 0.0}
    result = {"solved": False, "diverged": False, "steps": 4, "accuracy": 0.5, "return": own, "goal": 0.5, "gap": 10.0}
    config = Config(task="cartpole", form=form, seed=seed, **TINY | settings)
    return Run(config, result | others | {"random_gap": 380.0})


def test_reports_say_how_models_acted(tmp_path: Path) -> None:
    runs = [acted(form, seed, own + seed) for form, own in (("softmax", 100.0), ("linear", 300.0)) for seed in (0, 1)]
    findings = analyse(runs, Runs(runs), "form", [])
    page = write_report(findings, tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "Acting in the environment" in page
    assert "| linear | trained | 2 | 300.5 | [294.1, 306.9] | 0.5 | [0.5, 0.5] | 10 |" in text
    assert "| the teacher itself | - | 2 | 400 |" in text
    assert "| random actions | - | 2 | 20 |" in text
    assert text.index("| the teacher itself") < text.index("| linear | trained | 2 | 300") < text.index("| random act")
    assert text.count("| nearest state | yardstick | 2 |") == 2  # its agreement, and how it acts
    numbers = json.loads((tmp_path / "report.json").read_text())
    (linear,) = (x for x in numbers["standings"] if x["who"] == {"form": "linear"})
    assert linear["acting"]["return"]["value"] == 300.5
    sinusoid = [Run(Config(task="sinusoid", evaluate_on=4), {"solved": False, "steps": 1, "error": 1.0, "diverged": 0})]
    assert "Acting" not in as_markdown(analyse(sinusoid, Runs(sinusoid), None, []))


def test_figures_of_acting(tmp_path: Path) -> None:
    runs = [acted(form, 0, own, K=K) for form, own in (("softmax", 100.0), ("linear", 300.0)) for K in (4, 8)]
    assert list(figures.measures(runs)) == ["accuracy", "solved", "steps", "return", "goal"]
    assert "return" not in figures.measures([*runs, Run(runs[0].config, {"accuracy": 0.5})])
    lines = yardsticks.lines_of_yardsticks(runs, "K", "return")
    assert set(lines) == {"nearest state", "ridge on states", "logistic regression on states", "the teacher itself"}
    assert lines["the teacher itself"] == ([4, 8], [400.0, 400.0])
    write_report(analyse(runs, Runs(runs), "form", ["K"]), tmp_path)
    assert {"accuracy-K.png", "return-K.png", "goal-K.png"} <= {path.name for path in tmp_path.iterdir()}


def test_without_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gymnasium" else there(name))
    monkeypatch.chdir(tmp_path)
    for task in POLICIES:
        assert main(["run", task]) == 2
        assert 'needs gymnasium: pip install "kvq_ref[lab,control]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    runs = [acted("linear", 0, 300.0)]
    text = as_markdown(analyse(runs, Runs(runs), None, []))  # a report needs none of them
    assert "Yardsticks of cartpole are left out" in text
    assert "| the teacher itself | - | 1 | 400 |" in text
    assert not yardsticks.is_installed(runs[0].config)


def test_packages_are_said_alike() -> None:
    from kvq_ref.cli_run import PACKAGES

    for name, make in POLICIES.items():
        assert TASKS[name].make is make
        assert PACKAGES[name] == make.packages


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (CartPole, {"K": 0}, "K: expected at least 1 pair, got 0"),
        (CartPole, {"K": 201}, "K: expected 1 to 200 pairs, which a teacher shows, got 201"),
        (Fetch, {"noise": 1.5}, "noise: expected a share of actions, 0 to 1, got 1.5"),
        (MountainCar, {"noise": -0.1}, "noise: expected at least 0, got -0.1"),
    ],
)
def test_refusals(make: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**wrong)
