"""Costs of mistakes: worked out by hand, and against a loop over images and decisions."""

import json
import math

import numpy as np
import pytest

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.metrics.costs import cost_report

CLASSES = ["bkl", "mel", "nv"]
COSTS = {"mel": {"nv": 20, "bkl": 10}, "nv": {"mel": 2}}
PROBABILITIES = np.array([[0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [0.96, 0.01, 0.03], [0.0, 0.04, 0.96]])
LABELS = np.array([1, 1, 0, 2])


def test_four_images_by_hand():
    report = cost_report(PROBABILITIES, LABELS, np.arange(4), CLASSES, COSTS, resamples=50)
    assert report["matrix"] == {
        "bkl": {"bkl": 0, "mel": 1, "nv": 1},
        "mel": {"bkl": 10, "mel": 0, "nv": 20},
        "nv": {"bkl": 1, "mel": 2, "nv": 0},
    }
    # Expected costs of deciding bkl, mel, nv: 1.8, 1.7, 2.1; 5.3, 0.8, 10.2; 0.13, 1.02, 1.16; 1.36, 1.92, 0.8.
    # Decisions of least cost: mel, mel, bkl, nv, all right. Most probable: nv, mel, bkl, nv; the first costs 20.
    assert report["mean_cost"] == {"decided": 5.0, "least_expected_cost": 0.0, "saved": 5.0}
    assert report["changed"] == 0.25
    assert report["confusion"]["decided"]["mel"] == {"bkl": 0, "mel": 1, "nv": 1}
    assert report["confusion"]["least_expected_cost"]["mel"] == {"bkl": 0, "mel": 2, "nv": 0}


def test_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 300), rng.integers(3, size=300)
    report = cost_report(probabilities, labels, np.arange(300), CLASSES, COSTS, resamples=400)
    cost = {(t, p): COSTS.get(t, {}).get(p, float(t != p)) for t in CLASSES for p in CLASSES}
    paid = {"decided": [], "least_expected_cost": []}
    for row, label in zip(probabilities, labels, strict=True):
        expected = {p: sum(row[i] * cost[t, p] for i, t in enumerate(CLASSES)) for p in CLASSES}
        paid["decided"].append(cost[CLASSES[label], CLASSES[row.argmax()]])
        paid["least_expected_cost"].append(cost[CLASSES[label], min(expected, key=expected.get)])
    for rule, values in paid.items():
        assert report["mean_cost"][rule] == pytest.approx(np.mean(values), abs=1e-9)
        low, high = report["intervals"][rule]["low"], report["intervals"][rule]["high"]
        error = 1.96 * np.std(values) / math.sqrt(300)
        assert high - low == pytest.approx(2 * error, rel=0.15)
        assert low < np.mean(values) < high
    saved = np.subtract(*paid.values())
    assert report["mean_cost"]["saved"] == pytest.approx(saved.mean(), abs=1e-9)
    bounds = report["intervals"]["saved"]
    assert (bounds["low"] + bounds["high"]) / 2 == pytest.approx(saved.mean())
    assert bounds["high"] - bounds["low"] == pytest.approx(2 * 1.96 * saved.std() / math.sqrt(300), rel=0.15)
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("ties", [False, True])
def test_equal_costs_leave_the_most_probable_class_and_cost_the_error_rate(ties):
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 4, size=(500, 3)).astype(float) if ties else rng.random((500, 3))
    probabilities, labels = weights / weights.sum(axis=1, keepdims=True), rng.integers(3, size=500)
    report = cost_report(probabilities, labels, np.arange(500), CLASSES, {}, resamples=5)
    assert report["changed"] == 0
    accuracy = headline_metrics(probabilities, labels, CLASSES)["accuracy"]
    assert report["mean_cost"]["least_expected_cost"] == pytest.approx(1 - accuracy, abs=1e-12)


def test_a_right_answer_may_cost_something_and_lesions_count_once():
    costs = {"mel": {"mel": 0.5}}
    report = cost_report(np.eye(3)[[1, 1, 2, 2]], [1, 1, 2, 2], list("aabb"), CLASSES, costs, resamples=200)
    assert report["mean_cost"]["decided"] == 0.25
    one_group = cost_report(np.eye(3)[[1, 2]], [1, 2], ["a", "a"], CLASSES, costs, resamples=20)
    assert math.isnan(one_group["intervals"]["decided"]["low"])


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"mle": {"nv": 2}}, r"evaluate\.costs names 'mle'.*did you mean 'mel'"),
        ({"mel": {"nvs": 2}}, r"evaluate\.costs\.mel names 'nvs'.*did you mean 'nv'"),
        ({"mel": {"nv": -1}}, r"evaluate\.costs\.mel\.nv is -1"),
        ({"mel": {"nv": math.nan}}, r"evaluate\.costs\.mel\.nv is nan"),
    ],
)
def test_bad_costs_are_named(costs, message):
    with pytest.raises(UserError, match=message):
        cost_report(PROBABILITIES, LABELS, np.arange(4), CLASSES, costs)


def test_bad_predictions_are_named():
    with pytest.raises(UserError, match="no image to score"):
        cost_report(np.zeros((0, 3)), np.zeros(0, int), [], CLASSES, COSTS)
