"""From packed uint8 images to the network's input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise a batch as (x / 255 - mean) / std.

    Parameters
    ----------
    images : uint8 [B, S, S, 3], RGB
    mean, std : three numbers each, for values in 0..1

    Returns
    -------
    float32 [B, 3, S, S] in channels_last memory: the bytes are never shuffled, the axes are only renamed
    """
    batch, height, width, channels = images.shape
    scale = images.new_tensor([1 / (255 * s) for s in std], dtype=torch.float32).repeat(width)
    shift = images.new_tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32).repeat(width)
    rows = torch.addcmul(shift, images.reshape(batch, height, width * channels).to(torch.float32), scale)
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def network_inputs(network: nn.Module, images: Tensor, metadata: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """The arguments of a network's forward: normalised images, and metadata where it takes them, on `device`.

    Parameters
    ----------
    network : has pixel_mean, pixel_std and, where it takes metadata, uses_metadata
    images : uint8 [B, S, S, 3]; bytes travel to the device, a quarter of what floats would be
    metadata : float32 [B, 3]
    """
    pixels = normalise(images.to(device, non_blocking=True), network.pixel_mean, network.pixel_std)
    return (pixels, metadata.to(device, non_blocking=True)) if getattr(network, "uses_metadata", False) else (pixels,)
