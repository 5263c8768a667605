"""Logits of many images, in order."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from exp_tools.data.dataset import FixedOrder, PackedImages
from exp_tools.models.inputs import normalise


def predict_logits(
    model: nn.Module,
    images: Path,
    index: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
) -> np.ndarray:
    """Run a model over packed images.

    Parameters
    ----------
    model : maps [B, 3, S, S] to logits [B, C]; has pixel_mean and pixel_std
    images : images.npy
    index : rows to predict [N]
    batch_size, device, precision : how; "bf16" and "fp16" compute under autocast

    Returns
    -------
    float32 [N, C]
    """
    model = model.to(device, memory_format=torch.channels_last).eval()
    packed = PackedImages(images, np.zeros(int(index.max(initial=-1)) + 1))
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=lower, enabled=lower is not None):
        for keys in tqdm(FixedOrder(index, batch_size), desc="predict", unit="batch", disable=None):
            batch = torch.from_numpy(packed.__getitems__(keys).images).to(device)
            logits.append(model(normalise(batch, model.pixel_mean, model.pixel_std)).float().cpu().numpy())
    return np.concatenate(logits) if logits else np.empty((0, 0), dtype=np.float32)
