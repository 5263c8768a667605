"""Heat maps over the images that they explain."""

import cv2
import matplotlib
import numpy as np

COLOURS = "viridis"
STRENGTH = 0.75
FLAT = 1e-3
"""A map whose values differ by less than this share of the largest is flat: what differs is rounding."""
NAMES = {"gradcam": "Grad-CAM", "attention": "attention"}
"""The kinds of map, for people."""


def upsample(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps float [N, H, W] as float32 [N, size, size], bilinear, pixel centres aligned."""
    shape = (len(maps), size, size)
    scaled = [cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR) for one in np.asarray(maps, np.float32)]
    return np.stack(scaled) if scaled else np.empty(shape, np.float32)


def is_flat(maps: np.ndarray) -> np.ndarray:
    """Which of the maps float [N, H, W] are the same everywhere, give or take FLAT, and show no place: bool [N]."""
    return np.ptp(maps, axis=(1, 2)) <= FLAT * np.abs(maps).max(axis=(1, 2))


def unit(maps: np.ndarray) -> np.ndarray:
    """Each of the maps float [N, H, W] stretched from its smallest to its largest value, to 0..1; a flat one is 0."""
    low = maps.min(axis=(1, 2), keepdims=True)
    spread = maps.max(axis=(1, 2), keepdims=True) - low
    stretched = ~is_flat(maps)[:, None, None]
    return np.divide(maps - low, spread, out=np.zeros_like(maps), where=stretched)


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Lay a map over its image: where it is weak the skin stays visible, where it is strong it is yellow.

    Parameters
    ----------
    image : uint8 [Y, X, 3], RGB
    heat : float [H, W], of the same part in any shape and range; stretched to its own smallest and largest value, so
        two overlays do not compare in strength
    strength : opacity of the strongest place, 0..1

    Returns
    -------
    uint8 [Y, X, 3]; the image itself for a flat map, see `is_flat`
    """
    size = image.shape[1], image.shape[0]
    share = unit(cv2.resize(np.asarray(heat, np.float32), size, interpolation=cv2.INTER_LINEAR)[None])[0]
    colour = matplotlib.colormaps[COLOURS](share)[..., :3] * 255
    opacity = strength * share[..., None]
    return (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)
