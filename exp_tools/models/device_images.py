"""The packed images in the memory of a GPU, augmented there: no loader process, and bytes that never travel again.

An image is changed as `augment` changes it, from the same draws and to the same bytes: OpenCV's arithmetic for uint8 is
integers throughout (positions in 1/32 pixel, colours in 1/1024), and so is this.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exp_tools.data.inputs.augment import (
    LUMA,
    Magnitudes,
    choose_one,
    colour_matrices,
    draw_box,
    draw_colour_numbers,
    draw_noise,
    draw_warp_numbers,
    generator_for,
    warp_matrices,
)
from exp_tools.data.inputs.dataset import PADDING, Batch, EpochOrder, Key

PIXEL, COLOUR = 32, 1024
"""Fractions of a pixel, and of a colour's weight, that OpenCV counts in."""
UPLOADED_AT_ONCE = 2**28


def upload(images: Path, device: torch.device) -> Tensor:
    """All packed images, uint8 [N, S, S, 3], on the device; part by part, so that no copy of all is in memory."""
    packed = np.load(images, mmap_mode="r")
    pixels = torch.empty(packed.shape, dtype=torch.uint8, device=device)
    step = max(1, UPLOADED_AT_ONCE // packed[:1].nbytes)
    for start in range(0, len(packed), step):
        pixels[start : start + step] = torch.from_numpy(packed[start : start + step].copy())
    return pixels


class DeviceImages:
    """Batches of an `EpochOrder` as the loader gives them, with images that are on the device already."""

    def __init__(
        self,
        images: Tensor,
        order: EpochOrder,
        labels: np.ndarray,
        limits: Magnitudes,
        seed: int,
        metadata: np.ndarray | None = None,
    ):
        self.images, self.order, self.limits, self.seed = images, order, limits, seed
        self.labels = np.asarray(labels, dtype=np.int64)
        self.metadata = np.zeros((len(labels), 3), dtype=np.float32) if metadata is None else metadata

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.order:
            index = np.array([key.index for key in keys])
            real = index != PADDING
            labels = np.where(real, self.labels[index], PADDING)
            metadata = np.where(real[:, None], self.metadata[index], np.float32(0))
            yield Batch(self.fetch(keys), *_pinned(self.images.device, labels, index, metadata))

    def fetch(self, keys: list[Key]) -> Tensor:
        """The images of `keys`, augmented, uint8 [B, S, S, 3]; black for padding."""
        size, device = self.images.shape[1], self.images.device
        generators = [generator_for(self.seed, key.epoch, key.position) for key in keys]
        limits = [choose_one(self.limits, one) if self.limits.one else self.limits for one in generators]
        every = _together(limits)
        index = np.array([key.index for key in keys])
        real = index != PADDING
        warps = warp_matrices(every, np.stack([draw_warp_numbers(one) for one in generators]), size)
        tilted = np.array([one.perspective != 0 for one in limits])
        columns, rows = source_positions(*_sent(device, warps, tilted), size, any_tilted=bool(tilted.any()))
        places = _sent(device, np.where(real, index, 0))[0]
        result = warp(self.images, places, columns, rows)
        changed = [one.colours for one in limits]
        if any(changed):
            numbers = np.stack([
                draw_colour_numbers(one) if colours else np.zeros(4)
                for one, colours in zip(generators, changed, strict=True)
            ])  # fmt: skip
            result = change_colours(result, *_sent(device, *colour_matrices(every, numbers)))
        for place, (one, generator) in enumerate(zip(limits, generators, strict=True)):
            if one.erase and generator.random() < one.erase:
                box = draw_box(size, generator)
                result[place][box] = _sent(device, draw_noise(box, generator))[0]
        if not real.all():
            result *= _sent(device, real)[0][:, None, None, None]
        return result


def source_positions(warps: Tensor, tilted: Tensor, size: int, *, any_tilted: bool) -> tuple[Tensor, Tensor]:
    """Where each pixel of the result comes from: columns and rows, int64 [B, S, S], in 1/32 pixel.

    Parameters
    ----------
    warps : float64 [B, 3, 3], from the result to the original
    tilted : bool [B], whether an image's warp has perspective, which OpenCV rounds in another way
    """
    along = torch.arange(size, dtype=torch.float64, device=warps.device)
    fine = COLOUR // PIXEL
    found = []
    for row in (0, 1):
        across = torch.round((warps[:, row, 1, None] * along + warps[:, row, 2, None]) * COLOUR).long() + fine // 2
        steps = torch.round(warps[:, row, 0, None] * along * COLOUR).long()
        found.append((across[:, :, None] + steps[:, None, :]) >> 5)
    if any_tilted:
        high, wide = along[None, :, None], along[None, None, :]
        tops = [warps[:, row, 0, None, None] * wide + warps[:, row, 1, None, None] * high for row in range(3)]
        first, second, depth = (top + warps[:, row, 2, None, None] for row, top in enumerate(tops))
        scale = torch.where(depth != 0, PIXEL / depth, 0.0)
        for row, top in enumerate((first, second)):
            bent = torch.round(top * scale).clamp(-(2**31), 2**31 - 1).long()
            found[row] = torch.where(tilted[:, None, None], bent, found[row])
    return found[0], found[1]


def warp(images: Tensor, places: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Bilinear samples of images, uint8 [B, S, S, 3]; beyond the border the picture is mirrored.

    Parameters
    ----------
    images : uint8 [N, S, S, 3]
    places : the image of each of the B results
    columns, rows : int64 [B, S, S], in 1/32 pixel
    """
    size = images.shape[1]
    flat = images.view(-1, 3)
    first = (places * size * size)[:, None, None]
    right, down = columns & (PIXEL - 1), rows & (PIXEL - 1)
    total = torch.full((*columns.shape, 3), PIXEL * PIXEL // 2, dtype=torch.int32, device=images.device)
    for below, high in ((0, PIXEL - down), (1, down)):
        line = first + _mirrored(_short(rows >> 5) + below, size) * size
        for beside, wide in ((0, PIXEL - right), (1, right)):
            weight = (high * wide).int().unsqueeze(-1)
            total += flat[line + _mirrored(_short(columns >> 5) + beside, size)].int() * weight
    return (total >> 10).to(torch.uint8)


def change_colours(images: Tensor, matrices: Tensor, pull: Tensor) -> Tensor:
    """Colours of uint8 images [B, S, S, 3] by matrices [B, 3, 3], plus `pull` [B] times their mean luma.

    Where a matrix is diagonal, OpenCV computes in float32.
    """
    mean = images.sum(dim=(1, 2), dtype=torch.int64).double() / (images.shape[1] * images.shape[2])
    shift = (pull * sum(share * mean[:, channel] for channel, share in enumerate(LUMA))).float()
    weights = matrices.float()
    values = images.int()
    counted, added = torch.round(weights * COLOUR).int(), torch.round((shift + 0.5) * COLOUR).int()
    mixed = sum(counted[:, None, None, :, channel] * values[..., channel, None] for channel in range(3))
    mixed = (mixed + added[:, None, None, None]) >> 10
    scales = weights.diagonal(dim1=1, dim2=2)
    diagonal = ((weights - torch.diag_embed(scales)).abs() <= torch.finfo(torch.float32).eps).all(dim=(1, 2))
    scaled = torch.round(values * scales[:, None, None] + shift[:, None, None, None]).int()
    return torch.where(diagonal[:, None, None, None], scaled, mixed).clamp(0, 255).to(torch.uint8)


def _short(positions: Tensor) -> Tensor:
    """What is left of pixel positions in 16 bits."""
    return positions.clamp(-(2**15), 2**15 - 1)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions inside the picture, where it goes on as its own mirror image beyond the first and last pixel."""
    if size == 1:
        return torch.zeros_like(positions)
    positions = positions % (2 * (size - 1))
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def _together(limits: list[Magnitudes]) -> Magnitudes:
    """The limits of several images as one, with arrays [B]."""
    return Magnitudes(
        **{part.name: np.array([getattr(one, part.name) for one in limits]) for part in fields(Magnitudes)}
    )


def _sent(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Arrays on the device, without waiting for it."""
    return [tensor.to(device, non_blocking=True) for tensor in _pinned(device, *arrays)]


def _pinned(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Arrays as tensors that a GPU can fetch by itself, while the processor goes on."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors
