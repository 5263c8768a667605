"""Bootstrap intervals: equal to the plain loop, by lesion and not by image, and right as often as they say."""

import math

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from benchmarks import statistics
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.bootstrap import (
    bootstrap_intervals,
    bootstrap_metric_samples,
    class_intervals,
    group_weights,
    weighted_intervals,
    weighted_spreads,
)
from exp_tools.evaluation.metrics.catalogue import DIFFERENCE, HEADLINE, LOSS
from exp_tools.evaluation.metrics.classification import class_metrics, headline_metrics
from exp_tools.evaluation.metrics.weighted import RankingSums, class_scorer


def draw(rng, images=120, num_classes=4, ties=False):
    labels = rng.choice(num_classes, images, p=[0.6, 0.25, 0.1, 0.05])
    logits = rng.normal(size=(images, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    probabilities = np.exp(np.round(logits, 0 if ties else 12))
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def mean_of(values):
    """Scorer of the weighted mean of one value per image."""
    return lambda weights: {"mean": values @ weights / weights.sum(axis=0)}


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


@pytest.mark.parametrize("skill", [2.0, 3.0])
def test_intervals_cover_the_truth(skill):
    """Fifty lesions in the rarer class: as often as they say, where percentiles of the same resamples fall short."""
    counts, codes = np.array([150, 50]), ["a", "b"]
    many = statistics.draw(counts * 1000, np.random.default_rng(2**32), skill)
    truth = headline_metrics(many.probabilities, many.labels, codes)
    held = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_auc"), 0)
    percentiles = 0
    for seed in range(150):
        drawn = statistics.draw(counts, np.random.default_rng(seed), skill)
        given = (drawn.probabilities, drawn.labels, drawn.lesion, codes)
        found = bootstrap_intervals(*given, resamples=150, seed=seed)
        for name in held:
            held[name] += found[name][0] <= truth[name] <= found[name][1]
        if skill > 2:
            sample = bootstrap_metric_samples(*given, resamples=150, seed=seed)["macro_auc"]
            low, high = np.nanquantile(sample, [0.025, 0.975])
            percentiles += low <= truth["macro_auc"] <= high
    for name, count in held.items():
        assert 0.92 <= count / 150 <= 0.985, name  # 93-97 %, give or take the chance of 150 sets
    assert percentiles < 0.88 * 150


def delong(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Covariance of the AUCs of scores [K, N] by DeLong, DeLong and Clarke-Pearson, Biometrics 44:837, 1988."""
    pairs = [(one[positive][:, None], one[~positive][None]) for one in scores]
    wins = [(above > below) + 0.5 * (above == below) for above, below in pairs]
    of_positives, of_negatives = (np.stack([win.mean(axis=axis) for win in wins]) for axis in (1, 0))
    return np.cov(of_positives) / positive.sum() + np.cov(of_negatives) / (~positive).sum()


def test_the_spread_of_an_auc_and_of_a_difference_is_that_of_delong():
    rng = np.random.default_rng(4)
    positive = np.arange(600) < 150
    scores = np.stack([positive * 1.2, positive * 0.9]) + rng.normal(size=600) * 0.7 + rng.normal(size=(2, 600)) * 0.7
    covariance = delong(scores, positive)
    rankings = [RankingSums(one, positive) for one in scores]

    def score(weights):
        first, second = (ranking.steps(weights).ranking_scores()[0] for ranking in rankings)
        return {"auc": first, "difference": first - second}

    spreads = weighted_spreads(score, np.arange(600), 600, resamples=4000, seed=0, scales={"difference": DIFFERENCE})
    assert spreads["auc"].estimate == pytest.approx(roc_auc_score(positive, scores[0]))
    assert spreads["auc"].deviation == pytest.approx(math.sqrt(covariance[0, 0]), rel=0.04)
    expected = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert spreads["difference"].deviation == pytest.approx(expected, rel=0.04)


def test_a_share_by_hand():
    """Nine right of ten: log-odds of 9, standard error 1 / sqrt(10 · 0.9 · 0.1), t with twice the mistakes or 8."""
    right = np.arange(10) > 0
    low, high = weighted_intervals(mean_of(right), np.arange(10), 10, resamples=20_000)["mean"]
    half = t.ppf(0.975, 8) / math.sqrt(10 * 0.9 * 0.1)
    assert (low, high) == pytest.approx((1 / (1 + math.exp(half) / 9), 1 / (1 + math.exp(-half) / 9)), abs=0.01)


def test_a_difference_and_a_loss_by_hand():
    values = np.random.default_rng(0).normal(0.3, 1, 1000)
    scorer, half = mean_of(values), 1.96 * values.std() / math.sqrt(1000)
    bounds = weighted_intervals(scorer, np.arange(1000), 1000, resamples=4000, scales={"mean": DIFFERENCE})["mean"]
    assert bounds == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    losses = values**2
    factor = math.exp(1.96 * losses.std() / math.sqrt(1000) / losses.mean())
    bounds = weighted_intervals(mean_of(losses), np.arange(1000), 1000, resamples=4000, scales={"mean": LOSS})["mean"]
    assert bounds == pytest.approx((losses.mean() / factor, losses.mean() * factor), rel=0.01)


@pytest.mark.parametrize(("heavy", "freedom"), [(0, 2000 * 2 / 3), (2, 8), (6, 12), (30, 60)])
def test_the_fewer_lesions_make_up_the_spread_the_larger_is_t(heavy, freedom):
    """`heavy` of 2,000 values are ±1, the others nearly 0: fourth powers add up to 1 / heavy; 3 / 2000 if normal."""
    values = np.random.default_rng(0).normal(0, 1e-3, 2000)
    values[:heavy] = np.tile([1, -1], heavy // 2)
    arguments = {"resamples": 3000, "seed": 1, "scales": {"mean": DIFFERENCE}}
    low, high = weighted_intervals(mean_of(values), np.arange(2000), 2000, **arguments)["mean"]
    parts = [(values @ weights) / 2000 for weights in group_weights(np.arange(2000), 2000, 3000, 1)]
    quantile = (high - low) / 2 / np.concatenate(parts).std()
    assert quantile == pytest.approx(t.ppf(0.975, freedom), rel=0.005)


def test_all_right_of_n_lesions_is_the_exact_interval():
    """Clopper and Pearson: even 69 % right would show ten of ten in 2.5 of 100 cases."""
    exact = 0.025 ** (1 / 10)
    assert weighted_intervals(mean_of(np.ones(10)), np.arange(10), 10, resamples=5)["mean"] == pytest.approx((exact, 1))
    none = weighted_intervals(mean_of(np.zeros(10)), np.arange(10), 10, resamples=5)["mean"]
    assert none == pytest.approx((0, 1 - exact))
    four = weighted_intervals(mean_of(np.ones(10)), np.arange(10), 10, resamples=5, units={"mean": 4})["mean"]
    assert four == pytest.approx((0.025 ** (1 / 4), 1))


def test_intervals_hold_the_estimate_and_stay_in_range():
    rng = np.random.default_rng(3)
    for images in (8, 40, 200):
        probabilities, labels = draw(rng, images)
        scores = headline_metrics(probabilities, labels, list("abcd"))
        intervals = bootstrap_intervals(probabilities, labels, np.arange(images) // 2, list("abcd"), resamples=60)
        for name, (low, high) in intervals.items():
            assert HEADLINE[name].low <= low <= scores[name] <= high <= HEADLINE[name].high, name
            assert high <= 1 or name in ("brier", "log_loss"), name


def test_class_scores_equal_resampling_and_scoring_again():
    probabilities, labels = draw(np.random.default_rng(5), 40, ties=True)
    groups = np.random.default_rng(6).integers(25, size=40)
    score = class_scorer(probabilities, labels)
    for weights in group_weights(groups, 40, 70, 0):
        fast = score(weights)
        for r, column in enumerate(weights.T.astype(int)):
            again = np.repeat(np.arange(40), column)
            plain = class_metrics(probabilities[again], labels[again], list("abcd"))
            for c, code in enumerate("abcd"):
                for name, values in fast.items():
                    assert values[r, c] == pytest.approx(plain[code][name], abs=1e-9, nan_ok=True), (code, name)


def test_class_intervals_hold_the_class_scores_and_mark_the_small():
    probabilities, labels = draw(np.random.default_rng(7), 300)
    groups = np.arange(300) // 2
    table = class_intervals(probabilities, labels, groups, list("abcd"), resamples=100, seed=1)
    scores = class_metrics(probabilities, labels, list("abcd"))
    predicted = probabilities.argmax(axis=1)
    for c, code in enumerate("abcd"):
        assert table[code].keys() == scores[code].keys() - {"support"}
        for name, bounds in table[code].items():
            assert bounds["low"] <= scores[code][name] <= bounds["high"], (code, name)
        lesions = len(set(groups[labels == c]))
        assert table[code]["sensitivity"]["small"] is table[code]["auc"]["small"] is (lesions < 10)
        assert table[code]["precision"]["small"] is (len(set(groups[predicted == c])) < 10)
        assert table[code]["specificity"]["small"] is False
    headline = bootstrap_intervals(np.eye(2)[[0, 1, 1, 0] * 9], [0, 1, 0, 0] * 9, np.arange(36), ["mel", "nv"], seed=2)
    only = class_intervals(np.eye(2)[[0, 1, 1, 0] * 9], [0, 1, 0, 0] * 9, np.arange(36), ["mel", "nv"], seed=2)["nv"]
    assert only["sensitivity"] == {"low": pytest.approx(0.025 ** (1 / 9)), "high": 1, "small": True}
    assert headline["accuracy"][0] < 0.75 < headline["accuracy"][1]


def test_an_absent_class_has_no_interval_of_its_sensitivity():
    table = class_intervals(np.eye(3)[[0, 1, 1, 0]], [0, 1, 0, 0], np.arange(4), list("abc"), resamples=20)
    for name in ("sensitivity", "precision", "f1", "auc", "average_precision"):
        assert math.isnan(table["c"][name]["low"]), name
        assert table["c"][name]["small"] is True
    assert table["c"]["specificity"]["high"] == 1


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
