"""E-MAS: MobileNetV2 and EfficientNet-B0, aligned, multiplied, seen at several scales.

Blocks: Sandler et al. 2018 (MobileNetV2), arXiv:1801.04381; Tan & Le 2019 (EfficientNet), arXiv:1905.11946; Chen et al.
2017 (ASPP), arXiv:1706.05587; Hu et al. 2018 (squeeze and excitation), arXiv:1709.01507.
"""

import torch
from timm.layers import ConvNormAct, SqueezeExcite
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.models.backbone import Backbone, PooledNorm, global_average
from exp_tools.models.registry import register

ALIGNED, WIDTH = 512, 256
DILATIONS = (6, 12, 18)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [B, channels, H, W] to [B, width, H, W].

    Five branches: 1x1, three dilated 3x3, and the average over all positions; each convolution without bias, with
    BatchNorm and ReLU; joined by a 1x1 convolution. A training batch of one image gives the pooled branch a single
    value a channel: then its BatchNorm uses the running statistics.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNormAct(channels, width, 1),
                *(ConvNormAct(channels, width, 3, dilation=rate, padding=rate) for rate in DILATIONS),
            ]
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, width, 1, bias=False),
            PooledNorm(width),
            nn.ReLU(inplace=True),
        )
        self.project = ConvNormAct(width * (len(self.branches) + 1), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.interpolate(self.pooled(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))


class EmasNet(nn.Module):
    """Two backbones, each through a 1x1 convolution to 512 channels; their product through ASPP, SE and two layers."""

    uses_metadata = False

    def __init__(self, backbone: nn.ModuleDict, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        first = next(iter(backbone.values()))
        self.pixel_mean, self.pixel_std = first.pixel_mean, first.pixel_std
        self.align = nn.ModuleDict(
            {name: ConvNormAct(part.num_features, ALIGNED, 1) for name, part in backbone.items()}
        )
        self.aspp = ASPP(ALIGNED, WIDTH)
        self.excite = SqueezeExcite(WIDTH, rd_channels=16, bias=False)
        self.classifier = nn.Sequential(
            nn.Linear(WIDTH, 128), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(128, num_classes)
        )

    def feature_map(self, x: Tensor) -> Tensor:
        """The map that the classifier averages, after squeeze-excitation: [B, 256, H, W] of images [B, 3, S, S]."""
        one, other = (self.align[name](part(x)) for name, part in self.backbone.items())
        return self.excite(self.aspp(one * other))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(global_average(self.feature_map(x)))


@register
def emas(num_classes: int, *, output_stride: int = 32, dropout: float = 0.3, pretrained: bool = False) -> nn.Module:
    """MobileNetV2 x EfficientNet-B0 with ASPP and squeeze-and-excitation (E-MAS)."""
    options = {"pretrained": pretrained, "head": False, "output_stride": output_stride}
    parts = {
        "mobilenet": Backbone("mobilenetv2_100", **options),
        "efficientnet": Backbone("efficientnet_b0", **options),
    }
    return EmasNet(nn.ModuleDict(parts), num_classes, dropout)
