"""Accuracy when the least certain images are left to a human.

El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 11:1605, 2010; Geifman and
El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017. Confidence is the probability of the
most probable class; coverage is the share of images that stay with the model, the most certain ones.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.metrics.confusion import decided
from exp_tools.evaluation.validation import check_predictions, confusion, risk_coverage_area

MAX_POINTS = 200
REPORTED = (0.5, 0.8, 0.9)


def risk_coverage(
    probabilities: ArrayLike, labels: ArrayLike, predicted: NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """The risk-coverage curve, as accuracy: a point for each threshold on the confidence, coverage rising to 1.

    Balanced accuracy is the mean over the classes that still have images with the model: one that has gone to the human
    as a whole drops out, which can make the curve jump.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    predicted : int [N], the decisions; None: the most probable classes

    Returns
    -------
    DataFrame [coverage, accuracy, balanced_accuracy, threshold, images], at most 200 points at about equal steps of
    coverage. The `images` with confidence >= threshold stay with the model; images of equal confidence share a point.

    Raises
    ------
    UserError : as `classification.headline_metrics`
    """
    table = _every_point(*_checked(probabilities, labels), predicted)
    steps = np.linspace(table["coverage"].iloc[0], 1, MAX_POINTS)
    kept = np.unique(np.searchsorted(table["coverage"], steps - 1e-12))
    return table.iloc[kept].reset_index(drop=True).round(6)


def coverage_report(
    probabilities: ArrayLike,
    labels: ArrayLike,
    predicted: NDArray[np.int64] | None = None,
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """The risk-coverage curve in a few numbers.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    predicted : int [N], the decisions; None: the most probable classes
    threshold : confidence below which the model leaves an image to a human; None: it has none

    Returns
    -------
    dict with
        aurc : area under the risk-coverage curve, see `validation.risk_coverage_area`
        accuracy_at : dict "0.5", "0.8", "0.9" -> accuracy of the most certain images, at least that share of all
        at_threshold : None without a threshold, else its value, `images` and `coverage` that stay with the model, their
            `accuracy` and `balanced_accuracy`, and the `accuracy_of_rest`, what the model would have reached on those
            it leaves (near the other: leaving them is no use). NaN where there is no image.

    Raises
    ------
    UserError : as `classification.headline_metrics`
    """
    probabilities, labels = _checked(probabilities, labels)
    predicted = decided(probabilities, predicted)
    table = _every_point(probabilities, labels, predicted)
    reached = np.searchsorted(table["coverage"], np.array(REPORTED) - 1e-12)
    return {
        "aurc": risk_coverage_area(probabilities.max(axis=1), predicted != labels),
        "accuracy_at": {
            str(share): float(table["accuracy"].iloc[place]) for share, place in zip(REPORTED, reached, strict=True)
        },
        "at_threshold": None
        if threshold is None
        else _at_threshold(probabilities, labels, decided(probabilities, predicted), threshold),
    }


def _every_point(probabilities: NDArray, labels: NDArray, predicted: NDArray | None) -> pd.DataFrame:
    confidence, num_classes = probabilities.max(axis=1), probabilities.shape[1]
    order = np.argsort(-confidence, kind="stable")
    right = (decided(probabilities, predicted) == labels)[order]
    last_of_equals = np.append(np.flatnonzero(np.diff(confidence[order])), labels.size - 1)
    images = last_of_equals + 1
    members = labels[order, None] == np.arange(num_classes)
    support = members.cumsum(axis=0)[last_of_equals]
    hits = (members & right[:, None]).cumsum(axis=0)[last_of_equals]
    sensitivity = np.divide(hits, support, out=np.zeros(hits.shape), where=support > 0)
    return pd.DataFrame(
        {
            "coverage": images / labels.size,
            "accuracy": right.cumsum()[last_of_equals] / images,
            "balanced_accuracy": sensitivity.sum(axis=1) / (support > 0).sum(axis=1),
            "threshold": confidence[order][last_of_equals],
            "images": images,
        }
    )


def _at_threshold(
    probabilities: NDArray, labels: NDArray, predicted: NDArray, threshold: float
) -> dict[str, float | int]:
    stays = probabilities.max(axis=1) >= threshold
    num_classes = probabilities.shape[1]
    kept, rest = (confusion_metrics(confusion(labels[part], predicted[part], num_classes)) for part in (stays, ~stays))
    return {
        "threshold": float(threshold),
        "images": int(stays.sum()),
        "coverage": float(stays.mean()),
        "accuracy": float(kept["accuracy"]),
        "balanced_accuracy": float(kept["balanced_accuracy"]),
        "accuracy_of_rest": float(rest["accuracy"]),
    }


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    probabilities = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
    return check_predictions(probabilities, labels, [str(place) for place in range(probabilities.shape[1])])
