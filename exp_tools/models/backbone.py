"""Any timm network as a maker of feature maps."""

import timm
import torch
from torch import Tensor, nn

from exp_tools.errors import UserError


class Backbone(nn.Module):
    """A timm network without its head: float [B, 3, S, S] to a feature map [B, num_features, H, W].

    Attributes
    ----------
    num_features : channels of the feature map
    pixel_mean, pixel_std : what the network's images are normalised with, three numbers each in 0..1
    """

    def __init__(self, name: str, *, pretrained: bool = False):
        super().__init__()
        self.network = create_timm(name, pretrained=pretrained, num_classes=0, global_pool="")
        self.num_features: int = self.network.num_features
        config = self.network.pretrained_cfg
        self.pixel_mean, self.pixel_std = tuple(config["mean"]), tuple(config["std"])

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.forward_features(x)
        if features.ndim == 3:  # tokens of a transformer: [B, prefix + H·W, C]
            tokens = features[:, getattr(self.network, "num_prefix_tokens", 0) :]
            side = round(tokens.shape[1] ** 0.5)
            return tokens.transpose(1, 2).reshape(len(x), -1, side, side)
        if features.shape[1] != self.num_features:  # [B, H, W, C]
            return features.permute(0, 3, 1, 2)
        return features


def create_timm(name: str, *, pretrained: bool, **options: object) -> nn.Module:
    """timm.create_model with errors that a person can act on."""
    if not timm.is_model(name.split(".")[0]):
        near = [found.split(".")[0] for found in timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")][:5]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError(
            f"timm has no backbone {name!r}{hint}. All names: python -c 'import timm; print(timm.list_models())'"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {name} could not be had ({type(error).__name__}: {_first_line(error)}). Either "
            "connect to the network (they come from the Hugging Face hub and are kept in its cache), or set "
            "model.weights to none or to the path of a weight file"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no further word"])[0]


def global_average(features: Tensor) -> Tensor:
    """Mean over positions: [B, C, H, W] to [B, C]."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1)
