"""Attention as a predictor: context rows are keys, their targets values, the rows to predict queries.

Nothing is trained. What a form leaves open is chosen by cross-validation inside
the context, from a grid that everyone can read below. All predictors get the
same treatment:

- features are standardised with the mean and spread of the context;
- values (the target, or one column of 0 and 1 for each class) lose their mean
  over the context, which is added to every prediction. For forms whose weights
  sum to 1 that changes nothing; for the others it stands for an intercept;
- the settings are given per context row, so that one chosen on a part of the
  context fits the whole: s and a below, with n the number of context rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.lab.data import F64, Dataset

Setting = dict[str, float]

FINE = tuple(float(f"{x:.3g}") for x in np.logspace(-2.5, 0.5, 13))
SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0)
FINE_ALPHAS = tuple(float(f"{x:.3g}") for x in np.logspace(-3, 1, 13))
NEIGHBOURS = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0)


def _grid(**values: Sequence[float]) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))


@dataclass(frozen=True)
class Predictor:
    """A way to predict values at queries from keys and values.

    Attributes
    ----------
    name : str
        The name of the form, or of a yardstick.
    formula : str
        What the settings mean, for the reader.
    grid : tuple of dict
        The settings to choose from.
    predict : callable
        ``predict(setting, q, k, v) -> out``, with keys that have mean 0 and spread 1.
    """

    name: str
    formula: str
    grid: tuple[Setting, ...]
    predict: Callable[[Setting, F64, F64, F64], F64]


def _linear(p: Setting, q: F64, k: F64, v: F64) -> F64:
    return np.asarray(kvq.linear_attention(q, k, v, scale=p["s"] / len(k)))


def _softmax(p: Setting, q: F64, k: F64, v: F64) -> F64:
    return np.asarray(kvq.softmax_attention(q, k, v, scale=p["s"]))


def _expressive(p: Setting, q: F64, k: F64, v: F64) -> F64:
    return np.asarray(kvq.expressive_attention(q, k, v, scale=p["s"]))


def _intention(p: Setting, q: F64, k: F64, v: F64) -> F64:
    return np.asarray(kvq.intention(q, k, v, alpha=p["a"] * len(k)))


def _sigma_intention(p: Setting, q: F64, k: F64, v: F64) -> F64:
    n = len(k)
    return np.asarray(kvq.sigma_intention(q, k, v, alpha=p["a"] * n, scale=p["s"] * (1 + p["a"]) * n))


def _expressive_intention(p: Setting, q: F64, k: F64, v: F64) -> F64:
    n = len(k)
    return np.asarray(kvq.expressive_intention(q, k, v, alpha=p["a"] * n, scale=p["s"] * (1 + p["a"]) * n))


def _mean(p: Setting, q: F64, k: F64, v: F64) -> F64:
    return np.zeros((len(q), v.shape[1]))


def _neighbours(p: Setting, q: F64, k: F64, v: F64) -> F64:
    from sklearn.neighbors import KNeighborsRegressor

    out = KNeighborsRegressor(min(int(p["neighbours"]), len(k))).fit(k, v).predict(q)
    return np.asarray(out, np.float64)


def _ridge(p: Setting, q: F64, k: F64, v: F64) -> F64:
    from sklearn.linear_model import Ridge

    out = Ridge(alpha=p["a"] * len(k)).fit(k, v).predict(q)
    return np.asarray(out, np.float64).reshape(len(q), v.shape[1])


def predictors(task: str) -> tuple[Predictor, ...]:
    """The six forms of the grid of two queries and three scores, then the yardsticks.

    Parameters
    ----------
    task : {"regression", "classification"}

    Returns
    -------
    tuple of Predictor

    Examples
    --------
    >>> [p.name for p in predictors("regression")][-3:]
    ['mean', 'neighbours', 'ridge']
    """
    both = _grid(a=ALPHAS, s=SCALES)
    return (
        Predictor("linear_attention", "scale = s / n", _grid(s=FINE), _linear),
        Predictor("softmax_attention", "scale = s", _grid(s=FINE), _softmax),
        Predictor("expressive_attention", "scale = s", _grid(s=FINE), _expressive),
        Predictor("intention", "alpha = a n", _grid(a=FINE_ALPHAS), _intention),
        Predictor("sigma_intention", "alpha = a n, scale = s (1 + a) n", both, _sigma_intention),
        Predictor("expressive_intention", "alpha = a n, scale = s (1 + a) n", both, _expressive_intention),
        Predictor("mean" if task == "regression" else "majority", "nothing to choose", ({},), _mean),
        Predictor("neighbours", "how many", _grid(neighbours=NEIGHBOURS), _neighbours),
        Predictor("ridge", "alpha = a n", _grid(a=FINE_ALPHAS), _ridge),
    )


# ---- From a table to keys, values and queries, and back ------------------------------


def standardise(context: F64, others: F64) -> tuple[F64, F64]:
    """Both tables, in units in which the columns of ``context`` have mean 0 and spread 1.

    A column that is constant over the context becomes 0 there.

    Examples
    --------
    >>> import numpy as np
    >>> standardise(np.array([[1.0], [3.0]]), np.array([[4.0]]))
    (array([[-1.],
           [ 1.]]), array([[2.]]))
    """
    centre, spread = context.mean(axis=0), context.std(axis=0)
    constant = spread <= 1e-12 * np.abs(context).max(axis=0)
    spread[constant] = 1.0
    return np.where(constant, 0.0, (context - centre) / spread), (others - centre) / spread


def predict(
    predictor: Predictor, setting: Setting, context: Dataset, queries: F64, classes: NDArray[np.generic]
) -> F64:
    """Predicted values at the queries, one column for regression and one a class for classification."""
    k, q = standardise(context.features, queries)
    v, centre = centred_values(context, classes)
    return predictor.predict(setting, q, k, v) + centre


def centred_values(context: Dataset, classes: NDArray[np.generic]) -> tuple[F64, F64]:
    """The values without their mean over the context, and that mean."""
    if context.task == "regression":
        v = np.asarray(context.target, np.float64)[:, None]
    else:
        v = (context.target[:, None] == classes).astype(np.float64)
    centre = v.mean(axis=0)
    return v - centre, centre


def describe(setting: Mapping[str, float]) -> str:
    """A setting in a few characters.

    >>> describe({"a": 0.1, "s": 3.0})
    'a=0.1 s=3'
    """
    return " ".join(f"{name}={value:g}" for name, value in setting.items())
