"""Metrics: numbers worked out by hand, and scikit-learn as an independent implementation."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import class_metrics, headline_metrics, top_k_accuracy
from exp_tools.evaluation.validation import SCORES, confusion, softmax, validation_scores

CLASSES = ["bcc", "mel", "nv"]
# Six images: truth bcc, bcc, mel, nv, nv, nv; predicted bcc, nv, mel, nv, nv, mel.
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0], [0.1, 0.3, 0.6], [0.0, 0.5, 0.5]]
)
LABELS = np.array([0, 0, 1, 2, 2, 2])


def draw(seed, images=200, num_classes=7, present=None, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.choice(present if present is not None else num_classes, images)
    logits = rng.normal(size=(images, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_headline_of_six_images_by_hand():
    scores = headline_metrics(PROBABILITIES, LABELS, CLASSES)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    assert scores["macro_precision"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert scores["macro_f1"] == pytest.approx(2 / 3)  # each class has F1 2/3
    assert scores["weighted_f1"] == pytest.approx(2 / 3)
    assert scores["macro_specificity"] == pytest.approx((4 / 4 + 4 / 5 + 2 / 3) / 3)
    # bcc: positives 0.8, 0.2 above all of 0.1, 0, 0.1, 0. mel: 0.7 is the highest. nv: of nine pairs, 1.0 wins three,
    # 0.6 ties with one and wins two, 0.5 wins two: 7.5.
    assert scores["macro_auc"] == pytest.approx((1 + 1 + 7.5 / 9) / 3)
    # nv: precision 1 at the first third of recall, then 2/3 (0.6 shared by a hit and a miss), then 3/4.
    assert scores["average_precision"] == pytest.approx((1 + 1 + (1 + 2 / 3 + 3 / 4) / 3) / 3)
    assert scores["brier"] == pytest.approx((0.06 + 1.04 + 0.14 + 0 + 0.26 + 0.5) / 6)
    assert scores["log_loss"] == pytest.approx(-np.log([0.8, 0.2, 0.7, 1.0, 0.6, 0.5]).mean())
    # Bins of 1/15: 0.5 (0 of 1 right), 0.6 and 0.6 (1 of 2), 0.7, 0.8, 1.0 (all right).
    assert scores["ece"] == pytest.approx((0.5 + 2 * 0.1 + 0.3 + 0.2 + 0.0) / 6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("present", [None, [0, 2, 5], [1, 6]])
def test_headline_agrees_with_scikit_learn(present, ties):
    classes = list("abcdefg")
    probabilities, labels = draw(3, present=present, ties=ties)
    scores = headline_metrics(probabilities, labels, classes)
    predicted, found = probabilities.argmax(axis=1), np.unique(labels)
    one_hot = np.eye(7)[labels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predicted classes that do not occur
        balanced = sk.balanced_accuracy_score(labels, predicted)
    averages = {"labels": found, "average": "macro", "zero_division": 0}
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": balanced,
        "macro_f1": sk.f1_score(labels, predicted, **averages),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
        "macro_precision": sk.precision_score(labels, predicted, **averages),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "cohen_kappa": sk.cohen_kappa_score(labels, predicted),
        "macro_specificity": np.mean([sk.recall_score(labels != c, predicted != c) for c in found]),
        "macro_auc": np.mean([sk.roc_auc_score(one_hot[:, c], probabilities[:, c]) for c in found]),
        "average_precision": np.mean([sk.average_precision_score(one_hot[:, c], probabilities[:, c]) for c in found]),
        "brier": np.mean(((probabilities - one_hot) ** 2).sum(axis=1)),
        "log_loss": sk.log_loss(labels, probabilities, labels=range(7)),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_probabilities_of_exactly_zero_and_one():
    labels = np.array([0, 1, 2, 2])
    right, wrong = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]
    best, worst = headline_metrics(right, labels, CLASSES), headline_metrics(wrong, labels, CLASSES)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "average_precision", "macro_specificity"):
        assert best[name] == 1.0
    assert (best["brier"], best["ece"], worst["brier"], worst["ece"]) == (0, 0, 2, 1)
    assert best["log_loss"] == pytest.approx(0, abs=1e-12)
    assert worst["log_loss"] == pytest.approx(-np.log(np.finfo(float).tiny))  # 708, where scikit-learn stops at 36
    tiny = headline_metrics([[1 - 1e-30, 1e-30, 0.0]], [1], CLASSES)
    assert tiny["log_loss"] == pytest.approx(30 * np.log(10))
    assert worst["accuracy"] == worst["macro_f1"] == worst["macro_precision"] == 0


def test_an_absent_class_changes_no_average_and_keeps_its_column():
    three = headline_metrics(PROBABILITIES, LABELS, CLASSES)
    padded = np.insert(PROBABILITIES, 1, 0.0, axis=1)
    four = headline_metrics(padded, np.array([0, 0, 2, 3, 3, 3]), ["bcc", "df", "mel", "nv"])
    assert four == pytest.approx(three, abs=1e-12)


def test_an_absent_class_in_the_table_of_classes():
    rows = class_metrics([[0.2, 0.7, 0.1], [0.9, 0.1, 0.0]], [0, 0], CLASSES)
    assert rows["mel"]["support"] == rows["nv"]["support"] == 0
    assert rows["mel"]["precision"] == 0  # predicted once, wrongly
    assert rows["mel"]["specificity"] == 0.5
    assert rows["nv"]["specificity"] == 1
    undefined = [("mel", "sensitivity"), ("mel", "f1"), ("mel", "auc"), ("mel", "average_precision")]
    undefined += [("nv", "precision"), ("bcc", "specificity"), ("bcc", "auc")]
    assert all(math.isnan(rows[code][name]) for code, name in undefined)
    assert (rows["bcc"]["sensitivity"], rows["bcc"]["precision"], rows["bcc"]["average_precision"]) == (0.5, 1, 1)


def test_a_present_class_that_is_never_predicted_has_precision_zero():
    rows = class_metrics([[0.4, 0.6], [0.1, 0.9]], [0, 1], ["mel", "nv"])
    assert (rows["mel"]["precision"], rows["mel"]["f1"], rows["mel"]["auc"]) == (0, 0, 1)
    assert headline_metrics([[0.4, 0.6], [0.1, 0.9]], [0, 1], ["mel", "nv"])["macro_precision"] == 0.25


def test_class_table_agrees_with_scikit_learn():
    probabilities, labels = draw(5, ties=True)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for c, row in enumerate(class_metrics(probabilities, labels, list("abcdefg")).values()):
        expected = {
            "sensitivity": recall[c],
            "specificity": sk.recall_score(labels != c, predicted != c),
            "precision": precision[c],
            "f1": f1[c],
            "auc": sk.roc_auc_score(labels == c, probabilities[:, c]),
            "average_precision": sk.average_precision_score(labels == c, probabilities[:, c]),
            "support": support[c],
        }
        assert row == pytest.approx(expected, abs=1e-9)


def test_one_image():
    scores = headline_metrics([[0.25, 0.25, 0.5]], [2], CLASSES)
    assert math.isnan(scores.pop("macro_auc"))
    assert all(math.isnan(scores.pop(name)) for name in ("macro_specificity", "mcc", "cohen_kappa"))
    exact = {"brier": 0.375, "log_loss": math.log(2), "ece": 0.5, "aurc": 0.0}
    ones = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_precision", "average_precision")
    assert scores == pytest.approx(exact | dict.fromkeys(ones, 1.0))


def test_top_k_by_hand():
    probabilities = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]]
    # Places of the labels: third, first, second (of equals the first comes first), fourth.
    assert top_k_accuracy(probabilities, [2, 3, 1, 3], list("abcd")) == {"2": 0.5, "3": 0.75}
    assert top_k_accuracy(PROBABILITIES, LABELS, CLASSES) == {"2": 1.0}
    assert top_k_accuracy([[0.5, 0.5]], [1], ["mel", "nv"]) == {}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("present", [None, [0, 2, 5], [1]])
def test_top_k_agrees_with_scikit_learn(present, ties):
    probabilities, labels = draw(4, present=present, ties=ties)
    # Of equals scikit-learn takes the last class and we the first: turn the columns round.
    turned = {"y_true": 6 - labels, "y_score": probabilities[:, ::-1], "labels": range(7)}
    expected = {str(k): sk.top_k_accuracy_score(**turned, k=k) for k in (2, 3, 5)}
    assert top_k_accuracy(probabilities, labels, list("abcdefg")) == pytest.approx(expected, abs=1e-9)


def test_confusion_has_truth_in_rows():
    matrix = confusion([0, 0, 1, 2], [0, 2, 1, 2], 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    probabilities, labels = draw(1)
    predicted = probabilities.argmax(axis=1)
    assert (confusion(labels, predicted, 7) == sk.confusion_matrix(labels, predicted, labels=range(7))).all()


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), ["mel", "nv"], "no image to score"),
        ([[0.5, 0.5], [np.nan, 0.5]], [0, 1], ["mel", "nv"], "row 1 .*diverged"),
        ([[0.5, 0.5]], [0], ["mel", "nv", "bcc"], "another task"),
        ([[0.5, 0.5]], [0], ["mel", "mel"], "names mel more than once"),
        ([[0.5, 0.5], [3.0, -2.0]], [0, 1], ["mel", "nv"], "row 1 .*softmax"),
        ([[0.5, 0.6]], [0], ["mel", "nv"], "sum to 1"),
        ([[0.5, 0.5]], [2], ["mel", "nv"], "label 2 in row 0"),
        ([[0.5, 0.5]], [-1], ["mel", "nv"], "label -1 in row 0"),
        ([[0.5, 0.5]], ["mel"], ["mel", "nv"], "whole number"),
        ([[0.5, 0.5]], [0, 1], ["mel", "nv"], "do not match labels"),
    ],
)
def test_bad_input_is_named(probabilities, labels, classes, message):
    with pytest.raises(UserError, match=message):
        headline_metrics(probabilities, labels, classes)
    with pytest.raises(UserError, match=message):
        class_metrics(probabilities, labels, classes)
    with pytest.raises(UserError, match=message):
        top_k_accuracy(probabilities, labels, classes)


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="3 labels do not match 2 predictions"):
        confusion([0, 1, 1], [0, 1], 2)
    with pytest.raises(UserError, match="prediction 5 in row 1"):
        confusion([0, 1], [0, 5], 2)


@pytest.mark.parametrize("seed", range(5))
def test_what_training_selects_on_is_defined_as_what_is_reported(seed):
    generator = np.random.default_rng(seed)
    logits, labels = 3 * generator.normal(size=(40, 3)), generator.integers(0, 2 + seed % 2, 40)
    selected = validation_scores(logits, labels, CLASSES)
    reported = headline_metrics(softmax(logits), labels, CLASSES)
    assert selected.keys() == {"loss", *SCORES}
    assert selected.pop("loss") == reported["log_loss"]
    assert selected == {name: reported[name] for name in SCORES}
