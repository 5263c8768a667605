"""Any backbone of timm with one linear layer: the baseline that every other architecture must beat.

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from torch import Tensor, nn

from exp_tools.models.backbone import Backbone, global_average
from exp_tools.models.registry import register


class LinearHead(nn.Module):
    """Feature map, global average, dropout, one linear layer."""

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        self.pixel_mean, self.pixel_std = backbone.pixel_mean, backbone.pixel_std
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.num_features, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map [B, C, H, W] of normalised images [B, 3, S, S]."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(global_average(self.feature_map(x))))


@register
def timm(num_classes: int, *, backbone: str = "resnet50", dropout: float = 0.0, pretrained: bool = False) -> nn.Module:
    """Any timm backbone with one linear layer, the baseline."""
    return LinearHead(Backbone(backbone, pretrained=pretrained), num_classes, dropout)
