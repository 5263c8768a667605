"""What a classifier's predictions are worth, in the numbers the field reports.

Probabilities are float [N, C] with rows that sum to 1, labels int [N] with values in 0..C-1, and column c is always the
class `classes[c]`, whether it occurs among the labels or not. The predicted class is the most probable one, the first
of equals.

A macro average is the plain mean over the classes that occur among the labels: one that does not occur has no recall
and no F1, and leaving it in as 0 would punish a model for the make-up of the test set. (scikit-learn's
`f1_score(average="macro", labels=present)`; without `labels=` it adds classes that were predicted only.) A wrong
prediction of an absent class still costs the class it should have been. What is undefined is NaN.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.calibration import expected_calibration_error

SUM_TOLERANCE = 1e-3  # wide enough for probabilities stored as float16, or as text with four decimals
TOP = (2, 3, 5)


def headline_metrics(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """The summary of one set of predictions.

    Returns
    -------
    dict with
        accuracy : share of images whose predicted class is right
        balanced_accuracy : mean sensitivity (recall); the score of the ISIC 2018 and 2019 challenges
        macro_f1, macro_precision, macro_specificity : plain means over classes
        weighted_f1 : mean F1 weighted by the number of images of each class
        macro_auc : mean area under the one-against-rest ROC curve, over classes with both positives and negatives
        average_precision : mean over classes of the step-wise area under the precision-recall curve
        brier : mean squared distance between the probabilities and the one-hot label, 0 (perfect) to 2
        ece : expected calibration error over 15 bins of equal width, 0 to 1
        log_loss : mean negative log-likelihood in nats; a probability of 0 counts as 708, float64's least

    Raises
    ------
    UserError : no image, shapes that do not fit, NaN, rows that do not sum to 1, labels that are no class
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    matrix = confusion(labels, probabilities.argmax(axis=1), len(classes))
    ranking = [ranking_scores(probabilities[:, c], labels == c) for c in range(len(classes))]
    areas, precisions = (np.array(column) for column in zip(*ranking, strict=True))
    errors, losses = squared_errors(probabilities, labels), log_losses(probabilities, labels)
    scores = {
        **confusion_metrics(matrix),
        "macro_auc": mean_defined(areas),
        "average_precision": mean_defined(precisions),
        "brier": errors.mean(),
        "ece": expected_calibration_error(probabilities, labels),
        "log_loss": losses.mean(),
    }
    return {name: float(value) for name, value in scores.items()}


