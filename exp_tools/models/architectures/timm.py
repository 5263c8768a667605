"""Any backbone of timm with one linear layer: the baseline that every other architecture must beat.

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from typing import Any

from torch import nn

from exp_tools.models.backbone import Backbone, PooledNet
from exp_tools.models.registry import register


@register
def timm(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    drop_path: float = 0.0,
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Any timm backbone with one linear layer, the baseline."""
    features = Backbone(backbone, pretrained=pretrained, drop_path=drop_path, options=options)
    return PooledNet(features, nn.Linear(features.pooled_features, num_classes), dropout)
