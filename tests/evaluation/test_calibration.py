"""Calibration: expected calibration error, reliability bins."""

import math

import numpy as np
import pytest
from helpers.predictions import scaled
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.calibration import (
    calibration_report,
    expected_calibration_error,
    reliability_before_after,
    reliability_bins,
)
from exp_tools.evaluation.validation import softmax


def two_class(confidences):
    """Rows that predict class 0 with these confidences."""
    return np.column_stack([confidences, 1 - np.asarray(confidences)])


def overconfident(seed=0, images=4000, factor=2.5):
    """Logits that are `factor` times too large, with labels drawn from the honest probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, 4)) * 2
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    return logits * factor, labels


def test_softmax_by_hand_and_of_huge_logits():
    assert softmax([[0.0, math.log(3)]]) == pytest.approx(np.array([[0.25, 0.75]]))
    assert softmax([[0.0, math.log(9)]], temperature=2) == pytest.approx(np.array([[0.25, 0.75]]))
    assert softmax([[1e4, 0.0], [-1e4, 0.0]]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_expected_calibration_error_by_hand():
    probabilities, labels = two_class([0.91, 0.92, 0.62, 0.98]), [0, 1, 0, 0]
    # Ten bins: (0.9, 1] holds three, mean confidence 2.81/3, accuracy 2/3; (0.6, 0.7] one, right, 0.62.
    expected = 3 / 4 * (2.81 / 3 - 2 / 3) + 1 / 4 * 0.38
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(expected)
    # Two bins of equal mass: {0.62, 0.91} all right, {0.92, 0.98} one of two.
    expected = 1 / 2 * (1 - 0.765) + 1 / 2 * (0.95 - 0.5)
    assert expected_calibration_error(probabilities, labels, bins=2, scheme="mass") == pytest.approx(expected)


def test_bins_hold_their_upper_edge():
    table = reliability_bins(two_class([0.6, 0.8, 1.0]), [0, 0, 0], bins=5)
    assert table["bin_low"].tolist() == pytest.approx([0.4, 0.6, 0.8])
    assert table["bin_high"].tolist() == pytest.approx([0.6, 0.8, 1.0])
    assert table["count"].tolist() == [1, 1, 1]


def test_bins_of_equal_mass_keep_equal_confidences_together():
    rng = np.random.default_rng(0)
    table = reliability_bins(two_class(rng.uniform(0.5, 1, 1500)), np.zeros(1500, int), scheme="mass")
    assert len(table) == 15
    assert table["count"].between(99, 101).all()
    ties = reliability_bins(two_class([0.7] * 50 + [0.9] * 5), [0] * 55, bins=5, scheme="mass")
    assert ties["count"].tolist() == [50, 5]


def test_bins_of_both_schemes_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    probabilities, labels = two_class(rng.uniform(0.5, 1, 400)), rng.integers(2, size=400)
    for scheme, strategy in (("width", "uniform"), ("mass", "quantile")):
        table = reliability_bins(probabilities, labels, scheme=scheme)
        accuracy, confidence = calibration_curve(labels == 0, probabilities[:, 0], n_bins=15, strategy=strategy)
        assert table["accuracy"].to_numpy() == pytest.approx(accuracy, abs=1e-9)
        assert table["confidence"].to_numpy() == pytest.approx(confidence, abs=1e-9)


def test_reliability_table_sums_to_the_error_of_each_scheme():
    logits, labels = overconfident(images=300)
    table = reliability_before_after(logits, labels, scaled(4, 2.5))
    parts = dict(list(table.groupby(["scheme", "calibration"], sort=False)))
    assert list(parts) == [("width", "before"), ("width", "after"), ("mass", "before"), ("mass", "after")]
    for (scheme, calibration), part in parts.items():
        probabilities = softmax(logits, 1.0 if calibration == "before" else 2.5)
        error = ((part["accuracy"] - part["confidence"]).abs() * part["count"]).sum() / part["count"].sum()
        assert part["count"].sum() == 300
        assert error == pytest.approx(expected_calibration_error(probabilities, labels, scheme=scheme), abs=1e-5)


def test_report_is_before_and_after_the_temperature():
    logits, labels = overconfident(images=600)
    report = calibration_report(logits, labels, scaled(4, 2.5))
    assert report["temperature"] == 2.5
    for calibration, temperature in (("before", 1.0), ("after", 2.5)):
        probabilities, scores = softmax(logits, temperature), report[calibration]
        assert scores["log_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-9)
        assert scores["brier"] == pytest.approx(((np.eye(4)[labels] - probabilities) ** 2).sum(axis=1).mean())
        assert scores["ece_width"] == expected_calibration_error(probabilities, labels)
        assert scores["ece_mass"] == expected_calibration_error(probabilities, labels, scheme="mass")
    assert all(report["after"][name] < value for name, value in report["before"].items())


def test_report_knows_losses_that_probabilities_round_away_and_empty_sets():
    assert calibration_report([[1000.0, 0.0]], [1], scaled(2, 2.0))["before"]["log_loss"] == 1000
    assert calibration_report([[1000.0, 0.0]], [1], scaled(2, 2.0))["after"]["log_loss"] == 500
    empty = calibration_report(np.zeros((0, 7)), np.zeros(0, int), scaled(7, 1.5))
    assert empty["temperature"] == 1.5
    assert all(math.isnan(value) for value in empty["after"].values())


def test_empty_set_has_no_error_and_no_bins():
    assert math.isnan(expected_calibration_error(np.zeros((0, 7)), np.zeros(0, int)))
    assert reliability_bins(np.zeros((0, 7)), np.zeros(0, int), scheme="mass").empty


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"row 1 .*diverged"):
        softmax([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(UserError, match="temperature is 0"):
        softmax([[0.0, 1.0]], temperature=0)
    with pytest.raises(UserError, match="choose width or mass"):
        expected_calibration_error([[0.5, 0.5]], [0], scheme="quantile")
