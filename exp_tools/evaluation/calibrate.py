"""What is fitted on the validation split after training: probabilities, the decision, and thresholds."""

import math
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import balanced_costs, least_cost_decisions
from exp_tools.evaluation.validation import check_binary, check_logits, class_rates, confusion, mean_defined

TEMPERATURES = (0.05, 20.0)
USUAL_SENSITIVITY = 0.95
"""Of the melanoma threshold, where nothing says otherwise."""
POWERS = np.arange(0, 31) / 20
"""Powers of the class shares that the balanced decision is chosen from, 0 (the most probable class) to 1.5."""


def fit_probabilities(
    logits: ArrayLike, labels: ArrayLike, start: ArrayLike | None
) -> tuple[float, NDArray[np.float64]]:
    """Temperature and bias of softmax(z / T + b) by penalised maximum likelihood on validation.

    A sampler or class weights show the network other class frequencies than those of the data, which no temperature
    can undo. The bias is drawn to what would undo them exactly, by a normal prior of standard deviation 1 on each of
    its entries and on log T: a class of few validation images keeps nearly that value, one of many follows its data.

    Parameters
    ----------
    logits, labels : float [N, C] and int [N] of validation
    start : float [C], log of the true over the seen class shares; None: no bias is fitted, b = 0

    Returns
    -------
    T in 0.05..20, and b float [C] with mean 0. (1.0, the centred start) for N = 0. Deterministic.

    Raises
    ------
    UserError : a logit is NaN or infinite

    References
    ----------
    Temperature: Guo et al., ICML 2017, section 4.2. Bias: Alexandari et al., Maximum Likelihood with Bias-Corrected
    Calibration is Hard-To-Beat at Label Shift Adaptation, ICML 2020. Shares: Saerens et al., Neural Computation 14:21,
    2002, equation 4.
    """
    from scipy.optimize import minimize

    labels = np.asarray(labels)
    num_classes = np.asarray(logits).shape[1]
    centre = np.zeros(num_classes) if start is None else np.asarray(start, dtype=np.float64)
    centre = centre - centre.mean()
    if labels.size == 0:
        return 1.0, centre
    logits = check_logits(logits)
    truth = np.eye(num_classes)[labels]

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        temperature, bias = math.exp(values[0]), values[1:]
        scaled = logits / temperature + bias
        top = scaled.max(axis=1, keepdims=True)
        sums = np.exp(scaled - top).sum(axis=1)
        gaps = np.exp(scaled - top) / sums[:, None] - truth
        off = bias - centre
        value = (np.log(sums) + top[:, 0] - (scaled * truth).sum(axis=1)).sum() + (values[0] ** 2 + off @ off) / 2
        slope_t = -(gaps * logits).sum() / temperature + values[0]
        slope_b = gaps.sum(axis=0) + off if start is not None else np.zeros(num_classes)
        return value / labels.size, np.concatenate([[slope_t], slope_b]) / labels.size

    low, high = np.log(TEMPERATURES)
    free = [(None, None) if start is not None else (value, value) for value in centre]
    # Coarse logits of a confident network make a long valley: it is searched from several temperatures.
    found = [
        minimize(
            loss,
            np.concatenate([[log_t], centre]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, high), *free],
            options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
        )
        for log_t in (0.0, 1.0)
    ]
    best = min(found, key=lambda one: one.fun).x
    return float(math.exp(best[0])), best[1:] - best[1:].mean()


