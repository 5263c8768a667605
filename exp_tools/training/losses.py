"""Losses of single images, and what is done about rare classes.

Labels become soft targets (rows that sum to 1), which label smoothing and mixing need. Every loss is that of one image,
not weighted: training multiplies it by the image's weight, and divides by the weights of all images of a step.
"""

import difflib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exp_tools.errors import UserError
from exp_tools.params import TrainParams


def class_counts(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """Training images a class, int [C]; raises UserError when a class has none, since it could never be predicted."""
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
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"train.class_weights names {name!r}; the classes are {', '.join(classes)}{hint}")
        return np.array([rule.get(name, 1.0) for name in classes], dtype=float)
    if rule == "none":
        return np.ones(len(classes))
    weights = counts**-0.5 if rule == "sqrt" else 1 / counts
    return weights * len(labels) / (counts @ weights)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels int [B] as float32 [B, C]: 1 - smoothing for the label, the rest spread evenly over all classes.

    A label of -1, which is padding, gives a row of zeros.

    References
    ----------
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016.
    """
    real = (labels >= 0).unsqueeze(1)
    sharp = functional.one_hot(labels.clamp_min(0), num_classes).float()
    return (sharp * (1 - smoothing) + smoothing / num_classes) * real


def image_weights(targets: Tensor, weights: Tensor) -> Tensor:
    """Weight of each image [B]: that of its classes, weights [C], by its soft targets [B, C]; 0 for padding."""
    return (targets * weights).sum(1)


def make_loss(params: TrainParams) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of each image: a function of logits [B, C] and soft targets [B, C] that returns float32 [B]."""
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
