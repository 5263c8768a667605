"""Disturb an image: one of eleven kinds at five severities, the same for the same seed and image id.

After Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, ICLR
2019, with the kinds that dermoscopy has (Maron et al., A benchmark for neural network robustness in skin cancer
classification, European Journal of Cancer 155:191, 2021).
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exp_tools.evaluation.robustness import artefacts, camera


class Kind(NamedTuple):
    """A kind of disturbance.

    words : what an image is under, in a sentence
    apply : image [S, S, 3], severity 1 to 5, generator -> image
    """

    words: str
    apply: Callable[[NDArray[np.uint8], int, np.random.Generator], NDArray[np.uint8]]


KINDS = {
    "hair": Kind("hair", artefacts.hair),
    "ruler": Kind("a ruler", artefacts.ruler),
    "dark_corner": Kind("dark corners", artefacts.dark_corner),
    "blur": Kind("defocus", camera.blur),
    "motion": Kind("motion blur", camera.motion),
    "jpeg": Kind("JPEG compression", camera.jpeg),
    "noise": Kind("sensor noise", camera.noise),
    "brightness": Kind("wrong exposure", camera.brightness),
    "colour_cast": Kind("a colour cast", camera.colour_cast),
    "crop": Kind("a closer crop", camera.crop),
    "bubbles": Kind("bubbles", artefacts.bubbles),
}
"""By their name in `evaluate.robustness`."""
SEVERITIES = (1, 2, 3, 4, 5)


def disturb(image: NDArray[np.uint8], kind: str, severity: int, *, seed: int, image_id: str) -> NDArray[np.uint8]:
    """An image as it might have been taken.

    Parameters
    ----------
    image : uint8 [S, S, 3], RGB
    kind : of KINDS
    severity : 0 to 5; 0 leaves the image as it is
    seed, image_id : what is drawn depends on these and the kind alone, not on the image's size or its place in a batch;
        a higher severity takes the same draw further

    Returns
    -------
    uint8 [S, S, 3], a new array
    """
    if severity == 0:
        return image.copy()
    rng = np.random.default_rng([seed, zlib.crc32(image_id.encode()), zlib.crc32(kind.encode())])
    return KINDS[kind].apply(np.ascontiguousarray(image), severity, rng)
