"""Curve tables: points by hand and by scikit-learn, thinned without a visible change."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import class_metrics
from exp_tools.evaluation.plots.points import (
    MAX_POINTS,
    class_bars,
    confusion_pairs,
    precision_recall_points,
    roc_points,
    thin_curve,
)
from exp_tools.evaluation.validation import confusion


def binary(scores):
    return np.column_stack([1 - np.asarray(scores), scores])


def draw(images, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=[0.7, 0.25, 0.05])
    probabilities = np.exp(rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels])
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def of_class(table, code):
    return table.loc[table["class"] == code].iloc[:, 1:].to_numpy()


def test_curves_by_hand():
    # mel is 1: hit at 0.9, miss at 0.8, a hit and a miss share 0.5.
    probabilities, labels = binary([0.9, 0.8, 0.5, 0.5]), [1, 0, 1, 0]
    roc = of_class(roc_points(probabilities, labels, ["nv", "mel"]), "mel")
    assert roc.tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [1, 1]]
    recall_precision = of_class(precision_recall_points(probabilities, labels, ["nv", "mel"]), "mel")
    assert recall_precision.tolist() == [[0, 1], [0.5, 1], [0.5, 0.5], [1, 0.5]]


def test_columns_and_order():
    probabilities, labels = draw(300)
    for table, columns in (
        (roc_points(probabilities, labels, ["bcc", "mel", "nv"]), ["false_positive_rate", "true_positive_rate"]),
        (precision_recall_points(probabilities, labels, ["bcc", "mel", "nv"]), ["recall", "precision"]),
    ):
        assert list(table.columns) == ["class", *columns]
        assert table["class"].unique().tolist() == ["bcc", "mel", "nv"]
        assert (table.groupby("class")[columns[0]].diff().dropna() >= 0).all()
        assert (table[columns].round(6) == table[columns]).all(axis=None)
        assert table.groupby("class").size().max() <= MAX_POINTS


@pytest.mark.parametrize(("images", "tolerance"), [(60, 1e-5), (10_000, 5e-4)])  # six decimals; thinned
def test_areas_and_points_are_those_of_scikit_learn(images, tolerance):
    probabilities, labels = draw(images)
    roc, recall_precision = (f(probabilities, labels, list("abc")) for f in (roc_points, precision_recall_points))
    for c, code in enumerate("abc"):
        positive, scores = labels == c, probabilities[:, c]
        x, y = of_class(roc, code).T
        assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(positive, scores), abs=tolerance)
        false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
        assert distance_to_line(np.column_stack([false_rate, true_rate]), x, y) < 0.004
        recall, precision = of_class(recall_precision, code).T
        assert np.trapezoid(precision, recall) == pytest.approx(
            average_precision_score(positive, scores), abs=tolerance
        )
        if images == 60:  # nothing is thinned: corners are scikit-learn's points
            known = set(zip(*np.round(precision_recall_curve(positive, scores)[1::-1], 6).tolist(), strict=True))
            steps_end = np.append(np.diff(precision) != 0, True)
            assert {tuple(point) for point in np.column_stack([recall, precision])[steps_end]} <= known


def distance_to_line(points, x, y):
    """Largest distance from points to the polyline through (x, y)."""
    start, step = np.column_stack([x, y])[:-1], np.diff(np.column_stack([x, y]), axis=0)
    length = np.maximum((step**2).sum(axis=1), 1e-18)
    along = np.clip(((points[:, None] - start) * step).sum(axis=2) / length, 0, 1)
    return np.linalg.norm(points[:, None] - start - along[..., None] * step, axis=2).min(axis=1).max()


def test_classes_without_positives_or_negatives_have_no_curve():
    probabilities = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    assert roc_points(probabilities, [0, 2], list("abc"))["class"].unique().tolist() == ["a", "c"]
    alone = roc_points(probabilities, [0, 0], list("abc"))
    assert alone.empty
    assert list(alone.columns) == ["class", "false_positive_rate", "true_positive_rate"]
    assert precision_recall_points(probabilities, [0, 0], list("abc")).to_numpy().tolist() == [["a", 0, 1], ["a", 1, 1]]


def test_thinning_keeps_ends_and_corners_and_drops_what_lies_on_the_line():
    corner = np.array([[0, 0], [0, 0.3], [0, 0.5], [0, 1], [0.2, 1], [1, 1]])
    assert thin_curve(corner).tolist() == [[0, 0], [0, 1], [1, 1]]
    x = np.linspace(0, 1, 5000)
    arc = np.column_stack([x, np.sqrt(1 - (1 - x) ** 2)])
    thin = thin_curve(arc, limit=50)
    assert len(thin) == 50
    assert (thin[[0, -1]] == arc[[0, -1]]).all()
    assert distance_to_line(arc, *thin.T) < 0.001
    assert thin_curve(np.array([[0.5, 0.5]])).tolist() == [[0.5, 0.5]]


def test_confusion_pairs_count_to_the_confusion_matrix():
    classes = ["bcc", "df", "mel", "nv"]
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([0, 2, 3], 50), rng.integers(4, size=50)
    pairs = confusion_pairs(labels, predicted, classes)
    assert list(pairs.columns) == ["actual", "predicted"]
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    assert (counts.to_numpy() == confusion(labels, predicted, 4)).all()
    with pytest.raises(UserError, match="prediction 4"):
        confusion_pairs([0], [4], classes)


def test_class_bars_leave_out_what_is_undefined():
    per_class = class_metrics([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], [0, 1], ["bcc", "mel", "nv"])
    bars = class_bars(per_class, ["sensitivity", "specificity"])
    assert bars.to_numpy().tolist() == [
        ["bcc", "sensitivity", 1.0],
        ["mel", "sensitivity", 1.0],
        ["bcc", "specificity", 1.0],
        ["mel", "specificity", 1.0],
        ["nv", "specificity", 1.0],
    ]
