"""What training computes on the validation split: scores to select on.

The stage `train` depends on this module, so an edit here trains again. It knows neither the intervals nor the other
metrics: those build on it, and only the stage `evaluate` depends on them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError

SUM_TOLERANCE = 1e-3  # wide enough for probabilities stored as float16, or as text with four decimals


SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")
"""What `train.select_on` may name in addition to the loss."""


def validation_scores(logits: NDArray, labels: NDArray, classes: Sequence[str]) -> dict[str, float]:
    """Loss and scores of one epoch on the validation split, as `metrics.classification.headline_metrics` defines them.

    Parameters
    ----------
    logits : float [N, C], raw outputs of the network
    labels : int [N], values in 0..C-1
    classes : the C class names

    Returns
    -------
    dict with `loss` (mean negative log-likelihood in nats) and SCORES

    Raises
    ------
    UserError : an output is NaN or infinite; else as `check_predictions`
    """
    if not np.isfinite(logits).all():
        raise UserError(
            "the network's outputs on the validation split are not finite: training diverged; lower train.lr"
        )
    probabilities = softmax(logits)
    return scores_of(probabilities, labels, probabilities.argmax(axis=1), classes)


def scores_of(
    probabilities: NDArray, labels: NDArray, predicted: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, float]:
    """The same scores of probabilities [N, C] and decisions [N]. Raises UserError as `check_predictions`."""
    probabilities, labels = check_predictions(probabilities, labels, classes)
    matrix = confusion(labels, predicted, len(classes))
    rates = class_rates(matrix)
    areas = np.array([ranking_scores(probabilities[:, c], labels == c)[0] for c in range(len(classes))])
    return {
        "loss": float(log_losses(probabilities, labels).mean()),
        "accuracy": float(matrix.trace() / matrix.sum()),
        "balanced_accuracy": float(mean_defined(rates["sensitivity"])),
        "macro_f1": float(mean_defined(rates["f1"])),
        "macro_auc": float(mean_defined(areas)),
    }


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts [C, C]: row = true class, column = predicted class.

    Raises
    ------
    UserError : lengths differ, or a value is not in 0..C-1
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape:
        raise UserError(f"{labels.size} labels do not match {predicted.size} predictions: one of each an image.")
    if labels.size == 0:
        return np.zeros((num_classes, num_classes), dtype=np.int64)
    for name, values in (("label", labels), ("prediction", predicted)):
        check_indices(name, values, num_classes)
    cells = np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_rates(matrix: NDArray) -> dict[str, NDArray[np.float64]]:
    """Sensitivity, specificity, precision and F1 of each class, [..., C], from confusion matrices [..., C, C]."""
    hits = matrix.diagonal(axis1=-2, axis2=-1)
    support, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    negatives = support.sum(axis=-1, keepdims=True) - support
    precision = divide(hits, predicted)
    return {
        "sensitivity": divide(hits, support),
        "specificity": divide(negatives - (predicted - hits), negatives),
        # Never predicted, though it occurs: as bad as always wrong. NaN would drop it from the mean and reward it.
        "precision": np.where((predicted == 0) & (support > 0), 0.0, precision),
        "f1": np.where(support > 0, divide(2.0 * hits, support + predicted), np.nan),
    }


def ranking_scores(scores: NDArray, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Area under the ROC curve and average precision of one class against the rest.

    Parameters
    ----------
    scores : float [N], higher = more likely positive; equal scores are one threshold
    positive : bool [N]

    Returns
    -------
    (auc, average_precision); auc is NaN without positives or without negatives, average_precision without positives
    """
    hits, false_alarms = threshold_counts(scores, positive)
    if hits[-1] == 0:
        return float("nan"), float("nan")
    gained = np.diff(hits, prepend=0)
    average_precision = float((gained * hits / (hits + false_alarms)).sum() / hits[-1])
    if false_alarms[-1] == 0:
        return float("nan"), average_precision
    # A positive beats the negatives below its threshold, and half of those that share it.
    beaten = false_alarms[-1] - (false_alarms + np.concatenate([[0], false_alarms[:-1]])) / 2
    return float((gained * beaten).sum() / (hits[-1] * false_alarms[-1])), average_precision


