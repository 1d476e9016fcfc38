"""The tasks in context: what follows from what, what is held out, and what simple methods make of them."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.lab.config import Config
from kvq_ref.lab.nn.in_context import InContext
from kvq_ref.lab.scores import marks
from kvq_ref.lab.tasks.digits import Digits
from kvq_ref.lab.tasks.episodes import Episodes, EpisodeTask, predictions
from kvq_ref.lab.tasks.few_shot import FewShot
from kvq_ref.lab.tasks.linear_regression import LinearRegression
from kvq_ref.lab.tasks.outliers import Outliers
from kvq_ref.lab.tasks.photographs import PHOTOGRAPHS, Photographs, _grey, _patches
from kvq_ref.lab.tasks.recall import Recall
from kvq_ref.lab.tasks.registration import Registration
from kvq_ref.lab.tasks.sinusoid import Sinusoid
from kvq_ref.lab.yardsticks import measured

TASKS: dict[str, EpisodeTask] = {
    "sinusoid": Sinusoid(),
    "sinusoid, a range": Sinusoid(K=12, K_least=2, noise=0.1),
    "linear regression": LinearRegression(),
    "linear regression, a range": LinearRegression(K=9, K_least=3, d=3),
    "digits": Digits(N=3, K=2),
    "photographs": Photographs(N=9, K=2),
    "recall": Recall(K=20, d=4, N=5, noise=0.1),
    "registration": Registration(outlier_share=0.2),
    "outliers": Outliers(K=8, d=2),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def score(task: EpisodeTask, name: str, batch: Episodes) -> float:
    """Of the yardstick whose name begins so."""
    (predict,) = (x for label, x in task.yardsticks.items() if label.startswith(name))
    sums, counts = marks(task.score, predictions(predict, batch), batch)
    return float(sums.sum() / counts.sum())


@each_task
def test_a_batch_is_what_the_task_says(task: EpisodeTask, rng: np.random.Generator) -> None:
    for batch in (task.sample(rng, 6), task.sample(rng, 6, held_out=True)):
        K, M = batch.x.shape[1], batch.queries.shape[1]
        assert batch.x.shape == (6, K, task.inputs)
        assert batch.y.shape == (6, K, task.values_in)
        assert batch.queries.shape == (6, M, task.inputs)
        if task.loss == "choice":
            assert batch.targets.shape == (6,)
            assert set(batch.targets) <= set(range(M))
        elif task.loss == "cross_entropy":
            assert batch.targets.shape == (6, M)
            assert set(np.unique(batch.targets)) <= set(range(task.outputs))
            assert set(np.unique(batch.y)) == {0, 1}
        else:
            assert batch.targets.shape == (6, M, task.outputs)


@each_task
def test_the_same_seed_gives_the_same(task: EpisodeTask) -> None:
    for x, y in zip(*(task.sample(np.random.default_rng(5), 4) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(x, y)


@each_task
def test_what_is_held_out_has_every_kind(task: EpisodeTask, rng: np.random.Generator) -> None:
    batches = task.test(rng, 12)
    assert [set(batch.kinds) for batch in batches] == [{kind} for kind in range(len(task.kinds))]
    assert {len(batch.x) for batch in batches} == {math.ceil(12 / task.trained)}
    assert len(set(task.kinds)) == len(task.kinds)


def test_a_range_of_contexts(rng: np.random.Generator) -> None:
    task = Sinusoid(K=5, K_least=3)
    assert {task.sample(rng, 1).x.shape[1] for _ in range(100)} == {3, 4, 5}
    assert [batch.x.shape[1] for batch in task.test(rng, 9)] == [3, 5]


def test_shifts(rng: np.random.Generator) -> None:
    task = LinearRegression(K=8, d=4, noise=0.5)
    _, noisy, short, long, flat = task.test(rng, 400)
    assert (short.x.shape[1], long.x.shape[1]) == (4, 16)
    assert not flat.x[..., 2:].any()
    assert flat.x[..., :2].all()
    assert task.kinds[1] == "noise=1"
    assert noisy.y.var() == pytest.approx(2, rel=0.3)  # 1 of the function, 1 of the noise; 3200 values


def test_bayes_is_untrained_intention(rng: np.random.Generator) -> None:
    """scikit-learn's Ridge and the model without an encoder, at the alpha that Bayes has."""
    task = LinearRegression(K=12, d=5, noise=0.3)
    batch = task.sample(rng, 20)
    model = InContext(5, 1, 1, form=kvq.intention, options={"alpha": task.bayes_alpha}, encoder="none")
    answers, _ = model.apply(model.init(rng, "float64"), *batch.inputs)
    (bayes,) = task.optimum.values()
    np.testing.assert_allclose(answers, predictions(bayes, batch), rtol=0, atol=1e-10)


def test_nothing_does_better_than_bayes(rng: np.random.Generator) -> None:
    """Over 2000 episodes, other alphas are worse by far more than chance has it."""
    task = LinearRegression(K=8, d=8, noise=0.5)
    batch = task.sample(rng, 2000)

    def error(alpha: float) -> float:
        return float(np.square(kvq.intention(batch.queries, batch.x, batch.y, alpha=alpha) - batch.targets).mean())

    assert error(task.bayes_alpha) < min(error(task.bayes_alpha / 4), error(task.bayes_alpha * 4))


