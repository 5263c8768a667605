"""Melanoma against everything else, at operating points that a clinic would choose.

An image is flagged when the probability of melanoma reaches a threshold. "Sensitivity at 90 % specificity" is the best
sensitivity over all thresholds whose specificity is at least 90 %; nothing is interpolated between thresholds, so each
figure belongs to a rule that could be used. It was chosen on the images that it is reported for, and flatters a little;
the scores at the model's own threshold, chosen on validation, do not.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, weighted_intervals
from exp_tools.evaluation.metrics.catalogue import OF_A_CLASS, PARTIAL_AREAS
from exp_tools.evaluation.metrics.prevalence import likelihood_ratios
from exp_tools.evaluation.metrics.weighted import RankingSums, RocSteps, confusion_sums, matrices
from exp_tools.evaluation.validation import check_binary, class_rates, divide

RATES = (0.90, 0.95)
POINTS = tuple(
    (f"sensitivity_at_{100 * r:.0f}_specificity", f"specificity_at_{100 * r:.0f}_sensitivity") for r in RATES
)
HOLDS_FROM = {
    "auc": OF_A_CLASS["auc"].holds_from,
    "isic_2024_partial_auc": PARTIAL_AREAS["isic_2024_partial_auc"].holds_from,
    "specificity_at_90_sensitivity": 40,
    "specificity_at_95_sensitivity": 40,
}
"""Melanoma lesions from which an interval holds the truth as often as it says: these rest on the few hardest ones."""
MAX_FALSE_POSITIVES = 0.2  # partial AUC: specificities from 80 % up
MAX_MISSED = 0.2  # partial AUC of ISIC 2024: sensitivities from 80 % up
AT_THRESHOLD = ("sensitivity", "specificity", "precision", "npv", "flagged")


def caught_melanomas(
    probabilities: NDArray[np.float64],
    predicted: NDArray[np.int64],
    melanoma: int,
    *,
    threshold: float | None,
    abstain: float | None,
) -> NDArray[np.bool_]:
    """Images that are called melanoma, flagged at the threshold, or left to a human, bool [N].

    Parameters
    ----------
    probabilities, predicted : float [N, C] and the decisions int [N]
    melanoma : place of the class
    threshold, abstain : thresholds of the model file; None: it has none
    """
    caught = predicted == melanoma
    if threshold is not None:
        caught = caught | (probabilities[:, melanoma] >= threshold)
    if abstain is not None:
        caught = caught | (probabilities.max(axis=1) < abstain)
    return caught


def melanoma_report(
    p_mel: ArrayLike,
    is_mel: ArrayLike,
    groups: ArrayLike,
    *,
    threshold: float | None = None,
    caught: NDArray[np.bool_] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score the probability of melanoma.

    Parameters
    ----------
    p_mel : float [N], 0..1
    is_mel : bool [N], which images are melanomas
    groups : [N], the lesion group of each image
    threshold : images with p_mel at or above it are flagged; None: the model has none
    caught : bool [N], images that somebody would look at, see `caught_melanomas`; None: the flagged ones
    resamples, seed : of the bootstrap behind the intervals

    Returns
    -------
    dict with
        images, melanomas : counts of images
        auc : area under the ROC curve
        partial_auc : the part of it at specificities from 80 %, rescaled so that chance is 0.5 and perfect is 1
        isic_2024_partial_auc : the part of it above a sensitivity of 80 %, 0 to 0.2 (chance: 0.02)
        sensitivity_at_90_specificity, sensitivity_at_95_specificity : see the module
        specificity_at_90_sensitivity, specificity_at_95_sensitivity : the other way round
        threshold : as given
        sensitivity, specificity, precision, npv, lr_positive, lr_negative, flagged : at the threshold; npv is the share
            of unflagged images that are not melanoma, lr_positive the likelihood ratio sensitivity / (1 - specificity),
            lr_negative (1 - sensitivity) / specificity, flagged the share of images that are flagged. A precision
            without any flagged image is 0 where there are melanomas, as in scikit-learn, and NaN where there are none;
            the npv likewise.
        missed : share of melanomas that are not caught, the safety endpoint; `missed_images` is their number
        intervals : metric -> {"low", "high"}, 95 %
        small : there are fewer than SMALL_GROUPS lesion groups of melanomas, or of others
    What is undefined is NaN: everything but flagged, specificity and npv without melanomas, and without a threshold
    the seven at it.

    Raises
    ------
    UserError : no image, shapes that do not fit, probabilities or a threshold that are none

    References
    ----------
    McClish, Analyzing a portion of the ROC curve, Medical Decision Making 9:190, 1989 (partial AUC).
    """
    p_mel, is_mel = check_binary(p_mel, is_mel)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"The melanoma threshold is {threshold}; expected a probability from 0 to 1.")
    groups = np.asarray(groups)
    sums = RankingSums(p_mel, is_mel)
    flagged = np.zeros(p_mel.size, dtype=bool) if threshold is None else p_mel >= threshold
    cells = confusion_sums(flagged.astype(np.int64), is_mel.astype(np.int64), 2)
    lost = is_mel & ~(flagged if caught is None else caught)

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        steps = sums.steps(weights)
        scores = {"auc": steps.ranking_scores()[0], "partial_auc": partial_auc(steps)} | _operating_points(steps)
        scores["isic_2024_partial_auc"] = isic_2024_partial_auc(steps)
        scores["missed"] = divide(weights[lost].sum(axis=0), weights[is_mel].sum(axis=0))
        if threshold is None:
            return scores | dict.fromkeys(AT_THRESHOLD, np.full(weights.shape[1], np.nan))
        return scores | _at_threshold(matrices(cells, weights))

    estimates = {name: float(value[0]) for name, value in score(np.ones((p_mel.size, 1))).items()}
    scales = {"isic_2024_partial_auc": PARTIAL_AREAS["isic_2024_partial_auc"].scale}
    units = _units(is_mel, flagged, groups)
    draws = {"resamples": resamples, "seed": seed}
    intervals = weighted_intervals(score, groups, p_mel.size, scales=scales, units=units, **draws)
    rates = [(estimates[name], *intervals[name]) for name in ("sensitivity", "specificity")]
    for name, (value, low, high) in likelihood_ratios(*rates).items():
        estimates[name], intervals[name] = value, (low, high)
    melanomas, others = (np.unique(groups[side]).size for side in (is_mel, ~is_mel))
    return {
        "images": p_mel.size,
        "melanomas": int(is_mel.sum()),
        "missed_images": int(lost.sum()),
        **estimates,
        "threshold": threshold,
        "intervals": {name: {"low": low, "high": high} for name, (low, high) in intervals.items()},
        "small": min(melanomas, others) < SMALL_GROUPS,
    }


