"""Weights from a file into a network, and a list of what did not fit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exp_tools.errors import UserError


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Copy every tensor of a weight file that fits by name and shape; a head of another class count does not.

    The file may hold this project's whole network or the plain timm backbone. `.pth` and `.pt` files are read with
    weights_only=True, so that a file cannot run code.

    Returns
    -------
    Names of the network's tensors that kept their initial values

    Raises
    ------
    UserError
        The file is missing, unreadable, or nothing in it fits.
    """
    stored = _read(path)
    own = model.state_dict()
    prefix = "" if any(name in own for name in stored) else "backbone.network."
    fitting = {
        prefix + name: tensor
        for name, tensor in stored.items()
        if prefix + name in own and own[prefix + name].shape == tensor.shape
    }
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise UserError(
            f"model.weights {path}: none of its {len(stored)} tensors fits this network; is it the right one?"
        )
    model.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}; write none, imagenet, or the path of a weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the readers raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.weights {path} cannot be read as weights: {reason}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
