"""Melanoma against the rest: numbers worked out by hand, and scikit-learn as an independent implementation."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from exp_tools.errors import UserError
from exp_tools.evaluation.calibrate import choose_threshold
from exp_tools.evaluation.metrics.bootstrap import group_weights
from exp_tools.evaluation.metrics.melanoma import caught_melanomas, melanoma_report

# Ten others and five melanomas, from the highest probability down: M M o M o M o o M o o o o o o.
P_MEL = np.array([0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05])
IS_MEL = np.array([True, True, False, True, False, True, False, False, True] + [False] * 6)
POINTS = [(0.90, "90"), (0.95, "95")]


def draw(seed, images=300, ties=False):
    rng = np.random.default_rng(seed)
    is_mel = rng.random(images) < 0.2
    p_mel = 1 / (1 + np.exp(-(rng.normal(size=images) + 1.5 * is_mel - 1)))
    return np.round(p_mel, 1 if ties else 12), is_mel


def scores(p_mel, is_mel, **arguments):
    return melanoma_report(p_mel, is_mel, np.arange(len(p_mel)), **{"resamples": 5, **arguments})


def test_fifteen_images_by_hand():
    report = scores(P_MEL, IS_MEL, threshold=0.7)
    assert (report["images"], report["melanomas"], report["threshold"]) == (15, 5, 0.7)
    # Of 50 pairs the melanomas win 10, 10, 9, 8 and 6.
    assert report["auc"] == pytest.approx(43 / 50)
    # Left of 2 false alarms of 10: two melanomas over the first tenth, three over the second: (0.4 + 0.6) / 10.
    assert report["partial_auc"] == pytest.approx((1 + (0.1 - 0.02) / (0.2 - 0.02)) / 2)
    assert report["sensitivity_at_90_specificity"] == pytest.approx(3 / 5)  # one false alarm allowed
    assert report["sensitivity_at_95_specificity"] == pytest.approx(2 / 5)  # none allowed
    assert report["specificity_at_90_sensitivity"] == pytest.approx(6 / 10)  # all five needed: four false alarms
    assert report["specificity_at_95_sensitivity"] == pytest.approx(6 / 10)
    # At 0.7: six flagged, four of them melanomas; nine not, eight of them right.
    assert report["sensitivity"] == pytest.approx(4 / 5)
    assert report["specificity"] == pytest.approx(8 / 10)
    assert report["precision"] == pytest.approx(4 / 6)
    assert report["npv"] == pytest.approx(8 / 9)
    assert report["flagged"] == pytest.approx(6 / 15)


def test_a_rate_that_is_just_reached_counts():
    """Nine of ten and 19 of 20 are 90 % and 95 %, whatever floating point makes of 1 - 0.1."""
    p_mel = np.arange(30, 0, -1) / 31
    is_mel = np.arange(30) < 10
    p_mel[9], p_mel[10:] = 0.0, p_mel[9:29]  # the tenth melanoma below all others
    report = scores(p_mel, is_mel)
    assert report["specificity_at_90_sensitivity"] == 1
    assert report["specificity_at_95_sensitivity"] == 0
    first = np.concatenate([[0.99], np.linspace(0.9, 0.1, 29)])  # one other above all melanomas
    report = scores(first, np.arange(30) % 30 >= 20)
    assert report["sensitivity_at_95_specificity"] == 0
    one_above = np.concatenate([[0.99], np.full(10, 0.9), np.full(19, 0.1)])
    report = scores(one_above, (np.arange(30) >= 1) & (np.arange(30) <= 10))
    assert report["sensitivity_at_95_specificity"] == 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn(seed, ties):
    p_mel, is_mel = draw(seed, ties=ties)
    threshold = 0.4
    report = scores(p_mel, is_mel, threshold=threshold)
    false_alarms, found, _ = sk.roc_curve(is_mel, p_mel, drop_intermediate=False)
    flagged = p_mel >= threshold
    expected = {
        "auc": sk.roc_auc_score(is_mel, p_mel),
        "partial_auc": sk.roc_auc_score(is_mel, p_mel, max_fpr=0.2),
        "sensitivity": sk.recall_score(is_mel, flagged),
        "specificity": sk.recall_score(is_mel, flagged, pos_label=False),
        "precision": sk.precision_score(is_mel, flagged),
        "npv": sk.precision_score(is_mel, flagged, pos_label=False),
        "flagged": flagged.mean(),
    }
    for rate, name in POINTS:
        expected[f"sensitivity_at_{name}_specificity"] = found[1 - false_alarms >= rate].max()
        expected[f"specificity_at_{name}_sensitivity"] = 1 - false_alarms[found >= rate].min()
    assert {name: report[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("p_mel", "is_mel"),
    [
        ([1.0, 0.0, 0.0], [True, False, False]),  # exactly 0 and 1, perfect
        ([0.0, 1.0, 1.0], [True, False, False]),  # and perfectly wrong
        ([0.5] * 5, [True, False, True, False, False]),  # nothing but a tie
        ([0.0, 0.0, 0.0, 1.0], [True, False, False, True]),
        ([0.3, 0.7], [False, True]),
    ],
)
def test_degenerate_probabilities_agree_with_scikit_learn(p_mel, is_mel):
    report = scores(p_mel, is_mel)
    assert report["auc"] == pytest.approx(sk.roc_auc_score(is_mel, p_mel), abs=1e-9)
    assert report["partial_auc"] == pytest.approx(sk.roc_auc_score(is_mel, p_mel, max_fpr=0.2), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_come_from_scoring_the_resampled_images_again(ties):
    """Each resample, as repeated images, scored with scikit-learn, is what the weights give."""
    p_mel, is_mel = draw(9, images=40, ties=ties)
    groups = np.random.default_rng(1).integers(30, size=40)
    weights = np.hstack(list(group_weights(groups, 40, 30, 0)))
    again = [np.repeat(np.arange(40), column.astype(int)) for column in weights.T]
    for drawn in again:
        report = melanoma_report(p_mel[drawn], is_mel[drawn], groups[drawn], resamples=2)
        if 0 < is_mel[drawn].sum() < drawn.size:
            assert report["partial_auc"] == pytest.approx(
                sk.roc_auc_score(is_mel[drawn], p_mel[drawn], max_fpr=0.2), abs=1e-9
            )
        else:
            assert math.isnan(report["partial_auc"])
    report = melanoma_report(p_mel, is_mel, groups, threshold=0.3, resamples=300)
    for name, bounds in report["intervals"].items():
        highest = math.inf if name.startswith("lr_") else 1
        assert 0 <= bounds["low"] <= report[name] <= bounds["high"] <= highest, name
        assert bounds["high"] - bounds["low"] > 0.05, name


def test_the_interval_of_five_found_of_five_is_the_exact_one():
    report = scores([0.9] * 5 + [0.1] * 20, [True] * 5 + [False] * 20, threshold=0.5)
    assert report["sensitivity"] == 1
    assert report["intervals"]["sensitivity"] == pytest.approx({"low": 0.025 ** (1 / 5), "high": 1})
    assert report["intervals"]["specificity"] == pytest.approx({"low": 0.025 ** (1 / 20), "high": 1})
    assert report["small"] is True


def test_small_counts_lesions_of_both_sides_not_images():
    p_mel, is_mel = np.tile(P_MEL, 4), np.tile(IS_MEL, 4)  # twenty melanomas
    assert melanoma_report(p_mel, is_mel, np.arange(60), resamples=2)["small"] is False
    assert melanoma_report(p_mel, is_mel, np.tile(np.arange(15), 4), resamples=2)["small"] is True  # of five lesions
    assert melanoma_report(p_mel, ~is_mel, np.tile(np.arange(15), 4), resamples=2)["small"] is True


def test_without_melanomas_what_needs_them_is_undefined():
    report = scores([0.2, 0.6, 0.1], [False] * 3, threshold=0.5)
    assert report["melanomas"] == 0
    assert (report["specificity"], report["flagged"], report["npv"], report["precision"]) == pytest.approx(
        (2 / 3, 1 / 3, 1, 0)
    )
    for name in ("auc", "partial_auc", "sensitivity", "sensitivity_at_90_specificity", "specificity_at_90_sensitivity"):
        assert math.isnan(report[name]), name
        assert math.isnan(report["intervals"][name]["low"]), name


def test_without_a_threshold_nothing_is_said_of_one():
    report = scores(P_MEL, IS_MEL)
    assert report["threshold"] is None
    assert all(math.isnan(report[name]) for name in ("sensitivity", "specificity", "precision", "npv", "flagged"))
    assert report["auc"] == pytest.approx(43 / 50)


def test_a_single_image():
    report = scores([0.7], [True], threshold=0.5)
    assert (report["sensitivity"], report["precision"], report["flagged"]) == (1, 1, 1)
    assert math.isnan(report["auc"])
    assert math.isnan(report["intervals"]["sensitivity"]["low"])


@pytest.mark.parametrize(
    ("p_mel", "is_mel", "message"),
    [
        ([], np.zeros(0, bool), "no image to score"),
        ([0.5, np.nan], [True, False], "row 1 .*diverged"),
        ([0.5, 1.5], [True, False], "row 1 .*softmax"),
        ([0.5, 0.5], [True], "do not match labels"),
        ([0.5, 0.5], [1, 0], "true or false"),
        ([[0.5, 0.5]], [True], "expected one per image"),
    ],
)
def test_bad_input_is_named(p_mel, is_mel, message):
    with pytest.raises(UserError, match=message):
        scores(p_mel, is_mel)
    with pytest.raises(UserError, match=message):
        choose_threshold(p_mel, is_mel, np.arange(len(p_mel)), 0.9)


def test_a_threshold_that_is_none():
    with pytest.raises(UserError, match=r"threshold is 1\.2"):
        scores(P_MEL, IS_MEL, threshold=1.2)


def test_a_missed_melanoma_is_one_that_nobody_would_look_at():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.45, 0.55], [0.8, 0.2], [0.7, 0.3]])
    predicted, is_mel = np.array([0, 0, 1, 0, 0]), np.array([True, True, True, True, False])
    settings = {"threshold": 0.35, "abstain": 0.85}
    caught = caught_melanomas(probabilities, predicted, 1, **settings)
    assert caught.tolist() == [True, False, True, True, True]
    assert caught_melanomas(probabilities, predicted, 1, threshold=None, abstain=None).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    report = melanoma_report(probabilities[:, 1], is_mel, np.arange(5), threshold=0.35, caught=caught, resamples=50)
    assert (report["missed"], report["missed_images"]) == (0.25, 1)
    assert 0 < report["intervals"]["missed"]["high"] < 1
    plain = melanoma_report(probabilities[:, 1], is_mel, np.arange(5), threshold=0.35, resamples=50)
    assert plain["missed"] == 1 - plain["sensitivity"] == 0.5
