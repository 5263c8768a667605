"""Losses and what they do about rare classes."""

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.errors import UserError


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


def class_weights(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """Weight of each class, inverse to its frequency, mean 1 over the images: N / (C · n_c), float [C]."""
    counts = class_counts(labels, classes)
    return len(labels) / (len(classes) * counts)


def make_loss(balance: str, labels: np.ndarray, classes: list[str], label_smoothing: float) -> nn.CrossEntropyLoss:
    """Cross-entropy over logits [B, C] and labels [B], weighted by class where `balance` is "class_weights"."""
    weight: Tensor | None = None
    if balance == "class_weights":
        weight = torch.tensor(class_weights(labels, classes), dtype=torch.float32)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)
