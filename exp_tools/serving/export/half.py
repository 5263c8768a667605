"""The model file in half the space: weights in float16, compared with the model on real images."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import scratch_folder
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.serving.engines import TorchEngine
from exp_tools.serving.export.onnx import Parity, with_export

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
    if out.suffix != ".safetensors":
        raise UserError(f"a model file is called something.safetensors, not {out.name}: the ending says how it is read")
    if not len(pixels):
        raise UserError("there is no image to compare the export with the model on")
    facts, cpu = read_facts(model), torch.device("cpu")
    calibration = Calibration.from_dict(facts.calibration)
    expected = TorchEngine(model, cpu).logits(pixels, metadata)
    with scratch_folder() as folder:
        trial = folder / "half.safetensors"
        copy_model(model, trial, facts, half=True)
        found = TorchEngine(trial, cpu).logits(pixels, metadata)
    before, after = calibration.probabilities(expected), calibration.probabilities(found)
    changed = int((calibration.decisions(before) != calibration.decisions(after)).sum())
    parity = Parity(len(pixels), float(np.abs(found - expected).max()), float(np.abs(after - before).max()), changed)
    if parity.probabilities > TOLERANCE:
        raise UserError(
            f"in float16 {model} says something else: a probability differs by {parity.probabilities:.1e} (at most "
            f"{TOLERANCE:.0e} is accepted); {out} was not written"
        )
    copy_model(model, out, with_export(facts, {"precision": "fp16", **parity._asdict()}), half=True)
    return parity
