"""Predictive values, likelihood ratios and net benefit at a stated prevalence, by hand."""

import math

import numpy as np
import pytest

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.prevalence import (
    THRESHOLDS,
    for_prevalence,
    likelihood_ratios,
    prevalence_report,
)
from exp_tools.evaluation.report.build import score_set, with_metadata


def rule(sensitivity: float = 0.8, specificity: float = 0.9, cases: int = 100, others: int = 400):
    """Scores with exactly these rates at 0.5."""
    scores = np.concatenate(
        [
            np.repeat([0.8, 0.2], [round(sensitivity * cases), cases - round(sensitivity * cases)]),
            np.repeat([0.2, 0.8], [round(specificity * others), others - round(specificity * others)]),
        ]
    )
    return scores, np.arange(cases + others) < cases


def test_predictive_values_follow_from_bayes_rule():
    scores, positive = rule()
    found = prevalence_report(scores, positive, scores >= 0.5, np.arange(500), stated=0.01, resamples=500)
    assert found["ppv"] == pytest.approx(0.8 * 0.01 / (0.8 * 0.01 + 0.1 * 0.99))
    assert found["npv"] == pytest.approx(0.9 * 0.99 / (0.9 * 0.99 + 0.2 * 0.01))
    for name in ("ppv", "npv"):
        assert 0 < found["intervals"][name]["low"] < found[name] < found["intervals"][name]["high"] < 1
    own = prevalence_report(scores, positive, scores >= 0.5, np.arange(500), resamples=500)
    assert (own["test"], own["stated"]) == (0.2, None)
    assert own["ppv"] == pytest.approx(80 / 120)


def test_net_benefit_by_hand():
    scores, positive = rule()
    found = prevalence_report(scores, positive, scores >= 0.5, np.arange(500), resamples=500)["net_benefit"]
    assert [row["threshold"] for row in found] == list(THRESHOLDS)
    at = {row["threshold"]: row for row in found}
    assert at[0.3]["model"] == pytest.approx((80 - 40 * 0.3 / 0.7) / 500)
    assert at[0.3]["low"] < at[0.3]["model"] < at[0.3]["high"]
    assert at[0.1]["model"] == pytest.approx(at[0.1]["all"])  # every score is above it
    assert at[0.1]["all"] == pytest.approx((100 - 400 / 9) / 500)


def test_probabilities_follow_the_prevalence():
    scores = np.array([0.5, 0.9])
    moved = for_prevalence(scores, 0.2, 0.01)
    odds = scores / (1 - scores) * (0.01 / 0.99) / (0.2 / 0.8)
    assert moved == pytest.approx(odds / (1 + odds))
    assert for_prevalence(moved, 0.01, 0.2) == pytest.approx(scores)


def test_the_interval_of_a_likelihood_ratio_is_as_wide_as_one_false_alarm_makes_it():
    """1 of 200 others is flagged: the logarithm of the ratio has a standard error of about 1 (Simel 1991)."""
    value, low, high = likelihood_ratios((0.8, 0.7, 0.88), (0.995, 0.965, 0.9993))["lr_positive"]
    assert value == pytest.approx(160)
    assert low < 160 / math.e**1.8
    assert high > 160 * math.e**1.8


def test_ratios_without_a_mistake_have_no_end():
    ratios = likelihood_ratios((1.0, 0.9, 1.0), (1.0, 0.95, 1.0))
    assert ratios["lr_positive"] == (math.inf, pytest.approx(0.9 / 0.05), math.inf)
    assert ratios["lr_negative"] == (0.0, 0.0, pytest.approx(0.1 / 0.95))
    scores, positive = rule(1.0, 1.0)
    found = prevalence_report(scores, positive, scores >= 0.5, np.arange(500), stated=0.01, resamples=100)
    assert (found["ppv"], found["npv"]) == (1.0, 1.0)
    assert 0.1 < found["intervals"]["ppv"]["low"] < 1
    nothing = prevalence_report(scores, np.zeros(500, bool), scores >= 0.5, np.arange(500), resamples=100)
    assert np.isnan([nothing["ppv"], nothing["net_benefit"][0]["model"]]).all()


def test_only_classes_of_the_model_have_a_prevalence(tmp_path):
    from helpers.predictions import CLASSES, predictions, scaled

    table = predictions(images=60)
    labels = table[["image_id"]].assign(dx_type="histo", age=50, sex="female", localization="back")
    about = {"calibration": scaled(3), "thresholds": {}, "costs": None, "resamples": 100, "seed": 0}
    report = score_set(with_metadata(table, labels), CLASSES, **about, prevalence={"bkl": 0.3})
    assert list(report["prevalence"]) == ["bkl", "mel"]
    assert report["prevalence"]["mel"]["stated"] is None
    with pytest.raises(UserError, match=r"evaluate.prevalence names 'melanoma'; the classes are bkl, mel, nv"):
        score_set(with_metadata(table, labels), CLASSES, **about, prevalence={"melanoma": 0.01})
