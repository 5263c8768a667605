"""CNN with soft attention over the positions of its last feature map, or of the map before its last stage.

Datta, Shaikh, Srihari, Gao: Soft-Attention Improves Skin Cancer Classification Performance, 2021, arXiv:2105.03358.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import VGG, ResNet
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.errors import UserError
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
    """Backbone, soft attention next to its features, global average, one linear layer.

    With `concat` the attended features are appended to the features, without they are added to them. With
    `enabled=False` the features go on alone, through the same pooling and dropout: the control that shows what
    attention is worth. In a `CutBackbone` attention stands before the last stage, whose first convolutions are widened
    for the appended channels.
    """

    uses_metadata = False

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
        self.inner = isinstance(backbone, CutBackbone)
        channels = backbone.front_channels if self.inner else backbone.num_features
        self.attention = SoftAttention(channels, heads, kernel_size) if enabled else None
        self.dropout = nn.Dropout(dropout)
        features, appended = backbone.num_features, enabled and concat
        if self.inner:
            self.widening = backbone.widen() if appended else nn.ModuleList()
        elif appended:
            features += channels
        self.classifier = nn.Linear(features, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map of the backbone [B, C, H, W] of normalised images [B, 3, S, S]."""
        return self.backbone(x, self._attend) if self.inner else self.backbone(x)

    def attention_map(self, x: Tensor) -> Tensor:
        """Attention over positions [B, H, W] for normalised images; raises RuntimeError without attention."""
        if self.attention is None:
            raise RuntimeError("this network was built with enabled=False: it has no attention map")
        return self.attention.attention_map(self.backbone.front(x) if self.inner else self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x)
        return self.classifier(global_average(features if self.inner else self._attend(features)))

    def _attend(self, features: Tensor) -> Tensor:
        """Features and attended features, each pooled, joined; ReLU and dropout."""
        halve = self.backbone.halve if self.inner else _halve
        joined = halve(features)
        if self.attention is not None:
            attended = halve(self.attention(features))
            joined = torch.cat([joined, attended], dim=1) if self.concat else joined + attended
        return self.dropout(functional.relu(joined))


def _halve(features: Tensor) -> Tensor:
    """2x2 max-pooling that keeps an odd last row and column ("same" padding)."""
    return functional.max_pool2d(features, 2, ceil_mode=True)


class CutBackbone(Backbone):
    """A VGG or ResNet cut before its last stage: behind block 4, before its pooling; behind stage 3.

    The network's own halving takes the place of the attention block's: VGG's fourth max-pooling is in `halve`, and the
    last stage of a ResNet begins with stride 2. So, with new weights of zero, the cut network computes what the whole
    one does.
    """

    def __init__(self, name: str, **options: Any):
        super().__init__(name, **options)
        network = self.network
        if isinstance(network, VGG):
            pools = [place for place, layer in enumerate(network.features) if isinstance(layer, nn.MaxPool2d)]
            self.cut = pools[-2]
        elif not _has_plain_stage(network):
            why = "has other layers than plain convolutions at the cut" if isinstance(network, ResNet) else "is neither"
            raise UserError(
                f"model.soft_attention.place inner is for VGG and ResNet backbones, and {name} {why}; "
                "use place last, which fits any backbone"
            )
        parent, name_there = self._readers()[0]
        self.front_channels: int = parent.get_submodule(name_there).in_channels

    def front(self, x: Tensor) -> Tensor:
        """From images to the map before the last stage: at 224 pixels 28x28 (VGG) or 14x14 (ResNet)."""
        network = self.network
        if isinstance(network, VGG):
            return network.features[: self.cut](x)
        x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        return network.layer3(network.layer2(network.layer1(x)))

    def halve(self, features: Tensor) -> Tensor:
        """The pooling at the cut; a ResNet has none."""
        return self.network.features[self.cut](features) if isinstance(self.network, VGG) else features

    def features(self, x: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        """The last feature map, with `between` (which halves) at the cut."""
        features = between(self.front(x))
        network = self.network
        return network.features[self.cut + 1 :](features) if isinstance(network, VGG) else network.layer4(features)

    def widen(self) -> nn.ModuleList:
        """Let the last stage read twice the channels; returns the new convolutions, whose weights are zero."""
        return nn.ModuleList([widen(parent, name) for parent, name in self._readers()])

    def _readers(self) -> list[tuple[nn.Module, str]]:
        """Every convolution that reads the map at the cut, as its parent and its name there."""
        network = self.network
        if isinstance(network, VGG):
            behind = range(self.cut + 1, len(network.features))
            first = next(place for place in behind if isinstance(network.features[place], nn.Conv2d))
            return [(network.features, str(first))]
        block = network.layer4[0]
        shortcut = next(name for name, layer in block.downsample.named_children() if isinstance(layer, nn.Conv2d))
        return [(block, "conv1"), (block.downsample, shortcut)]


def _has_plain_stage(network: nn.Module) -> bool:
    """Whether the last stage of a ResNet begins with two convolutions that can be widened, of block and shortcut."""
    block = network.layer4[0] if isinstance(network, ResNet) else None
    if block is None or block.downsample is None or not isinstance(block.conv1, nn.Conv2d):
        return False
    return any(isinstance(layer, nn.Conv2d) for layer in block.downsample.children())


class WidenedConv2d(nn.Conv2d):
    """A convolution that reads twice its channels, the second half with the weights of `extra`.

    `extra` belongs to another module: the backbone keeps its names and shapes, so that weight files fit it, and new
    weights learn while the backbone is frozen.
    """

    def __init__(self, conv: nn.Conv2d, extra: nn.Conv2d):
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*shape, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.hidden = (extra,)  # in a tuple, where nn.Module does not look for parameters

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.weight, self.hidden[0].weight], dim=1)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def widen(parent: nn.Module, name: str) -> nn.Conv2d:
    """Put a WidenedConv2d in the place of a convolution; returns the new half, whose weights are zero."""
    conv = parent.get_submodule(name)
    extra = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False)
    nn.init.zeros_(extra.weight)
    setattr(parent, name, WidenedConv2d(conv, extra))
    return extra


@register
def soft_attention(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    drop_path: float = 0.0,
    place: str = "last",
    enabled: bool = True,
    heads: int = 16,
    kernel_size: int = 3,
    concat: bool = True,
    dropout: float = 0.5,
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """CNN with soft attention on its last feature map, or before its last stage (Datta et al. 2021)."""
    make = CutBackbone if place == "inner" else Backbone
    return SoftAttentionNet(
        make(backbone, pretrained=pretrained, drop_path=drop_path, head=False, options=options),
        num_classes,
        enabled=enabled,
        heads=heads,
        kernel_size=kernel_size,
        concat=concat,
        dropout=dropout,
    )
