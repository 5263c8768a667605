"""An image backbone and the patient's age, sex and lesion site, joined before the classifier.

The backbone may be any of timm's; without metadata the same network is the control that shows what they are worth.
"""

from typing import Any

import torch
from torch import Tensor, nn

from exp_tools.models.backbone import Backbone
from exp_tools.models.registry import register

METADATA_FEATURES = 128


class MetadataBranch(nn.Module):
    """Age through two layers, sex and localization through embeddings, joined: float [B, 3] to [B, 128].

    The columns are those of data.metadata.encode; each embedding has one row more than there are known values, for
    a value that was never seen. Under mixup two patients are one: with `partners` [B, 3] and `kept` [B, 1], the share
    that is the first patient's, the ages and the embeddings are mixed.
    """

    def __init__(self, sexes: int, localizations: int, dropout: float):
        super().__init__()
        self.age = nn.Sequential(nn.Linear(1, 32), nn.ReLU(inplace=True), nn.Linear(32, 64), nn.ReLU(inplace=True))
        self.sex = nn.Embedding(sexes + 1, 8)
        self.localization = nn.Embedding(localizations + 1, 16)
        self.joined = nn.Sequential(
            nn.Linear(64 + 8 + 16, METADATA_FEATURES), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )

    def forward(self, metadata: Tensor, partners: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        age, *places = self._vectors(metadata)
        if partners is not None:
            age, *places = (
                torch.lerp(other, own, kept) for own, other in zip((age, *places), self._vectors(partners), strict=True)
            )
        return self.joined(torch.cat([self.age(age), *places], dim=1))

    def _vectors(self, metadata: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Age [B, 1], sex [B, 8] and localization [B, 16]: what has a mean."""
        return metadata[:, :1], self.sex(metadata[:, 1].long()), self.localization(metadata[:, 2].long())


class MultimodalNet(nn.Module):
    """Image features next to metadata features, three linear layers.

    With `metadata=None` the first layer of the classifier takes the image features alone and all else is the same.
    """

    pools_as_timm = True

    def __init__(self, backbone: Backbone, metadata: MetadataBranch | None, num_classes: int, dropout: float):
        super().__init__()
        self.backbone, self.metadata = backbone, metadata
        self.pixel_mean, self.pixel_std = backbone.pixel_mean, backbone.pixel_std
        self.uses_metadata = metadata is not None
        self.classifier = nn.Sequential(
            nn.Linear(backbone.pooled_features + (METADATA_FEATURES if self.uses_metadata else 0), 512),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(512, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, num_classes),
        )

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map [B, C, H, W] of normalised images [B, 3, S, S]; metadata have no part in it."""
        return self.backbone(x)

    def forward(
        self, x: Tensor, metadata: Tensor | None = None, partners: Tensor | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Logits; `metadata` float [B, 3] is needed exactly where `uses_metadata` is set, the rest under mixup only."""
        features = self.backbone.pooled(x)
        if self.metadata is not None:
            features = torch.cat([features, self.metadata(metadata, partners, kept)], dim=1)
        return self.classifier(features)


@register(image_size=384)
def multimodal(
    num_classes: int,
    *,
    backbone: str = "tf_efficientnetv2_s",
    drop_path: float = 0.0,
    enabled: bool = True,
    metadata_dropout: float = 0.2,
    dropout: float = 0.3,
    sexes: int = 3,
    localizations: int = 15,
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Image with age, sex and localization, joined before the classifier."""
    metadata = MetadataBranch(sexes, localizations, metadata_dropout) if enabled else None
    features = Backbone(backbone, pretrained=pretrained, drop_path=drop_path, options=options)
    return MultimodalNet(features, metadata, num_classes, dropout)
