"""Calibration of each class: whether its probability is the frequency that it claims.

Van Calster et al., Calibration: the Achilles heel of predictive analytics, BMC Medicine 17:230, 2019: the ratio of
observed to expected cases, the calibration intercept (0 is perfect; above 0: probabilities are too low) and the
calibration slope (1 is perfect; below 1: they are too extreme).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, weighted_intervals
from exp_tools.evaluation.metrics.catalogue import LOSS
from exp_tools.evaluation.validation import check_predictions, divide

LEAST = 1e-12
"""Probabilities nearer to 0 or 1 count as this near: their log-odds are infinite."""
STEPS = 50
WIDEST = 50.0
"""A slope beyond this is no estimate: the class is separated from the others."""


class Line(NamedTuple):
    """Coefficients of a logistic regression [K], and their standard errors by lesion group."""

    values: NDArray[np.float64]
    errors: NDArray[np.float64]


def class_calibration(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Observed against predicted frequency of each class, one against the rest.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    groups : [N], the lesion group of each image
    classes : the C class names
    resamples, seed : of the bootstrap behind the interval of the ratio

    Returns
    -------
    dict class -> dict with
        observed, predicted : share of images of the class, and its mean probability
        ratio : observed over predicted, intercept (of a fit with slope 1), slope; NaN where undefined
        intervals : of the last three, {"low", "high"}, 95 %, by lesion
        small : fewer than SMALL_GROUPS lesion groups of the class, or of the rest

    Raises
    ------
    UserError : as `validation.check_predictions`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    groups = np.asarray(groups)
    names = np.array(classes)[labels]
    indicators = np.eye(len(classes))[labels]

    def ratios(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        observed, expected = (np.einsum("nc,nr->cr", values, weights) for values in (indicators, probabilities))
        return dict(zip(classes, divide(observed, expected), strict=True))

    units = {code: np.unique(groups[names == code]).size for code in classes}
    scales = dict.fromkeys(classes, LOSS)
    draws = {"resamples": resamples, "seed": seed}
    of_ratio = weighted_intervals(ratios, groups, labels.size, scales=scales, units=units, **draws)
    table = {}
    for place, code in enumerate(classes):
        positive = labels == place
        few = min(np.unique(groups[side]).size for side in (positive, ~positive))
        intercept, slope = _fits(probabilities[:, place], positive, groups, few)
        observed, predicted = float(positive.mean()), float(probabilities[:, place].mean())
        table[code] = {
            "observed": observed,
            "predicted": predicted,
            "ratio": observed / predicted if predicted > 0 and positive.any() else float("nan"),
            "intercept": intercept[0],
            "slope": slope[0],
            "intervals": {
                name: {"low": low, "high": high}
                for name, (low, high) in (
                    ("ratio", of_ratio[code] if positive.any() else (float("nan"), float("nan"))),
                    ("intercept", intercept[1:]),
                    ("slope", slope[1:]),
                )
            },
            "small": few < SMALL_GROUPS,
        }
    return table


def _fits(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], groups: NDArray, few: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(value, low, high) of the calibration intercept and slope."""
    from scipy.special import logit, stdtrit

    undefined = (float("nan"),) * 3
    if few < 2:
        return undefined, undefined
    log_odds = logit(np.clip(scores, LEAST, 1 - LEAST))
    ones = np.ones((log_odds.size, 1))
    found = []
    for place, line in enumerate(
        (
            logistic_line(ones, positive, groups, offset=log_odds),
            logistic_line(np.column_stack([ones[:, 0], log_odds]), positive, groups),
        )
    ):
        value, error = float(line.values[place]), float(line.errors[place])
        half = float(stdtrit(few - 1, 0.975)) * error
        separated = not math.isfinite(half) or abs(value) > WIDEST
        found.append(undefined if separated else (value, value - half, value + half))
    return found[0], found[1]


def logistic_line(
    features: NDArray[np.float64],
    positive: NDArray[np.bool_],
    groups: NDArray,
    offset: NDArray[np.float64] | float = 0.0,
) -> Line:
    """Logistic regression by maximum likelihood, with standard errors that allow for images of one lesion.

    Parameters
    ----------
    features : float [N, K]
    positive : bool [N]
    groups : [N], the lesion group of each image
    offset : float [N], added to the log-odds; 0: nothing

    Returns
    -------
    NaN where it does not converge, as when the features separate the two

    References
    ----------
    Sandwich estimator with clusters, times G / (G - 1): Liang and Zeger, Biometrika 73:13, 1986.
    """
    from scipy.special import expit

    values, scale = np.zeros(features.shape[1]), np.eye(features.shape[1])
    undefined = Line(np.full_like(values, np.nan), np.full_like(values, np.nan))
    for _ in range(STEPS):
        fitted = expit(features @ values + offset)
        information = np.einsum("nk,n,nj->kj", features, fitted * (1 - fitted), features)
        if np.linalg.cond(information) > 1e14:
            return undefined
        scale = np.linalg.inv(information)
        step = scale @ np.einsum("nk,n->k", features, positive - fitted)
        length = np.abs(step).max()
        values = values + step * min(1.0, 2.0 / max(length, 1e-300))
        if length < 1e-10:
            break
    else:
        return undefined
    _, index = np.unique(groups, return_inverse=True)
    residuals = features * (positive - expit(features @ values + offset))[:, None]
    sums = np.stack([np.bincount(index, weights=column) for column in residuals.T], axis=1)
    count = len(sums)
    covariance = scale @ np.einsum("gk,gj->kj", sums, sums) @ scale * count / (count - 1)
    return Line(values, np.sqrt(np.diagonal(covariance)))
