"""Any pixels as 8-bit sRGB: deep and floating-point values scaled, profiles converted, transparency laid on white."""

from io import BytesIO
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _LARGEST_SAMPLE = 258, 262, 281
"""Numbers of TIFF tags."""
BLOCK = 1_000_000
"""Numbers that are scaled at a time."""
OVERSHOOT = 0.5
"""How far resampling may have pushed values of 0..1 out of their range."""


def eight_bits(values: NDArray, top: float | None = None) -> NDArray[np.uint8]:
    """Numbers as 0..255, rounded.

    Parameters
    ----------
    values : any shape; NaN counts as 0
    top : what becomes 255. None: by the values. Whole numbers up to 255, 4,095 or 65,535 are of 8, 12 or 16 bits.
        Floating-point numbers up to 1 (and OVERSHOOT beyond) are shares, others are taken as whole numbers are. Below
        0 or above 65,535 the range from the smallest to the largest value is stretched.
    """
    if values.dtype == np.uint8 and top in (None, 255):
        return values
    least, most = _range(values)
    bottom = 0.0
    if top is None or most > top:
        if values.dtype.kind == "f" and least >= -OVERSHOOT and most <= 1 + OVERSHOOT:
            top = 1.0
        elif least < 0 or most > 65535:
            bottom, top = least, max(most, least + 1)
        else:
            top = next(full for full in (255.0, 4095.0, 65535.0) if most <= full)
    scaled = np.empty(values.shape, np.uint8)
    every = _scaled(np.arange(65536), bottom, top) if values.dtype == np.uint16 else None
    for rows in _blocks(values):
        scaled[rows] = _scaled(values[rows], bottom, top) if every is None else every[values[rows]]
    return scaled


def _scaled(values: NDArray, bottom: float, top: float) -> NDArray[np.uint8]:
    return ((_numbers(values) - bottom) * (255.0 / (top - bottom))).clip(0, 255).round().astype(np.uint8)


def _blocks(values: NDArray) -> list[slice]:
    """Rows of some megabytes at a time: a large picture as a whole in 32 bits, several times, would fill the memory."""
    step = max(1, BLOCK * len(values) // max(1, values.size))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def _numbers(values: NDArray) -> NDArray[np.float32]:
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=np.inf, neginf=-np.inf)


def _range(values: NDArray) -> tuple[float, float]:
    """The smallest and largest finite value, NaN being 0; (0, 0) where there is none."""
    if values.dtype.kind in "ui" and values.size:
        return float(values.min()), float(values.max())
    least, most = np.inf, -np.inf
    for rows in _blocks(values):
        numbers = _numbers(values[rows])
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    return (least, most) if least <= most else (0.0, 0.0)


def stored_bits(image: Image.Image) -> int:
    """Bits of each sample in the file, of an image that is not decoded yet; 8 where nothing says otherwise."""
    if image.format == "TIFF":
        return max(_whole(image.tag_v2.get(_BITS_PER_SAMPLE, 8)))
    return int(image.info.get("bits") or image.info.get("bit_depth") or 8)


def stored_top(image: Image.Image, file: IO[bytes]) -> float | None:
    """The largest value that the samples of more than 8 bits can have by what the file declares; None: nothing."""
    bits = stored_bits(image)
    declared = None
    if image.format == "PNG" and bits > 8:
        declared = max(_significant_bits(file), default=None)
    elif image.format == "TIFF" and bits > 8:
        declared = bits if bits in (10, 12, 14) else None
        if largest := image.tag_v2.get(_LARGEST_SAMPLE):
            declared = next((depth for depth in (8, 10, 12, 14) if max(_whole(largest)) < 2**depth), 16)
    return None if declared is None else 2**declared - 1


def _whole(tag: int | tuple[int, ...]) -> tuple[int, ...]:
    """The value of a TIFF tag as numbers, whether it is one or several."""
    return tag if isinstance(tag, tuple) else (tag,)


def _significant_bits(file: IO[bytes]) -> bytes:
    """The numbers of a PNG's sBIT chunk, which is before its pixels."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] != b"IDAT":
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"sBIT":
            return file.read(length)
        file.seek(length + 4, 1)
    return b""


def deep_colours(image: Image.Image, file: IO[bytes], top: float | None) -> Image.Image | None:
    """A PNG or TIFF of more than 8 bits and several channels, scaled as `eight_bits` does; None: it is no such.

    Pillow takes the upper 8 of 16 bits, which leaves 12-bit colours black. As by Pillow, a TIFF is put upright and a
    PNG is not.
    """
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "LA"):
        return None
    file.seek(0)
    values = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    colours = eight_bits(values[..., 2::-1], top)
    if values.shape[2] == 3:
        return Image.fromarray(colours)
    return Image.fromarray(np.dstack([colours, eight_bits(values[..., 3], 65535)]))


def in_eight_bits(image: Image.Image, top: float | None) -> Image.Image:
    """A decoded image of 16 or 32 bits a pixel (modes I, F) in mode L; any other as it is. `top` as in `eight_bits`."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = eight_bits(np.asarray(image), top)
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # Pillow inverts 8 bits alone
    return Image.fromarray(255 - values if white_is_zero else values)


def in_srgb(image: Image.Image, embedded: bytes | None) -> tuple[Image.Image, str]:
    """An image whose colour profile is another one with its colours in sRGB, and the profile's name; else as it is, "".

    Display P3 of telephones or Adobe RGB of cameras, read as sRGB, shifts reds by 15 to 26 of 255.
    """
    if not embedded or image.mode not in ("RGB", "RGBA", "P", "CMYK", "L", "LA"):
        return image, ""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(embedded))
        name = ImageCms.getProfileDescription(profile).strip() or "another colour space"
        colours = image.convert(image.mode[:-1]) if alpha else image
        plain = any(word in name.casefold() for word in ("srgb", "sgray"))
        if plain or _SPACES.get(profile.profile.xcolor_space.strip()) != colours.mode:
            return image, ""
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        turned = ImageCms.profileToProfile(colours, profile, SRGB, intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a profile that cannot be read says nothing
        return image, ""
    if alpha:
        turned.putalpha(alpha)
    return turned, name


def on_white(image: Image.Image) -> Image.Image:
    """An image of 8 bits in RGB, what is transparent on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
