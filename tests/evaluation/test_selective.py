"""Risk and coverage: by hand, ties at one point, the area as the plain mean, the threshold of the model."""

import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.selective import coverage_report, risk_coverage
from exp_tools.evaluation.plots.calibration import draw_risk_coverage
from exp_tools.evaluation.validation import softmax

# Five images that predict class 0, 0, 1, 0, 1 with falling confidence; right, right, wrong, wrong, right.
PROBABILITIES = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.7, 0.3], [0.4, 0.6]]
LABELS = [0, 0, 0, 1, 1]


def drawn(images, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, images, p=[0.6, 0.25, 0.1, 0.05])
    return softmax(rng.normal(size=(images, 4)) + 1.5 * np.eye(4)[labels]), labels


def test_curve_by_hand_with_a_tie():
    table = risk_coverage(PROBABILITIES, LABELS)
    expected = pd.DataFrame(
        {
            "coverage": [0.2, 0.4, 0.8, 1.0],
            "accuracy": [1.0, 1.0, 0.5, 0.6],
            "balanced_accuracy": [1.0, 1.0, 1 / 3, (2 / 3 + 1 / 2) / 2],
            "threshold": [0.9, 0.8, 0.7, 0.6],
            "images": [1, 2, 4, 5],
        }
    )
    pd.testing.assert_frame_equal(table, expected, atol=1e-6, check_exact=False)


def test_every_point_is_the_score_of_what_it_keeps():
    probabilities, labels = drawn(150)
    table = risk_coverage(probabilities, labels)
    order = np.argsort(-probabilities.max(axis=1))
    assert table["images"].tolist() == list(range(1, 151))
    for row in table.itertuples():
        kept = order[: row.images]
        true, predicted = labels[kept], probabilities[kept].argmax(axis=1)
        assert row.threshold == pytest.approx(probabilities[kept].max(axis=1).min(), abs=1e-6)
        assert row.accuracy == pytest.approx(accuracy_score(true, predicted), abs=1e-6)
        # scikit-learn warns of classes that are predicted and do not occur, and leaves them out, as we do.
        sensitivities = [(predicted[true == c] == c).mean() for c in np.unique(true)]
        assert row.balanced_accuracy == pytest.approx(np.mean(sensitivities), abs=1e-6)
    assert table["balanced_accuracy"].iloc[-1] == pytest.approx(
        balanced_accuracy_score(labels, probabilities.argmax(axis=1)), abs=1e-6
    )


def test_long_curves_are_thinned_at_even_steps_and_keep_both_ends():
    probabilities, labels = drawn(5000)
    table = risk_coverage(probabilities, labels)
    assert len(table) == 200
    assert table["images"].iloc[[0, -1]].tolist() == [1, 5000]
    assert np.diff(table["coverage"]).max() < 1.2 / 199


def test_area_is_the_mean_risk_whatever_the_order_of_equals():
    # Risks of the 1, 2, 3, 4, 5 most certain: the two images at 0.7 are both wrong.
    assert coverage_report(PROBABILITIES, LABELS)["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4 + 2 / 5) / 5)
    # One of two equals is wrong: half a mistake is expected after the first of them.
    one_wrong = coverage_report([[0.7, 0.3], [0.7, 0.3]], [0, 1])["aurc"]
    assert one_wrong == pytest.approx((0.5 + 0.5) / 2)
    assert coverage_report([[0.7, 0.3], [0.7, 0.3]], [1, 0])["aurc"] == one_wrong
    probabilities, labels = drawn(500)
    order = np.argsort(-probabilities.max(axis=1))
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    plain = np.mean([wrong[:size].mean() for size in range(1, 501)])
    assert coverage_report(probabilities, labels)["aurc"] == pytest.approx(plain, abs=1e-12)


def test_accuracy_of_the_most_certain():
    # Half of five is reached with three, which takes the fourth along as it is as certain.
    assert coverage_report(PROBABILITIES, LABELS)["accuracy_at"] == {"0.5": 0.5, "0.8": 0.5, "0.9": 0.6}
    probabilities, labels = drawn(1000)
    right = (probabilities.argmax(axis=1) == labels)[np.argsort(-probabilities.max(axis=1))]
    report = coverage_report(probabilities, labels)
    assert report["accuracy_at"] == pytest.approx({str(c): right[: int(c * 1000)].mean() for c in (0.5, 0.8, 0.9)})
    assert report["at_threshold"] is None


def test_at_the_threshold_of_the_model():
    report = coverage_report(PROBABILITIES, LABELS, threshold=0.7)["at_threshold"]
    assert report == {
        "threshold": 0.7,
        "images": 4,
        "coverage": 0.8,
        "accuracy": 0.5,
        "balanced_accuracy": pytest.approx(1 / 3),
        "accuracy_of_rest": 1.0,
    }
    nothing = coverage_report(PROBABILITIES, LABELS, threshold=0.95)["at_threshold"]
    assert (nothing["images"], nothing["accuracy_of_rest"]) == (0, 0.6)
    assert math.isnan(nothing["accuracy"])
    assert math.isnan(coverage_report(PROBABILITIES, LABELS, threshold=0)["at_threshold"]["accuracy_of_rest"])


def test_one_image_and_none():
    report = coverage_report([[0.2, 0.8]], [0], threshold=0.5)
    assert (report["aurc"], report["accuracy_at"]["0.5"], report["at_threshold"]["coverage"]) == (1, 0, 1)
    assert len(risk_coverage([[0.2, 0.8]], [0])) == 1
    with pytest.raises(UserError, match="set is empty"):
        risk_coverage(np.zeros((0, 7)), np.zeros(0, int))
    with pytest.raises(UserError, match="NaN or infinite"):
        coverage_report([[np.nan, 1.0]], [0])


def test_picture_says_what_stays_and_is_the_same_bytes(tmp_path):
    probabilities, labels = drawn(300)
    table, report = risk_coverage(probabilities, labels), coverage_report(probabilities, labels, threshold=0.5)
    for name in ("a.png", "b.png"):
        draw_risk_coverage(tmp_path / name, table, "sample data, test split", report["at_threshold"])
    draw_risk_coverage(tmp_path / "without.png", table, "sample data, test split")
    draw_risk_coverage(tmp_path / "one.png", risk_coverage([[0.2, 0.8]], [0]), "one image")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    for name in ("a.png", "without.png", "one.png"):
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert all((edge == 255).all() for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])), name
