"""Calibration: temperature, expected calibration error, reliability bins."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from exp_tools.errors import UserError
from exp_tools.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability_before_after,
    reliability_bins,
    softmax,
)


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


def test_temperature_recovers_the_factor_and_lowers_the_loss():
    logits, labels = overconfident()
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)
    best = log_loss(labels, softmax(logits, temperature))
    for other in (1.0, temperature * 1.05, temperature / 1.05):
        assert best < log_loss(labels, softmax(logits, other))
    assert fit_temperature(logits, labels) == temperature
    assert expected_calibration_error(softmax(logits, temperature), labels) < 0.03
    assert expected_calibration_error(softmax(logits), labels) > 0.08


def test_temperature_has_a_closed_form_for_one_logit_gap():
    # Four images with a gap of 3, three right: the best probability is 3/4, so 3 / T = log 3.
    logits, labels = [[3.0, 0.0]] * 4, [0, 0, 0, 1]
    assert fit_temperature(logits, labels) == pytest.approx(3 / math.log(3), rel=1e-4)


def test_temperature_is_bounded_and_one_for_an_empty_set():
    assert fit_temperature([[2.0, 0.0], [0.0, 2.0]], [0, 1]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([[2.0, 0.0], [0.0, 2.0]], [1, 0]) == pytest.approx(20, rel=1e-3)
    assert fit_temperature(np.zeros((0, 7)), np.zeros(0, int)) == 1.0


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


def test_reliability_table_sums_to_the_error():
    logits, labels = overconfident(images=300)
    table = reliability_before_after(logits, labels, 2.5)
    assert table["calibration"].unique().tolist() == ["before", "after"]
    for name, temperature in (("before", 1.0), ("after", 2.5)):
        part = table[table["calibration"] == name]
        error = ((part["accuracy"] - part["confidence"]).abs() * part["count"]).sum() / part["count"].sum()
        assert part["count"].sum() == 300
        assert error == pytest.approx(expected_calibration_error(softmax(logits, temperature), labels), abs=1e-5)


def test_empty_set_has_no_error_and_no_bins():
    assert math.isnan(expected_calibration_error(np.zeros((0, 7)), np.zeros(0, int)))
    assert reliability_bins(np.zeros((0, 7)), np.zeros(0, int), scheme="mass").empty


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"row 1 .*diverged"):
        softmax([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(UserError, match="NaN or infinite"):
        fit_temperature([[np.inf, 1.0]], [0])
    with pytest.raises(UserError, match="temperature is 0"):
        softmax([[0.0, 1.0]], temperature=0)
    with pytest.raises(UserError, match="choose width or mass"):
        expected_calibration_error([[0.5, 0.5]], [0], scheme="quantile")
