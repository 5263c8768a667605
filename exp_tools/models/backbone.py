"""Any timm network as a feature extractor, and what the architectures around it share."""

from typing import Any

import requests
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from exp_tools.errors import UserError


class Backbone(nn.Module):
    """A timm network without its head: float [B, 3, S, S] to a feature map [B, num_features, H, W].

    `drop_path` is the rate of stochastic depth at the last block, from 0 at the first (Huang et al. 2016,
    arXiv:1603.09382); UserError where timm's network has none.

    Attributes
    ----------
    num_features : channels of the feature map
    pixel_mean, pixel_std : what the network's images are normalised with, three numbers each in 0..1
    """

    def __init__(self, name: str, *, pretrained: bool = False, drop_path: float = 0.0, **options: Any):
        super().__init__()
        self.name = name
        if drop_path:
            _require_paths(name)
            options["drop_path_rate"] = drop_path
        self.network = create_timm(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
        _drop_head(self.network)
        self.num_features: int = self.network.num_features
        config = self.network.pretrained_cfg
        self.pixel_mean, self.pixel_std = tuple(config["mean"]), tuple(config["std"])

    def names_with_head(self) -> set[str]:
        """Names of the tensors of the whole timm network, with the head that is left out here."""
        with torch.device("meta"):
            return set(_create(self.name, pretrained=False).state_dict())

    def features(self, x: Tensor) -> Tensor:
        """`forward` without its explanations of errors."""
        features = self.network.forward_features(x)
        if features.ndim == 3:  # tokens of a transformer: [B, prefix + H·W, C]
            tokens = features[:, getattr(self.network, "num_prefix_tokens", 0) :]
            side = round(tokens.shape[1] ** 0.5)
            if side**2 != tokens.shape[1]:
                raise UserError(f"the tokens of {self.name} form no square map; choose another backbone")
            return tokens.transpose(1, 2).reshape(len(x), -1, side, side)
        if features.shape[1] != self.num_features:  # [B, H, W, C]
            return features.permute(0, 3, 1, 2)
        return features

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The feature map; raises UserError for a size or a batch that the network cannot take."""
        try:
            return self.features(x, *more)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
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
            with torch.device("meta"), torch.no_grad():
                _create(self.name, pretrained=False).eval().forward_features(torch.empty(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError):
            native = self.network.pretrained_cfg["input_size"][-1]
            return (
                f"{self.name} cannot take images of {size} pixels, it was made for {native}: "
                "change prepare.image_size or the backbone"
            )
        return None


def timm_networks(model: nn.Module) -> dict[str, nn.Module]:
    """The timm network in each Backbone of a model, by its place among the model's modules."""
    return {f"{name}.network": part.network for name, part in model.named_modules() if isinstance(part, Backbone)}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers of a model, of any dimension, timm's and synchronised ones among them."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class PooledNet(nn.Module):
    """Feature map, global average, dropout, classifier."""

    uses_metadata = False

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
        return self.classifier(self.dropout(global_average(self.feature_map(x))))


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


def create_timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """timm.create_model, for images of any size where timm can, with errors that a person can act on."""
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        near = [found.split(".")[0] for found in timm.list_models(f"*{plain.split('_')[0]}*")][:5]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError(
            f"timm has no backbone {name!r}{hint}. All names: python -c 'import timm; print(timm.list_models())'"
        )
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm has no weights {tag!r} of {plain}; it has {', '.join(tags) or 'none'}")
    if pretrained and not tags:
        raise UserError(f"timm has no ImageNet weights of {name}: set model.weights to none or to a weight file")
    try:
        if pretrained:
            _require_hub(name)
        return _create(name, pretrained=pretrained, **options)
    except Exception as error:  # the hub's client lets errors of the libraries below it through
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({_first_line(error)}). Either "
            "connect to the network (they come from the Hugging Face hub and are kept in its cache), or set "
            "model.weights to none or to the path of a weight file"
        ) from error


def _require_paths(name: str) -> None:
    """Raise UserError for an unknown network, and for one without residual paths to drop."""
    try:
        with torch.device("meta"):
            create_timm(name, pretrained=False, drop_path_rate=0.1)
    except TypeError as error:
        raise UserError(
            f"drop_path: timm's {name} cannot drop paths; set drop_path to 0 or take another backbone"
        ) from error


def _require_hub(name: str) -> None:
    """Raise OSError when weights are neither in the cache nor available: the hub's own client tries for a minute."""
    config = timm.get_pretrained_cfg(name)
    place = config.hf_hub_id or ""
    place += f"{config.architecture}.{config.tag}" if place.endswith("/") else ""
    names = ("model.safetensors", "pytorch_model.bin")
    if not place or constants.HF_HUB_OFFLINE or any(try_to_load_from_cache(place, file) for file in names):
        return
    try:
        requests.head(constants.ENDPOINT, timeout=10)
    except requests.exceptions.SSLError:
        pass  # it is there; the client has its own certificates
    except (requests.ConnectionError, requests.Timeout) as error:
        raise OSError(f"no answer from {constants.ENDPOINT}") from error


def _create(name: str, **options: Any) -> nn.Module:
    try:  # a vision transformer takes one size by default; other networks do not know these arguments
        return timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **options)
    except TypeError:
        return timm.create_model(name, **options)


def _drop_head(network: nn.Module) -> None:
    """Remove timm's layers behind the feature map (119 M weights of VGG, ConvNeXt's norm).

    It would learn nothing, and processes that average gradients would wait for it.
    """
    behind = ["pre_logits", "head"]
    if not isinstance(network, EfficientNet):  # whose conv_head makes the feature map
        behind.append("conv_head")
    for name in behind:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def global_average(features: Tensor) -> Tensor:
    """Mean over positions: [B, C, H, W] to [B, C]."""
    return torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1)
