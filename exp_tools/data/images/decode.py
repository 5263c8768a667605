"""Find images, decode them and make them square."""

import contextlib
import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from exp_tools.data.images.preprocess import Preprocessing, apply_filters
from exp_tools.errors import UserError

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",)}
"""The formats that are decoded, with their file endings. No others: for some, Pillow would start another program."""
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)
MAX_PIXELS = 100_000_000
SRGB = ImageCms.createProfile("sRGB")
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


CLUTTER = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs", "thumbs.db")


def is_clutter(name: str) -> bool:
    """Whether a file or folder is a leftover of a system, not data: `.DS_Store`, `.ipynb_checkpoints`, `@eaDir`, …"""
    return name.startswith(".") or name.casefold() in CLUTTER


def files_below(folder: Path) -> list[Path]:
    """Files anywhere below a folder, in order of their paths, without leftovers and what lies in folders of them."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(map(is_clutter, path.relative_to(folder).parts)) and path.is_file()
    )


def index_images(folder: Path) -> dict[str, list[Path]]:
    """Map each image's id (file name without ending) to its files, anywhere below `folder`, in order of their paths."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        if path.suffix.lower() in EXTENSIONS:
            found.setdefault(path.stem, []).append(path)
    return found


def find_images(folder: Path) -> dict[str, Path]:
    """Map each image's id (file name without ending) to its file, anywhere below `folder`; the first in order wins."""
    return {name: paths[0] for name, paths in index_images(folder).items()}


def load_image(source: Path | str | bytes | Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Decode one image to RGB and bring it to a square, exactly as `prepare` packs it and a predictor must see it.

    JPEGs far larger than `image_size` are decoded at the smallest DCT scale (1/2, 1/4, 1/8) that is not below it.

    Parameters
    ----------
    source : file, its bytes, or an image of Pillow's, which stays as it is (all its pixels are resized, no DCT scale)

    Returns
    -------
    uint8 array [image_size, image_size, 3], RGB

    Raises
    ------
    ImageFault
        Missing, empty, truncated, no image, or more than MAX_PIXELS pixels.
    """
    return decode_with_notes(source, preprocessing)[0]


def decode_with_notes(
    source: Path | str | bytes | Image.Image, preprocessing: Preprocessing
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """The square image, and what was fixed: (kind, value, rule)."""
    size, resize = preprocessing.image_size, preprocessing.resize
    try:
        with _opened(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width}x{image.height}")
            short = min(image.size)
            wanted = size if resize not in ("pad", "keep") else max(1, round(size * short / max(image.size)))
            found = image.format, image.mode
            image.draft("RGB", (wanted, wanted))
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            notes = _notes(source, *found, "transparency" in image.info, orientation)
            image, profile = _in_srgb(image)
            notes += [("other_pixels", profile, f"colours in {profile}, not sRGB: converted")] if profile else []
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
        raise ImageFault("not_an_image", f"the file is not an image we can read ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageFault("damaged_image", f"the image is damaged or cut off ({error})") from error
    return apply_filters(pixels, preprocessing), notes


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


def _in_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """An image whose colour profile is another one with its colours in sRGB, and the profile's name; else as it is, "".

    Display P3 of telephones or Adobe RGB of cameras, read as sRGB, shifts reds by 15 to 26 of 255.
    """
    embedded = image.info.get("icc_profile")
    if not embedded or image.mode not in ("RGB", "RGBA", "P", "CMYK"):
        return image, ""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(embedded))
        name = ImageCms.getProfileDescription(profile).strip() or "another colour space"
        colours = image.convert("RGB") if alpha else image
        if "srgb" in name.casefold() or profile.profile.xcolor_space.strip() != colours.mode:
            return image, ""
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        turned = ImageCms.profileToProfile(colours, profile, SRGB, intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a profile that cannot be read says nothing
        return image, ""
    if alpha:
        turned.putalpha(alpha)
    return turned, name


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
