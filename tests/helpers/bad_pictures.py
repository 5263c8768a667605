"""Bad pictures, each with the kind of its fault: damaged or none at all, and small files that are costly to decode."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from helpers import pictures
from helpers.pictures import END, PIXELS, chunk, dicom, encoded, halved, heic

JPEG_DICOM = "1.2.840.10008.1.2.4.50"


def scanned(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, of 12 bytes, is there so many times."""
    content = encoded("JPEG", Image.new("RGB", (side, side)), progressive=True, quality=75)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def in_parts(segment: bytes, total: int) -> bytes:
    """A JPEG with one segment again and again before its pixels, `total` bytes of it."""
    content = encoded("JPEG")
    return content[:2] + segment * (total // len(segment)) + content[2:]


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header, otherwise right, names another size."""
    content = bytearray(encoded(kind, Image.new("P" if kind == "GIF" else "RGB", (60, 60))))
    if kind == "PNG":
        return bytes(content[:8]) + chunk(b"IHDR", struct.pack(">II", width, height) + content[24:29]) + content[33:]
    if kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[place : place + 4] = struct.pack("<I", value)
    elif kind == "WEBP":  # its extended header, before the picture's own
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
        content[12:12] = extended
        content[4:8] = struct.pack("<I", len(content) - 8)
    return bytes(content)


def tiff_of(jpeg: bytes, side: int) -> bytes:
    """A TIFF whose only strip is a JPEG."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3)]
    tags += [(273, 4, 1, 8 + 2 + 12 * 8 + 4), (278, 4, 1, side), (279, 4, 1, len(jpeg))]
    tags = sorted(tags)
    start = 8 + 2 + 12 * len(tags) + 4
    tags = [(*tag[:3], start) if tag[0] == 273 else tag for tag in tags]
    listed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4) + jpeg


