"""How an image becomes the network's input, and the optional dermoscopy filters: hair, colours, contrast."""

from typing import NamedTuple

import cv2
import numpy as np


class Preprocessing(NamedTuple):
    """How an image is prepared, in this order; `prepare` writes it next to the images, and a model file carries it.

    image_size : side of the square in pixels
    resize : "squash" (both sides to image_size), "crop" (centre square first) or "pad" (whole image, black bars)
    hair_removal, colour_constancy, clahe : filters of this module, done on the square
    """

    image_size: int
    resize: str = "squash"
    hair_removal: bool = False
    colour_constancy: bool = False
    clahe: bool = False


_HAIR_CONTRAST = 12
_MINKOWSKI = 6
_CLIP_LIMIT, _TILES = 2.0, 8


def apply_filters(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The image after the filters that are on; uint8 [S, S, 3] RGB, the same array when none is."""
    if preprocessing.hair_removal:
        image = remove_hair(image)
    if preprocessing.colour_constancy:
        image = shades_of_grey(image)
    if preprocessing.clahe:
        image = equalise(image)
    return image


def remove_hair(image: np.ndarray) -> np.ndarray:
    """Paint over dark hairs: black-hat with a line in four directions finds them, inpainting fills them.

    Parameters
    ----------
    image : uint8 [H, W, 3], RGB

    Returns
    -------
    uint8 [H, W, 3]; pixels that belong to no hair are unchanged

    References
    ----------
    Lee et al., DullRazor, Comput Biol Med 27:533-543, 1997; Telea, J Graph Tools 9:23-34, 2004 (the inpainting).
    """
    mask = hair_mask(image)
    if not mask.any():
        return image
    return cv2.inpaint(image, mask, max(3, image.shape[0] // 64), cv2.INPAINT_TELEA)


def hair_mask(image: np.ndarray) -> np.ndarray:
    """Dark thin lines: uint8 [H, W], 255 on a hair; lines shorter than a sixth of the image are ignored."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    side = max(5, image.shape[0] // 14 | 1)
    line = np.zeros((side, side), np.uint8)
    line[side // 2] = 1
    diagonal = np.eye(side, dtype=np.uint8)
    shapes = (line, line.T, diagonal, diagonal[::-1])
    dark = np.max([cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, shape) for shape in shapes], axis=0)
    found = (dark > _HAIR_CONTRAST).astype(np.uint8)
    _, labels, facts, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    length = np.hypot(facts[:, cv2.CC_STAT_WIDTH], facts[:, cv2.CC_STAT_HEIGHT])
    half_width = np.zeros(len(facts), np.float32)
    np.maximum.at(half_width, labels.ravel(), cv2.distanceTransform(found, cv2.DIST_L2, 3).ravel())
    # One hair is a narrow line; several that cross fill little of their box, unlike the mesh of a pigment network.
    narrow = facts[:, cv2.CC_STAT_AREA] < length * np.maximum(max(4.0, image.shape[0] / 32), 0.05 * length)
    hair = (length > image.shape[0] / 6) & narrow & (half_width < max(5, image.shape[0] / 32))
    hair[0] = False  # the background
    return cv2.dilate((hair[labels] * 255).astype(np.uint8), np.ones((3, 3), np.uint8))


def shades_of_grey(image: np.ndarray) -> np.ndarray:
    """Divide out the colour of the light, which is taken to be the Minkowski mean (norm 6) of the picture's colours.

    Parameters
    ----------
    image : uint8 [H, W, 3], RGB

    Returns
    -------
    uint8 [H, W, 3]; a picture under neutral light is unchanged

    References
    ----------
    Finlayson and Trezzi, Shades of gray and colour constancy, Color Imaging Conference 2004; Barata et al., IEEE J
    Biomed Health Inform 19:1146-1152, 2015 (dermoscopy, norm 6).
    """
    counts = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    powers = np.arange(256, dtype=float) ** _MINKOWSKI
    light = np.array([(count @ powers / count.sum()) ** (1 / _MINKOWSKI) for count in counts])
    if not light.all():
        return image
    gain = np.linalg.norm(light) / np.sqrt(3) / light
    table = np.clip(np.arange(256)[:, None] * gain, 0, 255).round().astype(np.uint8)
    return cv2.LUT(image, table[:, None, :])


def equalise(image: np.ndarray) -> np.ndarray:
    """Even out the contrast of the lightness (CLAHE on L of CIELAB, clip limit 2, 8x8 tiles); colours stay.

    References
    ----------
    Zuiderveld, Contrast limited adaptive histogram equalization, Graphics Gems IV, 1994.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(_CLIP_LIMIT, (_TILES, _TILES)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
