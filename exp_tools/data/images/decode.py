"""Find images, decode them and make them square."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from exp_tools.data.images.colours import deep_colours, in_eight_bits, in_srgb, on_white, stored_bits, stored_top
from exp_tools.data.images.formats import FORMATS, HEAD, ImageFault, format_to_read, image_id, is_image
from exp_tools.data.images.halves import COMPRESSED, require_end, without_end
from exp_tools.data.images.limits import holds_jpeg, most_scans, require_scans, require_size, too_large
from exp_tools.data.images.preprocess import Preprocessing, apply_filters
from exp_tools.errors import UserError

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
Source = Path | str | bytes | Image.Image
Note = tuple[str, str, str]

# Every image's size is compared with limits.MAX_PIXELS before it is decoded, and one that is larger is refused.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

CLUTTER = (
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs",
    "thumbs.db",
    "dicomdir",
)


def is_clutter(name: str) -> bool:
    """Whether a file or folder is a leftover of a system, not data: `.DS_Store`, `.ipynb_checkpoints`, `@eaDir`, …"""
    return name.startswith(".") or name.casefold() in CLUTTER


def walk_files(folder: Path) -> Iterator[Path]:
    """Files anywhere below a folder, without leftovers and what lies in folders of them: a folder's own files first.

    Links to folders are followed, each folder once.

    Raises
    ------
    UserError
        A folder may not be read.
    """
    known: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not is_clutter(name)) if real not in known else []
        if real in known:
            continue
        known.add(real)
        for name in sorted(names):
            path = Path(place, name)
            try:
                if not is_clutter(name) and path.is_file():
                    yield path
            except PermissionError as error:
                raise UserError(f"{place}: no permission to look at the files in it; chmod u+rx {place}") from error


def _refuse_folder(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UserError(
            f"{error.filename}: the folder cannot be read ({error.strerror}), and what is in it would be left out; "
            f"allow it (chmod u+rx {error.filename}) or move it away"
        ) from error


def files_below(folder: Path) -> list[Path]:
    """The files of `walk_files` in order of their paths."""
    return sorted(walk_files(folder))


def index_images(folder: Path) -> dict[str, list[Path]]:
    """Map each image's id to its files, anywhere below `folder`, in order of their paths.

    What `formats.is_image` takes for an image counts; the id is the file's name without a known ending of an image.
    """
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        if is_image(path):
            found.setdefault(image_id(path.name), []).append(path)
    return found


def find_images(folder: Path) -> dict[str, Path]:
    """Map each image's id to its file as `index_images` does; of several files the first in order wins."""
    return {name: paths[0] for name, paths in index_images(folder).items()}


def load_image(source: Source, preprocessing: Preprocessing) -> np.ndarray:
    """Decode one image to RGB and bring it to a square, exactly as `prepare` packs it and a predictor must see it.

    JPEGs far larger than `image_size` are decoded at the smallest DCT scale (1/2, 1/4, 1/8) that is not below it. Of
    several frames or pages the first is read.

    Parameters
    ----------
    source : file, its bytes, or an image of Pillow's, which stays as it is (all its pixels are resized, no DCT scale)

    Returns
    -------
    uint8 array [image_size, image_size, 3], RGB

    Raises
    ------
    ImageFault
        Missing, not allowed to be read, empty, truncated, no image, a mere strip, or beyond `limits`: more pixels or
        scans than are decoded.
    """
    return decode_with_notes(source, preprocessing)[0]


