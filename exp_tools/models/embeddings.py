"""Embeddings of images from the middle of any timm network, to compare pictures rather than to classify them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.data.images.decode import ImageFault, load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.errors import UserError
from exp_tools.io import ProgressBar
from exp_tools.models.backbone import Backbone, PooledNet
from exp_tools.models.normalize import normalise
from exp_tools.models.pretrained import load_weights

IMAGE_SIZE = 224
STRIDES = (8, 16)
"""Maps that are pooled. Their means and deviations tell texture and colour, which are a lesion's own; the last map
tells what kind of thing is there, which lesions share. (Of the pairs inside HAM10000's lesions, the other image is
among the 20 nearest of the same age, sex and site for 97 %; by the last map for 92 %.)"""
_BATCH = 32


class Embedder(nn.Module):
    """Normalised images [B, 3, S, S] to means and deviations of the maps of STRIDES, float [B, D].

    A network whose maps all have one stride (a vision transformer) gives those of half and two thirds of its depth.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.network = backbone.network
        strides = [round(stage["reduction"]) for stage in self.network.feature_info]
        depth = len(strides)
        self.places = [place for place, stride in enumerate(strides) if stride in STRIDES]
        if len(set(strides)) == 1:
            self.places = [depth // 2, 2 * depth // 3]

    def forward(self, x: Tensor) -> Tensor:
        maps = self.network.forward_intermediates(x, indices=self.places, intermediates_only=True)
        return torch.cat([part for each in maps for part in (each.mean((2, 3)), each.std((2, 3)))], dim=1)


def embed_images(files: Sequence[Path], weights: Path, backbone: str | None = None) -> np.ndarray:
    """Embed images with a network whose weights lie in a file.

    Parameters
    ----------
    files : images [N]
    weights : file of timm's weights, or of a network of this project's with that backbone
    backbone : timm's name of the network; None: the weight file's own name, without ending

    Returns
    -------
    float32 [N, D]; zeros where an image cannot be decoded

    Raises
    ------
    UserError
        timm has no such network, or the weights are not its.
    """
    try:
        network = Backbone(backbone or weights.stem)
        load_weights(PooledNet(network, nn.Identity(), 0.0), weights)
    except UserError as error:
        said = str(error).replace("model.weights", "--embed")
        raise UserError(said if backbone else f"{said}. Name the network of {weights} with --backbone") from error
    embedder = Embedder(network).eval()
    blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    parts = []
    with torch.inference_mode():
        for start in ProgressBar(range(0, len(files), _BATCH), desc="embed", unit="batch"):
            images, readable = [], []
            for file in files[start : start + _BATCH]:
                try:
                    images.append(load_image(file, Preprocessing(IMAGE_SIZE)))
                    readable.append(1.0)
                except ImageFault:
                    images.append(blank)
                    readable.append(0.0)
            pixels = normalise(torch.from_numpy(np.stack(images)), network.pixel_mean, network.pixel_std)
            parts.append(embedder(pixels) * torch.tensor(readable)[:, None])
    return torch.cat(parts).numpy()
