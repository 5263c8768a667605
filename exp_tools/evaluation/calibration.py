"""Whether a probability means what it says, and the one number that mends most of it.

Confidence is the probability of the predicted class. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from decimal import ROUND_FLOOR, Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError

Scheme = Literal["width", "mass"]
SCHEMES: tuple[Scheme, ...] = ("width", "mass")
TEMPERATURE_BOUNDS = (0.05, 20.0)


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities [N, C] of raw logits [N, C] divided by a temperature (> 0; above 1 softens, below 1 sharpens).

    Raises
    ------
    UserError : a logit is NaN or infinite, or the temperature is not positive
    """
    logits = _check_logits(logits)
    if not 0 < temperature < np.inf:
        raise UserError(f"The temperature is {temperature}; expected a positive number (1 leaves logits as they are).")
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that gives validation logits [N, C] the lowest log-loss against their labels [N].

    The search is bounded to 0.05..20 (a validation set without a mistake has no optimum: it asks for ever sharper
    probabilities). Deterministic. 1.0 for an empty set. Never changes which class is predicted.

    Raises
    ------
    UserError : a logit is NaN or infinite

    References
    ----------
    Guo et al. 2017, section 4.2 (temperature scaling).
    """
    from scipy.optimize import minimize_scalar

    labels = np.asarray(labels)
    if labels.size == 0:
        return 1.0
    behind = _behind(_check_logits(logits), labels)
    low, high = np.log(TEMPERATURE_BOUNDS)
    best = minimize_scalar(
        lambda log_temperature: _log_loss(behind, np.exp(log_temperature)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))


def choose_abstention(probabilities: ArrayLike, share: float) -> float:
    """The confidence below which the least certain `share` of the validation images lies.

    A model that leaves to a human what is less certain than this (confidence < threshold) leaves `share` of images like
    those of validation, never more: images whose confidence equals the threshold stay with the model.

    Parameters
    ----------
    probabilities : float [N, C] of the validation images, as the model gives them out (after the temperature)
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
    return float(Decimal(repr(float(confidence[left]))).quantize(Decimal("1e-6"), ROUND_FLOOR))


def calibration_report(logits: ArrayLike, labels: ArrayLike, temperature: float) -> dict[str, Any]:
    """How well probabilities are calibrated without the temperature and with it.

    Parameters
    ----------
    logits : float [N, C]
    labels : int [N], values in 0..C-1
    temperature : by which the model divides its logits

    Returns
    -------
    dict with `temperature`, and `before` and `after`, each a dict of
        ece_width, ece_mass : expected calibration error over 15 bins of equal width, or of about equally many images
        log_loss : mean negative log-likelihood in nats, exact where a probability would round to 0
        brier : mean squared distance between the probabilities and the one-hot label, 0 to 2
    All NaN for N = 0.

    Raises
    ------
    UserError : as `softmax`
    """
    logits, labels = _check_logits(logits), np.asarray(labels)
    report: dict[str, Any] = {"temperature": float(temperature)}
    for calibration, divisor in (("before", 1.0), ("after", temperature)):
        if not labels.size:
            report[calibration] = dict.fromkeys(("ece_width", "ece_mass", "log_loss", "brier"), float("nan"))
            continue
        probabilities = softmax(logits, divisor)
        report[calibration] = {
            f"ece_{scheme}": expected_calibration_error(probabilities, labels, scheme=scheme) for scheme in SCHEMES
        }
        report[calibration]["log_loss"] = _log_loss(_behind(logits, labels), divisor)
        distances = ((probabilities - np.eye(logits.shape[1])[labels]) ** 2).sum(axis=1)
        report[calibration]["brier"] = float(distances.mean())
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


def reliability_before_after(logits: ArrayLike, labels: ArrayLike, temperature: float) -> pd.DataFrame:
    """Reliability points without and with the temperature, over bins of both schemes.

    Returns
    -------
    DataFrame [scheme (width, mass), calibration (before, after), then the columns of `reliability_bins`]; floats are
    rounded to six decimals
    """
    parts = []
    for scheme in SCHEMES:
        for calibration, divisor in (("before", 1.0), ("after", temperature)):
            table = reliability_bins(softmax(logits, divisor), labels, scheme=scheme)
            table.insert(0, "scheme", scheme)
            table.insert(1, "calibration", calibration)
            parts.append(table)
    return pd.concat(parts, ignore_index=True).round(6)


def _behind(logits: NDArray[np.float64], labels: NDArray) -> NDArray[np.float64]:
    """How far each logit [N, C] lies above that of the true class."""
    return logits - logits[np.arange(labels.size), labels][:, None]


def _log_loss(behind: NDArray[np.float64], temperature: float) -> float:
    from scipy.special import logsumexp

    return float(logsumexp(behind / temperature, axis=1).mean())


def _check_logits(logits: ArrayLike) -> NDArray[np.float64]:
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
