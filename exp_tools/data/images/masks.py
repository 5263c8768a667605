"""Lesion masks of the sets that have them: packed next to the images, in the same geometry.

They explain and never train: a file of their own, so that a mask more re-runs nothing but the explanations.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exp_tools.data.images.decode import files_below, opened, square
from exp_tools.data.images.formats import FORMATS, image_id, is_image
from exp_tools.data.images.pack import CHUNK
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.io import atomic_write

SHAPE_TOLERANCE = 0.02
"""Largest relative difference of the width-to-height ratios of a mask and its image."""


class LeftOut(NamedTuple):
    """A mask that is not used, and why."""

    file: str
    reason: str


def find_masks(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Map each image's id to its mask below `folder`: the image file called id + ending; the first in order wins."""
    found: dict[str, Path] = {}
    for path in files_below(folder) if endings else ():
        stem = image_id(path.name)
        ending = next((one for one in endings if stem.lower().endswith(one)), None)
        if ending is not None and is_image(path):
            found.setdefault(stem[: -len(ending)], path)
    return found


def load_mask(file: Path | str, image: Path | str, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Decode a mask and bring it to the square that `load_image` makes of its image, by nearest neighbours.

    Parameters
    ----------
    file : the mask; what is brighter than half of its brightest pixel is lesion
    image : the image that it belongs to, of the same proportions
    preprocessing : of the image; its filters do not apply

    Returns
    -------
    bool [image_size, image_size]

    Raises
    ------
    ValueError
        It cannot be read, or has other proportions than its image.
    """
    try:
        with opened(file) as (mask, _), Image.open(image, formats=tuple(FORMATS)) as photograph:
            ratio = mask.width * photograph.height / (mask.height * photograph.width)
            if abs(ratio - 1) > SHAPE_TOLERANCE:
                sizes = f"{mask.width}x{mask.height}, its image {photograph.width}x{photograph.height}"
                raise ValueError(f"has other proportions than its image: {sizes}")
            size, resize = preprocessing.image_size, preprocessing.resize
            values = np.asarray(square(mask.convert("L"), size, resize, Image.Resampling.NEAREST))
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ValueError(f"cannot be read ({error})") from error
    return values > values.max() / 2


def pack_masks(
    target: Path,
    image_ids: Sequence[str],
    images: Sequence[str],
    masks: Mapping[str, Path],
    preprocessing: Preprocessing,
    *,
    processes: int,
) -> list[LeftOut]:
    """Write the masks of the packed images into one .npy file, a bit a pixel; a file without rows where there are none.

    Parameters
    ----------
    target : the file: an array of records with `row` (of images.npy) and `bits` uint8 [size, ceil(size / 8)]
    image_ids, images : id and file of each packed image, in the order of images.npy
    masks : as `find_masks` gives it; ids that are not packed are passed over
    preprocessing : of the images
    processes : how many decode at once; the result does not depend on it

    Returns
    -------
    The masks that cannot be used: they are left out, since only one number of the explanations depends on them
    """
    rows = [row for row, image_id in enumerate(image_ids) if image_id in masks]
    pairs = [(str(masks[image_ids[row]]), str(images[row])) for row in rows]
    size = preprocessing.image_size
    kind = np.dtype([("row", "<i8"), ("bits", "u1", (size, -(-size // 8)))])
    packed, left_out = np.zeros(len(rows), kind), []
    kept = 0
    for row, (file, _), made in zip(rows, pairs, _decode(pairs, preprocessing, processes), strict=True):
        if isinstance(made, str):
            left_out.append(LeftOut(Path(file).name, made))
            continue
        packed[kept] = row, made
        kept += 1
    with atomic_write(target) as temporary, temporary.open("wb") as file:
        np.save(file, packed[:kept])
    return left_out


class PackedMasks:
    """The masks of a file that `pack_masks` wrote, by the row of their image.

    rows : int64 [M], the rows that have a mask, ascending
    """

    def __init__(self, path: Path):
        self._records = np.load(path)
        self.rows = np.array(self._records["row"])

    def of(self, row: int) -> NDArray[np.bool_] | None:
        """The mask of an image, bool [S, S]; None when it has none."""
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            return None
        bits = self._records["bits"][place]
        return np.unpackbits(bits, axis=1, count=len(bits)).astype(bool)


def _decode(pairs: list[tuple[str, str]], preprocessing: Preprocessing, processes: int):
    """Bits of each mask, uint8 [size, ceil(size / 8)], or why there are none; pairs of mask and image in order."""
    decode = partial(_bits, preprocessing=preprocessing)
    if processes <= 1 or len(pairs) <= CHUNK:
        yield from map(decode, pairs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(decode, pairs, chunksize=CHUNK)


def _bits(pair: tuple[str, str], *, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    try:
        return np.packbits(load_mask(*pair, preprocessing), axis=1)
    except ValueError as error:
        return str(error)
