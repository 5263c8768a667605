"""Calibration of each class against statsmodels, and what is undefined."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import logit

from exp_tools.evaluation.metrics.calibration import classwise_error
from exp_tools.evaluation.metrics.class_calibration import class_calibration, logistic_line

CLASSES = ["a", "b", "c"]


def drawn(images: int = 800, sharpness: float = 1.0, seed: int = 0):
    """Probabilities of three classes whose labels follow them, sharpened, with two images a lesion."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (images, 3)) + np.array([0, -1, 0.5])
    true = expit_rows(logits)
    labels = np.array([generator.choice(3, p=row) for row in true])
    return expit_rows(logits * sharpness), labels, np.arange(images) // 2


def expit_rows(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_lines_and_their_errors_are_those_of_statsmodels():
    probabilities, labels, groups = drawn()
    positive, log_odds = labels == 1, logit(probabilities[:, 1])
    both = np.column_stack([np.ones(len(labels)), log_odds])
    for features, offset in ((both, np.zeros(len(labels))), (both[:, :1], log_odds)):
        model = sm.GLM(positive.astype(float), features, family=sm.families.Binomial(), offset=offset)
        clusters = {"groups": groups, "df_correction": True}
        expected = model.fit(cov_type="cluster", cov_kwds=clusters, tol=1e-12)
        line = logistic_line(features, positive, groups, offset=offset)
        assert line.values == pytest.approx(expected.params, abs=1e-7)
        small = np.sqrt((len(labels) - 1) / (len(labels) - features.shape[1]))  # which statsmodels adds
        assert line.errors * small == pytest.approx(expected.bse, rel=1e-6)


def test_intervals_hold_what_the_labels_were_drawn_with():
    probabilities, labels, groups = drawn(4000)
    for row in class_calibration(probabilities, labels, groups, CLASSES, resamples=300).values():
        for name, truth in (("ratio", 1), ("intercept", 0), ("slope", 1)):
            assert row["intervals"][name]["low"] < truth < row["intervals"][name]["high"], name
            assert row["intervals"][name]["low"] < row[name] < row["intervals"][name]["high"]
        assert row["ratio"] == pytest.approx(row["observed"] / row["predicted"])
    slope = class_calibration(expit_rows(np.log(probabilities) * 3), labels, groups, CLASSES, resamples=100)["a"][
        "slope"
    ]
    assert slope == pytest.approx(0.4, abs=0.1)  # of one class against the rest it is not exactly 1 / 3


def test_a_class_that_is_missing_alone_or_separated_has_no_line():
    probabilities, labels, groups = drawn(200)
    labels[labels == 2] = 0
    labels[:2], probabilities[:2] = 2, [0.1, 0.1, 0.8]
    found = class_calibration(probabilities, labels, groups, CLASSES, resamples=100)
    assert found["c"]["small"]
    assert np.isnan([found["c"]["slope"], found["c"]["intercept"]]).all()  # both images are of one lesion
    assert np.isnan(found["c"]["intervals"]["ratio"]["low"])
    none = class_calibration(probabilities[2:], labels[2:], groups[2:], CLASSES, resamples=100)["c"]
    assert np.isnan([none["ratio"], none["slope"], none["intervals"]["ratio"]["high"]]).all()
    perfect = np.where(labels[:, None] == np.arange(3), 0.98, 0.01)
    assert np.isnan(class_calibration(perfect, labels, groups, CLASSES, resamples=100)["a"]["slope"])


def test_the_classwise_error_by_hand():
    probabilities = np.array([[0.8, 0.2]] * 10 + [[0.3, 0.7]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 2 + [1] * 8)
    # Of both classes: 10 images at 0.8 for 0.6 observed, 10 at 0.3 for 0.2.
    assert classwise_error(probabilities, labels, bins=2) == pytest.approx((0.2 + 0.1) / 2)
    probabilities, labels, _ = drawn(20_000)
    assert classwise_error(probabilities, labels) < 0.01 < 0.05 < classwise_error(probabilities**3, labels)