def risk_coverage_area(confidence: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """The mean, over every number of most certain images, of the share of them that is wrong; 0 (perfect) to 1.

    Images of equal confidence count in random order. Geifman and El-Yaniv, NeurIPS 2017.
    """
    steps, last = np.unique(-confidence, return_inverse=True)
    images = np.bincount(last, minlength=steps.size).cumsum()
    mistakes = np.bincount(last, weights=wrong, minlength=steps.size).cumsum()
    sizes = np.arange(1, confidence.size + 1)
    return float((np.interp(sizes, [0, *images], [0, *mistakes]) / sizes).mean())


def threshold_counts(scores: NDArray, positive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives when all scores at or above a threshold count as positive.

    One entry for each distinct score, from the highest down: the last holds all positives and all negatives.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = np.cumsum(positive[order])[last_of_equals]
    return hits, last_of_equals + 1 - hits


def log_losses(probabilities: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Negative log-likelihood of each label, [N], in nats; of a probability of 0 that of the smallest float64, 708."""
    return -np.log(np.clip(probabilities[np.arange(labels.size), labels], np.finfo(np.float64).tiny, 1.0))


def mean_defined(values: NDArray) -> NDArray[np.float64]:
    """Mean over the last axis, ignoring NaN; NaN where every value is NaN."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def corrected(p: Mapping[Any, float]) -> dict[Any, float]:
    """p of several hypotheses, so that any of them below 0.05 is false at most once in 20 times.

    Holm, Scandinavian Journal of Statistics 6:65, 1979. NaN stays NaN and counts for nothing.
    """
    known = sorted((value, place, name) for place, (name, value) in enumerate(p.items()) if value == value)
    table, highest = dict.fromkeys(p, float("nan")), 0.0
    for rank, (value, _, name) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        table[name] = highest
    return table


def check_predictions(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Both as float64 [N, C] and int64 [N] arrays; raises UserError that names the wrong row and why."""
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    repeated = sorted({code for code in classes if list(classes).count(code) > 1})
    if repeated:
        raise UserError(f"The list of classes names {', '.join(repeated)} more than once; each class has one column.")
    if probabilities.ndim != 2 or probabilities.shape[1] != len(classes):
        raise UserError(
            f"Probabilities have the shape {list(probabilities.shape)}, expected [images, {len(classes)}]: one column "
            f"for each of {', '.join(classes)}. Were they made by a model of another task?"
        )
    if labels.shape != probabilities.shape[:1]:
        raise UserError(
            f"{probabilities.shape[0]} rows of probabilities do not match labels of shape {list(labels.shape)}: "
            "one of each an image was expected."
        )
    if labels.size == 0:
        raise UserError("There is no image to score: the set is empty. Check the split's fractions, or the filter.")
    unfinished = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if unfinished.size:
        raise UserError(
            f"{unfinished.size} of {labels.size} rows of probabilities are NaN or infinite, the first is row "
            f"{unfinished[0]} (counted from 0). The training has probably diverged: try a lower learning rate, "
            "or float32."
        )
    off = np.flatnonzero((np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE) | (probabilities < 0).any(axis=1))
    if off.size:
        raise UserError(
            f"{off.size} of {labels.size} rows are not probabilities, the first is row {off[0]} (counted from 0): "
            f"{np.round(probabilities[off[0]], 4).tolist()}. Each must be 0 or more and a row must sum to 1; "
            "pass raw logits through softmax first."
        )
    check_indices("label", labels, len(classes))
    return probabilities, labels.astype(np.int64)


def check_indices(name: str, values: NDArray, num_classes: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"A {name} must be a whole number, the index of a class; found values of type {values.dtype}.")
    wrong = np.flatnonzero((values < 0) | (values >= num_classes))
    if wrong.size:
        raise UserError(
            f"The {name} {values[wrong[0]]} in row {wrong[0]} (counted from 0) is not a class: "
            f"expected 0 to {num_classes - 1}."
        )


def divide(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Quotient, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, np.asarray(numerator, dtype=np.float64) / denominator)


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities [N, C] of raw logits [N, C] divided by a temperature (> 0; above 1 softens, below 1 sharpens).

    Raises
    ------
    UserError : a logit is NaN or infinite, or the temperature is not positive
    """
    logits = check_logits(logits)
    if not 0 < temperature < np.inf:
        raise UserError(f"The temperature is {temperature}; expected a positive number (1 leaves logits as they are).")
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def distances_below_top(logits: NDArray[np.float64], labels: NDArray) -> NDArray[np.float64]:
    """Each logit [N, C] minus that of the true class."""
    return logits - logits[np.arange(labels.size), labels][:, None]


def log_loss_at(behind: NDArray[np.float64], temperature: float) -> float:
    from scipy.special import logsumexp

    return float(logsumexp(behind / temperature, axis=1).mean())


def check_logits(logits: ArrayLike) -> NDArray[np.float64]:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2:
        raise UserError(f"Logits have the shape {list(logits.shape)}, expected [images, classes].")
    unfinished = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if unfinished.size:
        raise UserError(
            f"{unfinished.size} of {len(logits)} rows of logits are NaN or infinite, the first is row {unfinished[0]} "
            "(counted from 0). The training has probably diverged: try a lower learning rate, or float32."
        )
    return logits


def check_binary(p_mel: ArrayLike, is_mel: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    p_mel, is_mel = np.asarray(p_mel, dtype=np.float64), np.asarray(is_mel)
    if p_mel.ndim != 1:
        raise UserError(f"Melanoma probabilities have the shape {list(p_mel.shape)}; expected one per image.")
    if is_mel.dtype != bool:
        raise UserError(f"is_mel must be true or false for each image; found values of type {is_mel.dtype}.")
    check_predictions(np.column_stack([1 - p_mel, p_mel]), is_mel.astype(np.int64), ["non_mel", "mel"])
    return p_mel, is_mel