def decode_with_notes(source: Source, preprocessing: Preprocessing) -> tuple[np.ndarray, list[Note]]:
    """The square image, and what was fixed: (kind, value, rule)."""
    size, resize = preprocessing.image_size, preprocessing.resize
    try:
        with opened(source) as (image, file):
            short = min(image.size)
            wanted = size if resize not in ("pad", "keep") else max(1, round(size * short / max(image.size)))
            kind, mode, bits = image.format, image.mode, stored_bits(image)
            notes = _frames(image)
            if kind in ("JPEG", "MPO"):  # HEIF would give a thumbnail
                image.draft("RGB", (wanted, wanted))
            turned_by_pillow = _orientation(image) if kind == "TIFF" else image.info.get("original_orientation")
            image.load()
            orientation = _orientation(image)
            notes += _notes(source, kind, mode, bits, image, turned_by_pillow or orientation)
            profile = image.info.get("icc_profile")
            top = stored_top(image, file)
            if bits > 8 and (deep := deep_colours(image, file, top)):
                image = deep
            image, name = in_srgb(in_eight_bits(image, top), profile)
            notes += [("other_pixels", name, f"colours in {name}, not sRGB: converted")] if name else []
            upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
            pixels = np.asarray(square(on_white(upright), size, resize))
    except ImageFault:
        raise
    except FileNotFoundError as error:
        raise ImageFault("missing_image", "the file is missing") from error
    except PermissionError as error:
        rule = "there is no permission to read the file; allow it (chmod u+r) and run again"
        raise ImageFault("unreadable_image", rule) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageFault("unreadable_image", f"the system cannot read the file ({error.strerror})") from error
        raise ImageFault(
            "damaged_image", f"the image is damaged or cut off ({' '.join(str(error).split())})"
        ) from error
    return apply_filters(pixels, preprocessing), notes


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[Image.Image, IO[bytes]]]:
    """The image, not decoded yet and within `limits`, and the file's content."""
    if isinstance(source, Image.Image):
        require_size(*source.size)
        yield source.copy(), BytesIO()
        return
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        head = file.read(HEAD)
        kind = format_to_read(head, "" if isinstance(source, bytes) else Path(source).name)
        if kind in COMPRESSED:
            require_end(file, kind)
        content = BytesIO(without_end(head + file.read())) if kind == "JPEG" else file
        try:
            image = Image.open(content, formats=(kind,))
        except UnidentifiedImageError as error:
            rule = f"the file begins like {kind} and cannot be opened as such: damaged, cut off or of a rare variety"
            raise ImageFault("not_an_image" if len(head) < HEAD else "damaged_image", rule) from error
        except Image.DecompressionBombError as error:
            raise too_large(str(error).split("(")[-1].split(")")[0]) from error
        with image:
            if kind == "PNG":
                image.info["bits"] = head[24]
            require_size(*image.size)
            if holds_jpeg(image):
                file.seek(0)
                require_scans(*image.size, most_scans(file.read()))
            yield image, content


def _orientation(image: Image.Image) -> int:
    """How the pixels have to be turned yet, by EXIF, 1 to 8; 1 where EXIF cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # almost anything: the pixels are as good without it
        return 1


def _frames(image: Image.Image) -> list[Note]:
    """A note on several frames; a JPEG of a telephone (MPO) has its previews there."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return []
    rule = f"the {image.format} file has several frames or pages: the first is read, the others are not used"
    return [("several_frames", str(image.format), rule)]


def _notes(source: Source, kind: str | None, mode: str, bits: int, image: Image.Image, orientation: int) -> list[Note]:
    notes = []
    endings = FORMATS.get(str(kind), FORMATS["JPEG"])  # MPO, which telephones write, is a JPEG and more
    ending = Path(source).suffix if isinstance(source, Path | str) else ""
    if ending and not ending[1:].isdigit() and ending.lower() not in endings:
        rule = f"the file's content is {kind}, not what its name says; it is read as {kind}"
        notes.append(("wrong_ending", Path(str(source)).name, rule))
    clear = mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if mode != "RGB" or clear or bits > 8:
        how = "laid on white" if clear else "converted"
        deep = f" of {bits} bits" if bits > 8 and mode in ("L", "LA", "RGB", "RGBA") else ""
        notes.append(("other_pixels", mode + deep, f"pixels of mode {mode}{deep}, not 8-bit RGB: {how}"))
    if orientation in _TURNS:
        rule = f"EXIF orientation {orientation}: the pixels are stored turned or mirrored; they are put upright"
        notes.append(("exif_rotation", str(orientation), rule))
    return notes


def square(
    image: Image.Image, size: int, resize: str, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Bring an image to a square of side `size`; `resize` as in Preprocessing, or "keep": its own proportions, the long
    side at most `size`."""
    if resize == "keep":
        fits = max(image.size) <= size
        return image if fits else ImageOps.contain(image, (size, size), Image.Resampling.BILINEAR)
    if resize == "squash":
        return image.resize((size, size), resample)
    if resize == "crop":
        return ImageOps.fit(image, (size, size), resample)
    return ImageOps.pad(image, (size, size), resample, color="black")
