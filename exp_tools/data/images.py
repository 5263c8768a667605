"""Find, decode and resize images; pack them all once into one memory-mapped array."""

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from exp_tools.data.dermoscopy import NOTHING, TouchUp, touch_up
from exp_tools.data.download.store import require_space
from exp_tools.data.files import atomic_write
from exp_tools.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",)}
"""What is decoded, with its endings. Nothing else: Pillow would start another program for some formats."""
MAX_PIXELS = 100_000_000
CHUNK = 32
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Every image's size is compared with MAX_PIXELS before it is decoded, and one that is larger is refused.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageFault(UserError):
    """An image that cannot be used; the message says why, without the file's name, `kind` in one word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Finding(NamedTuple):
    """What is worth saying of the image at `place`: a fault (not usable), or something that was put right."""

    place: int
    kind: str
    value: str
    rule: str
    usable: bool


def is_clutter(name: str) -> bool:
    """Whether a file or folder is what systems leave behind (`.DS_Store`, `._x.jpg`, `__MACOSX`) and no data."""
    return name.startswith(".") or name == "__MACOSX"


def index_images(folder: Path) -> dict[str, list[Path]]:
    """Map each image's id (file name without ending) to its files, anywhere below `folder`, in order of their paths."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not is_clutter(path.name) and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def find_images(folder: Path) -> dict[str, Path]:
    """Map each image's id (file name without ending) to its file, anywhere below `folder`; the first in order wins."""
    return {name: paths[0] for name, paths in index_images(folder).items()}


def load_image(
    source: Path | str | bytes | Image.Image, size: int, resize: str = "squash", touched_up: TouchUp = NOTHING
) -> np.ndarray:
    """Decode one image to RGB and bring it to a square, exactly as `prepare` packs it and a predictor must see it.

    JPEGs far larger than `size` are decoded at the smallest DCT scale (1/2, 1/4, 1/8) that is not below `size`.

    Parameters
    ----------
    source : file, its bytes, or an image of Pillow's, which stays as it is (all its pixels are resized, no DCT scale)
    size : side of the result in pixels
    resize : "squash" (both sides to `size`), "crop" (centre square first) or "pad" (whole image, black bars)
    touched_up : dermoscopy preprocessing, done on the square

    Returns
    -------
    uint8 array [size, size, 3], RGB

    Raises
    ------
    ImageFault
        Missing, empty, truncated, no image, or more than MAX_PIXELS pixels.
    """
    return _decode(source, size, resize, touched_up)[0]


def _decode(
    source: Path | str | bytes | Image.Image, size: int, resize: str, touched_up: TouchUp
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """The square image, and what was put right: (kind, value, rule)."""
    try:
        with _opened(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width}x{image.height}")
            short = min(image.size)
            wanted = size if resize != "pad" else max(1, round(size * short / max(image.size)))
            found = image.format, image.mode
            image.draft("RGB", (wanted, wanted))
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            notes = _notes(source, *found, "transparency" in image.info, orientation)
            upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
            pixels = np.asarray(square(_rgb(upright), size, resize))
    except ImageFault:
        raise
    except FileNotFoundError as error:
        raise ImageFault("missing_image", "the file is missing") from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(error).split("(")[-1].split(")")[0]) from error
    except UnidentifiedImageError as error:
        empty = len(source) == 0 if isinstance(source, bytes) else os.path.getsize(source) == 0
        if empty:
            raise ImageFault("empty_image", "the file is empty (0 bytes)") from error
        raise ImageFault("not_an_image", f"the file is no image that can be read ({', '.join(FORMATS)} can)") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageFault("damaged_image", f"the image is damaged or cut off ({error})") from error
    return touch_up(pixels, touched_up), notes


def _opened(source: Path | str | bytes | Image.Image) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source.copy())
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=tuple(FORMATS))


def _too_large(pixels: str) -> ImageFault:
    return ImageFault("too_many_pixels", f"{pixels} pixels are more than {MAX_PIXELS:,}; scale it down first")


