"""Scores of many resamples at once.

A resample is a vector of weights, how often each image was drawn. Everything is computed from sums of weights: with all
resamples side by side, [N, R], those are products of one sparse matrix with the weights. The definitions are those of
`classification.headline_metrics` and `classification.class_metrics`; a test holds them together.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.calibration import confidence_bins
from exp_tools.evaluation.metrics.classification import confusion_metrics, squared_errors
from exp_tools.evaluation.metrics.confusion import decided
from exp_tools.evaluation.validation import class_rates, log_losses, mean_defined

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Scorer = Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]


def headline_scorer(probabilities: NDArray, labels: NDArray, predicted: NDArray | None = None) -> Scorer:
    """A function from weights [N, R] to the headline metrics, [R] each; the constant part is computed once.

    Parameters
    ----------
    probabilities, labels : [N, C] and [N], as `validation.check_predictions` returns them
    predicted : [N], the decisions; None: the most probable classes
    """
    from scipy.sparse import csr_array

    num_classes = probabilities.shape[1]
    bins, _ = confidence_bins(probabilities)
    gaps = (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1)
    cells = confusion_sums(decided(probabilities, predicted), labels, num_classes)
    bin_gaps = sums_by(bins, int(bins.max()) + 1, values=gaps)
    # Sparse although it is full: its products are the same whatever the number of threads.
    image_losses = csr_array(np.stack([squared_errors(probabilities, labels), log_losses(probabilities, labels)]))
    rankings = [RankingSums(probabilities[:, c], labels == c) for c in range(num_classes)]
    certain = CertaintySums(probabilities.max(axis=1), decided(probabilities, predicted) != labels)

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        total = weights.sum(axis=0)
        brier, log_loss = (image_losses @ weights) / total
        areas, precisions = zip(*(sums.steps(weights).ranking_scores() for sums in rankings), strict=True)
        return {
            **confusion_metrics(matrices(cells, weights)),
            "macro_auc": mean_defined(np.stack(areas, axis=-1)),
            "average_precision": mean_defined(np.stack(precisions, axis=-1)),
            "brier": brier,
            "ece": np.abs(bin_gaps @ weights).sum(axis=0) / total,
            "log_loss": log_loss,
            "aurc": certain.area(weights),
        }

    return score


def class_scorer(probabilities: NDArray, labels: NDArray, predicted: NDArray | None = None) -> Scorer:
    """As `headline_scorer`, for the metrics of each class against the rest: [R, C] each."""
    num_classes = probabilities.shape[1]
    cells = confusion_sums(decided(probabilities, predicted), labels, num_classes)
    rankings = [RankingSums(probabilities[:, c], labels == c) for c in range(num_classes)]

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        areas, precisions = zip(*(sums.steps(weights).ranking_scores() for sums in rankings), strict=True)
        return class_rates(matrices(cells, weights)) | {
            "auc": np.stack(areas, axis=-1),
            "average_precision": np.stack(precisions, axis=-1),
        }

    return score


def confusion_sums(predicted: NDArray, labels: NDArray, num_classes: int) -> "csr_array":
    """The factor that `matrices` multiplies weights with."""
    return sums_by(labels * num_classes + predicted, num_classes**2)


def matrices(cells: "csr_array", weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted confusion matrices [R, C, C] of weights [N, R], true class in rows."""
    side = round(cells.shape[0] ** 0.5)
    return (cells @ weights).T.reshape(-1, side, side)


def sums_by(rows: NDArray, num_rows: int, values: NDArray | None = None) -> "csr_array":
    """Sparse [num_rows, N] whose product with weights sums them (times `values`) over the images of each row."""
    from scipy.sparse import csr_array

    values = np.ones(rows.size) if values is None else values
    return csr_array((values.astype(np.float64), (rows, np.arange(rows.size))), shape=(num_rows, rows.size))


