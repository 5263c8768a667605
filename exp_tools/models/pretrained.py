"""Load weights from a file into a network, and list what the file did not have."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exp_tools.errors import UserError, require_readable
from exp_tools.models.backbone import Backbone

LISTED = 4
"""Tensors of one part that are listed by name; more are counted."""
SHOWN = 8
"""Tensors that an error lists by name; more are counted."""


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
        The file is missing or unreadable, nothing in it fits, or its backbone is another one: a weight or a running
        statistic of ours is not in it, or one of the file's is left over. Nothing is loaded then.
    """
    stored = _read(path)
    own = model.state_dict()
    prefix = max(_prefixes(model), key=lambda prefix: len(_fitting(stored, own, prefix)))
    fitting = _fitting(stored, own, prefix)
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise UserError(
            f"model.weights {path}: none of its {len(stored)} tensors fits this network; is it the right one?"
        )
    wanted = [name for name in own if name.startswith(prefix or "backbone.") and own[name].is_floating_point()]
    missing = [name for name in wanted if name not in fitting]
    if missing:
        raise UserError(
            f"model.weights {path}: {len(missing)} of the backbone's {len(wanted)} tensors are not in it, or not in "
            f"this shape ({_listed(missing)}); is it of another backbone?"
        )
    places = {f"{place}.network.": backbone for place, backbone in _backbones(model).items()}
    if left_over := _left_over(stored, own, places, prefix):
        names = " and ".join(sorted({places[place].name for place in places if place == (prefix or place)}))
        raise UserError(
            f"model.weights {path}: {names} has no place for {len(left_over)} tensors of the file's backbone "
            f"({_listed(left_over)}); is it of another backbone? Set the one that the file is of, or another file"
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


def _backbones(model: nn.Module) -> dict[str, Backbone]:
    """The timm networks in a model, by place."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}


def _prefixes(model: nn.Module) -> list[str]:
    """Possible prefixes of a file's names: none, or the path of a timm network."""
    return ["", *(f"{place}.network." for place in _backbones(model))]


def _left_over(
    stored: Mapping[str, Tensor], own: Mapping[str, Tensor], places: Mapping[str, Backbone], prefix: str
) -> list[str]:
    """Weights and statistics of the file's backbone that neither our network nor the head of a whole one has."""
    heads = {place + name for place, backbone in places.items() for name in backbone.names_with_head()}
    names = [prefix + name for name, tensor in stored.items() if tensor.is_floating_point()]
    return [
        name.removeprefix(prefix)
        for name in names
        if name.startswith(prefix or "backbone.") and name not in own and name not in heads
    ]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _fitting(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + name: tensor
        for name, tensor in stored.items()
        if prefix + name in own and own[prefix + name].shape == tensor.shape
    }


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}; write none, imagenet, or the path of a weight file")
    require_readable(path)
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
