"""Any timm network as a feature extractor, and what the architectures around it share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models import VGG
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from exp_tools.errors import UserError
from exp_tools.models.timm_networks import as_map, create_timm, head_of, shapes


class Backbone(nn.Module):
    """A timm network without its classifier: float [B, 3, S, S] to a feature map or to one vector per image.

    With `head=False` what timm has behind the map is left out, for an architecture that pools in its own way: it would
    learn nothing, and processes that average gradients would wait for it. A norm behind the map is then taken position
    by position, so that what it has learnt is kept.

    `drop_path` is the rate of stochastic depth at the last block, from 0 at the first (Huang et al. 2016,
    arXiv:1603.09382); UserError where timm's network has none.

    Attributes
    ----------
    num_features : channels of the feature map
    pooled_features : length of `pooled`
    pixel_mean, pixel_std : what the network's images are normalised with, three numbers each in 0..1
    behind : places of the layers of timm's whole network that only `pooled` needs
    explained_at : the layer of `network` that explanations look at; None: the feature map
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        drop_path: float = 0.0,
        head: bool = True,
        options: Mapping[str, Any] | None = None,
        **fixed: Any,
    ):
        super().__init__()
        self.name, self.options = name, {**(options or {}), **fixed}
        if drop_path:
            _require_paths(name, options)
        paths = {"drop_path_rate": drop_path} if drop_path else {}
        self.network = create_timm(name, pretrained=pretrained, num_classes=0, options=options, **fixed, **paths)
        made = shapes(name, self.options)
        self.num_features: int = made.map[0]
        self.behind = behind = made.behind
        if isinstance(self.network, VGG):  # 119 M weights in two layers of 4,096, for 512 maps
            behind, head = tuple(place for place in behind if place.startswith("pre_logits")), False
        self.norm = "" if head else self._keep_norm(behind)
        for place in () if head else behind:
            if place != self.norm:
                self.network.set_submodule(place, nn.Identity())
        self.averaged = not head or made.pooled is None or (not behind and self._averages())
        self.pooled_features: int = made.map[0] if self.averaged else made.pooled
        config = self.network.pretrained_cfg
        self.pixel_mean, self.pixel_std = tuple(config["mean"]), tuple(config["std"])
        self.explained_at: str | None = None

    def _keep_norm(self, behind: Sequence[str]) -> str:
        """The place of the norm that is all that stands behind the map, if it fits the map's channels."""
        layers = [self.network.get_submodule(place) for place in behind]
        fits = [isinstance(layer, nn.LayerNorm) and layer.normalized_shape == (self.num_features,) for layer in layers]
        return behind[0] if fits == [True] else ""

    def _averages(self) -> bool:
        """Whether timm's head is a plain average over positions, which `global_average` computes to the last bit."""
        example = torch.linspace(-1, 1, self.num_features * 4).reshape(1, -1, 2, 2)
        if self.options or example.is_meta:
            return False
        was = self.network.training
        try:
            with torch.no_grad():
                pooled = head_of(self.network.eval(), example)
        except (RuntimeError, ValueError, IndexError):
            return False  # it takes tokens
        finally:
            self.network.train(was)
        expected = example.mean(dim=(2, 3))
        return pooled.shape == expected.shape and torch.allclose(pooled, expected, atol=1e-5)

    @functools.cached_property
    def names_with_head(self) -> set[str]:
        """Names of the tensors of the whole timm network, with the head that is left out here."""
        return set(self.with_head().state_dict())

    def with_head(self) -> nn.Module:
        """The whole timm network with its classifier, as shapes without numbers."""
        with torch.device("meta"):
            return create_timm(self.name, pretrained=False, options=self.options)

    def as_map(self, features: Any) -> Tensor:
        """The map [B, num_features, H, W] of what timm's `forward_features` gives."""
        found = self.as_plain_map(features)
        if not self.norm:
            return found
        norm = self.network.get_submodule(self.norm)
        if isinstance(norm, LayerNorm2d):
            return norm(found)
        return norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def as_plain_map(self, features: Any) -> Tensor:
        """The map [B, C, H, W] in what a layer of the network gives; raises UserError when there is none."""
        return as_map(features, self.network, self.name)

    def pool(self, features: Any) -> Tensor:
        """The vectors [B, pooled_features] that timm makes of what its `forward_features` gives, dropout included."""
        if self.averaged:
            return global_average(self.as_map(features))
        return self.network.forward_head(features, pre_logits=True)

    def features(self, x: Tensor) -> Tensor:
        """`forward` without its explanations of errors."""
        return self.as_map(self.network.forward_features(x))

    def pooled(self, x: Tensor) -> Tensor:
        """Pooled features [B, pooled_features], as timm's own classifier of this network sees them.

        Its pooling (average, class token, attention) with the norms and layers behind it, all trained with the rest;
        of VGG the average of the map alone. Raises UserError as `forward` does.
        """
        return self._explained(lambda images: self.pool(self.network.forward_features(images)), x)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The feature map; raises UserError for a size or a batch that the network cannot take."""
        return self._explained(self.features, x, *more)

    def _explained(self, compute: Callable[..., Tensor], x: Tensor, *more: Any) -> Tensor:
        try:
            return compute(x, *more)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            fault = self._fault_of_input(x, str(error))
            if fault is None:
                raise
            raise UserError(fault) from error

    def _fault_of_input(self, x: Tensor, message: str) -> str | None:
        """The fault of the input, when the input caused an error."""
        size = x.shape[-1]
        if "more than 1 value per channel" in message:
            return (
                f"{self.name} cannot learn from a batch of one image at {size} pixels: its last maps have a single "
                "position, and BatchNorm needs two values. Raise train.batch_size or prepare.image_size"
            )
        try:
            shapes(self.name, self.options, size)
        except UserError as error:
            return str(error)
        return None


def timm_networks(model: nn.Module) -> dict[str, nn.Module]:
    """The timm network in each Backbone of a model, by its place among the model's modules."""
    return {f"{name}.network": part.network for name, part in model.named_modules() if isinstance(part, Backbone)}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers of a model, of any dimension, timm's and synchronised ones among them."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class PooledNet(nn.Module):
    """Pooled features, dropout, classifier."""

    uses_metadata = False
    pools_as_timm = True

    def __init__(self, backbone: Backbone, classifier: nn.Module, dropout: float):
        super().__init__()
        self.backbone = backbone
        self.pixel_mean, self.pixel_std = backbone.pixel_mean, backbone.pixel_std
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map [B, C, H, W] of normalised images [B, 3, S, S]."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.backbone.pooled(x)))


class _OneValueNorm:
    """BatchNorm that takes a training batch of one value per channel: the running statistics normalise it and stay.

    There is nothing to estimate a variance from, and torch stops with an error.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class VectorNorm(_OneValueNorm, nn.BatchNorm1d):
    """BatchNorm over vectors [B, C] that takes a batch of one."""


class PooledNorm(_OneValueNorm, nn.BatchNorm2d):
    """BatchNorm over pooled maps [B, C, 1, 1] that takes a batch of one."""


def _require_paths(name: str, options: Mapping[str, Any] | None) -> None:
    """Raise UserError for an unknown network, one without residual paths to drop, and a rate that is given twice."""
    if "drop_path_rate" in (options or {}):
        raise UserError("drop_path and model.timm.options.drop_path_rate are one thing: give one of them")
    try:
        with torch.device("meta"):
            create_timm(name, pretrained=False, options=options, drop_path_rate=0.1)
    except TypeError as error:
        raise UserError(
            f"drop_path: timm's {name} cannot drop paths; set drop_path to 0 or take another backbone"
        ) from error


def global_average(features: Tensor) -> Tensor:
    """Mean over positions: [B, C, H, W] to [B, C]."""
    return torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1)
