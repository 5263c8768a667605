"""Logits of many images, in order."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from exp_tools.data.dataset import FixedOrder, PackedImages
from exp_tools.models.inputs import network_inputs


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
    """Run a model over packed images.

    Parameters
    ----------
    model : maps [B, 3, S, S], and metadata [B, 3] where it `uses_metadata`, to logits [B, C]
    images : images.npy
    index : rows to predict [N]
    batch_size, device, precision : how; "bf16" and "fp16" compute under autocast
    metadata : float32, a row for each image of images.npy, see metadata.encode; needed where the model uses it

    Returns
    -------
    float32 [N, C]
    """
    model = model.to(device).eval()
    packed = PackedImages(images, np.zeros(int(index.max(initial=-1)) + 1), metadata=metadata)
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=lower, enabled=lower is not None):
        for keys in tqdm(FixedOrder(index, batch_size), desc="predict", unit="batch", disable=None, leave=False):
            batch = packed.__getitems__(keys)
            inputs = network_inputs(model, torch.from_numpy(batch.images), torch.from_numpy(batch.metadata), device)
            logits.append(model(*inputs).float().cpu().numpy())
    return np.concatenate(logits) if logits else np.empty((0, 0), dtype=np.float32)