def choose_power(probabilities: NDArray[np.float64], labels: NDArray[np.int64], shares: Sequence[float]) -> float:
    """The power of the class shares by which dividing gives validation the best balanced accuracy.

    Scores are averaged over five neighbouring powers, since the best of a single one is mostly chance; of equals the
    middle one. 1.0 for an empty set.

    Parameters
    ----------
    probabilities, labels : float [N, C] and int [N] of validation
    shares : of the classes in the data, > 0
    """
    if not labels.size:
        return 1.0
    decided = [least_cost_decisions(probabilities, balanced_costs(shares, power)) for power in POWERS]
    rates = [class_rates(confusion(labels, one, len(shares)))["sensitivity"] for one in decided]
    scores = mean_defined(np.array(rates))
    smooth = np.array([scores[max(0, k - 2) : k + 3].mean() for k in range(len(POWERS))])
    best = np.flatnonzero(smooth >= smooth.max() - 1e-12)
    return float(POWERS[best[len(best) // 2]])


def choose_threshold(
    p_mel: ArrayLike, is_mel: ArrayLike, lesions: ArrayLike, sensitivity: float
) -> tuple[float | None, int, int]:
    """The highest threshold that promises new melanomas this sensitivity (flagged: p_mel >= threshold).

    The k-th highest of n melanomas is exceeded by a new one with probability k / (n + 1), so k = ceil(s (n + 1)) keeps
    the promise on average. Counted by lesion: each image of a lesion with m images counts 1 / m.

    Parameters
    ----------
    p_mel, is_mel, lesions : float, bool and lesion id [N], of the validation images
    sensitivity : share of the melanomas to find, above 0 and below 1

    Returns
    -------
    threshold rounded down to six decimals, n, and the n that the sensitivity needs. None without melanomas. With fewer
    than are needed it is the threshold that finds all n, which promises n / (n + 1) only.

    Raises
    ------
    UserError : as `validation.check_binary`; a sensitivity outside (0, 1)

    References
    ----------
    Order statistics as tolerance limits: Wilks, Annals of Mathematical Statistics 12:91, 1941; conformal prediction
    uses the same count (Vovk et al., Algorithmic Learning in a Random World, 2005).
    """
    if not 0 < sensitivity < 1:
        raise UserError(f"The melanoma sensitivity is {sensitivity}; expected a share above 0 and below 1.")
    p_mel, is_mel = check_binary(p_mel, is_mel)
    needed = math.ceil(sensitivity / (1 - sensitivity) - 1e-9)
    scores, lesion = p_mel[is_mel], np.unique(np.asarray(lesions)[is_mel], return_inverse=True)[1]
    if not scores.size:
        return None, 0, needed
    count = int(lesion.max()) + 1
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum((1 / np.bincount(lesion))[lesion][order])
    wanted = min(math.ceil(sensitivity * (count + 1) - 1e-9), count)
    reached = np.flatnonzero(found >= wanted - 1e-9)[0]
    return rounded_down(scores[order][reached]), count, needed


def threshold_at_specificity(scores: ArrayLike, positive: ArrayLike, specificity: float) -> float:
    """The lowest threshold that flags at most 1 - specificity of the negatives (flagged: score >= threshold).

    Parameters
    ----------
    scores, positive : float and bool [N], of the validation images
    specificity : above 0 and below 1

    Returns
    -------
    float; NaN without negatives
    """
    negatives = np.sort(np.asarray(scores, dtype=np.float64)[~np.asarray(positive)])[::-1]
    if not negatives.size:
        return float("nan")
    allowed = int((1 - specificity) * negatives.size + 1e-9)
    return float(np.nextafter(negatives[allowed], np.inf))


def choose_abstention(probabilities: ArrayLike, share: float) -> float:
    """The confidence below which the least certain `share` of the validation images lies.

    A model that leaves to a human what is less certain than this (confidence < threshold) leaves `share` of images like
    those of validation, never more: images whose confidence equals the threshold stay with the model.

    Parameters
    ----------
    probabilities : float [N, C] of the validation images, as the model gives them out
    share : in [0, 1)

    Returns
    -------
    float in 0..1, rounded down to six decimals, so that a copy of it in a text file leaves no image more; 0.0, which
    leaves none, for an empty set

    Raises
    ------
    UserError : a share outside [0, 1)
    """
    if not 0 <= share < 1:
        raise UserError(f"The share of images to leave to a human is {share}; expected 0 or more and less than 1.")
    confidence = np.sort(np.asarray(probabilities, dtype=np.float64).max(axis=1))
    if not confidence.size:
        return 0.0
    left = int(share * confidence.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return rounded_down(confidence[left])


def rounded_down(value: float) -> float:
    """A value with six decimals, never above it."""
    return float(Decimal(repr(float(value))).quantize(Decimal("1e-6"), ROUND_FLOOR))
