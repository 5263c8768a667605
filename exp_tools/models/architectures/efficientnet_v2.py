"""EfficientNetV2 with a head of three layers, or of one.

Tan, Le: EfficientNetV2: Smaller Models and Faster Training, ICML 2021, arXiv:2104.00298.
"""

from torch import nn

from exp_tools.models.backbone import Backbone, PooledNet, VectorNorm
from exp_tools.models.registry import register

HIDDEN = (512, 256)


@register
def efficientnet_v2(
    num_classes: int,
    *,
    size: str = "s",
    head: str = "deep",
    drop_path: float = 0.0,
    dropout: float = 0.3,
    pretrained: bool = False,
) -> nn.Module:
    """EfficientNetV2 S, M or L with a head of three layers (Tan & Le 2021)."""
    backbone = Backbone(f"tf_efficientnetv2_{size}", pretrained=pretrained, drop_path=drop_path)
    make = deep_head if head == "deep" else linear_head
    return PooledNet(backbone, make(backbone.pooled_features, num_classes, dropout), dropout)


def linear_head(channels: int, num_classes: int, dropout: float) -> nn.Module:
    """One layer; the dropout stands before it, in PooledNet."""
    return nn.Linear(channels, num_classes)


def deep_head(channels: int, num_classes: int, dropout: float) -> nn.Module:
    """Two hidden layers with BatchNorm, ReLU and dropout; a first dropout stands before them, in PooledNet."""
    layers: list[nn.Module] = []
    for width in HIDDEN:
        layers += [nn.Linear(channels, width), VectorNorm(width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))
