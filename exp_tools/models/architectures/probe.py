"""A head on the pooled features of frozen encoders: linear, nearest neighbours, or one hidden layer.

Linear: Kornblith, Shlens, Le, Do Better ImageNet Models Transfer Better?, CVPR 2019, arXiv:1805.08974. Neighbours: Wu
et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, arXiv:1805.01978.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.models.backbone import Backbone
from exp_tools.models.registry import register

TEMPERATURE = 0.07
"""Of the votes, exp(cosine / temperature), as Wu et al. and DINO have it."""
FLOOR = 1e-4
"""Share of the votes that every class has, so that the logarithm is finite where no neighbour is of a class."""


class MetadataColumns(nn.Module):
    """Metadata float [B, 3], as metadata.encode makes them, to age and one column per sex and site: float [B, columns].

    Each of the two has one column more than there are known values, for a value that was never seen.
    """

    def __init__(self, sexes: int, localizations: int):
        super().__init__()
        self.sizes = (sexes + 1, localizations + 1)
        self.columns = 1 + sum(self.sizes)

    def forward(self, metadata: Tensor) -> Tensor:
        parts = [metadata[:, :1]]
        for place, size in enumerate(self.sizes, start=1):
            values = torch.arange(size, dtype=metadata.dtype, device=metadata.device)
            parts.append((metadata[:, place : place + 1] == values).to(metadata.dtype))
        return torch.cat(parts, dim=1)


class Neighbours(nn.Module):
    """Votes of the most similar reference images; logits are the logarithm of each class's share of the votes.

    Similarity is the cosine, of several encoders (and metadata) the mean of theirs, so that none drowns another.

    Attributes
    ----------
    reference : unit features of the training images, float [N, D]
    votes : of each of them for each class, float [N, C]; its class's weight in one column, zeros elsewhere
    neighbours : how many vote
    """

    def __init__(self, parts: Sequence[int], num_classes: int, references: int, neighbours: int):
        super().__init__()
        self.parts, self.neighbours = list(parts), neighbours
        self.register_buffer("reference", self.unit(torch.randn(references, sum(parts))))
        self.register_buffer("votes", functional.one_hot(torch.arange(references) % num_classes, num_classes).float())

    def unit(self, features: Tensor) -> Tensor:
        """Features [B, D] whose product with others' is the mean cosine of the parts."""
        units = [functional.normalize(part, dim=1) for part in features.split(self.parts, dim=1)]
        return torch.cat(units, dim=1) / len(units) ** 0.5

    def nearest(self, features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """Similarity, highest first, and places of the nearest references, each [B, neighbours]."""
        return (self.unit(features) @ self.reference.T).topk(neighbours, dim=1)

    def count(self, similarity: Tensor, places: Tensor) -> Tensor:
        """Logits [B, C] of neighbours as `nearest` gives them."""
        weights = ((similarity - 1) / TEMPERATURE).exp().unsqueeze(2)
        votes = (weights * self.votes[places]).sum(dim=1)
        return (votes / votes.sum(dim=1, keepdim=True) + FLOOR).log()

    def forward(self, features: Tensor) -> Tensor:
        return self.count(*self.nearest(features, self.neighbours))


class ProbeNet(nn.Module):
    """Frozen encoders side by side, metadata if wanted, and a head."""

    pools_as_timm = True

    def __init__(self, encoders: Sequence[Backbone], columns: MetadataColumns | None, head: nn.Module):
        super().__init__()
        self.backbone = nn.ModuleDict({str(place): encoder for place, encoder in enumerate(encoders)})
        self.pixel_mean, self.pixel_std = encoders[0].pixel_mean, encoders[0].pixel_std
        self.columns, self.head = columns, head
        self.uses_metadata = columns is not None

    def feature_map(self, x: Tensor) -> Tensor:
        """Last feature map [B, C, H, W] of normalised images; of several encoders all, on the finest of their grids."""
        maps = [encoder(self._seen_by(encoder, x)) for encoder in self.backbone.values()]
        finest = max((one.shape[2:] for one in maps), key=lambda shape: shape[0])
        return torch.cat([functional.interpolate(one, tuple(finest)) for one in maps], dim=1)

    def join(self, features: Tensor, metadata: Tensor | None) -> Tensor:
        """What the head takes: features of the encoders [B, D], and columns of the metadata where it uses them."""
        return features if self.columns is None else torch.cat([features, self.columns(metadata)], dim=1)

    def classify(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Logits [B, C] of the encoders' pooled features [B, D], which may have been computed before."""
        return self.head(self.join(features, metadata))

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Logits; `metadata` float [B, 3] is needed exactly where `uses_metadata` is set."""
        parts = [encoder.pooled(self._seen_by(encoder, x)) for encoder in self.backbone.values()]
        return self.classify(torch.cat(parts, dim=1), metadata)

    def _seen_by(self, encoder: Backbone, x: Tensor) -> Tensor:
        """Images that are normalised for the first encoder, as another one wants them."""
        if (encoder.pixel_mean, encoder.pixel_std) == (self.pixel_mean, self.pixel_std):
            return x
        own, wanted = (self.pixel_mean, self.pixel_std), (encoder.pixel_mean, encoder.pixel_std)
        scale = [have / want for have, want in zip(own[1], wanted[1], strict=True)]
        shift = [(have - want) / deviation for have, want, deviation in zip(own[0], *wanted, strict=True)]
        return x * x.new_tensor(scale).view(1, 3, 1, 1) + x.new_tensor(shift).view(1, 3, 1, 1)


@register
def probe(
    num_classes: int,
    *,
    encoders: Sequence[Mapping[str, Any] | Backbone] = ({"backbone": "vit_small_patch14_dinov2"},),
    metadata: bool = False,
    head: str = "linear",
    hidden: int = 256,
    references: int = 100,
    neighbours: int = 10,
    sexes: int = 3,
    localizations: int = 15,
    pretrained: bool = False,
) -> nn.Module:
    """Frozen encoders whose features are computed once; a linear, nearest-neighbour or MLP head."""
    made = [
        one
        if isinstance(one, Backbone)
        else Backbone(one["backbone"], pretrained=pretrained, options=one.get("options"))
        for one in encoders
    ]
    columns = MetadataColumns(sexes, localizations) if metadata else None
    parts = [one.pooled_features for one in made] + ([columns.columns] if columns else [])
    if head == "knn":
        return ProbeNet(made, columns, Neighbours(parts, num_classes, references, min(neighbours, references)))
    if head == "mlp":
        layers = nn.Linear(sum(parts), hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        return ProbeNet(made, columns, nn.Sequential(*layers))
    return ProbeNet(made, columns, nn.Linear(sum(parts), num_classes))
