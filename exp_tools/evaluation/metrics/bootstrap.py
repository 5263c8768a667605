"""Intervals of metrics: bootstrap over lesions.

Images of one lesion are near-copies of each other, so the unit that is drawn is the group (a lesion with its
near-duplicates), never the image; intervals by image would be too narrow. Efron and Tibshirani, An Introduction to the
Bootstrap, 1993; Field and Welsh, Bootstrapping clustered data, JRSS B 69:369, 2007.

The resamples give the standard error; the interval is estimate ± t · standard error on the scale on which the metric
is nearly normal (log-odds for a share, and for a correlation over its own range; logarithm for a loss), and carried
back. So it never leaves the metric's range, holds the estimate, and is longer towards the middle. Percentiles of the
resamples, the usual choice, are too short near 0 and 1: for a macro AUC of 0.996 from 50 lesions in the rarest class
they held the truth about 76 times in 100 (two classes; for all other scores see `benchmarks/statistics.py`).

t has as many degrees of freedom as the standard error deserves (Satterthwaite, Biometrics Bulletin 2:110, 1946): when a
few lesions make up most of the spread (the few mistakes of a good model), it is itself uncertain and t is large. How
much a lesion makes up is its covariance with the metric over the resamples (Efron, JASA 109:991, 2014, eq. 3.6).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.catalogue import HEADLINE, SHARE, Scale
from exp_tools.evaluation.metrics.confusion import decided
from exp_tools.evaluation.metrics.weighted import Scorer, class_scorer, headline_scorer
from exp_tools.evaluation.validation import check_predictions

CHUNK = 64  # resamples at a time: the tables of a chunk stay in the processor's cache
SMALL_GROUPS = 10  # an interval from fewer lesions is marked: it is no more than a hint
# With one or two mistakes there are fewer degrees, but they lengthen intervals more than they help coverage.
FEWEST_DEGREES = 8


def bootstrap_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    predicted: NDArray[np.int64] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Intervals of every headline metric.

    Parameters
    ----------
    probabilities : float [N, C], rows sum to 1
    labels : int [N], values in 0..C-1
    groups : [N], the lesion group of each image (any sortable values)
    classes : the C class names
    resamples : number of bootstrap resamples
    seed : of the resampling
    level : share of such intervals that hold the truth, in (0, 1)

    Returns
    -------
    dict metric -> (low, high), as `weighted_intervals` gives them. The calibration error of a sample lies above the
    true one, the more so the smaller the sample, and its interval with it.

    Raises
    ------
    UserError : as `classification.headline_metrics`; groups that do not fit; a level outside (0, 1)
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    groups = _check_groups(groups, labels.size)
    present = [np.unique(groups[labels == c]).size for c in np.unique(labels)]
    # A mean over classes is as sure as its rarest class. One lesion of it still leaves the spread of the others.
    rarest, every = max(min(present), 2), np.unique(groups).size
    scorer = headline_scorer(probabilities, labels, predicted)
    names = scorer(np.ones((labels.size, 1)))
    units = {name: every if HEADLINE[name].over_all else min(rarest, every) for name in names}
    scales = {name: HEADLINE[name].scale for name in names}
    draws = {"resamples": resamples, "seed": seed, "level": level}
    return weighted_intervals(scorer, groups, labels.size, **draws, scales=scales, units=units)


def class_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    predicted: NDArray[np.int64] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """95 % intervals of each class against the rest.

    Returns
    -------
    dict class -> metric -> {"low", "high", "small"} for sensitivity, specificity, precision, f1, auc and
    average_precision. `small`: the metric rests on fewer than SMALL_GROUPS lesion groups (those of the class for
    sensitivity and F1; of the rest for specificity; with an image predicted as the class for precision; the fewer of
    both sides for auc and average_precision).

    Raises
    ------
    UserError : as `bootstrap_intervals`
    """
    probabilities, labels = check_predictions(probabilities, labels, classes)
    groups = _check_groups(groups, labels.size)
    scorer = class_scorer(probabilities, labels, predicted)
    units: dict[Any, int] = {}
    for c, code in enumerate(classes):
        sides = (labels == c, labels != c, decided(probabilities, predicted) == c)
        positives, negatives, flagged = (np.unique(groups[side]).size for side in sides)
        both = min(positives, negatives)
        rests_on = {"sensitivity": positives, "specificity": negatives, "precision": flagged, "f1": positives}
        rests_on |= {"auc": both, "average_precision": both}
        units |= {(code, metric): count for metric, count in rests_on.items()}

    def score(weights: NDArray[np.float64]) -> dict[Any, NDArray[np.float64]]:
        tables = scorer(weights)
        return {(code, metric): tables[metric][:, c] for c, code in enumerate(classes) for metric in tables}

    intervals = weighted_intervals(score, groups, labels.size, resamples=resamples, seed=seed, units=units)
    table: dict[str, dict[str, dict[str, Any]]] = {code: {} for code in classes}
    for (code, metric), (low, high) in intervals.items():
        table[code][metric] = {"low": low, "high": high, "small": units[code, metric] < SMALL_GROUPS}
    return table


class Spread(NamedTuple):
    """What the bootstrap found of one statistic: enough for its interval at any level.

    estimate, deviation, freedom : the value, the standard deviation of the resamples and its degrees of freedom
    scale, units : on which the interval is computed, and how many lesion groups the statistic rests on
    """

    estimate: float
    deviation: float
    freedom: float
    scale: Scale
    units: int

    def interval(self, level: float) -> tuple[float, float]:
        """(low, high); (nan, nan) where there is nothing to tell the spread from."""
        if math.isnan(self.deviation):
            return float("nan"), float("nan")
        return _interval(self.estimate, self.deviation, self.freedom, level, self.scale, self.units)


def weighted_intervals(
    score: Scorer,
    groups: ArrayLike,
    num_images: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    scales: Mapping[Any, Scale] | None = None,
    units: Mapping[Any, int] | None = None,
) -> dict[Any, tuple[float, float]]:
    """Intervals of any statistic that is a function of how often each image was drawn: dict name -> (low, high).

    Parameters as in `weighted_spreads`; `level` as in `bootstrap_intervals`. (nan, nan) where a value is undefined on
    the images themselves, or rests on fewer than two groups, which say nothing about spread. A share of exactly 1 (or
    0) leaves the bootstrap no spread either: its interval is that of n right out of n groups (Clopper and Pearson,
    Biometrika 26:404, 1934).

    Raises
    ------
    UserError : groups that do not fit, a level outside (0, 1), resamples below 1
    """
    if not 0 < level < 1:
        raise UserError(f"The level of the intervals is {level}; expected a number between 0 and 1, such as 0.95.")
    spreads = weighted_spreads(score, groups, num_images, resamples=resamples, seed=seed, scales=scales, units=units)
    return {name: spread.interval(level) for name, spread in spreads.items()}


def weighted_spreads(
    score: Scorer,
    groups: ArrayLike,
    num_images: int,
    *,
    resamples: int,
    seed: int,
    scales: Mapping[Any, Scale] | None = None,
    units: Mapping[Any, int] | None = None,
) -> dict[Any, Spread]:
    """How far any statistic could have come out otherwise, by a bootstrap of lesion groups.

    Parameters
    ----------
    score : function from weights [N, R] to a dict name -> values [R], NaN where undefined; such resamples are left out
    groups : [N], the lesion group of each image
    num_images : N
    resamples, seed : as in `bootstrap_intervals`
    scales : of the names that are not SHARE (0..1)
    units : on how many lesion groups a name rests, where not on all
    """
    groups = _check_groups(groups, num_images)
    distinct, first = np.unique(groups, return_index=True)
    estimates = {name: float(value[0]) for name, value in score(np.ones((num_images, 1))).items()}
    centre = np.array(list(estimates.values()))[:, None]
    products, counts, parts = 0.0, 0.0, []
    for weights in group_weights(groups, num_images, resamples, seed):
        values = score(weights)
        shifts = np.stack([values[name] for name in estimates]) - centre
        parts.append(shifts)
        drawn = weights[first]
        # einsum, for the same sums whatever the number of threads.
        products = products + np.einsum("kr,gr->kg", np.nan_to_num(shifts), drawn)
        counts = counts + np.einsum("kr,gr->kg", (~np.isnan(shifts)).astype(float), drawn)
    every = np.concatenate(parts, axis=1)
    spreads = {}
    for k, (name, estimate) in enumerate(estimates.items()):
        shifts = every[k][~np.isnan(every[k])]
        rests_on = distinct.size if units is None else units.get(name, distinct.size)
        scale = SHARE if scales is None else scales.get(name, SHARE)
        if np.isnan(estimate) or min(rests_on, distinct.size) < 2 or not shifts.size:
            spreads[name] = Spread(estimate, float("nan"), float("nan"), scale, rests_on)
            continue
        influences = (products[k] - shifts.mean() * counts[k]) / shifts.size
        deviation = float(shifts.std())
        spreads[name] = Spread(
            estimate, deviation, _degrees_of_freedom(influences, deviation, shifts.size), scale, rests_on
        )
    return spreads


def _degrees_of_freedom(influences: NDArray, spread: float, resamples: int) -> float:
    """Satterthwaite's: 2 over the sum of the fourth powers of the groups' parts in the spread; no fewer than 8."""
    if spread == 0:
        return np.inf
    shares = influences / spread
    # Each share has an error of variance 1 / resamples, whose fourth powers add up over thousands of groups.
    excess = 3 * influences.size / resamples**2 + 6 / resamples
    fourth = (shares**4).sum() - excess
    return max(2 / fourth, FEWEST_DEGREES) if fourth > 0 else np.inf


def _interval(
    estimate: float, spread: float, freedom: float, level: float, scale: Scale, units: int
) -> tuple[float, float]:
    from scipy.special import expit, logit, stdtrit

    if scale.kind == "share":
        width = scale.high - scale.low
        place, spread = (estimate - scale.low) / width, spread / width
        if not 0 < place < 1:
            reach = 1 - ((1 - level) / 2) ** (1 / units)
            low, high = (0.0, reach) if place <= 0 else (1 - reach, 1.0)
        else:
            half = float(spread * stdtrit(freedom, (1 + level) / 2))
            low, high = expit(logit(place) + np.array([-1, 1]) * half / (place * (1 - place)))
        return scale.low + width * float(low), scale.low + width * float(high)
    half = float(spread * stdtrit(freedom, (1 + level) / 2))
    if scale.kind == "difference" or estimate <= 0:
        return estimate - half, estimate + half
    factor = math.exp(half / estimate)
    return estimate / factor, estimate * factor


def bootstrap_metric_samples(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    classes: Sequence[str],
    predicted: NDArray[np.int64] | None = None,
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
    score = headline_scorer(probabilities, labels, predicted)
    parts = [score(weights) for weights in group_weights(groups, labels.size, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def group_weights(groups: ArrayLike, num_images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw as many groups as there are, with replacement, and yield how often each image comes: [N, up to CHUNK].

    Raises
    ------
    UserError : not one group per image, an image without one, or fewer resamples than one
    """
    if resamples < 1:
        raise UserError(f"The number of bootstrap resamples is {resamples}; expected at least 1 (2000 is usual).")
    groups = _check_groups(groups, num_images)
    _, index = np.unique(groups, return_inverse=True)
    num_groups = index.max() + 1
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        width = min(CHUNK, resamples - start)
        drawn = generator.integers(num_groups, size=(width, num_groups)) + num_groups * np.arange(width)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=width * num_groups).reshape(width, num_groups)
        yield counts.T.astype(np.float64)[index]


def _check_groups(groups: ArrayLike, num_images: int) -> NDArray:
    groups = np.asarray(groups)
    if groups.shape != (num_images,):
        raise UserError(f"{groups.size} groups do not match {num_images} images: one group_id per image was expected.")
    missing = np.flatnonzero([group is None or group != group for group in groups.tolist()])
    if missing.size:
        raise UserError(
            f"{missing.size} images have no group, the first is row {missing[0]} (counted from 0). Each image needs "
            "the group_id of its lesion; give images of unknown lesions a group of their own."
        )
    return groups
