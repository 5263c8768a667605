"""Tensors of weight files, whoever wrote them: what a file may be, what may be around its tensors, other names.

Nothing of a file is ever run: pickles are read with `weights_only=True`, and few classes but tensors are allowed.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models import load_state_dict_from_hf
from timm.models._hub import load_state_dict_from_path
from torch import Tensor

from exp_tools.errors import UserError, require_readable
from exp_tools.models.timm_networks import first_line, has_source, hub_remedy, require_hub
from exp_tools.project import project_root, users_path

DICTS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model", "student")
"""Where files keep their tensors. Averaged weights come first: they are what their authors measured."""
WRAPPERS = {
    "module", "_orig_mod", "model", "net", "network", "encoder", "visual", "trunk", "backbone", "teacher", "student",
}  # fmt: skip
"""First parts of names, in any order, of what a network was wrapped in."""
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")},
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
"""Settings and scores that training scripts keep next to weights."""

Tensors = dict[str, Tensor]


def read_weights(source: str) -> dict[str, Tensors]:
    """The sets of tensors of a weight file, by where in it they are ("" for the top), those of DICTS in that order.

    Parameters
    ----------
    source : path of a .safetensors or of a file of torch.save, or local-dir:FOLDER, or hf-hub:owner/name

    Raises
    ------
    UserError
        There is no such file, or it cannot be read, or holds no tensors or values that are not finite.
    """
    content = _read(source)
    found = {place: tensors for place, tensors in _sets(content, "") if tensors}
    if not found:
        raise UserError(f"model.weights {source} cannot be read as weights: it holds a {type(content).__name__}")
    order = {key: number for number, key in enumerate(DICTS)}
    return dict(sorted(found.items(), key=lambda entry: order.get(entry[0].split(".")[-1], len(DICTS))))


def _sets(content: Any, place: str) -> Iterator[tuple[str, Tensors]]:
    if not isinstance(content, Mapping):
        return
    yield place, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for key in DICTS:
        yield from _sets(content.get(key), f"{place}.{key}".lstrip("."))


def _read(source: str) -> Any:
    if has_source(source):
        return _read_source(source)
    path = users_path(source, project_root())
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {source}; write none, imagenet, the path of a weight file, "
            "local-dir:FOLDER or hf-hub:owner/name"
        )
    require_readable(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the readers raise almost anything
        raise UserError(f"model.weights {source} cannot be read as weights: {_reason(error)}") from error


def _read_source(source: str) -> Any:
    kind, _, place = source.partition(":")
    try:
        if kind == "local-dir":
            return load_state_dict_from_path(str(users_path(place, project_root())))
        require_hub(place, ("model.safetensors", "pytorch_model.bin"))
        return load_state_dict_from_hf(place)
    except Exception as error:  # the hub's client lets errors of the libraries below it through
        raise UserError(f"model.weights: {source} gives no weights: {_reason(error)}{hub_remedy(source)}") from error


def _reason(error: Exception) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"it holds an object of {refused[1]}, and only tensors, numbers and text are read, since a pickle can run "
            "code. Where you trust it, save its tensors alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    return first_line(error)


def weights_path(source: str) -> Path | None:
    """The file of a source, for its checksum; None where it is not one file here."""
    path = users_path(source, project_root())
    return path if not has_source(source) and path.is_file() else None


def wrappers(names: Iterable[str]) -> list[str]:
    """What could be taken off the front of a file's names, "" first: `module.`, `module.model.`, …"""
    found = {""}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            if part not in WRAPPERS:
                break
            found.add(".".join(parts[:depth]) + ".")
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


# --- other names

_LUKEMELAS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = _EXPANDED | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def from_lukemelas(tensors: Mapping[str, Tensor], own: Iterable[str]) -> Tensors:
    """Tensors of an EfficientNet of lukemelas/EfficientNet-PyTorch (and efficientnet-lite) under timm's names.

    Parameters
    ----------
    tensors : by names like `_blocks.3._expand_conv.weight`
    own : names of timm's network, whose blocks are numbered by stage
    """
    blocks = dict.fromkeys(match[0] for name in own if (match := re.match(r"blocks\.\d+\.\d+\.", name)))
    places = {str(number): place for number, place in enumerate(blocks)}
    renamed = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if first == "_blocks" and len(rest) > 2 and rest[0] in places:
            number, layer, *rest = rest
            parts = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in tensors else _PLAIN
            first = places[number] + parts.get(layer, layer)
        else:
            first = _LUKEMELAS.get(first, first)
        renamed[".".join([first, *rest])] = tensor
    return renamed