def dicom_of(jpeg: bytes, side: int) -> bytes:
    """A DICOM file whose only frame is a JPEG."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEG_DICOM
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.4", "1.2.3"
    file = Dataset()
    file.file_meta = meta
    file.Rows = file.Columns = side
    file.SamplesPerPixel, file.PlanarConfiguration, file.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.PixelData = encapsulate([jpeg])
    file["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_text(unpacked: int) -> bytes:
    """A PNG with a text that unpacks to so many bytes."""
    content = encoded("PNG")
    return content[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(unpacked), 9)) + content[33:]


EXIF = b"\xff\xe1" + struct.pack(">H", 9) + b"Exif\0\0x"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "40,000 scans in 0.5 MB.jpg": (lambda: scanned(1000, 40_000), "too_many_pixels"),
    "40 scans of 49 megapixels.jpg": (lambda: scanned(7000, 40), "too_many_pixels"),
    "a thousand scans.tif": (lambda: tiff_of(scanned(500, 1000), 500), "too_many_pixels"),
    "a thousand scans.dcm": (lambda: dicom_of(scanned(500, 1000), 500), "too_many_pixels"),
    "half a million pieces of EXIF.jpg": (lambda: in_parts(EXIF, 5_000_000), "damaged_image"),
    "a million empty comments.jpg": (lambda: in_parts(b"\xff\xfe\0\2", 5_000_000), "damaged_image"),
    "a text of 200 MB.png": (lambda: png_text(200_000_000), "damaged_image"),
    "4 gigapixels.jpg": (lambda: claiming("JPEG", 65_535, 65_535), "too_many_pixels"),
    "4 gigapixels.png": (lambda: claiming("PNG", 65_535, 65_535), "too_many_pixels"),
    "the most there is.png": (lambda: claiming("PNG", 2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "4 gigapixels.gif": (lambda: claiming("GIF", 65_535, 65_535), "too_many_pixels"),
    "4 gigapixels.bmp": (lambda: claiming("BMP", 65_535, 65_535), "too_many_pixels"),
    "4 gigapixels.tif": (lambda: claiming("TIFF", 65_535, 65_535), "too_many_pixels"),
    "just too many.tif": (lambda: claiming("TIFF", 10_001, 10_000), "too_many_pixels"),
    "just too many.jpg": (lambda: claiming("JPEG", 10_001, 10_000), "too_many_pixels"),
    "268 megapixels.webp": (lambda: claiming("WEBP", 16_384, 16_384), "too_many_pixels"),
}
"""By name: what makes it, and the kind of its fault."""

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty_image"),
    "text.jpg": (lambda: b"404 Not Found", "not_an_image"),
    "page.png": (lambda: b"<!doctype html><title>Sign in</title>", "not_an_image"),
    "document.jpg": (lambda: b"%PDF-1.7\n" + bytes(300), "not_an_image"),
    "zeros.jpg": (lambda: bytes(9000), "not_an_image"),
    "start.jpg": (lambda: encoded("JPEG")[:20], "not_an_image"),
    "picture.jp2": (lambda: encoded("JPEG2000"), "not_an_image"),
    "picture.jxl": (lambda: b"\xff\x0a" + bytes(300), "not_an_image"),
    "layers.psd": (lambda: b"8BPS\0\1" + bytes(300), "not_an_image"),
    "camera.dng": (lambda: encoded("TIFF"), "not_an_image"),
    "camera.cr2": (lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(300), "not_an_image"),
    "report.dcm": (lambda: bytes(128) + b"DICM" + bytes(300), "not_an_image"),
    "lossless.dcm": (lambda: pictures.packed_dicom("1.2.840.10008.1.2.4.70"), "not_an_image"),
    "film as mpeg.dcm": (lambda: pictures.packed_dicom("1.2.840.10008.1.2.4.100"), "not_an_image"),
    "deflated.dcm": (lambda: dicom(PIXELS, "RGB", syntax="1.2.840.10008.1.2.1.99"), "not_an_image"),
    "half.jpg": (lambda: halved(encoded("JPEG"), b""), "damaged_image"),
    "half and zeros.jpg": (lambda: halved(encoded("JPEG")), "damaged_image"),
    "half, black, and zeros.jpg": (lambda: halved(encoded("JPEG", PIXELS * 0, optimize=True)), "damaged_image"),
    "half, closed.jpg": (lambda: halved(encoded("JPEG"), b"") + END, "damaged_image"),
    "nearly whole, closed.jpg": (lambda: encoded("JPEG")[:-150] + END, "damaged_image"),
    "half, closed, with more.jpg": (lambda: halved(encoded("JPEG"), b"") + END + bytes(9000), "damaged_image"),
    "half with restarts, closed.jpg": (
        lambda: halved(encoded("JPEG", restart_marker_rows=1), b"") + END,
        "damaged_image",
    ),
    "half progressive.jpg": (lambda: halved(encoded("JPEG", progressive=True), b""), "damaged_image"),
    "half progressive and zeros.jpg": (lambda: halved(encoded("JPEG", progressive=True)), "damaged_image"),
    "half progressive, closed.jpg": (lambda: halved(encoded("JPEG", progressive=True), b"") + END, "damaged_image"),
    "half.png": (lambda: halved(encoded("PNG"), b""), "damaged_image"),
    "half and zeros.png": (lambda: halved(encoded("PNG")), "damaged_image"),
    "half.bmp": (lambda: halved(encoded("BMP"), b""), "damaged_image"),
    "half.tif": (lambda: halved(encoded("TIFF"), b""), "damaged_image"),
    "half packed.tif": (lambda: halved(encoded("TIFF", compression="tiff_lzw"), b""), "damaged_image"),
    "half.webp": (lambda: halved(encoded("WEBP"), b""), "damaged_image"),
    "half and zeros.webp": (lambda: halved(encoded("WEBP")), "damaged_image"),
    "half.gif": (lambda: halved(encoded("GIF"), b""), "damaged_image"),
    "half.avif": (lambda: halved(encoded("AVIF"), b""), "damaged_image"),
    "half and zeros.avif": (lambda: halved(encoded("AVIF")), "damaged_image"),
    "half.heic": (lambda: halved(heic(), b""), "damaged_image"),
    "half and zeros.heic": (lambda: halved(heic()), "damaged_image"),
    "half.dcm": (lambda: halved(dicom(PIXELS, "RGB"), b""), "damaged_image"),
    "column.png": (lambda: encoded("PNG", Image.new("RGB", (1, 500))), "bad_shape"),
    "row.jpg": (lambda: encoded("JPEG", Image.new("RGB", (500, 1))), "bad_shape"),
    "dot.gif": (lambda: encoded("GIF", Image.new("P", (1, 1))), "bad_shape"),
    "ribbon.png": (lambda: encoded("PNG", Image.new("RGB", (1000, 40))), "bad_shape"),
    "gigapixels.png": (
        lambda: encoded("PNG")[:16] + (40_000).to_bytes(4, "big") * 2 + encoded("PNG")[24:],
        "damaged_image",  # the header's checksum is wrong, and its size is not believed
    ),
    "gigapixels.dcm": (lambda: dicom(np.zeros((20_000, 6_000), np.uint8), "MONOCHROME2"), "too_many_pixels"),
}
