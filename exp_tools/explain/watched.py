"""The feature map that a prediction rests on, and the gradient of a score with respect to it.

An architecture that pools a map of its own is watched there. A backbone that pools as timm does is watched at what its
`forward_features` gives; where positions have no part in that (a class token is pooled), at the last layer before it
whose positions have one: the norm before the last attention, as a rule (Gildenblat et al., pytorch-grad-cam, advise the
same for vision transformers).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.errors import UserError

Score = Callable[[Tensor], Tensor]


def map_and_gradient(model: nn.Module, inputs: tuple[Tensor, ...], score: Score) -> tuple[Tensor, Tensor]:
    """The map [B, C, H, W] and the gradient of `score` of the logits with respect to it; the model is not changed.

    Parameters
    ----------
    model : in evaluation mode. Its forward goes through its own `feature_map`, or it has `pools_as_timm` set and goes
        through `backbone.pooled`, of several in a ModuleDict through that of each
    score : gives a scalar for logits [B, C]
    """
    if not getattr(model, "pools_as_timm", False):
        return _own_map(model, inputs, score)
    several = isinstance(model.backbone, nn.ModuleDict)
    return _joined([_of_backbone(model, inputs, score, name) for name in (model.backbone if several else [None])])


def _of_backbone(model: nn.Module, inputs: tuple[Tensor, ...], score: Score, name: str | None) -> tuple[Tensor, Tensor]:
    """Map and gradient of the backbone, or of the one of that name where there are several."""
    backbone = _backbone(model, name)
    found, gradient = _at(model, inputs, score, backbone.explained_at, name)
    if backbone.explained_at is None and not gradient.any():
        backbone.explained_at = _last_place(model, tuple(tensor[:1] for tensor in inputs), score, found, name)
        if backbone.explained_at is not None:
            return _at(model, inputs, score, backbone.explained_at, name)
    return found, gradient


def _backbone(model: nn.Module, name: str | None) -> nn.Module:
    return model.backbone if name is None else model.backbone[name]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Maps and gradients of several backbones on the finest of their grids, channels side by side.

    A coarse position becomes several fine ones, each with its share of the gradient, so that what a map says for a
    class adds up to the same on any grid.
    """
    finest = max((found.shape[2:] for found, _ in parts), key=lambda shape: shape[0])
    maps, gradients = [], []
    for found, gradient in parts:
        share = found.shape[2:].numel() / finest.numel()
        maps.append(functional.interpolate(found, tuple(finest)))
        gradients.append(functional.interpolate(gradient, tuple(finest)) * share)
    return torch.cat(maps, dim=1), torch.cat(gradients, dim=1)


def _own_map(model: nn.Module, inputs: tuple[Tensor, ...], score: Score) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []

    def feature_map(x: Tensor) -> Tensor:
        with torch.no_grad():  # only what lies behind the map needs gradients
            features = model.feature_map(x)
        kept.append(features.detach().requires_grad_())
        return kept[0]

    observed = copy.copy(model)  # shares weights and layers, but not this attribute
    observed.feature_map = feature_map
    (gradient,) = torch.autograd.grad(score(observed(*inputs)), kept[0])
    return kept[0].detach(), gradient


def _at(
    model: nn.Module, inputs: tuple[Tensor, ...], score: Score, place: str | None, name: str | None
) -> tuple[Tensor, Tensor]:
    """Map and gradient at a layer of a backbone's network, or at the end of its features."""
    observed, backbone = _shadow(model), _backbone(model, name)
    network = _backbone(observed, name).network
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(_leaf(value))
        torch.set_grad_enabled(True)  # from here on; what lies before needs no gradients
        return kept[-1]

    if place is None:
        compute = network.forward_features
        network.forward_features = lambda *args, **options: keep(compute(*args, **options))
        read = backbone.as_map
    else:
        network.get_submodule(place).register_forward_hook(lambda _, __, output: keep(output))
        read = backbone.as_plain_map
    with torch.no_grad():
        scored = score(observed(*inputs))
    leaves = kept[-1]
    flat = [leaves] if isinstance(leaves, Tensor) else list(leaves)
    gradients = torch.autograd.grad(scored, flat, allow_unused=True)
    gradients = [torch.zeros_like(one) if made is None else made for one, made in zip(flat, gradients, strict=True)]
    again = gradients[0] if isinstance(leaves, Tensor) else gradients
    return read(leaves).detach(), read(again).detach()


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_()
    return [_leaf(one) for one in value]


def _last_place(
    model: nn.Module, inputs: tuple[Tensor, ...], score: Score, found: Tensor, name: str | None
) -> str | None:
    """The last layer with a map of the shape of `found` whose positions have a part in the score; None: there is none.

    Tried on one image, with the gradients of all layers.
    """
    observed = _shadow(model)
    outputs: list[tuple[str, Tensor]] = []
    for place, layer in _backbone(observed, name).network.named_modules():
        layer.register_forward_hook(
            lambda _, __, output, place=place: outputs.append((place, output)) if isinstance(output, Tensor) else None
        )
    images, *more = inputs
    scored = score(observed(images.clone().requires_grad_(), *more))
    for place, output in reversed(outputs):
        if not output.requires_grad or output is scored or not place:
            continue
        (gradient,) = torch.autograd.grad(scored, output, retain_graph=True, allow_unused=True)
        try:
            reached = gradient is not None and _backbone(model, name).as_plain_map(gradient)
        except UserError:
            continue
        if isinstance(reached, Tensor) and reached.shape[1:] == found.shape[1:] and reached.any():
            return place
    return None


def _shadow(model: nn.Module, done: dict[int, nn.Module] | None = None) -> nn.Module:
    """A network that shares all tensors, but takes hooks and attributes of its own: several threads may watch one."""
    done = {} if done is None else done
    if id(model) not in done:
        copied = done[id(model)] = copy.copy(model)
        children = {name: None if child is None else _shadow(child, done) for name, child in model._modules.items()}
        copied.__dict__["_modules"] = children
        copied.__dict__["_forward_hooks"] = model._forward_hooks.copy()
    return done[id(model)]
