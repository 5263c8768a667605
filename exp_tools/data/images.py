"""Decode and resize every image once, into one memory-mapped array."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from exp_tools.data.files import atomic_write
from exp_tools.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000
CHUNK = 32


class ImageFault(UserError):
    """An image that cannot be used; the message says why, without the file's name."""


def find_images(folder: Path) -> dict[str, Path]:
    """Map each image's id (file name without ending) to its file, anywhere below `folder`; the first in order wins."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    found: dict[str, Path] = {}
    for path in files:
        found.setdefault(path.stem, path)
    return found


def load_image(source: Path | str | bytes, size: int, resize: str = "squash") -> np.ndarray:
    """Decode one image to RGB and bring it to a square, exactly as `prepare` packs it and a predictor must see it.

    JPEGs far larger than `size` are decoded at the smallest DCT scale (1/2, 1/4, 1/8) that is not below `size`.

    Parameters
    ----------
    source : file or its bytes
    size : side of the result in pixels
    resize : "squash" (both sides to `size`), "crop" (centre square first) or "pad" (whole image, black bars)

    Returns
    -------
    uint8 array [size, size, 3], RGB

    Raises
    ------
    ImageFault
        Missing, empty, truncated, no image, or more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFault(
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}; scale it down first"
                )
            short = min(image.size)
            wanted = size if resize != "pad" else max(1, round(size * short / max(image.size)))
            image.draft("RGB", (wanted, wanted))
            image.load()
            return np.asarray(_square(_rgb(ImageOps.exif_transpose(image)), size, resize))
    except ImageFault:
        raise
    except FileNotFoundError as error:
        raise ImageFault("the file is missing") from error
    except UnidentifiedImageError as error:
        empty = len(source) == 0 if isinstance(source, bytes) else os.path.getsize(source) == 0
        raise ImageFault("the file is empty (0 bytes)" if empty else "the file is no image that can be read") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageFault(f"the image is damaged or cut off ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow's own conversion clips at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        return Image.fromarray((values * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int, resize: str) -> Image.Image:
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="black")


def pack_images(
    files: Sequence[Path | str], target: Path, *, size: int, resize: str = "squash", processes: int = 1
) -> dict[int, str]:
    """Decode and resize all files into one .npy array, in parallel; memory does not grow with their number.

    Parameters
    ----------
    files : image files, in the order of the rows
    target : the .npy file to make: uint8 [len(files), size, size, 3], RGB
    size, resize : as in load_image
    processes : how many decode at once; the result does not depend on it

    Returns
    -------
    dict from the position of each image that cannot be used to the reason. When it is not empty nothing is written.
    """
    faults: dict[int, str] = {}
    jobs = [(start, [str(file) for file in files[start : start + CHUNK]]) for start in range(0, len(files), CHUNK)]
    try:
        with atomic_write(target) as temporary:
            shape = (len(files), size, size, 3)
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
            setting = (str(temporary), size, resize)
            with tqdm(total=len(files), desc="decode", unit="image", disable=None) as progress:
                for start, count, bad in _run(jobs, setting, processes):
                    faults.update({start + place: reason for place, reason in bad.items()})
                    progress.update(count)
            if faults:
                raise _Unwritten
    except _Unwritten:
        return dict(sorted(faults.items()))
    return {}


class _Unwritten(Exception):
    """Leaves atomic_write without a file."""


def _run(jobs: list, setting: tuple, processes: int):
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _pack_chunk(job, setting)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(_pack_chunk, job, setting) for job in jobs]
        for future in pending:
            yield future.result()


def _pack_chunk(job: tuple[int, list[str]], setting: tuple[str, int, str]) -> tuple[int, int, dict[int, str]]:
    (start, files), (target, size, resize) = job, setting
    packed = np.load(target, mmap_mode="r+")
    bad: dict[int, str] = {}
    for place, file in enumerate(files):
        try:
            packed[start + place] = load_image(file, size, resize)
        except ImageFault as fault:
            bad[place] = str(fault)
    return start, len(files), bad
