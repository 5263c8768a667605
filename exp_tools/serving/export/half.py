"""The model file in half the space: weights in float16, compared with the model on real images."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from exp_tools.io import scratch_folder
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.serving.engines import TorchEngine
from exp_tools.serving.export.parity import Parity, check_request, compare_with, require_close, with_export

TOLERANCE = 0.01
"""Largest accepted difference of a probability."""


def export_half(model: Path, out: Path, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Parity:
    """Write a model file whose matrices and kernels are float16; all that is used stays float32.

    Parameters
    ----------
    model, out : model files, model.safetensors and the one to write
    pixels : real images as the model sees them [N, S, S, 3], N > 0
    metadata : of their patients [N, 3], see metadata.encode

    Returns
    -------
    Parity, which is also in the file, under `training.export`

    Raises
    ------
    UserError : there is no image, a weight is too large for float16, or a probability differs by more than TOLERANCE
    """
    check_request(out, ".safetensors", pixels)
    facts, cpu = read_facts(model), torch.device("cpu")
    expected = TorchEngine(model, cpu).logits(pixels, metadata)
    with scratch_folder() as folder:
        trial = folder / "half.safetensors"
        copy_model(model, trial, facts, half=True)
        parity = compare_with(expected, TorchEngine(trial, cpu), pixels, metadata)
    require_close(parity, TOLERANCE, model, out)
    copy_model(model, out, with_export(facts, {"precision": "fp16", **parity._asdict()}), half=True)
    return parity