def partial_auc(steps: RocSteps) -> NDArray[np.float64]:
    """Area left of MAX_FALSE_POSITIVES under the ROC polygon, standardised (McClish 1989); [R].

    The polygon goes right by the negatives between two thresholds, then aslant by the images that share a threshold.
    """
    limit = MAX_FALSE_POSITIVES * steps.negatives
    hits_before, corner = steps.hits - steps.gained, steps.false_alarms - steps.sharing
    alarms_before = np.vstack([np.zeros_like(limit), steps.false_alarms])[:-1]
    level = (hits_before * (np.minimum(corner, limit) - np.minimum(alarms_before, limit))).sum(axis=0)
    run = np.clip(limit - corner, 0, steps.sharing)
    climbed = np.divide(steps.gained * run, steps.sharing, out=np.zeros_like(run), where=steps.sharing > 0)
    slope = (run * (hits_before + climbed / 2)).sum(axis=0)
    last = steps.false_alarms[-1] if len(steps.hits) else np.zeros_like(limit)
    rest = steps.positives * (limit - np.minimum(last, limit))
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (level + slope + rest) / (steps.positives * steps.negatives)
    lowest, highest = MAX_FALSE_POSITIVES**2 / 2, MAX_FALSE_POSITIVES
    return (1 + (area - lowest) / (highest - lowest)) / 2


def isic_2024_partial_auc(steps: RocSteps) -> NDArray[np.float64]:
    """Area between the ROC polygon and the sensitivity of 80 %, 0 to 0.2: the score of the ISIC 2024 challenge; [R].

    Chance has 0.02. Kurtansky et al., The SLICE-3D dataset, Scientific Data 11:884, 2024.
    """
    limit = (1 - MAX_MISSED) * steps.positives
    hits_before, alarms_before = steps.hits - steps.gained, steps.false_alarms - steps.sharing
    start = np.clip(limit, hits_before, steps.hits)
    climbed = np.divide(start - hits_before, steps.gained, out=np.zeros_like(start), where=steps.gained > 0)
    spared = steps.negatives - (alarms_before + steps.sharing * (1 + climbed) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((steps.hits - start) * spared).sum(axis=0) / (steps.positives * steps.negatives)


def _operating_points(steps: RocSteps) -> dict[str, NDArray[np.float64]]:
    """The highest value of one rate where the other is at least RATES, over all thresholds; [R] each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = np.vstack([np.zeros_like(steps.positives), steps.hits]) / steps.positives
        specificity = 1 - np.vstack([np.zeros_like(steps.negatives), steps.false_alarms]) / steps.negatives
    undefined = (steps.positives == 0) | (steps.negatives == 0)
    points = {}
    for rate, (best_sensitivity, best_specificity) in zip(RATES, POINTS, strict=True):
        allowed = np.where(specificity >= rate, sensitivity, 0).max(axis=0)
        points[best_sensitivity] = np.where(undefined, np.nan, allowed)
        allowed = np.where(sensitivity >= rate, specificity, 0).max(axis=0)
        points[best_specificity] = np.where(undefined, np.nan, allowed)
    return points


def _at_threshold(matrix: NDArray) -> dict[str, NDArray[np.float64]]:
    """AT_THRESHOLD from confusion matrices [R, 2, 2] of melanoma and flagged."""
    rates = class_rates(matrix)
    return {
        "sensitivity": rates["sensitivity"][:, 1],
        "specificity": rates["specificity"][:, 1],
        "precision": rates["precision"][:, 1],
        "npv": rates["precision"][:, 0],
        "flagged": matrix[:, :, 1].sum(axis=-1) / matrix.sum(axis=(-2, -1)),
    }


def _units(is_mel: NDArray[np.bool_], flagged: NDArray[np.bool_], groups: NDArray) -> dict[str, int]:
    """How many lesion groups each metric rests on; the others rest on the fewer of melanomas and the rest."""
    melanomas, others, above, below, every = (
        np.unique(groups[side]).size for side in (is_mel, ~is_mel, flagged, ~flagged, np.ones_like(flagged))
    )
    fewer = min(melanomas, others)
    units = dict.fromkeys(("auc", "partial_auc", "isic_2024_partial_auc"), fewer) | dict.fromkeys(
        itertools.chain(*POINTS), fewer
    )
    return units | {
        "missed": melanomas,
        "sensitivity": melanomas,
        "specificity": others,
        "precision": above,
        "npv": below,
        "flagged": every,
    }
