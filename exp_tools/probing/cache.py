"""Pooled features of images by frozen encoders, found again by all that they depend on.

The name of a file holds a digest of that: encoder and weights, images, code and libraries. So a file that is there is
the right one, and one that is not is computed (`encoders.compute_features`).
"""

import hashlib
import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from exp_tools.data.inputs import dataset
from exp_tools.evaluation import predict
from exp_tools.models import backbone as backbones
from exp_tools.models import normalize, timm_networks
from exp_tools.models.backbone import Backbone

_CODE = (backbones, dataset, normalize, predict, timm_networks)
"""What computes features; what reads weights has its part in their digest."""


def read_features(folder: Path, encoders: Iterable[Backbone], images_md5: str, rows: np.ndarray) -> np.ndarray | None:
    """Features of some images by all encoders side by side.

    Parameters
    ----------
    folder : as `compute_features` wrote it
    encoders : with their weights
    images_md5 : of images.npy
    rows : rows of images.npy [N]

    Returns
    -------
    float32 [N, D]; None where there is no file of one of the encoders with these weights, images and code
    """
    files = [folder / file_name(feature_key(encoder, images_md5)) for encoder in encoders]
    if not all(file.is_file() for file in files):
        return None
    return np.concatenate([np.load(file, mmap_mode="r")[rows] for file in files], axis=1)


def feature_key(encoder: Backbone, images_md5: str) -> dict[str, Any]:
    """All that the features of an encoder depend on."""
    code = hashlib.md5(b"".join(Path(module.__file__).read_bytes() for module in _CODE))
    return {
        "backbone": encoder.name,
        "options": encoder.options,
        "pixels": [list(encoder.pixel_mean), list(encoder.pixel_std)],
        "md5_weights": _weights_digest(encoder),
        "md5_images": images_md5,
        "md5_code": code.hexdigest(),
        "versions": {name: version(name) for name in ("torch", "timm")},
    }


def file_name(key: dict[str, Any]) -> str:
    """A file's name by its key: readable, and different for every key."""
    digest = hashlib.md5(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.]', '-', key['backbone'])}-{digest[:16]}.npy"


def _weights_digest(encoder: Backbone) -> str:
    digest = hashlib.md5()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()
