"""Curves as long tables, one row per point, small enough for Git: what `dvc plots` and our own figures draw."""

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.validation import check_predictions, confusion, threshold_counts

MAX_POINTS = 200
AVERAGE = "mean of classes"
BAR_METRICS = ("sensitivity", "specificity", "precision", "f1")


def roc_points(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> pd.DataFrame:
    """ROC curve of each class against the rest, from (0, 0) to (1, 1); the trapezoids below it sum to the AUC.

    A class without positives or without negatives has no curve and no rows.

    Returns
    -------
    DataFrame [class, false_positive_rate, true_positive_rate], at most 200 points per class, in drawing order

    Raises
    ------
    UserError : as `classification.headline_metrics`
    """

    def curve(hits: NDArray, false_alarms: NDArray) -> NDArray | None:
        if not hits[-1] or not false_alarms[-1]:
            return None
        points = np.column_stack([false_alarms / false_alarms[-1], hits / hits[-1]])
        return np.vstack([[0.0, 0.0], points])

    return _curves(probabilities, labels, classes, curve, ["false_positive_rate", "true_positive_rate"])


def precision_recall_points(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> pd.DataFrame:
    """Precision-recall curve of each class against the rest, with the corners of its steps.

    Drawn with straight lines it is the step curve whose area is the average precision; a line from one operating point
    to the next would promise precisions that no threshold reaches (Davis and Goadrich, ICML 2006). A class without
    positives has no rows.

    Returns
    -------
    DataFrame [class, recall, precision], at most 200 points per class, in drawing order (recall rises)

    Raises
    ------
    UserError : as `classification.headline_metrics`
    """

    def curve(hits: NDArray, false_alarms: NDArray) -> NDArray | None:
        if not hits[-1]:
            return None
        gains = np.diff(hits, prepend=0) > 0
        recall = hits[gains] / hits[-1]
        precision = hits[gains] / (hits[gains] + false_alarms[gains])
        before = np.concatenate([[0.0], recall[:-1]])
        return np.column_stack([np.column_stack([before, recall]).ravel(), precision.repeat(2)])

    return _curves(probabilities, labels, classes, curve, ["recall", "precision"])


def averaged(points: pd.DataFrame, single: str | None) -> pd.DataFrame:
    """The mean of the curves of all classes, and that of one class: enough to compare runs by.

    Parameters
    ----------
    points : `roc_points` or `precision_recall_points`
    single : a class to keep; None, or one without a curve: none

    Returns
    -------
    the same columns, with the class AVERAGE and `single`; the mean is that of the heights at 101 places
    """
    if points.empty:
        return points
    _, x, y = points.columns
    places = np.linspace(0, 1, 101)
    curves = [part for _, part in points.groupby("class", sort=False)]
    heights = np.mean([np.interp(places, part[x], part[y]) for part in curves], axis=0)
    mean = pd.DataFrame({"class": AVERAGE, x: places, y: heights}).round(6)
    return pd.concat([mean, points[points["class"] == single]], ignore_index=True)


def confusion_pairs(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> pd.DataFrame:
    """The class codes of each image, for DVC's `confusion` templates: DataFrame [actual, predicted], a row per image.

    Rows are sorted, so that equal confusion matrices are equal tables.

    Raises
    ------
    UserError : lengths differ, or a value is not a class
    """
    counts = confusion(labels, predicted, len(classes)).ravel()
    actual, guess = np.divmod(np.repeat(np.arange(counts.size), counts), len(classes))
    codes = np.asarray(classes, dtype=object)
    return pd.DataFrame({"actual": codes[actual], "predicted": codes[guess]})


def class_bars(per_class: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = BAR_METRICS) -> pd.DataFrame:
    """`classification.class_metrics` as a long table for bars: DataFrame [class, metric, value], without NaN."""
    rows = [(code, metric, row[metric]) for metric in metrics for code, row in per_class.items()]
    return pd.DataFrame(rows, columns=["class", "metric", "value"]).dropna(ignore_index=True).round(6)


def thin_curve(points: NDArray[np.float64], limit: int = MAX_POINTS) -> NDArray[np.float64]:
    """At most `limit` of the points [K, 2] of a line, chosen so that the line looks the same.

    Both ends are kept; then the point farthest from the line so far is added, again and again, until all that is left
    lies on it or the limit is reached (Douglas and Peucker, Cartographica 10:112, 1973, by priority).
    """
    kept = {0, len(points) - 1}
    queue: list[tuple[float, int, int, int]] = []

    def consider(start: int, end: int) -> None:
        if end - start < 2:
            return
        chord, inner = points[end] - points[start], points[start + 1 : end] - points[start]
        length = np.hypot(*chord)
        if length == 0:
            distance = np.hypot(inner[:, 0], inner[:, 1])
        else:
            distance = np.abs(inner[:, 0] * chord[1] - inner[:, 1] * chord[0]) / length
        farthest = int(distance.argmax())
        if distance[farthest] > 1e-9:
            heapq.heappush(queue, (-float(distance[farthest]), start, start + 1 + farthest, end))

    consider(0, len(points) - 1)
    while queue and len(kept) < limit:
        _, start, middle, end = heapq.heappop(queue)
        kept.add(middle)
        consider(start, middle)
        consider(middle, end)
    return points[sorted(kept)]


def _curves(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    curve: Callable[[NDArray, NDArray], NDArray | None],
    axes: Sequence[str],
) -> pd.DataFrame:
    probabilities, labels = check_predictions(probabilities, labels, classes)
    parts = []
    for c, code in enumerate(classes):
        points = curve(*threshold_counts(probabilities[:, c], labels == c))
        if points is not None:
            part = pd.DataFrame(thin_curve(points).round(6), columns=list(axes))
            part.insert(0, "class", code)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["class", *axes])
