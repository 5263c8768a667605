"""Bootstrap intervals: equal to the plain loop, by lesion and not by image, and right as often as they say."""

import math

import numpy as np
import pytest

from exp_tools.errors import UserError
from exp_tools.evaluation.intervals import bootstrap_intervals, bootstrap_metric_samples, group_weights
from exp_tools.evaluation.metrics import headline_metrics


def draw(rng, images=120, num_classes=4, ties=False):
    labels = rng.choice(num_classes, images, p=[0.6, 0.25, 0.1, 0.05])
    logits = rng.normal(size=(images, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    probabilities = np.exp(np.round(logits, 0 if ties else 12))
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def plain_loop(probabilities, labels, groups, classes, resamples, seed):
    """Repeat each image as often as it was drawn and score that set."""
    rows = []
    for weights in group_weights(groups, len(labels), resamples, seed):
        for column in weights.T.astype(int):
            again = np.repeat(np.arange(len(labels)), column)
            rows.append(headline_metrics(probabilities[again], labels[again], classes))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(("images", "ties"), [(120, False), (120, True), (12, True), (3, False)])
def test_equals_resampling_and_scoring_again(images, ties):
    rng = np.random.default_rng(images)
    probabilities, labels = draw(rng, images, ties=ties)  # few images: classes vanish from many resamples
    groups = rng.integers(max(images * 2 // 3, 1), size=images)
    classes = list("abcd")
    fast = bootstrap_metric_samples(probabilities, labels, groups, classes, resamples=150, seed=7)
    plain = plain_loop(probabilities, labels, groups, classes, 150, 7)
    assert fast.keys() == plain.keys()
    for name, values in plain.items():
        assert fast[name] == pytest.approx(values, abs=1e-9, nan_ok=True), name


def test_probabilities_of_exactly_zero_and_one_and_an_absent_class():
    labels = np.array([0, 0, 1, 1, 1, 0])
    probabilities = np.eye(3)[[0, 1, 1, 1, 0, 0]]
    fast = bootstrap_metric_samples(probabilities, labels, np.arange(6), list("abc"), resamples=40)
    plain = plain_loop(probabilities, labels, np.arange(6), list("abc"), 40, 0)
    for name, values in plain.items():
        assert fast[name] == pytest.approx(values, abs=1e-9, nan_ok=True), name


def test_whole_groups_are_drawn_as_many_as_there_are():
    groups = np.array(["HAM_2", "HAM_1", "HAM_2", "HAM_3", "HAM_1", "HAM_2"])
    weights = np.hstack(list(group_weights(groups, 6, 500, seed=1)))
    assert weights.shape == (6, 500)
    assert (weights[0] == weights[2]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()
    assert weights.mean() == pytest.approx(1, abs=0.1)


def test_copies_of_an_image_add_no_certainty():
    rng = np.random.default_rng(2)
    probabilities, labels = draw(rng, 100)
    once = bootstrap_metric_samples(probabilities, labels, np.arange(100), list("abcd"), resamples=50, seed=3)
    again = np.tile(np.arange(100), 3)
    thrice = bootstrap_metric_samples(probabilities[again], labels[again], again, list("abcd"), resamples=50, seed=3)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "average_precision", "brier"):
        assert thrice[name] == pytest.approx(once[name], abs=1e-9)
    by_image = bootstrap_intervals(probabilities[again], labels[again], np.arange(300), list("abcd"), resamples=500)
    by_lesion = bootstrap_intervals(probabilities[again], labels[again], again, list("abcd"), resamples=500)
    width = {name: high - low for name, (low, high) in by_lesion.items()}
    assert width["accuracy"] > 1.5 * (by_image["accuracy"][1] - by_image["accuracy"][0])


def test_same_seed_same_samples_and_the_number_of_resamples_only_adds():
    probabilities, labels = draw(np.random.default_rng(4))
    few = bootstrap_metric_samples(probabilities, labels, np.arange(120), list("abcd"), resamples=10, seed=5)
    many = bootstrap_metric_samples(probabilities, labels, np.arange(120), list("abcd"), resamples=100, seed=5)
    other = bootstrap_metric_samples(probabilities, labels, np.arange(120), list("abcd"), resamples=10, seed=6)
    assert (many["macro_auc"][:10] == few["macro_auc"]).all()
    assert (other["macro_auc"] != few["macro_auc"]).any()


def test_interval_of_an_accuracy_is_the_binomial_one():
    labels = np.zeros(400, int)
    probabilities = np.eye(2)[np.repeat([0, 1], [300, 100])]
    intervals = bootstrap_intervals(probabilities, labels, np.arange(400), ["mel", "nv"])
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert intervals["accuracy"] == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    assert all(math.isnan(bound) for bound in intervals["macro_auc"])
    narrow = bootstrap_intervals(probabilities, labels, np.arange(400), ["mel", "nv"], level=0.5)
    assert narrow["accuracy"][1] - narrow["accuracy"][0] == pytest.approx(2 * 0.6745 / 1.96 * half, abs=0.006)


def test_intervals_cover_the_truth():
    """Lesions of one to three like images; the truth comes from a set a hundred times as large."""
    rng = np.random.default_rng(8)

    def sample(lesions):
        views = rng.integers(1, 4, lesions)
        labels = rng.integers(2, size=lesions)
        centre = rng.normal(size=lesions) + labels
        lesion = np.repeat(np.arange(lesions), views)
        score = 1 / (1 + np.exp(-(centre[lesion] + 0.3 * rng.normal(size=lesion.size) - 0.5)))
        return np.column_stack([1 - score, score]), labels[lesion], lesion

    truth = headline_metrics(*sample(30_000)[:2], ["nv", "mel"])
    covered = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_auc"), 0)
    for seed in range(200):
        intervals = bootstrap_intervals(*sample(150), ["nv", "mel"], resamples=300, seed=seed)
        for name in covered:
            low, high = intervals[name]
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        assert 0.90 <= count / 200 <= 0.985, name  # 95 % give or take three standard errors, and 300 resamples


def test_a_single_group_has_no_interval():
    intervals = bootstrap_intervals([[0.9, 0.1]], [0], ["HAM_1"], ["mel", "nv"], resamples=20)
    assert all(math.isnan(bound) for bounds in intervals.values() for bound in bounds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["a"]}, "1 groups do not match 2 images"),
        ({"groups": ["a", None]}, "row 1 .*group_id"),
        ({"groups": np.array([1.0, np.nan])}, "row 1 .*group_id"),
        ({"level": 95}, "level of the intervals is 95"),
        ({"resamples": 0}, "number of bootstrap resamples is 0"),
        ({"labels": [0, 2]}, "label 2 in row 1"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8]]),
        "labels": [0, 1],
        "groups": ["a", "b"],
        "classes": ["mel", "nv"],
    }
    with pytest.raises(UserError, match=message):
        bootstrap_intervals(**arguments | change)