def class_metrics(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> dict[str, dict[str, float | int]]:
    """Each class against the rest: sensitivity, specificity, precision, f1, auc, average_precision, support.

    A class without images has no sensitivity, F1, AUC or average precision (NaN). The precision of a class that occurs
    but is never predicted is 0, as in scikit-learn; it is NaN where a class neither occurs nor is predicted.

    Raises
    ------
    UserError : as `headline_metrics`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    rates = class_rates(confusion(labels, probabilities.argmax(axis=1), len(classes)))
    table = {}
    for c, code in enumerate(classes):
        auc, average_precision = ranking_scores(probabilities[:, c], labels == c)
        row = {name: float(values[c]) for name, values in rates.items()}
        table[code] = row | {"auc": auc, "average_precision": average_precision, "support": int((labels == c).sum())}
    return table


def top_k_accuracy(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """Share of images whose class is among the k most probable, for k = 2, 3 and 5 where there are more classes.

    Of equally probable classes the first comes first, as for the predicted class. (scikit-learn's
    `top_k_accuracy_score` takes the last; without ties the two agree.)

    Returns
    -------
    dict "2", "3", "5" -> share, those with k < C

    Raises
    ------
    UserError : as `headline_metrics`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    own = probabilities[np.arange(labels.size), labels][:, None]
    earlier = np.arange(len(classes)) < labels[:, None]
    ahead = ((probabilities > own) | ((probabilities == own) & earlier)).sum(axis=1)
    return {str(k): float((ahead < k).mean()) for k in TOP if k < len(classes)}


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
        _check_indices(name, values, num_classes)
    cells = np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def confusion_metrics(matrix: NDArray) -> dict[str, NDArray[np.float64]]:
    """The headline metrics that need the confusion matrix only.

    Parameters
    ----------
    matrix : counts or weights [..., C, C], true class in rows; leading axes are kept, so that the matrices of many
        bootstrap resamples are scored at once

    Returns
    -------
    dict of arrays [...]: accuracy, balanced_accuracy, macro_f1, weighted_f1, macro_precision, macro_specificity
    """
    rates = class_rates(matrix)
    support = matrix.sum(axis=-1)
    total = support.sum(axis=-1)
    absent = support == 0
    return {
        "accuracy": _divide(matrix.diagonal(axis1=-2, axis2=-1).sum(axis=-1), total),
        "balanced_accuracy": mean_defined(rates["sensitivity"]),
        "macro_f1": mean_defined(rates["f1"]),
        "weighted_f1": _divide((support * np.where(absent, 0.0, rates["f1"])).sum(axis=-1), total),
        "macro_precision": mean_defined(np.where(absent, np.nan, rates["precision"])),
        "macro_specificity": mean_defined(np.where(absent, np.nan, rates["specificity"])),
    }


def class_rates(matrix: NDArray) -> dict[str, NDArray[np.float64]]:
    """Sensitivity, specificity, precision and F1 of each class, [..., C], from confusion matrices [..., C, C]."""
    hits = matrix.diagonal(axis1=-2, axis2=-1)
    support, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    negatives = support.sum(axis=-1, keepdims=True) - support
    precision = _divide(hits, predicted)
    return {
        "sensitivity": _divide(hits, support),
        "specificity": _divide(negatives - (predicted - hits), negatives),
        # Never predicted, though it occurs: as bad as always wrong. NaN would drop it from the mean and reward it.
        "precision": np.where((predicted == 0) & (support > 0), 0.0, precision),
        "f1": np.where(support > 0, _divide(2.0 * hits, support + predicted), np.nan),
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


def threshold_counts(scores: NDArray, positive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives when all scores at or above a threshold count as positive.

    One entry for each distinct score, from the highest down: the last holds all positives and all negatives.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = np.cumsum(positive[order])[last_of_equals]
    return hits, last_of_equals + 1 - hits


def squared_errors(probabilities: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Squared distance between each row and the one-hot label, [N], 0..2; its mean is the Brier score (Brier 1950)."""
    right = probabilities[np.arange(labels.size), labels]
    return (probabilities**2).sum(axis=1) - 2 * right + 1


def log_losses(probabilities: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Negative log-likelihood of each label, [N], in nats; of a probability of 0 that of the smallest float64, 708."""
    return -np.log(np.clip(probabilities[np.arange(labels.size), labels], np.finfo(np.float64).tiny, 1.0))


def mean_defined(values: NDArray) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def check_predictions(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The two as float64 [N, C] and int64 [N] arrays, or a UserError that says which row is wrong and why."""
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
            f"{off.size} of {labels.size} rows are no probabilities, the first is row {off[0]} (counted from 0): "
            f"{np.round(probabilities[off[0]], 4).tolist()}. Each must be 0 or more and a row must sum to 1; "
            "pass raw logits through softmax first."
        )
    _check_indices("label", labels, len(classes))
    return probabilities, labels.astype(np.int64)


def _check_indices(name: str, values: NDArray, num_classes: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"A {name} must be a whole number, the index of a class; found values of type {values.dtype}.")
    wrong = np.flatnonzero((values < 0) | (values >= num_classes))
    if wrong.size:
        raise UserError(
            f"The {name} {values[wrong[0]]} in row {wrong[0]} (counted from 0) is no class: "
            f"expected 0 to {num_classes - 1}."
        )


def _divide(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Quotient, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, np.asarray(numerator, dtype=np.float64) / denominator)
