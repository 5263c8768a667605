"""The expected cost of mistakes, where some are worse than others: a missed melanoma, a needless excision.

`evaluate.costs` only reports them. To decide by costs, set `calibration.decide: costs`; see `probabilities`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.bootstrap import weighted_intervals
from exp_tools.evaluation.metrics.catalogue import DIFFERENCE, LOSS
from exp_tools.evaluation.metrics.confusion import decided
from exp_tools.evaluation.probabilities import cost_matrix, least_cost_decisions
from exp_tools.evaluation.validation import check_predictions, confusion


def cost_report(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    costs: Mapping[str, Mapping[str, float]],
    predicted: NDArray[np.int64] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean cost per image of the model's decisions, and of the class of least expected cost.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    groups : [N], the lesion group of each image
    classes : the C class names
    costs : true class -> predicted class -> cost, 0 or more. A mistake that is not named costs 1, a right answer 0.
    predicted : int [N], the model's decisions; None: the most probable classes
    resamples, seed : of the bootstrap behind the intervals

    Returns
    -------
    dict with
        matrix : true class -> predicted class -> cost, complete
        mean_cost : {"decided", "least_expected_cost", "saved"}; saved is the first less the second
        intervals : of the three, {"low", "high"}, 95 %
        confusion : {"decided", "least_expected_cost"}, true class -> predicted class -> images
        changed : share of images that the two rules decide differently

    Raises
    ------
    UserError : as `classification.headline_metrics`; costs of an unknown class, below 0, or no number
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    matrix = cost_matrix(costs, classes)
    decisions = {
        "decided": decided(probabilities, predicted),
        "least_expected_cost": least_cost_decisions(probabilities, matrix),
    }
    paid = {rule: matrix[labels, classes_of] for rule, classes_of in decisions.items()}
    paid["saved"] = paid["decided"] - paid["least_expected_cost"]

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        total = weights.sum(axis=0)
        return {name: np.einsum("n,nr->r", values, weights) / total for name, values in paid.items()}

    scales = {"decided": LOSS, "least_expected_cost": LOSS, "saved": DIFFERENCE}
    intervals = weighted_intervals(score, groups, labels.size, resamples=resamples, seed=seed, scales=scales)
    counts = {rule: confusion(labels, classes_of, len(classes)) for rule, classes_of in decisions.items()}
    return {
        "matrix": _by_class(matrix, classes),
        "mean_cost": {name: float(values.mean()) for name, values in paid.items()},
        "intervals": {name: {"low": low, "high": high} for name, (low, high) in intervals.items()},
        "confusion": {rule: _by_class(table, classes) for rule, table in counts.items()},
        "changed": float((decisions["decided"] != decisions["least_expected_cost"]).mean()),
    }


def _by_class(table: NDArray, classes: Sequence[str]) -> dict[str, dict[str, float | int]]:
    return {true: dict(zip(classes, table[t].tolist(), strict=True)) for t, true in enumerate(classes)}
