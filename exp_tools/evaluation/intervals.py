"""How far a metric could have come out otherwise: bootstrap over lesions.

Images of one lesion are near-copies of each other, so the unit that is drawn is the group (a lesion with its
near-duplicates), never the image; intervals by image would be too narrow. Efron and Tibshirani, An Introduction to the
Bootstrap, 1993; Field and Welsh, Bootstrapping clustered data, JRSS B 69:369, 2007.

A resample is a vector of weights, how often each image was drawn. Everything is computed from sums of weights: with all
resamples side by side those are products of one sparse matrix with the weights. The definitions are those of
`metrics.headline_metrics`; a test holds the two together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.calibration import confidence_bins
from exp_tools.evaluation.metrics import (
    check_predictions,
    confusion_metrics,
    log_losses,
    mean_defined,
    squared_errors,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CHUNK = 64  # resamples at a time: the tables of a chunk stay in the processor's cache


def bootstrap_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every headline metric.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    groups : [N], the lesion group of each image (any sortable values)
    classes : the C class names
    resamples : number of bootstrap resamples
    seed : of the resampling
    level : share of resamples that the interval holds, in (0, 1)

    Returns
    -------
    dict metric -> (low, high). Resamples in which a metric is undefined are left out; (nan, nan) where it is undefined
    in all, or with fewer than two groups, which say nothing about spread. Noise adds to the calibration error, so the
    interval of `ece` lies too high, on small sets above the point estimate.

    Raises
    ------
    UserError : as `metrics.headline_metrics`; groups that do not fit; a level outside (0, 1)
    """
    if not 0 < level < 1:
        raise UserError(f"The level of the intervals is {level}; expected a number between 0 and 1, such as 0.95.")
    samples = bootstrap_metric_samples(probabilities, labels, groups, classes, resamples=resamples, seed=seed)
    single = np.unique(np.asarray(groups)).size < 2
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, values in samples.items():
        defined = values[~np.isnan(values)]
        low, high = (np.nan, np.nan) if single or not defined.size else np.quantile(defined, tails)
        intervals[name] = (float(low), float(high))
    return intervals


def bootstrap_metric_samples(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Every headline metric on every resample: dict metric -> float [resamples], NaN where undefined.

    Two models scored with the same images, groups and seed see the same resamples, so that the difference of their
    samples is a paired bootstrap.

    Raises
    ------
    UserError : as `bootstrap_intervals`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    if resamples < 1:
        raise UserError(f"The number of bootstrap resamples is {resamples}; expected at least 1 (2000 is usual).")
    score = _weighted_scorer(probabilities, labels)
    parts = [score(weights) for weights in group_weights(groups, labels.size, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def group_weights(groups: ArrayLike, num_images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw as many groups as there are, with replacement, and yield how often each image comes: [N, up to CHUNK].

    Raises
    ------
    UserError : not one group an image, or an image without one
    """
    groups = np.asarray(groups)
    if groups.shape != (num_images,):
        raise UserError(f"{groups.size} groups do not match {num_images} images: one group_id an image was expected.")
    missing = np.flatnonzero([group is None or group != group for group in groups.tolist()])
    if missing.size:
        raise UserError(
            f"{missing.size} images have no group, the first is row {missing[0]} (counted from 0). Each image needs "
            "the group_id of its lesion; give images of unknown lesions a group of their own."
        )
    _, index = np.unique(groups, return_inverse=True)
    num_groups = index.max() + 1
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        columns = [
            np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
            for _ in range(start, min(start + CHUNK, resamples))
        ]
        yield np.stack(columns, axis=1).astype(np.float64)[index]


def _weighted_scorer(
    probabilities: NDArray, labels: NDArray
) -> Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """A function from weights [N, R] to the headline metrics [R] of each column; what can be is worked out once."""
    from scipy.sparse import csr_array

    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    bins, _ = confidence_bins(probabilities)
    gaps = (predicted == labels) - probabilities.max(axis=1)
    cells = _sums_by(labels * num_classes + predicted, num_classes**2)
    bin_gaps = _sums_by(bins, int(bins.max()) + 1, values=gaps)
    # Sparse although it is full: its products are the same whatever the number of threads.
    image_losses = csr_array(np.stack([squared_errors(probabilities, labels), log_losses(probabilities, labels)]))
    rankings = [_ranking_sums(probabilities[:, c], labels == c) for c in range(num_classes)]

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        total = weights.sum(axis=0)
        matrices = (cells @ weights).T.reshape(-1, num_classes, num_classes)
        brier, log_loss = (image_losses @ weights) / total
        ranking = np.array([_weighted_ranking(sums, weights) for sums in rankings])
        return {
            **confusion_metrics(matrices),
            "macro_auc": mean_defined(ranking[:, 0].T),
            "average_precision": mean_defined(ranking[:, 1].T),
            "brier": brier,
            "ece": np.abs(bin_gaps @ weights).sum(axis=0) / total,
            "log_loss": log_loss,
        }

    return score


def _sums_by(rows: NDArray, num_rows: int, values: NDArray | None = None) -> "csr_array":
    """Sparse [num_rows, N] whose product with weights sums them (times `values`) over the images of each row."""
    from scipy.sparse import csr_array

    values = np.ones(rows.size) if values is None else values
    return csr_array((values.astype(np.float64), (rows, np.arange(rows.size))), shape=(num_rows, rows.size))


def _ranking_sums(scores: NDArray, positive: NDArray[np.bool_]) -> "csr_array | None":
    """Sums of weights from which AUC and average precision follow; None for a class without images.

    Only the k distinct scores of positives matter as thresholds. From the highest down, the rows are k times the
    negatives above the threshold (and below the one before), then k times the negatives that share its score, then k
    times its positives. Negatives below every positive get a last row, for the total.
    """
    if not positive.any():
        return None
    thresholds = -np.unique(-scores[positive])
    k = thresholds.size
    place = np.searchsorted(-thresholds, -scores, side="left")
    shares = scores == thresholds[np.minimum(place, k - 1)]
    rows = np.select([positive, place == k, shares], [2 * k + place, 3 * k, k + place], default=place)
    return _sums_by(rows, 3 * k + 1)


def _weighted_ranking(sums: "csr_array | None", weights: NDArray) -> tuple[NDArray, NDArray]:
    """AUC and average precision [R] each, as `metrics.ranking_scores` defines them."""
    if sums is None:
        undefined = np.full(weights.shape[1], np.nan)
        return undefined, undefined
    table = sums @ weights
    above, sharing, gained = table[:-1].reshape(3, -1, weights.shape[1])
    hits = np.cumsum(gained, axis=0)
    false_alarms = np.cumsum(above + sharing, axis=0)
    positives, negatives = hits[-1], false_alarms[-1] + table[-1]
    beaten = negatives - false_alarms + sharing / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (gained * beaten).sum(axis=0) / (positives * negatives)
        # A threshold that nothing has reached in this resample gains nothing: 0 / 0 counts as 0.
        precision = np.divide(hits, hits + false_alarms, out=np.zeros_like(hits), where=hits > 0)
        average_precision = (gained * precision).sum(axis=0) / positives
    return auc, average_precision
