"""How well each predictor does, over several random splits into context and test rows.

The setting of a predictor is chosen by cross-validation inside the context of
each split: :func:`choose` is never given the test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.lab.check import Check, measure
from kvq_ref.lab.correctness import relative_error
from kvq_ref.lab.data import F64, Dataset
from kvq_ref.lab.predict import Predictor, Setting, centred_values, predict, predictors, standardise

Rows = NDArray[np.intp]
Labels = NDArray[np.generic]

FOLDS = 5
CHOICE_ROWS = 500
TEST_SHARE = 0.25
RIDGE_BAR = 1e-10


@dataclass(frozen=True)
class Result:
    """One predictor on one data set.

    Attributes
    ----------
    predictor : str
    formula : str
        What the settings mean.
    scores : list of float
        One for each split.
    settings : list of dict
        The one chosen in each split.
    """

    predictor: str
    formula: str
    scores: list[float]
    settings: list[Setting]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over the splits."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Evaluation:
    """All predictors on one data set, in the order of :func:`kvq_ref.lab.predict.predictors`.

    ``ridge`` is the check that Intention is ridge regression, over all splits.
    """

    data: Dataset
    n_context: int
    n_test: int
    results: list[Result]
    ridge: Check

    def ranked(self) -> list[Result]:
        """Best first."""
        return sorted(self.results, key=lambda result: -result.mean)


def evaluate(
    data: Dataset, *, splits: int = 8, seed: int = 0, after_each: Callable[[], object] = lambda: None
) -> Evaluation:
    """Score every predictor on several random splits.

    Parameters
    ----------
    data : Dataset
    splits : int
        A quarter of the rows is predicted from the others in each.
    seed : int
        Of the splits and of the folds inside them.
    after_each : callable
        Called after every split.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> from kvq_ref.lab.data import diabetes, subset
    >>> evaluation = evaluate(subset(diabetes(), 80, seed=0), splits=1)
    >>> len(evaluation.results), evaluation.ridge.holds
    (9, True)
    """
    from threadpoolctl import threadpool_limits

    # The matrices are small: the thread pools of NumPy and SciPy would only fight.
    with threadpool_limits(1):
        return _evaluate(data, splits, seed, after_each)


def _evaluate(data: Dataset, splits: int, seed: int, after_each: Callable[[], object]) -> Evaluation:
    everyone = predictors(data.task)
    results = [Result(p.name, p.formula, [], []) for p in everyone]
    classes = np.unique(data.target)
    differences: list[Check] = []
    n_context = n_test = 0
    for number in range(splits):
        split_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        context_rows, test_rows = split(len(data.target), split_seed)
        context, test = take(data, context_rows), take(data, test_rows)
        n_context, n_test = len(context_rows), len(test_rows)
        for predictor, result in zip(everyone, results, strict=True):
            setting = choose(predictor, context, classes, split_seed)
            out = predict(predictor, setting, context, test.features, classes)
            result.scores.append(score(test, out, classes))
            result.settings.append(setting)
        alpha = next(r for r in results if r.predictor == "intention").settings[-1]["a"] * n_context
        claim = f"{data.name}: Intention equals scikit-learn's Ridge"
        differences.append(measure(claim, RIDGE_BAR, _from_ridge, context, test, classes, alpha))
        after_each()
    # max() would pass over a NaN
    worst = next((check for check in differences if not check.holds), max(differences, key=lambda check: check.value))
    return Evaluation(data, n_context, n_test, results, worst)


def lead(evaluation: Evaluation) -> tuple[Result, Result, float, float, int]:
    """The best form, the next, and the best's lead: mean and spread over the splits, and how many it wins.

    Examples
    --------
    >>> from kvq_ref.lab.data import Dataset
    >>> rows = [Result("intention", "", [0.5, 0.7], []), Result("linear_attention", "", [0.4, 0.8], [])]
    >>> nothing = Dataset("", np.zeros((0, 0)), np.zeros(0), "regression")
    >>> lead(Evaluation(nothing, 0, 0, rows, Check("", 0, 0)))[-1]
    1
    """
    forms = [result for result in evaluation.ranked() if hasattr(kvq, result.predictor)]
    best, second = forms[:2]
    gaps = np.subtract(best.scores, second.scores)
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return best, second, float(gaps.mean()), spread, int(np.sum(gaps > 0))


def choose(predictor: Predictor, context: Dataset, classes: Labels, seed: int) -> Setting:
    """The setting of the grid that predicts best in 5-fold cross-validation inside the context.

    At most 500 rows of the context, drawn at random, take part. Of equal
    settings the first of the grid wins.
    """
    if len(predictor.grid) == 1:
        return predictor.grid[0]
    rows = np.random.default_rng(seed).permutation(len(context.target))[:CHOICE_ROWS]
    totals = np.zeros(len(predictor.grid))
    for held_out in np.array_split(rows, FOLDS):
        part, rest = take(context, np.setdiff1d(rows, held_out)), take(context, held_out)
        for i, setting in enumerate(predictor.grid):
            totals[i] += score(rest, predict(predictor, setting, part, rest.features, classes), classes)
    return predictor.grid[int(np.argmax(np.nan_to_num(totals, nan=-np.inf)))]


def score(data: Dataset, out: F64, classes: Labels) -> float:
    """R squared or accuracy of the values ``out``, predicted for the rows of ``data``.

    Examples
    --------
    >>> data = Dataset("three", np.zeros((3, 1)), np.array(["a", "b", "b"]), "classification")
    >>> round(score(data, np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array(["a", "b"])), 3)
    0.667
    """
    if data.task == "classification":
        return float(np.mean(classes[out.argmax(axis=1)] == data.target))
    y = np.asarray(data.target, np.float64)
    variation = float(np.sum((y - y.mean()) ** 2))
    return 1 - float(np.sum((out[:, 0] - y) ** 2)) / variation if variation else float("nan")


def split(n_rows: int, seed: int) -> tuple[Rows, Rows]:
    """A random (context, test) pair of row numbers.

    Examples
    --------
    >>> context, test = split(100, seed=0)
    >>> len(context), len(test), len(set(context) & set(test))
    (75, 25, 0)
    """
    order = np.random.default_rng(seed).permutation(n_rows)
    n_test = max(1, round(TEST_SHARE * n_rows))
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def take(data: Dataset, rows: Rows) -> Dataset:
    """Some rows of a table."""
    return Dataset(data.name, data.features[rows], data.target[rows], data.task, data.notes)


def _from_ridge(context: Dataset, test: Dataset, classes: Labels, alpha: float) -> float:
    """How far Intention is from Ridge(fit_intercept=False), relative to the largest prediction."""
    from sklearn.linear_model import Ridge

    k, q = standardise(context.features, test.features)
    v, _ = centred_values(context, classes)
    ridge = Ridge(alpha=alpha, fit_intercept=False).fit(k, v).predict(q)
    return relative_error(kvq.intention(q, k, v, alpha=alpha), np.asarray(ridge).reshape(len(q), -1))
