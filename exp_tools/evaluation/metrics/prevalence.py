"""What a positive answer is worth where the class is as common as the user says: predictive values and net benefit.

Sensitivity and specificity belong to the model, predictive values to the place where it is used: with melanoma in 1 of
100 instead of 11 of 100 images most of the flagged are not melanoma. Net benefit weighs found cases against needless
alarms: an alarm at a probability of t says that one found case is worth (1 - t) / t needless ones (Vickers and Elkin,
Decision curve analysis, Medical Decision Making 26:565, 2006).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.bootstrap import weighted_intervals
from exp_tools.evaluation.validation import check_binary, divide

RATES = ("sensitivity", "specificity")
OWN = "own"
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Probabilities at which the report gives the net benefit."""


def prevalence_report(
    scores: ArrayLike,
    positive: ArrayLike,
    flagged: NDArray[np.bool_],
    groups: ArrayLike,
    *,
    stated: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Predictive values of a rule, and net benefit of the probabilities, at a prevalence.

    Parameters
    ----------
    scores : float [N], probability of the class
    positive : bool [N], images of the class
    flagged : bool [N], images that the model's own rule gives the class
    groups : [N], the lesion group of each image
    stated : the share of images of the class where the model would be used, above 0 and below 1; None: as in the test
        set
    resamples, seed : of the bootstrap

    Returns
    -------
    dict with
        test, stated : the prevalence among these images, and the given one
        ppv, npv : at the stated prevalence (that of the test set without one): the share of the class among the
            flagged, and of the others among the unflagged
        intervals : of the two, {"low", "high"}, 95 %
        net_benefit : list of {"threshold", "model", "low", "high", "all"}: true cases flagged per image, less alarms
            weighted by t / (1 - t), of flagging where the probability (for that prevalence, by Bayes' rule) is t or
            more, and of flagging every image; flagging none has 0
    NaN without images of the class, or without others.

    Raises
    ------
    UserError : as `validation.check_binary`
    """
    scores, positive = check_binary(scores, positive)
    test = float(positive.mean())
    prevalence = test if stated is None else stated
    adjusted = for_prevalence(scores, test, prevalence)

    rules = {OWN: flagged} | {t: adjusted >= t for t in THRESHOLDS}

    def score(weights: NDArray[np.float64]) -> dict[Any, NDArray[np.float64]]:
        found = {rule: _rates(flags, positive, weights) for rule, flags in rules.items()}
        return {(rule, "sensitivity"): rates[0] for rule, rates in found.items()} | {
            (rule, "specificity"): 1 - rates[1] for rule, rates in found.items()
        }

    groups = np.asarray(groups)
    cases, others = (np.unique(groups[side]).size for side in (positive, ~positive))
    units = {(rule, name): count for rule in rules for name, count in zip(RATES, (cases, others), strict=True)}
    estimates = {name: float(value[0]) for name, value in score(np.ones((scores.size, 1))).items()}
    bounds = weighted_intervals(score, groups, scores.size, units=units, resamples=resamples, seed=seed)
    rates = {rule: [(estimates[rule, name], *bounds[rule, name]) for name in RATES] for rule in rules}
    ratios = likelihood_ratios(*rates[OWN])
    odds = prevalence / (1 - prevalence) if prevalence < 1 else math.inf
    ppv = [_share(odds * ratio) for ratio in ratios["lr_positive"]]
    npv = [_share(1 / (odds * ratio)) if odds * ratio else 1.0 for ratio in ratios["lr_negative"]]
    return {
        "test": test,
        "stated": stated,
        "ppv": ppv[0],
        "npv": npv[0],
        "intervals": {"ppv": {"low": ppv[1], "high": ppv[2]}, "npv": {"low": npv[2], "high": npv[1]}},
        "net_benefit": [
            {"threshold": t}
            | dict(zip(("model", "low", "high"), _benefit(*rates[t], prevalence, t), strict=True))
            | {"all": float(net_benefit(1.0, 1.0, prevalence=prevalence, threshold=t))}
            for t in THRESHOLDS
        ],
    }


def decision_curve(scores: NDArray[np.float64], positive: NDArray[np.bool_], prevalence: float) -> pd.DataFrame:
    """Net benefit of the probabilities at each threshold, as in `prevalence_report`.

    Returns
    -------
    DataFrame [threshold (1 to 50 %), model, all], `attrs["images"]`
    """
    adjusted = for_prevalence(scores, float(positive.mean()), prevalence)
    thresholds = np.arange(1, 51) / 100
    once = np.ones((scores.size, 1))
    rates = [_rates(adjusted >= t, positive, once) for t in thresholds]
    rows = [
        (
            t,
            float(net_benefit(found[0], alarms[0], prevalence=prevalence, threshold=t)),
            float(net_benefit(1.0, 1.0, prevalence=prevalence, threshold=t)),
        )
        for t, (found, alarms) in zip(thresholds, rates, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["threshold", "model", "all"])
    table.attrs["images"] = scores.size
    return table


def likelihood_ratios(
    sensitivity: tuple[float, float, float], specificity: tuple[float, float, float]
) -> dict[str, tuple[float, float, float]]:
    """Likelihood ratios of a flag (`lr_positive`) and of none (`lr_negative`), each (value, low, high).

    Parameters
    ----------
    sensitivity, specificity : value, low, high, of independent images

    Returns
    -------
    infinite where a rate leaves nothing to divide by; NaN where undefined. Intervals on the logarithm from those of the
    two rates (Zou and Donner, Statistics in Medicine 27:1693, 2008).
    """
    (found, found_low, found_high), (spared, spared_low, spared_high) = sensitivity, specificity
    return {
        "lr_positive": _ratio((found, found_low, found_high), (1 - spared, 1 - spared_high, 1 - spared_low)),
        "lr_negative": _ratio((1 - found, 1 - found_high, 1 - found_low), (spared, spared_low, spared_high)),
    }


def _ratio(top: tuple[float, float, float], bottom: tuple[float, float, float]) -> tuple[float, float, float]:
    """Value, low, high of a ratio of two shares."""
    value = float(divide(np.array(top[0]), np.array(bottom[0]))) if bottom[0] else (math.inf if top[0] else math.nan)
    if any(part != part for part in (value, *top, *bottom)):
        return value, math.nan, math.nan
    # The logarithm of 0 has no distance to its bounds: those of the ratio are then of both shares at once.
    if value == 0 or value == math.inf:
        return value, (top[1] / bottom[2] if bottom[2] else 0.0), (top[2] / bottom[1] if bottom[1] else math.inf)
    down = _distance(top[0], top[1]), _distance(bottom[2], bottom[0])
    up = _distance(top[2], top[0]), _distance(bottom[0], bottom[1])
    return value, value * math.exp(-math.hypot(*down)), value * math.exp(min(math.hypot(*up), 700.0))


def _distance(high: float, low: float) -> float:
    return math.log(high / low) if low > 0 else math.inf


def _share(odds: float) -> float:
    return odds / (1 + odds) if math.isfinite(odds) else (1.0 if odds > 0 else math.nan)


def for_prevalence(scores: NDArray[np.float64], found: float, wanted: float) -> NDArray[np.float64]:
    """Probabilities [N] as Bayes' rule changes them where the class has another prevalence.

    Saerens et al., Neural Computation 14:21, 2002, equation 4, for two classes.
    """
    if not 0 < found < 1 or found == wanted:
        return scores
    up, down = scores * wanted / found, (1 - scores) * (1 - wanted) / (1 - found)
    return up / (up + down)


def net_benefit(
    sensitivity: NDArray[np.float64] | float,
    alarms: NDArray[np.float64] | float,
    *,
    prevalence: float,
    threshold: float,
) -> NDArray[np.float64] | float:
    """Found cases per image less weighted alarms; `alarms` is 1 - specificity."""
    return sensitivity * prevalence - alarms * (1 - prevalence) * threshold / (1 - threshold)


def _benefit(
    sensitivity: tuple[float, float, float],
    specificity: tuple[float, float, float],
    prevalence: float,
    threshold: float,
) -> tuple[float, float, float]:
    """Net benefit, low and high, from the two rates and their intervals (Zou and Donner 2008)."""
    (found, found_low, found_high), (spared, spared_low, spared_high) = sensitivity, specificity
    weight = (1 - prevalence) * threshold / (1 - threshold)
    value = float(net_benefit(found, 1 - spared, prevalence=prevalence, threshold=threshold))
    down = math.hypot(prevalence * (found - found_low), weight * (spared - spared_low))
    up = math.hypot(prevalence * (found_high - found), weight * (spared_high - spared))
    return value, value - down, value + up


def _rates(
    flagged: NDArray[np.bool_], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sensitivity and 1 - specificity, [R] of weights [N, R]."""
    sensitivity = divide(weights[flagged & positive].sum(axis=0), weights[positive].sum(axis=0))
    return sensitivity, divide(weights[flagged & ~positive].sum(axis=0), weights[~positive].sum(axis=0))
