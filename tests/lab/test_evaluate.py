"""Attention as a predictor: fairness of the comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvq_ref.lab.data import Dataset, diabetes, digits, subset
from kvq_ref.lab.evaluate import choose, evaluate, lead, score, split, take
from kvq_ref.lab.predict import predict, predictors, standardise


@pytest.fixture
def small() -> Dataset:
    return subset(diabetes(), 120, seed=0)


def test_choices_do_not_depend_on_the_test_rows(small: Dataset) -> None:
    """Other targets and features in the test rows change the scores, and no setting."""
    rows = split(len(small.target), int(np.random.SeedSequence([4, 0]).generate_state(1)[0]))[1]
    features, target = small.features.copy(), np.asarray(small.target, np.float64).copy()
    features[rows] = features[rows] * 100 + 7
    target[rows] = -50 * target[rows]
    one = evaluate(small, splits=1, seed=4)
    other = evaluate(replace(small, features=features, target=target), splits=1, seed=4)
    assert [r.settings for r in one.results] == [r.settings for r in other.results]
    assert [r.scores for r in one.results] != [r.scores for r in other.results]


def test_choices_do_depend_on_the_context(small: Dataset, rng: np.random.Generator) -> None:
    """The test above could pass if nothing were ever chosen."""
    noise = replace(small, target=rng.standard_normal(120))
    ridge = next(p for p in predictors("regression") if p.name == "ridge")
    classes = np.unique(small.target)
    assert choose(ridge, small, classes, 0) != choose(ridge, noise, classes, 0)


def test_predictions_do_not_depend_on_the_other_queries(small: Dataset) -> None:
    """Each row is predicted on its own: statistics are the context's."""
    context, test = take(small, np.arange(90)), take(small, np.arange(90, 120))
    classes = np.unique(small.target)
    for predictor in predictors("regression"):
        setting = predictor.grid[0]
        together = predict(predictor, setting, context, test.features, classes)
        alone = predict(predictor, setting, context, test.features[:1], classes)
        np.testing.assert_allclose(together[:1], alone, rtol=1e-9, err_msg=predictor.name)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_scores_do_not_depend_on_the_units(small: Dataset, factor: float) -> None:
    features = small.features * np.geomspace(1, factor, small.features.shape[1]) + factor
    moved = replace(small, features=features, target=5 * np.asarray(small.target, np.float64) - 3)
    for one, other in zip(evaluate(small, splits=1).results, evaluate(moved, splits=1).results, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6, atol=1e-9, err_msg=one.predictor)


def test_every_form_beats_guessing_on_digits() -> None:
    evaluation = evaluate(subset(digits(), 300, seed=1), splits=1, seed=1)
    best = max(evaluation.results, key=lambda r: r.predictor == "majority").mean
    for result in evaluation.results[:6]:
        assert result.mean > best + 0.3, result.predictor
    assert evaluation.ridge.holds


def test_a_class_that_the_context_lacks_is_simply_missed() -> None:
    x = np.arange(40.0)[:, None]
    target = np.array(["common", "other"] * 19 + ["rare", "common"])
    data = Dataset("rare", x, target, "classification")
    context, test = take(data, np.arange(38)), take(data, np.arange(38, 40))
    classes = np.unique(target)
    for predictor in predictors("classification"):
        out = predict(predictor, choose(predictor, context, classes, 0), context, test.features, classes)
        assert np.all(np.isfinite(out))
        assert score(test, out, classes) <= 0.5


def test_a_constant_column_does_no_harm() -> None:
    context = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    k, q = standardise(context, np.array([[9.0, 3.0]]))
    assert np.all(k[:, 0] == 0)
    assert np.all(np.isfinite(q))


def test_the_lead_is_of_forms_only(small: Dataset) -> None:
    best, second, gap, _, wins = lead(evaluate(small, splits=2, seed=2))
    assert {best.predictor, second.predictor}.isdisjoint({"ridge", "neighbours", "mean"})
    assert gap >= 0
    assert 0 <= wins <= 2
