"""CNN with soft attention over the positions of its last feature map.

Datta, Shaikh, Srihari, Gao: Soft-Attention Improves Skin Cancer Classification Performance, 2021, arXiv:2105.03358.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.models.backbone import Backbone, global_average
from exp_tools.models.registry import register


class SoftAttention(nn.Module):
    """f = γ · t ⊙ Σ_k softmax(W_k * t) over positions (equation 1 of the paper).

    One convolution makes `heads` maps from all channels; each map is a distribution over the H·W positions; their sum
    weights every channel. γ is a learnable scalar that starts at 0.01.
    """

    def __init__(self, channels: int, heads: int = 16, kernel_size: int = 3):
        super().__init__()
        self.maps = nn.Conv2d(channels, heads, kernel_size, padding=kernel_size // 2)
        self.gamma = nn.Parameter(torch.tensor(0.01))

    def attention_map(self, features: Tensor) -> Tensor:
        """Sum of the maps, [B, H, W], from features [B, C, H, W]; not negative, adds up to `heads` over positions."""
        maps = self.maps(features)
        dtype = torch.promote_types(maps.dtype, torch.float32)  # a sum over many positions is too coarse in bf16
        return maps.flatten(2).softmax(dim=2, dtype=dtype).sum(dim=1).unflatten(1, maps.shape[2:])

    def forward(self, features: Tensor) -> Tensor:
        return self.gamma * features * self.attention_map(features).unsqueeze(1).to(features.dtype)


class SoftAttentionNet(nn.Module):
    """Backbone, soft attention beside its features, global average, one linear layer.

    With `concat` the attended features are appended to the features, without they are added to them. With
    `enabled=False` the features go on alone: the control that shows what attention is worth.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        enabled: bool,
        heads: int,
        kernel_size: int,
        concat: bool,
        dropout: float,
    ):
        super().__init__()
        self.backbone, self.concat = backbone, concat
        self.pixel_mean, self.pixel_std = backbone.pixel_mean, backbone.pixel_std
        channels = backbone.num_features
        self.attention = SoftAttention(channels, heads, kernel_size) if enabled else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * channels if enabled and concat else channels, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map of the backbone [B, C, H, W] of normalised images [B, 3, S, S]."""
        return self.backbone(x)

    def attention_map(self, x: Tensor) -> Tensor:
        """Attention over positions [B, H, W] for normalised images; raises RuntimeError without attention."""
        if self.attention is None:
            raise RuntimeError("this network was built with enabled=False: it has no attention map")
        return self.attention.attention_map(self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x)
        joined = _halve(features)
        if self.attention is not None:
            attended = _halve(self.attention(features))
            joined = torch.cat([joined, attended], dim=1) if self.concat else joined + attended
        return self.classifier(global_average(self.dropout(functional.relu(joined))))


def _halve(features: Tensor) -> Tensor:
    """2x2 max-pooling that keeps an odd last row and column ("same" padding)."""
    return functional.max_pool2d(features, 2, ceil_mode=True)


@register
def soft_attention(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    enabled: bool = True,
    heads: int = 16,
    kernel_size: int = 3,
    concat: bool = True,
    dropout: float = 0.5,
    pretrained: bool = False,
) -> nn.Module:
    """CNN with soft attention on its last feature map (Datta et al. 2021)."""
    return SoftAttentionNet(
        Backbone(backbone, pretrained=pretrained),
        num_classes,
        enabled=enabled,
        heads=heads,
        kernel_size=kernel_size,
        concat=concat,
        dropout=dropout,
    )
