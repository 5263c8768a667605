"""Calibration errors and reliability: whether a probability is the frequency that it claims.

Confidence is the probability of the predicted class. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import check_logits, distances_below_top, log_loss_at, softmax

Scheme = Literal["width", "mass"]
SCHEMES: tuple[Scheme, ...] = ("width", "mass")


def calibration_report(logits: ArrayLike, labels: ArrayLike, calibration: Calibration) -> dict[str, Any]:
    """How well probabilities are calibrated, as softmax of the logits and with temperature and bias.

    Parameters
    ----------
    logits : float [N, C]
    labels : int [N], values in 0..C-1
    calibration : of the model

    Returns
    -------
    dict with `temperature`, `bias` (class order), and `before` and `after`, each a dict of
        ece_width, ece_mass : expected calibration error over 15 bins of equal width, or of about equally many images
        ece_classwise : mean over the classes of the error of each class's probability, over bins of equally many images
        log_loss : mean negative log-likelihood in nats, exact where a probability would round to 0
        brier : mean squared distance between the probabilities and the one-hot label, 0 to 2
    All NaN for N = 0.

    Raises
    ------
    UserError : as `softmax`
    """
    logits, labels = check_logits(logits), np.asarray(labels)
    report: dict[str, Any] = {"temperature": calibration.temperature, "bias": calibration.bias}
    for when, scaled in (("before", logits), ("after", calibration.scaled(logits))):
        if not labels.size:
            report[when] = dict.fromkeys(("ece_width", "ece_mass", "ece_classwise", "log_loss", "brier"), float("nan"))
            continue
        probabilities = softmax(scaled)
        report[when] = {
            f"ece_{scheme}": expected_calibration_error(probabilities, labels, scheme=scheme) for scheme in SCHEMES
        }
        report[when]["ece_classwise"] = classwise_error(probabilities, labels)
        report[when]["log_loss"] = log_loss_at(distances_below_top(scaled, labels), 1.0)
        distances = ((probabilities - np.eye(logits.shape[1])[labels]) ** 2).sum(axis=1)
        report[when]["brier"] = float(distances.mean())
    return report


def confidence_bins(
    probabilities: NDArray, *, bins: int = 15, scheme: Scheme = "width"
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bin [N] that each prediction's confidence falls in, and the edges [bins + 1].

    A bin reaches from above its lower edge to its upper edge inclusive. "width": equal steps from 0 to 1. "mass": edges
    at the quantiles of the confidences, so that bins hold about as many images; equal confidences share a bin.
    """
    if scheme not in SCHEMES:
        raise UserError(f"The binning scheme is {scheme!r}; choose width or mass.")
    confidence = probabilities.max(axis=1)
    steps = np.linspace(0.0, 1.0, bins + 1)
    edges = steps if scheme == "width" or not confidence.size else np.quantile(confidence, steps)
    # Rounding in a softmax can lift a confidence a hair above 1, or a quantile above the largest value.
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1), edges


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, scheme: Scheme = "width"
) -> float:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by the images in each.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    bins : number of bins
    scheme : "width" for bins of equal width, "mass" for bins of about equally many images

    Returns
    -------
    float in 0..1; 0 is perfect. NaN for N = 0. Biased upwards on small sets: noise alone opens gaps.

    References
    ----------
    Guo et al. 2017; for equal mass Nguyen and O'Connor, EMNLP 2015.
    """
    table = reliability_bins(probabilities, labels, bins=bins, scheme=scheme)
    if table.empty:
        return float("nan")
    gaps = (table["accuracy"] - table["confidence"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def classwise_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, bins: int = 15) -> float:
    """Mean over classes of the gap between a class's probability and its frequency, over bins of equally many images.

    float in 0..1; 0 is perfect. Kull et al., Beyond temperature scaling, NeurIPS 2019.
    """
    errors = []
    for place in range(probabilities.shape[1]):
        scores = probabilities[:, place]
        edges = np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1])
        index = np.searchsorted(edges, scores, side="left")
        gaps = np.bincount(index, weights=(labels == place) - scores, minlength=bins)
        errors.append(np.abs(gaps).sum() / scores.size)
    return float(np.mean(errors))


def reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, scheme: Scheme = "width"
) -> pd.DataFrame:
    """The points of a reliability diagram; a bin without an image has no row.

    Returns
    -------
    DataFrame [bin_low, bin_high, confidence (mean), accuracy, count]
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    index, edges = confidence_bins(probabilities, bins=bins, scheme=scheme)
    count = np.bincount(index, minlength=bins)
    filled = np.flatnonzero(count)
    confidence = np.bincount(index, weights=probabilities.max(axis=1), minlength=bins)
    correct = np.bincount(index, weights=probabilities.argmax(axis=1) == labels, minlength=bins)
    return pd.DataFrame(
        {
            "bin_low": edges[filled],
            "bin_high": edges[filled + 1],
            "confidence": confidence[filled] / count[filled],
            "accuracy": correct[filled] / count[filled],
            "count": count[filled],
        }
    )


def reliability_before_after(logits: ArrayLike, labels: ArrayLike, calibration: Calibration) -> pd.DataFrame:
    """Reliability points without and with calibration, over bins of both schemes.

    Returns
    -------
    DataFrame [scheme (width, mass), calibration (before, after), then the columns of `reliability_bins`]; floats are
    rounded to six decimals
    """
    parts = []
    for scheme in SCHEMES:
        for when, probabilities in (("before", softmax(logits)), ("after", calibration.probabilities(logits))):
            table = reliability_bins(probabilities, labels, scheme=scheme)
            table.insert(0, "scheme", scheme)
            table.insert(1, "calibration", when)
            parts.append(table)
    return pd.concat(parts, ignore_index=True).round(6)
