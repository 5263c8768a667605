"""The picture formats: recognised by a file's first bytes, read by Pillow, by pillow-heif and by pydicom."""

import re
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

from exp_tools.errors import UserError

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "DICOM": (".dcm", ".dicom"),
}
"""The formats that are decoded, with their file endings. No others: for some, Pillow would start another program."""
UNREAD = {
    "JPEG 2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "JPEG XL": (".jxl",),
    "Photoshop": (".psd", ".psb"),
    "OpenEXR": (".exr",),
    "camera raw": (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
}
"""Formats of pictures that are listed and not decoded. A camera's raw file looks like a TIFF of its small preview."""
EXTENSIONS = tuple(ending for endings in (FORMATS | UNREAD).values() for ending in endings)
READ = ", ".join(FORMATS)

HEAD = 132
"""How many bytes tell the format: DICOM has its mark behind 128 that mean nothing."""
_MARKS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "BMP": rb"BM.{4}\0{4}.{4}[\x0c-\xff]\0{3}",
    "camera raw": rb"II\*\0.{4}CR|....ftypcrx |IIU\0|IIRO|FUJIFILM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb".{4}ftyp(avif|avis|(mif1|msf1).{4}(.{4})*?avi[fs])",
    "HEIF": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "DICOM": rb".{128}DICM",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n",
    "Photoshop": rb"8BPS\0",
    "OpenEXR": rb"\x76\x2f\x31\x01",
}
_COMPILED = {name: re.compile(mark, re.DOTALL) for name, mark in _MARKS.items()}


class ImageFault(UserError):
    """An image that cannot be used; the message says why, without the file's name, `kind` in one word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def format_of(head: bytes) -> str:
    """The format of a picture by its first HEAD bytes, of FORMATS or UNREAD; "" for what is no picture."""
    return next((name for name, mark in _COMPILED.items() if mark.match(head)), "")


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return name.lower().endswith(EXTENSIONS)


def image_id(name: str) -> str:
    """A file's name without the ending of a picture; any other ending belongs to the name: `1.2.840` stays."""
    return name[: name.rindex(".")] if has_image_ending(name) and name.lower() not in EXTENSIONS else name


def is_image(path: Path) -> bool:
    """Whether a file is to be looked at as a picture: by its ending, and without a known one by its first bytes.

    What is called like a picture and is none, or may not be read, is listed, so that decoding it says so.
    """
    if has_image_ending(path.name):
        return True
    try:
        with open(path, "rb") as file:
            return bool(format_of(file.read(HEAD)))
    except OSError:
        return True


def format_to_read(head: bytes, name: str) -> str:
    """The format to decode a file with, of FORMATS, by its first bytes and its name ("" where it has none).

    Raises
    ------
    ImageFault
        Empty, no picture, or a picture of a kind that is not decoded.
    """
    if not head:
        raise ImageFault("empty_image", "the file is empty (0 bytes)")
    kind = "camera raw" if name.lower().endswith(UNREAD["camera raw"]) else format_of(head)
    if kind in UNREAD:
        rule = f"a picture in the format {kind} is not read: save it as JPEG, PNG or TIFF"
        raise ImageFault("not_an_image", rule)
    if not kind:
        raise ImageFault("not_an_image", f"the file is not an image we can read ({READ})")
    return kind


def lacking(format_name: str, package: str, extra: str) -> ImageFault:
    """The fault of a picture whose reader is not installed."""
    rule = (
        f"reading {format_name} needs the package {package} (the extra `{extra}`): pip install {package}, or save the "
        "picture as JPEG"
    )
    return ImageFault("not_an_image", rule)


def _heif(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    if format_of(file.read(HEAD)) != "HEIF":
        raise SyntaxError("no HEIF")
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise lacking("HEIC", "pillow-heif", "heic") from error
    file.seek(0)
    return HeifImageFile(file, name)


def _dicom(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    if format_of(file.read(HEAD)) != "DICOM":
        raise SyntaxError("no DICOM")
    try:
        from exp_tools.data.images.dicom import DicomImageFile
    except ImportError as error:
        raise lacking("DICOM", "pydicom", "dicom") from error
    file.seek(0)
    return DicomImageFile(file, name)


# Pillow opens both wherever `Image.open` may use them; their libraries are imported when the first such file comes.
Image.register_open("HEIF", _heif)
Image.register_open("DICOM", _dicom)
