"""What a training run is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class TrainingData:
    """What training may see.

    images : images.npy
    labels : class index of every row, int [N]
    train, val : rows of the two splits
    classes : names, in the order of the logits
    image_ids : name of every row, for messages
    metadata : float32 [N, 3], see metadata.encode, for a network that uses it
    """

    images: Path
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    classes: list[str]
    image_ids: Sequence[str]
    metadata: np.ndarray | None = None


@dataclass(frozen=True)
class Setup:
    """Where and how to compute: device, "fp32", "bf16" or "fp16", loader processes, steps between two saved states."""

    device: torch.device
    precision: str = "fp32"
    workers: int = 0
    checkpoint_steps: int | None = None
