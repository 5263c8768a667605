"""Losses of single images agree with torch's and torchvision's, and classes get the weights that a rule says."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from exp_tools.errors import UserError
from exp_tools.training.losses import class_weights, make_loss, one_hot, weighted_targets

CLASSES = ["mel", "nv", "df"]
LABELS = np.array([0] * 4 + [1] * 16 + [2])


def loss_of(params, **changes):
    return make_loss(params.train.model_copy(update=changes))


def focal(params, gamma):
    return loss_of(params, loss="focal", focal_gamma=gamma)


def logits_and_labels(count=12, classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def test_rules_of_class_weights():
    np.testing.assert_array_equal(class_weights(LABELS, CLASSES, "none"), [1, 1, 1])
    np.testing.assert_allclose(class_weights(LABELS, CLASSES, "balanced"), [21 / 12, 21 / 48, 21 / 3])
    # roots of 1/4, 1/16, 1/1 are 1/2, 1/4, 1; over the images they add up to 2 + 4 + 1
    np.testing.assert_allclose(class_weights(LABELS, CLASSES, "sqrt"), np.array([1 / 2, 1 / 4, 1]) * 21 / 7)
    np.testing.assert_array_equal(class_weights(LABELS, CLASSES, {"mel": 5}), [5, 1, 1])


@pytest.mark.parametrize("rule", ["balanced", "sqrt"])
def test_weights_have_mean_one_over_the_images(rule):
    weights = class_weights(LABELS, CLASSES, rule)
    assert weights.dtype == np.float64
    assert weights[LABELS].mean() == pytest.approx(1)


def test_a_wrong_class_name_is_answered_with_the_right_one():
    with pytest.raises(UserError, match=r"train\.class_weights names 'mell'; .*mel, nv, df \(did you mean 'mel'\?\)"):
        class_weights(LABELS, CLASSES, {"nv": 1.0, "mell": 5.0})


@pytest.mark.parametrize("rule", ["none", "balanced", "sqrt", {"mel": 5.0}])
def test_a_class_without_images_is_named(rule):
    with pytest.raises(UserError, match="train split has no image of df"):
        class_weights(LABELS[:-1], CLASSES, rule)


def soft_targets(labels, num_classes, smoothing):
    return weighted_targets(one_hot(labels, num_classes), torch.ones(num_classes), smoothing)


def test_targets_by_hand():
    targets = soft_targets(torch.tensor([2, -1]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0, 0, 0, 0]]))
    assert torch.equal(soft_targets(torch.tensor([1]), 2, 0.0), torch.tensor([[0.0, 1.0]]))
    shares = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([4.0, 8.0], dtype=torch.float64)
    assert weighted_targets(shares, weights, 0.0).tolist() == [[3, 2], [0, 8], [0, 0]]
    assert weighted_targets(shares, weights, 0.5).tolist() == [[2.75, 2.25], [2, 6], [0, 0]]


@pytest.mark.parametrize("rule", ["none", "balanced", {"mel": 5.0}])
def test_the_weighted_mean_is_torchs_weighted_cross_entropy(params, rule):
    logits, labels = logits_and_labels()
    weights = torch.from_numpy(class_weights(LABELS, CLASSES, rule)).float()
    ours = loss_of(params)(logits, weighted_targets(one_hot(labels, 3), weights, 0.0)).sum() / weights[labels].sum()
    torch.testing.assert_close(ours, nn.CrossEntropyLoss(weight=weights)(logits, labels))


@pytest.mark.parametrize("changes", [{}, {"loss": "focal"}])
def test_a_smoothed_image_weighs_what_its_class_does(params, changes):
    logits, labels = logits_and_labels()
    weights = torch.tensor([3.0, 0.5, 20.0])
    ours = loss_of(params, **changes)(logits, weighted_targets(one_hot(labels, 3), weights, 0.1))
    plain = loss_of(params, **changes)(logits, soft_targets(labels, 3, 0.1))
    torch.testing.assert_close(ours, weights[labels] * plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_half_of_a_mixed_image_weighs_what_its_class_does(params, smoothing):
    logits, labels = logits_and_labels()
    weights, share = torch.tensor([3.0, 0.5, 20.0]), 0.7
    sharp = one_hot(labels, 3)
    ours = loss_of(params)(logits, weighted_targets(share * sharp + (1 - share) * sharp.flip(0), weights, smoothing))
    each = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    halves = zip((share, 1 - share), (labels, labels.flip(0)), strict=True)
    torch.testing.assert_close(ours, sum(part * weights[of] * each(logits, of) for part, of in halves))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_weights_give_every_class_an_equal_part_of_the_loss(smoothing):
    weights = torch.from_numpy(class_weights(LABELS, CLASSES, "balanced"))
    parts = weighted_targets(one_hot(torch.from_numpy(LABELS), 3), weights, smoothing).sum(0)
    torch.testing.assert_close(parts, torch.full((3,), len(LABELS) / 3, dtype=torch.float64))


def test_label_smoothing_is_torchs(params):
    logits, labels = logits_and_labels()
    ours = loss_of(params)(logits, soft_targets(labels, 3, 0.1))
    torch.testing.assert_close(ours, nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")(logits, labels))


def test_focal_loss_by_hand(params):
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    ours = focal(params, 2.0)(logits, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    sure, unsure = -(0.1**2) * math.log(0.9), -(0.9**2) * math.log(0.1)
    torch.testing.assert_close(ours, torch.tensor([sure, (sure + unsure) / 2]))


def test_focal_loss_of_two_classes_is_torchvisions(params):
    logits, labels = logits_and_labels(classes=2)
    ours = focal(params, 1.5)(logits, soft_targets(labels, 2, 0.0))
    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=-1, gamma=1.5)
    torch.testing.assert_close(ours, theirs)


def test_focal_loss_without_gamma_is_cross_entropy(params):
    logits, labels = logits_and_labels()
    targets = soft_targets(labels, 3, 0.1)
    torch.testing.assert_close(focal(params, 0.0)(logits, targets), loss_of(params)(logits, targets))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_a_certain_network_has_a_finite_slope(params, gamma):
    logits = torch.tensor([[200.0, 0.0, -200.0], [200.0, 0.0, -200.0]], requires_grad=True)
    loss = focal(params, gamma)(logits, soft_targets(torch.tensor([0, 2]), 3, 0.0))
    loss.sum().backward()
    assert loss.tolist() == [0, 400]
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("changes", [{}, {"loss": "focal"}])
def test_half_precision_is_computed_in_full_and_padding_costs_nothing(params, changes):
    logits, labels = logits_and_labels()
    labels[3] = -1
    half, targets = logits.bfloat16(), soft_targets(labels, 3, 0.0)
    losses = loss_of(params, **changes)(half, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, loss_of(params, **changes)(half.float(), targets), rtol=0, atol=0)
    assert losses[3] == 0
