"""A model with everything around it as one graph: from the pixels of an upright RGB picture to the decision.

The square is that of Pillow 13: bicubic (a = -0.5) with antialiasing, across and then down, in tall pictures down and
then across, each rounded to 8 bits. It is made of matrix products, since runtimes differ in what their `Resize` does
with antialiasing, boxes and rounding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from exp_tools.evaluation.probabilities import Calibration
from exp_tools.models.normalize import normalise

EQUAL = 1e-6
"""Expected costs closer than this (times the highest cost) are equal in 32 bits."""


class WholeGraph(nn.Module):
    """A network with its preprocessing before it, calibration and decision behind it.

    Parameters
    ----------
    network : of the model, in evaluation mode
    size, resize : of its Preprocessing; the filters of the others are no part of a graph
    calibration : of the model
    """

    def __init__(self, network: nn.Module, size: int, resize: str, calibration: Calibration) -> None:
        super().__init__()
        self.network, self.size, self.resize = network, size, resize
        self.temperature = calibration.temperature
        self.register_buffer("bias", torch.tensor(calibration.bias, dtype=torch.float32))
        self.register_buffer("costs", torch.tensor(calibration.costs, dtype=torch.float32))

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities float32 [C] and the place of the decision, int64 [], of uint8 [H, W, 3] and metadata [1, 3]."""
        squares = square(image, self.size, self.resize)[None].to(torch.uint8)
        pixels = normalise(squares, self.network.pixel_mean, self.network.pixel_std)
        logits = self.network(pixels) if metadata is None else self.network(pixels, metadata)
        probabilities = torch.softmax(logits / self.temperature + self.bias, dim=1)[0]
        expected = probabilities @ self.costs
        best = expected <= expected.min() + EQUAL * self.costs.max()
        return probabilities, torch.where(best, probabilities, -1.0).argmax()


def square(image: Tensor, size: int, resize: str) -> Tensor:
    """The square [S, S, 3], whole numbers 0 to 255 in float32, of a picture uint8 [H, W, 3]; `resize` as in
    Preprocessing."""
    lines = image[:, 0, 0], image[0, :, 0]
    height, width = (torch.ones_like(line, dtype=torch.float32).sum() for line in lines)  # as numbers of the graph
    short, long = torch.minimum(height, width), torch.maximum(height, width)
    down, across = (_placed(length, short, long, size, resize) for length in (height, width))
    rows, columns = (_weights(line.shape[0], *one, size) for line, one in zip(lines, (down, across), strict=True))
    planes = image.permute(2, 0, 1).to(torch.float32)
    across_first = _rounded(rows @ _rounded(planes @ columns.T))
    down_first = _rounded(_rounded(rows @ planes) @ columns.T)
    fewer_rows, fewer_columns = height - down.made, width - across.made
    tall = (fewer_rows > 0) & (fewer_rows > 2 * fewer_columns)
    return torch.where(tall, down_first, across_first).permute(1, 2, 0)


class _Axis(NamedTuple):
    """Of one axis: where the part that is used begins, its length, how many pixels become of it, where they begin."""

    begin: Tensor
    length: Tensor
    made: Tensor
    offset: Tensor


def _placed(length: Tensor, short: Tensor, long: Tensor, size: int, resize: str) -> _Axis:
    whole, none = torch.full_like(length, size), torch.zeros_like(length)
    if resize == "crop":
        return _Axis((length - short) / 2, short, whole, none)
    if resize == "pad":
        made = torch.round(length * size / long)
        return _Axis(none, length, made, torch.round((size - made) / 2))
    return _Axis(none, length, whole, none)


def _weights(count: int, begin: Tensor, length: Tensor, made: Tensor, offset: Tensor, size: int) -> Tensor:
    """What each of `count` pixels of a line gives to each of the `size` that become of it, float32 [size, count]."""
    places = torch.arange(size, dtype=torch.float32)[:, None] - offset
    scale = length / made
    centres = begin + (places + 0.5) * scale
    distance = (torch.arange(count, dtype=torch.float32)[None] + 0.5 - centres).abs() / scale.clamp(min=1)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.where((places >= 0) & (places < made), weights, 0.0)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
