"""The frozen encoders of a probe, and their features of all images: each encoder runs over the images once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exp_tools.errors import UserError
from exp_tools.evaluation.predict import predict_logits
from exp_tools.io import atomic_write, file_digest, write_json
from exp_tools.models.backbone import Backbone, PooledNet
from exp_tools.models.pretrained import check_start, load_weights, resolved, weights_source
from exp_tools.param_types import EncoderParams
from exp_tools.probing.cache import feature_key, file_name

INDEX = "features.json"
BATCH = 64
SEED = 0
"""Of random weights: those of an encoder are the same in every run, whatever train.seed is."""


def check_encoders(encoders: Sequence[EncoderParams], image_size: int) -> None:
    """Raise UserError for a backbone, options, weights or a size that cannot work, by shapes alone."""
    for place, encoder in enumerate(encoders):
        try:
            weights = weights_source(encoder.weights, {"backbone": encoder.backbone})
            check_start(_maker(encoder, pretrained=False), weights, image_size)
        except UserError as error:
            said = str(error).replace("model.weights", "weights").replace("model.timm.options", "options")
            raise UserError(f"model.probe.encoders[{place}], {encoder.backbone}: {said}") from error


def make_encoder(encoder: EncoderParams) -> PooledNet:
    """The network that maps normalised images [B, 3, S, S] to pooled features [B, D], in evaluation mode."""
    weights = weights_source(encoder.weights, {"backbone": encoder.backbone})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = _maker(encoder, pretrained=weights == "imagenet")()
    if weights not in ("none", "imagenet"):
        load_weights(network, weights)
    return network.eval()


def _maker(encoder: EncoderParams, *, pretrained: bool) -> Callable[[], PooledNet]:
    knobs = resolved({"backbone": encoder.backbone, "options": encoder.options})
    return lambda: PooledNet(
        Backbone(knobs["backbone"], pretrained=pretrained, options=knobs["options"]), nn.Identity(), 0.0
    )


def compute_features(
    encoders: Sequence[EncoderParams], images: Path, folder: Path, *, device: torch.device
) -> list[dict[str, Any]]:
    """Write the features of all images by each encoder, keep what is there already, remove everything else.

    Parameters
    ----------
    encoders : as `check_encoders` passed them
    images : images.npy [N, S, S, 3]
    folder : gets a file of float32 [N, D] for each encoder, and INDEX, which lists them

    Returns
    -------
    For each encoder: backbone, weights, options, file, features (D), images (N), key, and whether it was `kept`

    Raises
    ------
    UserError
        A feature is NaN or infinite, or weights cannot be read.
    """
    count, digest = len(np.load(images, mmap_mode="r")), file_digest(images)
    rows = []
    for encoder in encoders:
        network = make_encoder(encoder)
        key = feature_key(network.backbone, digest)
        file = folder / file_name(key)
        kept = file.is_file()
        if not kept:
            network = network.to(device, memory_format=torch.channels_last)
            features = predict_logits(network, images, np.arange(count), batch_size=BATCH, device=device)
            _require_finite(features, encoder)
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, features)
        made = {"file": file.name, "features": network.backbone.pooled_features, "images": count, "key": key}
        rows.append({**encoder.model_dump(), **made, "kept": kept})
    index = [{name: value for name, value in row.items() if name != "kept"} for row in rows]
    write_json(folder / INDEX, {"encoders": index})
    wanted = {INDEX, *(row["file"] for row in rows)}
    for other in folder.iterdir():
        if other.name not in wanted:
            other.unlink()
    return rows


def _require_finite(features: np.ndarray, encoder: EncoderParams) -> None:
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if broken.size:
        raise UserError(
            f"model.probe.encoders: {encoder.backbone} with the weights {encoder.weights} gives NaN or infinite "
            f"features for {broken.size:,} images, the first in row {broken[0]} of images.npy (counted from 0): take "
            "other weights"
        )
