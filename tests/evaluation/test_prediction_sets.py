"""Prediction sets: MAPIE's on the same numbers, and the promised coverage on many splits."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT
from sklearn.base import BaseEstimator, ClassifierMixin

from exp_tools.errors import UserError
from exp_tools.evaluation.prediction_sets import (
    FREE_RANKS,
    PENALTY,
    always_held,
    conformal_threshold,
    conformity_scores,
    fit_sets,
    lesions_needed,
    read_set_column,
    set_column,
    set_members,
)
from exp_tools.evaluation.predictions import as_arrays, read_predictions
from exp_tools.evaluation.report.set_scores import set_report, sets_line
from exp_tools.evaluation.validation import softmax

SCORES = ("lac", "aps", "raps")
CLASSES = ["bkl", "df", "mel", "nv"]


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its probabilities."""

    def __init__(self, classes=4):
        self.classes, self.classes_ = classes, np.arange(classes)

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X.argmax(axis=1)

    def predict_proba(self, X):
        return X

    def __sklearn_is_fitted__(self):
        return True


class Half(np.random.RandomState):
    """A generator whose uniform numbers are all 1/2, as the scores here take them."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(size, 0.5)


def drawn(seed=0, lesions=400, shares=(0.15, 0.05, 0.2, 0.6)):
    """Probabilities, labels and lesions of a population in which difficult lesions have more and similar images."""
    rng = np.random.default_rng(seed)
    of_lesion = rng.choice(len(shares), lesions, p=shares)
    hard = rng.random(lesions) < 0.3
    lesion = np.repeat(np.arange(lesions), np.where(hard, 4, 1))
    labels = of_lesion[lesion]
    centre = rng.normal(size=(lesions, 4)) + np.where(hard, 0.3, 2.5)[:, None] * np.eye(4)[of_lesion]
    logits = centre[lesion] + 0.3 * rng.normal(size=(lesion.size, 4))
    return softmax(logits), labels, lesion


@pytest.mark.filterwarnings("ignore:WARNING")  # MAPIE sees one class at a time
def test_lac_sets_are_mapies_class_by_class():
    from mapie.classification import SplitConformalClassifier

    probabilities, labels, _ = drawn(lesions=1500)
    half = len(labels) // 2
    known, new = slice(0, half), slice(half, None)
    sets = fit_sets("lac", 0.9, CLASSES, probabilities[known], labels[known], np.arange(half))
    members = set_members(sets, CLASSES, probabilities[new])
    for place in range(4):
        rows = np.flatnonzero(labels[known] == place)
        oracle = SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score="lac", prefit=True)
        oracle.conformalize(probabilities[rows], labels[rows])
        theirs = oracle.predict_set(probabilities[new])[1][:, place, 0]
        assert 0.05 < theirs.mean() < 0.95
        np.testing.assert_array_equal(members[:, place], theirs)


@pytest.mark.parametrize("score", ["aps", "raps"])
def test_adaptive_scores_and_thresholds_are_mapies(score):
    from mapie.conformity_scores import APSConformityScore, RAPSConformityScore

    probabilities, labels, _ = drawn(lesions=150)
    oracle = APSConformityScore()
    oracle.classes, oracle.random_state = np.arange(4), Half()
    theirs = oracle.get_conformity_scores(labels, probabilities, y_enc=labels)
    if score == "raps":
        theirs = RAPSConformityScore._regularize_conformity_score(
            np.array([FREE_RANKS]), PENALTY, theirs, oracle.cutoff.ravel()
        )[:, :, 0]
    theirs = theirs.ravel()
    np.testing.assert_allclose(
        conformity_scores(probabilities, score)[np.arange(len(labels)), labels], theirs, atol=1e-12
    )
    sets = fit_sets(score, 0.9, CLASSES, probabilities, labels, np.arange(len(labels)))
    for place, code in enumerate(CLASSES):
        own = theirs[labels == place][:, None]
        if own.size < 9:
            assert sets["thresholds"][code] is None
            continue
        quantile = oracle.get_conformity_score_quantiles(own, np.array([0.1]), "prefit")[0]
        assert 0 <= sets["thresholds"][code] - quantile < 1.1e-6


def test_scores_by_hand():
    row = [[0.5, 0.2, 0.2, 0.1]]
    np.testing.assert_allclose(conformity_scores(row, "lac"), [[0.5, 0.8, 0.8, 0.9]])
    np.testing.assert_allclose(conformity_scores(row, "aps"), [[0.25, 0.6, 0.8, 0.95]])  # of equals the first
    np.testing.assert_allclose(conformity_scores(row, "raps"), [[0.25, 0.6, 0.8 + PENALTY, 0.95 + 2 * PENALTY]])


def test_a_threshold_counts_each_lesion_once():
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert conformal_threshold(scores, list("abcdef"), 0.5) == 0.4  # the 4th of 6 and one more: 0.5 * 7 = 3.5
    # a has three images, each a third: 1/3, 2/3, 1, 2, 3, 4 lesions; 0.5 * 5 = 2.5
    assert conformal_threshold(scores, list("aaabcd"), 0.5) == 0.5
    assert conformal_threshold([0.12345601], ["a"], 0.5) == 0.123457  # rounded up, never down
    assert conformal_threshold([], [], 0.5) is None


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.8, 4), (0.5, 1), (0.99, 99)])
def test_a_class_of_too_few_lesions_is_in_every_set(coverage, needed):
    assert lesions_needed(coverage) == needed
    rng = np.random.default_rng(1)
    for lesions, open_ in ((needed - 1, True), (needed, False)):
        # several images of a lesion are no more lesions
        lesion = np.concatenate([np.repeat(np.arange(lesions), 3), np.arange(1000, 1200)])
        labels = np.where(lesion < 1000, 1, 0)
        probabilities = rng.dirichlet(np.ones(4), lesion.size)
        sets = fit_sets("lac", coverage, CLASSES, probabilities, labels, lesion)
        held = set_members(sets, CLASSES, np.array([[1.0, 0, 0, 0]]))[0]
        assert (sets["thresholds"]["df"] is None) == open_
        assert held[1] == open_
        assert always_held(sets) == ({"df": lesions} if open_ else {}) | {"mel": 0, "nv": 0}
        assert sets["needed"] == needed


def test_none_asks_for_no_sets():
    assert fit_sets("none", 0.9, CLASSES, *drawn(lesions=20)) == {}


def resplit(probabilities, labels, lesion, classes, score, asked, splits):
    """Means over random halves by lesion: coverage by lesion, of each class, of its images, and lesions fitted on."""
    lesion = np.unique(lesion, return_inverse=True)[1]
    count = lesion.max() + 1
    weight = 1 / np.bincount(lesion)[lesion]
    found, rows = [], np.arange(len(labels))
    for seed in range(splits):
        known = (np.random.default_rng(seed).permutation(count) < count // 2)[lesion]
        sets = fit_sets(score, asked, classes, probabilities[known], labels[known], lesion[known])
        hit = set_members(sets, classes, probabilities)[rows, labels]
        new = ~known
        by_class = [np.average(hit[new & (labels == c)], weights=weight[new & (labels == c)]) for c in set(labels)]
        lesions = [sets["lesions"][classes[c]] for c in set(labels)]
        found.append([np.average(hit[new], weights=weight[new]), hit[new].mean(), *by_class, *lesions])
    mean = np.mean(found, axis=0)
    every, images, rest = mean[0], mean[1], mean[2:]
    return every, images, rest[: len(rest) // 2], rest[len(rest) // 2 :]


def check_coverage(every, by_class, lesions, asked):
    """What is asked within 2 points; of a class up to 1 / (n + 1) more."""
    assert abs(every - asked) <= 0.02
    for reached, n in zip(by_class, lesions, strict=True):
        assert asked - 0.02 <= reached <= asked + 1 / (n + 1) + 0.02


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("asked", [0.8, 0.9])
def test_coverage_by_lesion_is_what_was_asked_on_a_hundred_splits(score, asked):
    every, _, by_class, lesions = resplit(*drawn(2, lesions=1200), CLASSES, score, asked, 100)
    check_coverage(every, by_class, lesions, asked)


def test_counting_images_would_promise_something_else():
    """Difficult lesions have more images here: by image the same sets hold the truth less often."""
    probabilities, labels, lesion = drawn(2, lesions=1200)
    _, images, *_ = resplit(probabilities, labels, lesion, CLASSES, "lac", 0.9, 20)
    assert images < 0.85
    by_image, *_ = resplit(probabilities, labels, np.arange(len(labels)), CLASSES, "lac", 0.9, 20)
    assert by_image == pytest.approx(0.9, abs=0.02)


def kept(name):
    """Probabilities, labels, lesions and classes of validation and test of a kept run."""
    table, classes = read_predictions(ROOT / Path("results") / f"{name}.csv.gz")
    return (*as_arrays(table, classes)[:2], table["lesion_id"].to_numpy(), classes)


def check_real(name, score, asked):
    probabilities, labels, lesion, classes = kept(name)
    every, _, by_class, lesions = resplit(probabilities, labels, lesion, classes, score, asked, 100)
    assert lesions.min() >= 3
    assert asked - 0.02 <= every <= asked + 0.02
    for reached, n in zip(by_class, lesions, strict=True):
        assert reached >= asked - 0.02
        if n > 2 * lesions_needed(asked):  # in some halves of a rarer class it is in every set
            assert reached <= asked + 1 / (n + 1) + 0.02


def test_coverage_on_real_logits():
    check_real("reference-seed0", "lac", 0.9)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "name", [f"{run}-seed{seed}" for run in ("reference", "random", "metadata") for seed in (0, 1)]
)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("asked", [0.8, 0.9, 0.95])
def test_coverage_on_real_logits_of_other_runs(name, score, asked):
    check_real(name, score, asked)


def test_columns_come_back_and_blanks_in_codes_are_told_apart():
    classes, members = ["blue nevus", "mel", "nv"], np.array([[True, False, True], [False, False, False]])
    cells = set_column(members, classes)
    assert cells == ["blue_nevus nv", ""]
    np.testing.assert_array_equal(read_set_column(cells, classes), members)
    with pytest.raises(UserError, match=r"prediction_set holds 'scc', which is no class .*blue_nevus, mel, nv"):
        read_set_column(["mel scc"], classes)
    with pytest.raises(UserError, match=r"'a b' and 'a_b'.*calibration\.sets: none"):
        fit_sets("lac", 0.9, ["a b", "a_b"], np.full((2, 2), 0.5), np.array([0, 1]), [0, 1])


def table_of(cells, dx, lesions):
    return pd.DataFrame({"prediction_set": cells, "dx": dx, "lesion_id": lesions, "group_id": lesions})


def test_a_report_by_hand():
    classes, places = ["mel", "nv"], {"mel": 0, "nv": 1}
    table = table_of(["mel", "nv", "mel nv", "", "nv", "nv"], ["mel", "mel", "mel", "nv", "nv", "nv"], list("aabcde"))
    labels = table["dx"].map(places).to_numpy()
    predicted = np.array([0, 1, 0, 0, 1, 1])
    found = set_report(table, classes, labels, predicted, asked=0.9, resamples=100, seed=0)
    # lesions: a half, b 1, c 0, d 1, e 1
    assert found["coverage"] == pytest.approx(3.5 / 5)
    assert found["coverage_by_image"] == pytest.approx(4 / 6)
    assert found["mean_size"] == pytest.approx((1 + 2 + 0 + 1 + 1) / 5)
    assert found["sizes"] == {"0": 1, "1": 4, "2": 1}
    assert found["empty"] == pytest.approx(1 / 6)
    melanoma, nevus = found["per_class"]["mel"], found["per_class"]["nv"]
    assert (melanoma["lesions"], melanoma["images"], nevus["lesions"], nevus["images"]) == (2, 3, 3, 3)
    assert melanoma["coverage"] == pytest.approx(0.75)
    assert nevus["coverage"] == pytest.approx(2 / 3)
    assert (melanoma["held"], nevus["held"]) == (0.0, pytest.approx(0.75))  # a half and 1 of two lesions
    assert melanoma["mean_size"] == pytest.approx(1.5)
    assert found["by_size"] == [
        {"size": 0, "images": 1, "coverage": 0.0, "accuracy": 0.0},
        {"size": 1, "images": 4, "coverage": 0.75, "accuracy": 0.75},
        {"size": 2, "images": 1, "coverage": 1.0, "accuracy": 1.0},
    ]
    assert "asked 0.9): 0.700" in sets_line(found)
    assert (
        set_report(table.drop(columns="prediction_set"), classes, labels, predicted, asked=None, resamples=9, seed=0)
        is None
    )


def test_coverage_below_the_asked_is_said_and_its_interval_holds_the_truth():
    lesions = np.arange(400)
    hit = lesions % 5 > 0
    table = table_of(np.where(hit, "mel", "nv"), "mel", lesions)
    found = set_report(table, ["mel", "nv"], np.zeros(400, int), np.zeros(400, int), asked=0.9, resamples=300, seed=0)
    bounds = found["intervals"]["coverage"]
    assert bounds["low"] < 0.8 < bounds["high"] < 0.9
    assert bounds["high"] - bounds["low"] == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 400) ** 0.5, rel=0.15)
    assert found["short"]
    assert found["per_class"]["mel"]["short"]
    assert not found["per_class"]["nv"]["short"]  # none there
    assert "LESS THAN ASKED" in sets_line(found)
