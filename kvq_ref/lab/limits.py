"""Linear attention is the limit of Intention as alpha grows, and how fast it is reached.

    alpha * Intention_alpha = Linear - Q G (G + alpha I)^-1 K^T V,    G = K^T K

    || alpha * Intention_alpha - Linear ||  <=  ||Q|| ||G|| ||K^T V|| / (alpha + lambda_min(G))

in spectral norms: the error falls like 1/alpha. The same holds for what is
built on preconditioned queries: with scale = alpha, sigma-Intention tends to
softmax attention and expressive Intention to expressive attention of scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.lab.check import Check, measure
from kvq_ref.lab.correctness import relative_error

F64 = NDArray[np.float64]

SLOPE_BAR = 0.05
ORTHONORMAL_BAR = 1e-12
LIMITS = {
    "intention": "linear_attention",
    "sigma_intention": "softmax_attention",
    "expressive_intention": "expressive_attention",
}


@dataclass(frozen=True)
class Limits:
    """What was measured.

    Attributes
    ----------
    alphas : array
    largest_eigenvalue, smallest_eigenvalue : float
        Of G.
    errors : dict of array
        By form: the distance to its limit at each alpha.
    bound : array
        Of Intention's.
    rounding : float
        Where float64 arithmetic stops being exact enough to see the difference.
    slopes : dict of float
        By form: of log error over log alpha, where alpha is large and the error well above rounding.
    fitted : dict of (float, float)
        By form: the range of alpha in which the slope was fitted.
    checks : list of Check
    """

    alphas: F64
    largest_eigenvalue: float
    smallest_eigenvalue: float
    errors: dict[str, F64]
    bound: F64
    rounding: float
    slopes: dict[str, float]
    fitted: dict[str, tuple[float, float]]
    checks: list[Check]


def measure_limits(seed: int = 0, *, Tq: int = 32, Tk: int = 64, d: int = 8, dv: int = 4) -> Limits:
    """Measure the distance of each least-squares form to its limit.

    Parameters
    ----------
    seed : int
        Of the random queries, keys and values.
    Tq, Tk, d, dv : int
        Their numbers and sizes.

    Returns
    -------
    Limits

    Examples
    --------
    >>> limits = measure_limits(seed=0)
    >>> round(limits.slopes["intention"], 1), all(check.holds for check in limits.checks)
    (-1.0, True)
    """
    rng = np.random.default_rng([seed, 1])
    q, k, v = (rng.standard_normal(shape) for shape in ((Tq, d), (Tk, d), (Tk, dv)))
    q /= np.sqrt(d)  # scores of order 1, so that softmax attention is not all on one key
    eigenvalues = np.linalg.eigvalsh(k.T @ k)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    alphas = largest * np.logspace(-5, 13, 73)

    errors = {
        name: np.array(
            [spectral_norm(_scaled(name, q, k, v, alpha) - getattr(kvq, limit)(q, k, v, scale=1.0)) for alpha in alphas]
        )
        for name, limit in LIMITS.items()
    }
    bound = spectral_norm(q) * largest * spectral_norm(k.T @ v) / (alphas + smallest)
    rounding = 64 * np.finfo(np.float64).eps * spectral_norm(q) * spectral_norm(k.T @ v)

    slopes, fitted = {}, {}
    for name, error in errors.items():
        # Below 100 lambda_max the error has not yet become a power law; near rounding it no longer is one.
        use = (alphas >= 100 * largest) & (error > 1e-8 * error[0])
        slopes[name] = _slope(alphas[use], error[use])
        fitted[name] = (float(alphas[use][0]), float(alphas[use][-1])) if use.any() else (np.nan, np.nan)

    ratio = float(np.max(errors["intention"] / (bound + rounding)))
    checks = [Check("limit: error of Intention over its bound, at every alpha", ratio, 1.0)]
    checks += [
        Check(f"limit: slope of {name} to {LIMITS[name]} is -1", abs(slope + 1), SLOPE_BAR)
        for name, slope in slopes.items()
    ]
    claim = "limit: (1 + alpha) Intention = Linear for orthonormal keys"
    checks.append(measure(claim, ORTHONORMAL_BAR, _orthonormal, rng))
    return Limits(alphas, largest, smallest, errors, bound, rounding, slopes, fitted, checks)


def spectral_norm(x: F64) -> float:
    """The largest singular value.

    >>> float(spectral_norm(np.diag([3.0, -4.0])))
    4.0
    """
    return float(np.linalg.norm(x, 2))


def _scaled(name: str, q: F64, k: F64, v: F64, alpha: float) -> F64:
    """The form at alpha, times or scaled by alpha so that it has a limit."""
    if name == "intention":
        return alpha * np.asarray(kvq.intention(q, k, v, alpha=alpha))
    return np.asarray(getattr(kvq, name)(q, k, v, alpha=alpha, scale=alpha))


def _slope(alphas: F64, errors: F64) -> float:
    return float(np.polyfit(np.log(alphas), np.log(errors), 1)[0]) if len(alphas) > 2 else float("nan")


def _orthonormal(rng: np.random.Generator, d: int = 8) -> float:
    q, v = rng.standard_normal((5, d)), rng.standard_normal((d, 3))
    k = np.linalg.qr(rng.standard_normal((d, d)))[0]
    linear = np.asarray(kvq.linear_attention(q, k, v))
    return float(
        np.max([relative_error((1 + a) * kvq.intention(q, k, v, alpha=a), linear) for a in (0.01, 1.0, 100.0)])
    )
