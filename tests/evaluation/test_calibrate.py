"""What is fitted on validation: temperature and bias, the decision, the thresholds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import balanced_accuracy_score, log_loss

from exp_tools.errors import UserError
from exp_tools.evaluation.calibrate import choose_abstention, choose_power, choose_threshold, fit_probabilities
from exp_tools.evaluation.metrics.calibration import expected_calibration_error
from exp_tools.evaluation.probabilities import Calibration, balanced_costs, least_cost_decisions
from exp_tools.evaluation.validation import softmax

SHARES = np.array([0.03, 0.05, 0.11, 0.02, 0.11, 0.67, 0.01])
P_MEL = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05])
IS_MEL = np.isin(np.arange(15), [0, 1, 3, 4, 7])


def answers(generator, images, seen, factor=2.5):
    """Logits of an ideal network that learned under the class shares `seen`, times `factor`, of images with SHARES."""
    labels = generator.choice(len(SHARES), images, p=SHARES)
    means = 2.2 * np.eye(len(SHARES))
    features = generator.normal(size=(images, len(SHARES))) + means[labels]
    return factor * (features @ means.T - 0.5 * (means**2).sum(axis=1) + np.log(seen)), labels


def test_temperature_alone_recovers_the_factor_and_lowers_the_loss():
    logits, labels = answers(np.random.default_rng(0), 4000, SHARES)
    temperature, bias = fit_probabilities(logits, labels, None)
    assert temperature == pytest.approx(2.5, rel=0.05)
    assert not bias.any()
    best = log_loss(labels, softmax(logits, temperature))
    for other in (1.0, temperature * 1.05, temperature / 1.05):
        assert best < log_loss(labels, softmax(logits, other))
    assert fit_probabilities(logits, labels, None)[0] == temperature
    assert expected_calibration_error(softmax(logits, temperature), labels) < 0.03
    assert expected_calibration_error(softmax(logits), labels) > 0.04


@pytest.mark.parametrize("seen", [np.full(7, 1 / 7), np.sqrt(SHARES) / np.sqrt(SHARES).sum(), SHARES])
def test_probabilities_mean_what_they_say_for_every_class_whatever_the_sampler_showed(seen):
    """O:E of the classes with enough cases, and the log-loss, on average over many pairs of validation and test."""
    generator, ratios, losses = np.random.default_rng(1), [], []
    for _ in range(40):
        logits, labels = answers(generator, 1500, seen)
        temperature, bias = fit_probabilities(logits, labels, np.log(SHARES / seen))
        test, truth = answers(generator, 1500, seen)
        p = Calibration(temperature, bias.tolist(), "frequent", []).probabilities(test)
        ratios.append(np.bincount(truth, minlength=7) / p.sum(axis=0))
        ideal = softmax(test / 2.5 + np.log(SHARES / seen))
        losses.append([log_loss(truth, p), log_loss(truth, ideal), log_loss(truth, softmax(test / 2.5))])
    assert np.mean(ratios, axis=0) == pytest.approx(np.ones(7), abs=0.1)
    fitted, ideal, without_bias = np.mean(losses, axis=0)
    assert fitted < ideal + 0.005
    if seen[0] == 1 / 7:
        assert without_bias > ideal + 0.2


def test_the_fit_is_the_maximum_of_the_penalised_likelihood():
    """Mean p equals the frequency but for the prior, and a general optimiser finds no better T and b."""
    logits, labels = answers(np.random.default_rng(2), 2000, np.full(7, 1 / 7))
    temperature, bias = fit_probabilities(logits, labels, np.zeros(7))
    p = softmax(logits / temperature + bias)
    assert p.sum(axis=0) - np.bincount(labels, minlength=7) == pytest.approx(-bias, abs=0.05)

    def loss(values):
        penalty = values @ values / 2
        return log_loss(labels, softmax(logits / math.exp(values[0]) + values[1:]), normalize=False) + penalty

    best = minimize(loss, np.zeros(8), method="Powell", options={"xtol": 1e-8, "ftol": 1e-12, "maxiter": 200})
    assert loss(np.array([math.log(temperature), *bias])) <= best.fun + 0.01


def test_a_class_without_images_stays_near_the_known_correction():
    logits, labels = answers(np.random.default_rng(3), 1000, np.full(7, 1 / 7))
    kept = labels != 6
    start = np.log(SHARES * 7)
    _, bias = fit_probabilities(logits[kept], labels[kept], start)
    assert start[6] - start[5] - 3 < bias[6] - bias[5] < start[6] - start[5]  # ten were expected, none came
    temperature, bias = fit_probabilities(np.zeros((0, 7)), np.zeros(0, int), start)
    assert temperature == 1.0
    assert bias == pytest.approx(start - start.mean())


def test_a_set_without_a_mistake_stays_within_bounds():
    logits = 8 * np.eye(3)[np.arange(300) % 3]
    temperature, _ = fit_probabilities(logits, np.arange(300) % 3, None)
    assert 0.05 <= temperature < 1
    with pytest.raises(UserError, match="NaN or infinite"):
        fit_probabilities([[np.inf, 1.0]], [0], None)


def test_the_balanced_decision_raises_balanced_accuracy_and_leaves_probabilities():
    generator = np.random.default_rng(4)
    logits, labels = answers(generator, 3000, SHARES)
    p = softmax(logits / 2.5)
    power = choose_power(p, labels, SHARES)
    assert 0.6 <= power <= 1.4
    test, truth = answers(generator, 3000, SHARES)
    p = softmax(test / 2.5)
    decided = least_cost_decisions(p, balanced_costs(SHARES, power))
    assert (decided == (p / SHARES**power).argmax(axis=1)).all()
    assert balanced_accuracy_score(truth, decided) > balanced_accuracy_score(truth, p.argmax(axis=1)) + 0.05
    assert choose_power(np.zeros((0, 7)), np.zeros(0, int), SHARES) == 1.0


def test_the_rules_are_what_they_are_called():
    p = np.array([[0.2, 0.35, 0.45], [0.1, 0.1, 0.8]])
    plain = Calibration.none(3)
    assert plain.decisions(p).tolist() == [2, 2]
    costly = replace(plain, decide="costs", costs=[[0, 1, 5], [1, 0, 1], [1, 1, 0]])
    assert costly.decisions(p).tolist() == [1, 2]  # deciding for each costs 0.8, 0.65, 1.35; 0.9, 0.9, 0.6
    assert Calibration.from_dict(costly.as_dict()) == costly
    with pytest.raises(UserError, match="dvc repro calibrate"):
        Calibration.from_dict({})


# --- thresholds


@pytest.mark.parametrize(("sensitivity", "expected"), [(0.16, 0.95), (0.17, 0.9), (0.5, 0.8), (0.6, 0.7), (0.8, 0.4)])
def test_the_threshold_is_the_highest_that_keeps_the_promise(sensitivity, expected):
    threshold, lesions, needed = choose_threshold(P_MEL, IS_MEL, np.arange(15), sensitivity)
    assert threshold == expected
    assert lesions == 5
    assert needed == math.ceil(sensitivity / (1 - sensitivity) - 1e-9)
    assert IS_MEL[expected <= P_MEL].sum() / 6 >= sensitivity


def test_too_few_melanomas_are_counted():
    assert choose_threshold(P_MEL, IS_MEL, np.arange(15), 0.95) == (0.4, 5, 19)
    assert choose_threshold([0.5, 0.6], np.array([False, False]), ["a", "b"], 0.95) == (None, 0, 19)


def test_new_melanomas_are_found_as_often_as_promised():
    generator, found = np.random.default_rng(5), []
    for _ in range(4000):
        count = int(generator.integers(19, 40))
        p_mel = generator.random(count + 1)
        threshold, *_ = choose_threshold(p_mel[:count], np.ones(count, bool), np.arange(count), 0.95)
        found.append(p_mel[count] >= threshold)
    assert np.mean(found) + 2 * math.sqrt(0.05 * 0.95 / 4000) >= 0.95
    assert np.mean(found) < 0.98


def test_a_lesion_counts_once_however_many_images_it_has():
    p_mel, lesions = [0.9, 0.2, 0.2, 0.2, 0.8, 0.7], ["a", "b", "b", "b", "c", "d"]
    by_lesion, count, _ = choose_threshold(p_mel, np.ones(6, bool), lesions, 0.6)
    assert (by_lesion, count) == (0.7, 4)  # three of four; by image it were five of six


def test_rounding_the_threshold_loses_no_melanoma():
    generator = np.random.default_rng(0)
    for _ in range(300):
        p_mel = generator.random(7)
        threshold, *_ = choose_threshold(p_mel, np.ones(7, dtype=bool), np.arange(7), 0.99)
        assert threshold == round(threshold, 6)
        assert 0 <= p_mel.min() - threshold < 1e-6
        assert (p_mel.round(6) >= threshold).all()  # and none among the rounded probabilities of a prediction table
    assert choose_threshold([0.29, 0.9], np.array([True, True]), [0, 1], 0.9)[0] == 0.29
    assert choose_threshold([2e-7, 0.9], np.array([True, True]), [0, 1], 0.9)[0] == 0


@pytest.mark.parametrize("sensitivity", [0, 1, 95])
def test_a_sensitivity_that_is_none(sensitivity):
    with pytest.raises(UserError, match="above 0 and below 1"):
        choose_threshold(P_MEL, IS_MEL, np.arange(15), sensitivity)


def two_class(confidences):
    """Rows that predict class 0 with these confidences."""
    return np.column_stack([confidences, 1 - np.asarray(confidences)])


def test_abstention_leaves_the_least_certain_share_and_never_more():
    confidence = np.arange(60, 100) / 100
    probabilities = two_class(np.random.default_rng(0).permutation(confidence))
    assert choose_abstention(probabilities, 0.25) == 0.7  # 0.60 to 0.69 are ten of forty
    assert choose_abstention(probabilities, 0.26) == 0.7  # eleven would be more than the share
    assert choose_abstention(probabilities, 0) == 0.6
    assert choose_abstention(two_class([0.6] * 29 + [0.9] * 71), 0.29) == 0.9  # 0.29 * 100 < 29 in floating point
    assert choose_abstention(two_class([0.7] * 8 + [0.9] * 2), 0.5) == 0.7  # ties stay with the model: none below
    assert choose_abstention(np.zeros((0, 7)), 0.1) == 0.0
    with pytest.raises(UserError, match=r"share .* is 1"):
        choose_abstention([[0.5, 0.5]], 1)


def test_abstention_is_rounded_down():
    assert choose_abstention([[2 / 3, 1 / 3]], 0) == 0.666666
    assert choose_abstention([[0.57, 0.43]], 0) == 0.57
    just_below = np.nextafter(0.75, 0)
    assert choose_abstention([[just_below, 0.25]], 0) == 0.749999
