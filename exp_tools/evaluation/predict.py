"""Logits of many images, in order, with or without test-time augmentation."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.data.inputs.dataset import FixedOrder, PackedImages
from exp_tools.io import ProgressBar
from exp_tools.models.normalize import network_inputs


class View(NamedTuple):
    """How an image is looked at: mirrored left-right or not, then turned by quarters to the left."""

    mirrored: bool
    quarters: int

    def of(self, images: Tensor) -> Tensor:
        """The view of images [B, S, S, 3]."""
        return torch.rot90(images.flip(2) if self.mirrored else images, self.quarters, dims=(1, 2))


VIEWS = {
    "none": (View(False, 0),),
    "flips": (View(False, 0), View(True, 0), View(False, 2), View(True, 2)),
    "dihedral": tuple(View(mirrored, quarters) for mirrored in (False, True) for quarters in range(4)),
}
"""The views of `evaluate.tta`; the first is the image as it is."""


def predict_logits(
    model: nn.Module,
    images: Path,
    index: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    metadata: np.ndarray | None = None,
) -> np.ndarray:
    """Logits of packed images, float32 [N, C]: `predict_views` with the image as it is."""
    run = {"batch_size": batch_size, "device": device, "precision": precision, "metadata": metadata}
    return predict_views(model, images, index, **run)[0]


def predict_views(
    model: nn.Module,
    images: Path,
    index: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    metadata: np.ndarray | None = None,
    tta: str = "none",
) -> np.ndarray:
    """Run a model over packed images, once a view.

    Parameters
    ----------
    model : maps [B, 3, S, S], and metadata [B, 3] where it `uses_metadata`, to logits [B, C]
    images : images.npy
    index : rows to predict [N]
    batch_size, device, precision : how; "bf16" and "fp16" compute under autocast
    metadata : float32, a row for each image of images.npy, see metadata.encode; needed where the model uses it
    tta : a key of VIEWS; V views take V times the time of one

    Returns
    -------
    float32 [V, N, C]; the first is the image as it is, the mean over V the prediction with test-time augmentation
    """
    model = model.to(device).eval()
    packed = PackedImages(images, np.zeros(int(index.max(initial=-1)) + 1), metadata=metadata)
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=lower, enabled=lower is not None):
        for keys in ProgressBar(FixedOrder(index, batch_size), desc="predict", unit="batch", leave=False):
            batch = packed.__getitems__(keys)
            pixels, numbers = torch.from_numpy(batch.images), torch.from_numpy(batch.metadata)
            views = [model(*network_inputs(model, view.of(pixels), numbers, device)).float() for view in VIEWS[tta]]
            logits.append(torch.stack(views).cpu().numpy())
    return np.concatenate(logits, axis=1) if logits else np.empty((len(VIEWS[tta]), 0, 0), dtype=np.float32)
