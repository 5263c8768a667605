"""From packed uint8 images to the network's input."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

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
    return _scaled(images, *_constants(tuple(mean), tuple(std), images.shape[2], images.device))


def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a row of bytes is multiplied with and what is added, float32 [3 width] each."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.repeat(width), shift.repeat(width)


@lru_cache(maxsize=16)
def _kept_constants(*key: Any) -> tuple[Tensor, Tensor]:
    """The same, kept on the device: making them there again would wait for it in every step."""
    with torch.inference_mode(False):
        return _constants(*key)


def _scaled(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    batch, height, width, channels = images.shape
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
    images = images.to(device, non_blocking=True)
    mean, std = tuple(network.pixel_mean), tuple(network.pixel_std)
    pixels = _scaled(images, *_kept_constants(mean, std, images.shape[2], images.device))
    return (pixels, metadata.to(device, non_blocking=True)) if getattr(network, "uses_metadata", False) else (pixels,)