class RocSteps(NamedTuple):
    """ROC curves of R weightings at the K distinct scores of positives, from the highest down; weights, not rates.

    gained [K, R] : positives at the threshold
    sharing [K, R] : negatives at the threshold
    hits, false_alarms [K, R] : positives and negatives at or above the threshold
    positives, negatives [R] : all there are
    """

    gained: NDArray[np.float64]
    sharing: NDArray[np.float64]
    hits: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]

    def ranking_scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AUC and average precision [R] each, as `validation.ranking_scores` defines them."""
        if not len(self.hits):
            undefined = np.full(self.negatives.shape, np.nan)
            return undefined, undefined
        beaten = self.negatives - self.false_alarms + self.sharing / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = (self.gained * beaten).sum(axis=0) / (self.positives * self.negatives)
            # A threshold that nothing has reached in this resample gains nothing: 0 / 0 counts as 0.
            flagged = self.hits + self.false_alarms
            precision = np.divide(self.hits, flagged, out=np.zeros_like(self.hits), where=self.hits > 0)
            average_precision = (self.gained * precision).sum(axis=0) / self.positives
        return auc, average_precision


class CertaintySums:
    """`validation.risk_coverage_area` under each weighting, as if an image of weight w were there w times."""

    def __init__(self, confidence: NDArray, wrong: NDArray[np.bool_]):
        steps, place = np.unique(-confidence, return_inverse=True)
        self.images = sums_by(place, steps.size)
        self.mistakes = sums_by(place, steps.size, values=wrong)

    def area(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R] of weights [N, R]."""
        from scipy.special import digamma

        images, mistakes = self.images @ weights, self.mistakes @ weights
        after, wrong_after = images.cumsum(axis=0), mistakes.cumsum(axis=0)
        before, wrong_before = after - images, wrong_after - mistakes
        share = np.divide(mistakes, images, out=np.zeros_like(images), where=images > 0)
        # Within images of equal confidence the n-th has (wrong_before + share (n - before)) / n wrong before it.
        sums = mistakes + (wrong_before - share * before) * (digamma(after + 1) - digamma(before + 1))
        return sums.sum(axis=0) / weights.sum(axis=0)


class RankingSums:
    """One class against the rest: `steps(weights)` is its ROC curve under each weighting.

    Only the K distinct scores of positives matter as thresholds. From the highest down, the rows of the matrix are K
    times the negatives above the threshold (and below the one before), then K times the negatives that share its score,
    then K times its positives. Negatives below every positive get a last row, for the total.
    """

    def __init__(self, scores: NDArray, positive: NDArray[np.bool_]):
        thresholds = -np.unique(-scores[positive])
        k = thresholds.size
        place = np.searchsorted(-thresholds, -scores, side="left")
        shares = scores == np.append(thresholds, np.nan)[place]
        rows = np.select([positive, place == k, shares], [2 * k + place, 3 * k, k + place], default=place)
        self.sums = sums_by(rows, 3 * k + 1)

    def area(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first of `steps(weights).ranking_scores()`, the AUC [R], in half the time."""
        table = self.sums @ weights
        above, sharing, gained = table[:-1].reshape(3, -1, weights.shape[1])
        if not len(gained):
            return np.full(weights.shape[1], np.nan)
        negatives = (above + sharing).sum(axis=0) + table[-1]
        beaten = negatives - np.cumsum(above + sharing, axis=0) + sharing / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return (gained * beaten).sum(axis=0) / (gained.sum(axis=0) * negatives)

    def steps(self, weights: NDArray[np.float64]) -> RocSteps:
        table = self.sums @ weights
        above, sharing, gained = table[:-1].reshape(3, -1, weights.shape[1])
        hits = np.cumsum(gained, axis=0)
        false_alarms = np.cumsum(above + sharing, axis=0)
        return RocSteps(
            gained, sharing, hits, false_alarms, gained.sum(axis=0), (above + sharing).sum(axis=0) + table[-1]
        )
