"""Several trained networks as one, whose probabilities are averaged."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Log of the mean of the members' calibrated probabilities: z = log(1/K Σ_k softmax(z_k / T_k + b_k)).

    It has what `build_model` promises of an architecture, so that whatever serves one network serves several.

    Parameters
    ----------
    members : networks of the same classes
    temperatures, biases : T_k [K] and b_k [K, C] of the members' own calibration
    """

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float], biases: Sequence[Sequence[float]]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.pixel_mean, self.pixel_std = members[0].pixel_mean, members[0].pixel_std
        self.uses_metadata = any(member.uses_metadata for member in members)
        self.register_buffer("temperatures", torch.tensor(list(temperatures)), persistent=False)
        self.register_buffer("biases", torch.tensor([list(bias) for bias in biases]), persistent=False)

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Logits [B, C] of images normalised with the first member's mean and std, and metadata [B, 3] or None."""
        given = (x,) if metadata is None else (x, metadata)
        parts = [
            (member(*inputs).float() / temperature + bias).log_softmax(dim=1)
            for (member, inputs), temperature, bias in zip(
                self.with_inputs(given), self.temperatures, self.biases, strict=True
            )
        ]
        return torch.stack(parts).logsumexp(dim=0) - math.log(len(parts))

    def with_inputs(self, inputs: tuple[Tensor, ...]) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
        """Each member, and the arguments of its forward that stand for those of the ensemble's."""
        x = inputs[0]
        for member in self.members:
            own = self._normalised_for(member, x)
            yield member, ((own, inputs[1]) if member.uses_metadata else (own,))

    def _normalised_for(self, member: nn.Module, x: Tensor) -> Tensor:
        """Images normalised as the member wants them; nothing is computed where that is the same."""
        if (*member.pixel_mean, *member.pixel_std) == (*self.pixel_mean, *self.pixel_std):
            return x

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(list(values), dtype=x.dtype, device=x.device)[:, None, None]

        pixels = x * column(self.pixel_std) + column(self.pixel_mean)
        return (pixels - column(member.pixel_mean)) / column(member.pixel_std)

    def feature_map(self, x: Tensor) -> Tensor:
        """The coarsest of the members' feature maps [B, C, H, W]."""
        maps = [member.feature_map(*inputs[:1]) for member, inputs in self.with_inputs((x, x))]
        return min(maps, key=lambda found: found.shape[2:].numel())
