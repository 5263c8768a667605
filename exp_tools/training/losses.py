"""Losses of single images, and the weights of rare classes.

Labels become targets, which mixing may blend; a class's share of an image takes that class's weight, and label
smoothing spreads it within the image. Every loss is that of one image and linear in its targets; training divides their
sum by the weights of all images of a step.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exp_tools.errors import UserError, did_you_mean
from exp_tools.params import TrainParams


def class_counts(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """Training images per class, int [C]; raises UserError when a class has none, since it could never be predicted."""
    counts = np.bincount(labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if absent:
        raise UserError(
            f"the train split has no image of {', '.join(absent)}: use more data (data.limit, data.sample_images), "
            "other fractions or folds, or another split.seed"
        )
    return counts


def class_weights(labels: np.ndarray, classes: list[str], rule: str | dict[str, float]) -> np.ndarray:
    """Weight of each class, in the loss or as the chance that a sampler draws one of its images.

    Parameters
    ----------
    labels : class index of every training image, int [N]
    classes : names, in the order of the indices
    rule : "none" (all 1); "balanced", N / (C · n_c), inverse to frequency; "sqrt", its square root, scaled to mean 1
        over the images as "balanced" is; or weights by class name, 1 for a class that is not named

    Returns
    -------
    float64 [C]

    Raises
    ------
    UserError
        A class has no image, whatever the rule; or the rule names a class that there is not.
    """
    counts = class_counts(labels, classes)
    if isinstance(rule, dict):
        unknown = [name for name in rule if name not in classes]
        if unknown:
            name = unknown[0]
            hint = did_you_mean(name, classes)
            raise UserError(f"train.class_weights names {name!r}; the classes are {', '.join(classes)}{hint}")
        return np.array([rule.get(name, 1.0) for name in classes], dtype=float)
    if rule == "none":
        return np.ones(len(classes))
    weights = counts**-0.5 if rule == "sqrt" else 1 / counts
    return weights * len(labels) / (counts @ weights)


def seen_shares(labels: np.ndarray, classes: list[str], params: TrainParams) -> np.ndarray:
    """Share of each class in the loss, float [C], sum 1: its images times how often they are drawn and their weight."""
    weight = class_weights(labels, classes, params.class_weights)
    drawn = class_weights(labels, classes, params.sampler)
    seen = class_counts(labels, classes) * drawn * weight
    return seen / seen.sum()


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels int [B] as float32 [B, C]; a label of -1, which is padding, gives a row of zeros."""
    return (labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)).float()


def weighted_targets(targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The targets of a loss: each class's share of an image times the class's weight, then smoothed within the image.

    A nevus of weight w is a smoothed target of weight w, and an image mixed of two classes counts for each as much as
    that class does. (Weights inside a smoothed target would give rare classes most of what smoothing takes from common
    ones; the mean weight of a mixed image would lend the weight of the rare half to the common one.)

    Parameters
    ----------
    targets : float [B, C], rows that sum to 1, or to 0 for padding; one class, or several after mixing
    weights : float [C], of the classes
    smoothing : share ε that is spread evenly over all C classes, 0 <= ε < 1

    Returns
    -------
    float [B, C]; a row sums to the weight of its image, Σ w_c t_c

    References
    ----------
    Smoothing: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016.
    """
    weighted = targets * weights
    return weighted * (1 - smoothing) + weighted.sum(1, keepdim=True) * (smoothing / weighted.shape[1])


def make_loss(params: TrainParams) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of each image: a function of logits [B, C] and (weighted) targets [B, C] that returns float32 [B]."""
    if params.loss == "focal":
        return partial(focal_loss, gamma=params.focal_gamma)
    return cross_entropy


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image, in float32, for soft targets."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """Focal loss of each image, in float32: -Σ t_c (1 - p_c)^γ ln p_c, cross-entropy for γ = 0.

    References
    ----------
    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; there for one-hot targets.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    # The slope of (1 - p)^γ at p = 1 is infinite for γ < 1.
    missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).tiny)
    return -(targets * missing**gamma * log_p).sum(1)
