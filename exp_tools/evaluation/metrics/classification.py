"""Classification metrics, as the field reports them.

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

from exp_tools.evaluation.metrics.calibration import expected_calibration_error
from exp_tools.evaluation.metrics.catalogue import HEADLINE
from exp_tools.evaluation.metrics.confusion import Counts, decided
from exp_tools.evaluation.validation import (
    check_predictions,
    class_rates,
    confusion,
    log_losses,
    mean_defined,
    ranking_scores,
    risk_coverage_area,
)

TOP = (2, 3, 5)


def headline_metrics(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str], predicted: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """The summary of one set of predictions.

    Parameters
    ----------
    probabilities, labels, classes : as in `validation.check_predictions`
    predicted : int [N], the decisions; None: the most probable classes

    Returns
    -------
    dict with every metric of `catalogue.HEADLINE`: those of `confusion.py`, and
        macro_auc : mean area under the one-against-rest ROC curve, over classes with both positives and negatives
        average_precision : mean over classes of the step-wise area under the precision-recall curve
        brier : mean squared distance between the probabilities and the one-hot label, 0 (perfect) to 2
        ece : expected calibration error over 15 bins of equal width, 0 to 1
        log_loss : mean negative log-likelihood in nats; a probability of 0 counts as 708, float64's least
        aurc : area under the risk-coverage curve, see `validation.risk_coverage_area`

    Raises
    ------
    UserError : no image, shapes that do not fit, NaN, rows that do not sum to 1, labels that are not a class
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    matrix = confusion(labels, decided(probabilities, predicted), len(classes))
    ranking = [ranking_scores(probabilities[:, c], labels == c) for c in range(len(classes))]
    areas, precisions = (np.array(column) for column in zip(*ranking, strict=True))
    errors, losses = squared_errors(probabilities, labels), log_losses(probabilities, labels)
    wrong = decided(probabilities, predicted) != labels
    scores = {
        **confusion_metrics(matrix),
        "macro_auc": mean_defined(areas),
        "average_precision": mean_defined(precisions),
        "brier": errors.mean(),
        "ece": expected_calibration_error(probabilities, labels),
        "log_loss": losses.mean(),
        "aurc": risk_coverage_area(probabilities.max(axis=1), wrong),
    }
    return {name: float(value) for name, value in scores.items()}


def class_metrics(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str], predicted: NDArray[np.int64] | None = None
) -> dict[str, dict[str, float | int]]:
    """Each class against the rest: sensitivity, specificity, precision, f1, auc, average_precision, support.

    A class without images has no sensitivity, F1, AUC or average precision (NaN). The precision of a class that occurs
    but is never predicted is 0, as in scikit-learn; it is NaN where a class neither occurs nor is predicted.

    Raises
    ------
    UserError : as `headline_metrics`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    rates = class_rates(confusion(labels, decided(probabilities, predicted), len(classes)))
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


def confusion_metrics(matrix: NDArray) -> dict[str, NDArray[np.float64]]:
    """The headline metrics that need the confusion matrix only.

    Parameters
    ----------
    matrix : counts or weights [..., C, C], true class in rows; leading axes are kept, so that the matrices of many
        bootstrap resamples are scored at once

    Returns
    -------
    dict of arrays [...]: every metric of the catalogue that is computed from counts
    """
    counts = Counts(matrix)
    return {key: metric.of_counts(counts) for key, metric in HEADLINE.items() if metric.of_counts}


def squared_errors(probabilities: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Squared distance between each row and the one-hot label, [N], 0..2; its mean is the Brier score (Brier 1950)."""
    right = probabilities[np.arange(labels.size), labels]
    return (probabilities**2).sum(axis=1) - 2 * right + 1