@pytest.mark.parametrize("images_of", [Digits, Photographs])
def test_classes_of_the_test_are_never_learned_from(images_of: type[FewShot], rng: np.random.Generator) -> None:
    images, counts = images_of.images()
    assert sorted(images_of.to_learn + images_of.held_out) == list(range(len(images)))
    assert counts.min() == images_of.fewest
    assert images.min() == 0
    assert images.max() <= 1
    seen = {image.tobytes() for n in images_of.held_out for image in images[n, : counts[n]]}
    for held_out in (False, True):
        batch = images_of(N=5, K=3).sample(rng, 20, held_out)
        for images in (batch.x, batch.queries):
            assert all((image.tobytes() in seen) == held_out for image in images.reshape(-1, 64))
        for x, queries in zip(batch.x, batch.queries, strict=True):  # no query is in its own context
            assert not {row.tobytes() for row in x} & {row.tobytes() for row in queries}


def test_every_digit_is_there() -> None:
    images, counts = Digits.images()
    assert counts.sum() == 1797
    assert np.count_nonzero(images.any(axis=-1)) == 1797


def test_photographs_come_from_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the network nor a folder for what is downloaded."""
    for name in ("HOME", "XDG_CACHE_HOME", "SKIMAGE_DATADIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delattr(socket, "socket")
    for name, patches in zip(PHOTOGRAPHS, Photographs.images()[0], strict=True):
        photograph = _grey(name)
        assert photograph.ndim == 2
        assert 0.5 < photograph.max() <= 1
        whole = {patch.tobytes() for patch in _patches(photograph)}
        found = {patch.tobytes() for patch in patches}
        assert len(found) == len(patches)  # no two are equal, so no query is in its own context
        assert found <= whole
    assert not list(tmp_path.iterdir())


def test_a_patch_is_a_mean_of_pixels() -> None:
    photograph = np.arange(40 * 36.0).reshape(40, 36)  # 2 x 2 patches, and some that is left over
    patches = _patches(np.hstack([photograph, photograph[:, :4]]))
    assert patches.shape == (4, 64)
    assert patches[1, 0] == photograph[:2, 16:18].mean()
    assert patches[2, 9] == photograph[18:20, 2:4].mean()
    assert len(_patches(np.zeros((40, 36)))) == 1


def test_yardsticks_where_the_answer_is_known(rng: np.random.Generator) -> None:
    """Noiseless sinusoids, affine maps and memories are recovered by who knows what they are."""
    task: EpisodeTask = Sinusoid(K=3)
    # the process is told of a noise of variance 1e-10, and three points may be close to one
    assert score(task, "GP, sinusoids", task.sample(rng, 50)) < 1e-6
    task = Registration(K=6, noise=0.0)
    assert score(task, "least squares", task.sample(rng, 50)) < 1e-12
    task = Recall(K=8, d=16)
    assert score(task, "nearest", task.sample(rng, 20)) == 1.0
    assert score(task, "linear memory, least squares", task.sample(rng, 20)) == 1.0


def test_yardsticks_on_outliers_and_images(rng: np.random.Generator) -> None:
    task: EpisodeTask = Registration(K=24, outlier_share=0.25)
    episodes = [task.sample(rng, 1) for _ in range(20)]
    better = sum(score(task, "RANSAC", x) < score(task, "least squares", x) / 10 for x in episodes)
    assert better >= 18  # of some hundreds, one draw of points misleads it, and would be all of a mean
    for task, least in ((Digits(), 0.6), (Photographs(), 0.25)):  # chance is 0.2; 400 answers
        batch = task.sample(rng, 40, held_out=True)
        for name in ("nearest neighbour", "nearest class mean", "ridge"):
            assert score(task, name, batch) > least


def test_bayes_finds_the_outlier_most_often(rng: np.random.Generator) -> None:
    task = Outliers()
    batch = task.sample(rng, 150)
    hits = {name: score(task, name, batch) for name in ("residual of least", "local")}
    (bayes,) = task.optimum.values()
    sums, counts = marks(task.score, predictions(bayes, batch), batch)
    best = sums.sum() / counts.sum()
    # a yardstick may be lucky: by less than four standard deviations of a difference of shares, 4 sqrt(2 / 4 / 150)
    assert best > max(hits.values()) - 0.23
    assert best > 0.6 > hits["local"]


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (Sinusoid, {"K": 0}, "K: expected at least 1 pair, got 0"),
        (Sinusoid, {"K_least": 11}, "K_least: expected 1 to K, 10, got 11"),
        (Sinusoid, {"noise": -0.1}, "noise: expected at least 0, got -0.1"),
        (LinearRegression, {"d": 0}, "d: expected at least 1, got 0"),
        (Digits, {"N": 6}, "N: expected 2 to 5 classes, for so many are held out, got 6"),
        (Digits, {"K": 173}, "K: expected 1 to 172 examples of a class, got 173"),
        (Photographs, {"N": 10}, "N: expected 2 to 9 classes, for so many are held out, got 10"),
        (Photographs, {"K": 255}, "K: expected 1 to 254 examples of a class, got 255"),
        (Recall, {"d": 1}, "d: expected at least 2, got 1"),
        (Outliers, {"K": 5}, r"K: expected at least d \+ 2, 6 points, got 5"),
        (Outliers, {"noise": 0.0}, "noise: expected more than 0"),
        (Registration, {"outlier_share": 1.0}, "outlier_share: expected 0 to less than 1, got 1.0"),
    ],
)
def test_refusals(make: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**wrong)


def test_the_optimum_knows_of_each_shift() -> None:
    """More noise: whoever is told of it does better than ridge regression for the noise of the training."""
    found = measured(Config(task="linear_regression", K=8, evaluate_on=150))
    ridge, bayes = (next(x for name, x in found.items() if name.startswith(word)) for word in ("ridge", "Bayes"))
    assert bayes["error"] == pytest.approx(ridge["error"])
    assert bayes["error noise=0.5"] < ridge["error noise=0.5"]
