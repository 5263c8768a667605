"""Architectures by name. One file each in this package; a file is imported when its name is asked for."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from exp_tools import models
from exp_tools.errors import UserError

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_ROOMS = {"registry", "artifact", "backbone", "inputs", "weights"}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: offer `builder(num_classes, *, pretrained=False, **knobs)` under its own name.

    The name must be the file's, the knobs those of the section `model.<name>` in params.yaml, and their defaults the
    published architecture. The first line of the docstring is what `exp-tools models` prints.
    """
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Names of all architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(models.__path__) if module.name not in _ROOMS)


def build_model(name: str, knobs: dict[str, Any], num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build an architecture; it maps float [B, 3, S, S], normalised, to logits [B, num_classes].

    The module has `feature_map(x)` [B, C, H, W], and `pixel_mean` and `pixel_std`, three numbers each in 0..1.

    Raises
    ------
    UserError
        The name is unknown, or the backbone is.
    """
    return _builder(name)(num_classes, pretrained=pretrained, **knobs)


def describe_models(num_classes: int = 7) -> list[dict[str, Any]]:
    """Name, parameter count with `num_classes` at the published defaults, and one line about each architecture."""
    rows = []
    for name in list_models():
        builder = _builder(name)
        parameters = sum(parameter.numel() for parameter in builder(num_classes).parameters())
        summary = (builder.__doc__ or "").strip().splitlines()[0]
        rows.append({"name": name, "parameters": parameters, "summary": summary})
    return rows


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"there is no architecture {name!r}; choose one of {', '.join(list_models())}{hint}")
    importlib.import_module(f"exp_tools.models.{name}")
    return _BUILDERS[name]
