"""Weights from a file into a network, and a list of what the file did not have."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exp_tools.errors import UserError
from exp_tools.models.backbone import Backbone

LISTED = 4
"""Tensors of one part that are listed by name; more are counted."""


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Copy every tensor of a weight file that fits by name and shape; a head of another class count does not.

    The file may hold this project's whole network, or the plain timm network of a backbone (for a network of two
    backbones, of either). `.pth` and `.pt` files are read with weights_only=True, so that a file cannot run code.

    Returns
    -------
    The network's tensors that kept their initial values, as `summarise_names` writes them

    Raises
    ------
    UserError
        The file is missing or unreadable, nothing in it fits, or a backbone fits in part only: then it is another one.
    """
    stored = _read(path)
    own = model.state_dict()
    prefix = max(_prefixes(model), key=lambda prefix: len(_fitting(stored, own, prefix)))
    fitting = _fitting(stored, own, prefix)
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise UserError(
            f"model.weights {path}: none of its {len(stored)} tensors fits this network; is it the right one?"
        )
    wanted = [name for name, _ in model.named_parameters() if name.startswith(prefix or "backbone.")]
    missing = [name for name in wanted if name not in fitting]
    if missing:
        raise UserError(
            f"model.weights {path}: {len(missing)} of the backbone's {len(wanted)} tensors are not in it, or not in "
            f"this shape ({', '.join(missing[:3])} …); is it of another backbone?"
        )
    model.load_state_dict(fitting, strict=False)
    return summarise_names(name for name in own if name not in fitting)


def summarise_names(names: Iterable[str]) -> list[str]:
    """Names of tensors for a person: in their order, of a part with many only the part and the count.

    A part is a child of the network, or of its backbone: `classifier.weight`, `backbone.efficientnet (358 tensors)`.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        depth = 2 if name.startswith("backbone.") else 1
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    lines = []
    for part, members in parts.items():
        lines += members if len(members) <= LISTED else [f"{part} ({len(members)} tensors)"]
    return lines


def _prefixes(model: nn.Module) -> list[str]:
    """What may stand before a file's names: nothing, or the place of a timm network."""
    places = [name for name, module in model.named_modules() if isinstance(module, Backbone)]
    return ["", *(f"{place}.network." for place in places)]


def _fitting(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + name: tensor
        for name, tensor in stored.items()
        if prefix + name in own and own[prefix + name].shape == tensor.shape
    }


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
    if not isinstance(content, dict):
        raise UserError(f"model.weights {path} cannot be read as weights: it holds a {type(content).__name__}")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
