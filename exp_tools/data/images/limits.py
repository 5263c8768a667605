"""What is too much, or too little, to decode: told from the header, before any pixel is decoded."""

from PIL import Image

from exp_tools.data.images.formats import ImageFault

MAX_PIXELS = 100_000_000
MAX_SCANS = 100
"""Scans of a JPEG: a progressive one has about 10. One of 0.5 MB can have 40,000 and take a minute."""
MAX_SCANNED = 1_500_000_000
"""Pixels times scans of a JPEG: each scan passes over all pixels, at a nanosecond each even where it is empty."""
MAX_SEGMENTS = 5_000
"""Parts of a JPEG. Pillow joins those of EXIF one by one, which takes minutes for a million of them."""
MIN_SIDE, MAX_SHAPE = 4, 20
"""Shortest side in pixels, and longest side in shorter ones, of a picture: what is narrower shows no lesion."""
_SCAN, _START = b"\xff\xda", b"\xff\xd8"
_COMPRESSION, _JPEG = 259, (6, 7)
"""TIFF's tag, and its values for a JPEG within the TIFF."""


def require_size(width: int, height: int) -> None:
    """Raise ImageFault (too_many_pixels, bad_shape) for a picture of more than MAX_PIXELS, a strip or a dot."""
    if width * height > MAX_PIXELS:
        raise too_large(f"{width}x{height}")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SHAPE * min(width, height):
        rule = (
            f"{width}x{height} pixels are a strip or a dot, not a picture of skin (a side below {MIN_SIDE} pixels, or "
        )
        raise ImageFault("bad_shape", f"{rule}more than {MAX_SHAPE} times as long as the other)")


def require_scans(width: int, height: int, scans: int) -> None:
    """Raise ImageFault (too_many_pixels) for a JPEG that passes over its pixels too often."""
    if scans > MAX_SCANS or width * height * scans > MAX_SCANNED:
        rule = (
            f"a JPEG of {width}x{height} pixels in {scans:,} scans or more takes too long to decode (at most "
            f"{MAX_SCANS} scans, {MAX_SCANNED // 1_000_000:,} million pixels in all of them); save it again, not as a "
            "progressive JPEG"
        )
        raise ImageFault("too_many_pixels", rule)


def require_segments(number: int) -> None:
    """Raise ImageFault (damaged_image) for a JPEG in too many parts."""
    if number > MAX_SEGMENTS:
        rule = f"the JPEG has more than {MAX_SEGMENTS:,} parts, which no camera writes; open it and save it again"
        raise ImageFault("damaged_image", rule)


def holds_jpeg(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet is a TIFF or DICOM file with JPEGs in it."""
    if image.format == "TIFF":
        return image.tag_v2.get(_COMPRESSION) in _JPEG
    return getattr(image, "holds_jpeg", False)


def most_scans(content: bytes) -> int:
    """Scans of that JPEG within a file which has most."""
    return max(part.count(_SCAN) for part in content.split(_START))


def too_large(pixels: str) -> ImageFault:
    """The fault of a picture of so many pixels: a number, or width and height."""
    return ImageFault("too_many_pixels", f"{pixels} pixels are more than {MAX_PIXELS:,}; scale it down first")
