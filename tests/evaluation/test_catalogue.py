"""The catalogue of metrics, and that whoever adds one is told what else it needs."""

import math
import re

import numpy as np
import pytest
from helpers.project import ROOT
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals
from exp_tools.evaluation.metrics.catalogue import HEADLINE, OF_A_CLASS, in_tables, label_of, metric_of
from exp_tools.evaluation.metrics.classification import class_metrics, confusion_metrics, headline_metrics
from exp_tools.evaluation.validation import confusion

PAGE = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")


def drawn(images: int = 60, seed: int = 0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, images)
    powers = np.exp(generator.normal(size=(images, 3)) + skill * np.eye(3)[labels])
    return powers / powers.sum(axis=1, keepdims=True), labels


def test_it_names_what_is_computed_and_nothing_else():
    probabilities, labels = drawn()
    assert HEADLINE.keys() == headline_metrics(probabilities, labels, list("abc")).keys()
    of_a_class = class_metrics(probabilities, labels, list("abc"))["a"].keys()
    assert OF_A_CLASS.keys() == of_a_class - {"support"}


@pytest.mark.parametrize("metric", HEADLINE.values(), ids=lambda metric: metric.key)
def test_docs_explain_each_metric_and_when_it_misleads(metric):
    found = [line for line in PAGE.splitlines() if re.match(r"\*\*", line) and f"`{metric.key}`" in line]
    assert found, f"docs/evaluation.md has no paragraph that begins with bold words and names `{metric.key}`"
    assert any("*Misleads*" in line for line in found)


def test_scores_and_intervals_lie_in_the_range():
    for skill in (-3.0, 0.0, 1.0, 30.0):
        probabilities, labels = drawn(40, skill=skill)
        scores = headline_metrics(probabilities, labels, list("abc"))
        intervals = bootstrap_intervals(probabilities, labels, np.arange(40), list("abc"), resamples=100)
        for key, metric in HEADLINE.items():
            low, high = intervals[key]
            assert metric.low <= low <= scores[key] <= high <= metric.high, key


def test_a_correlation_below_zero_has_its_interval_around_it():
    """It was cut to 0..0.04 for a value of -0.5: a share's interval."""
    probabilities, labels = drawn(60, skill=-3.0)
    value = headline_metrics(probabilities, labels, list("abc"))["mcc"]
    low, high = bootstrap_intervals(probabilities, labels, np.arange(60), list("abc"), resamples=200)["mcc"]
    assert value < -0.3
    assert -1 < low < value < high < 0


@pytest.mark.parametrize("seed", range(5))
def test_agreement_beyond_chance_is_that_of_sklearn(seed):
    labels, predicted = np.random.default_rng(seed).integers(0, 4, (2, 50))
    scores = confusion_metrics(confusion(labels, predicted, 5))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    assert scores["cohen_kappa"] == pytest.approx(cohen_kappa_score(labels, predicted), abs=1e-12)


def test_agreement_where_only_one_class_is_predicted_or_occurs():
    everything_one = confusion_metrics(np.array([[6, 0], [4, 0]]))
    assert everything_one["mcc"] == everything_one["cohen_kappa"] == 0
    one_class = confusion_metrics(np.array([[6, 0], [0, 0]]))
    assert math.isnan(one_class["mcc"])
    assert math.isnan(one_class["cohen_kappa"])
    assert confusion_metrics(np.array([[0, 5], [5, 0]]))["mcc"] == -1


def test_names_for_people():
    assert label_of("mcc") == "Matthews correlation"
    assert label_of("auc:mel") == "AUC of mel"
    assert metric_of("brier").lower_is_better
    assert "cohen_kappa" not in in_tables()
    with pytest.raises(KeyError):
        metric_of("mccc")