def _notes(
    source: Path | str | bytes | Image.Image, kind: str | None, mode: str, transparent: bool, orientation: int
) -> list[tuple[str, str, str]]:
    notes = []
    endings = FORMATS.get(str(kind), FORMATS["JPEG"])  # MPO, which telephones write, is a JPEG and more
    if isinstance(source, Path | str) and not str(source).lower().endswith(endings):
        rule = f"the file's content is {kind}, not what its name says; it is read as {kind}"
        notes.append(("wrong_ending", Path(source).name, rule))
    if mode != "RGB" or transparent:
        clear = transparent or mode in ("RGBA", "LA", "PA")
        how = "laid on white" if clear else "converted"
        notes.append(("other_pixels", mode, f"pixels of mode {mode}, not 8-bit RGB: {how}"))
    if orientation in _TURNS:
        rule = f"EXIF orientation {orientation}: the pixels are stored turned or mirrored; they are put upright"
        notes.append(("exif_rotation", str(orientation), rule))
    return notes


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow's own conversion clips at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if values.max() > 255 else 255.0
        return Image.fromarray((values * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def square(
    image: Image.Image, size: int, resize: str, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Bring an image to a square of side `size`; `resize` as in load_image."""
    if resize == "squash":
        return image.resize((size, size), resample)
    if resize == "crop":
        return ImageOps.fit(image, (size, size), resample)
    return ImageOps.pad(image, (size, size), resample, color="black")


def pack_images(
    files: Sequence[Path | str],
    target: Path | None,
    *,
    size: int,
    resize: str = "squash",
    touched_up: TouchUp = NOTHING,
    policy: Mapping[str, str] | None = None,
    processes: int = 1,
) -> list[Finding]:
    """Decode and resize all files into one .npy array, in parallel; memory does not grow with their number.

    Parameters
    ----------
    files : image files, in the order of the rows; "" is passed over
    target : the .npy file to make: uint8 [kept, size, size, 3], RGB; None only looks at the images
    size, resize, touched_up : as in load_image
    policy : what to do about a finding, by its kind: "skip" leaves the image out (nothing is written when none is
        left), "stop" means that nothing is written, anything else keeps an image that is usable. A kind that is not
        named: stop for a fault, else keep.
    processes : how many decode at once; the result does not depend on it

    Returns
    -------
    list of Finding in the order of the files

    Raises
    ------
    UserError
        The disk has no room for the array.
    """
    policy = policy or {}
    findings: list[Finding] = []
    jobs = [(start, [str(file) for file in files[start : start + CHUNK]]) for start in range(0, len(files), CHUNK)]
    if target is None:
        _decode_all(jobs, (None, size, resize, touched_up), processes, len(files), findings)
        return findings
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, array_bytes(len(files), size), f"{target} ({len(files):,} images of {size}x{size})")
    try:
        with atomic_write(target) as temporary:
            shape = (len(files), size, size, 3)
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
            _decode_all(jobs, (str(temporary), size, resize, touched_up), processes, len(files), findings)
            done = {find: policy.get(find.kind, "keep" if find.usable else "stop") for find in findings}
            skipped = {find.place for find, action in done.items() if action == "skip"}
            if "stop" in done.values() or len(skipped) == len(files):
                raise _Unwritten
            if skipped:
                _leave_out(temporary, skipped, size)
    except _Unwritten:
        pass
    return findings


def join_arrays(parts: Sequence[Path], target: Path, size: int) -> None:
    """Write the images of several .npy files, one behind the other, into one: uint8 [N, size, size, 3], N may be 0."""
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    total = sum(len(array) for array in arrays)
    require_space(target.parent, array_bytes(total, size), f"{target} ({total:,} images of {size}x{size})")
    with atomic_write(target) as temporary:
        if not total:  # which no memory map can be
            with temporary.open("wb") as file:
                np.save(file, np.empty((0, size, size, 3), np.uint8))
            return
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(total, size, size, 3))
        place = 0
        for array in arrays:
            for start in range(0, len(array), CHUNK):
                some = array[start : start + CHUNK]
                whole[place : place + len(some)] = some
                place += len(some)
        whole.flush()
        del whole  # Windows renames no file that is mapped


def array_bytes(count: int, size: int) -> int:
    """Bytes on disk of an array of `count` images of side `size`."""
    return count * size * size * 3 + 128


class _Unwritten(Exception):
    """Leaves atomic_write without a file."""


def _leave_out(path: Path, skipped: set[int], size: int) -> None:
    """Write the array at `path` anew without some of its rows, a few at a time."""
    images = np.load(path, mmap_mode="r")
    keep = np.setdiff1d(np.arange(len(images)), list(skipped))
    with atomic_write(path) as temporary:
        shape = (len(keep), size, size, 3)
        smaller = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(keep), CHUNK):
            smaller[start : start + CHUNK] = images[keep[start : start + CHUNK]]
        smaller.flush()
        del smaller, images  # Windows renames no file that is mapped


def _decode_all(jobs: list, setting: tuple, processes: int, count: int, findings: list[Finding]) -> None:
    with tqdm(total=count, desc="decode", unit="image", disable=None) as progress:
        for done, found in _run(jobs, setting, processes):
            findings += found
            progress.update(done)


def _run(jobs: list, setting: tuple, processes: int):
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _pack_chunk(job, setting)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(_pack_chunk, job, setting) for job in jobs]
        for future in pending:
            yield future.result()


def _pack_chunk(job: tuple[int, list[str]], setting: tuple) -> tuple[int, list[Finding]]:
    (start, files), (target, size, resize, touched_up) = job, setting
    packed = None if target is None else np.load(target, mmap_mode="r+")
    found: list[Finding] = []
    for place, file in enumerate(files, start):
        if not file:
            continue
        try:
            image, notes = _decode(file, size, resize, touched_up)
        except ImageFault as fault:
            found.append(Finding(place, fault.kind, Path(file).name, str(fault), usable=False))
            continue
        if packed is not None:
            packed[place] = image
        found += [Finding(place, *note, usable=True) for note in notes]
    return len(files), found
