"""One picture in every format and state that people's folders have, drawn in code."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Y, X = np.mgrid[0:60, 0:90]
PIXELS = np.stack([40 + X * 2, 30 + Y * 3, 230 - X - Y], axis=-1).astype(np.uint8)
"""uint8 [60, 90, 3]: smooth, and different when it is turned, mirrored or darker."""
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))
FRAMES = [Image.fromarray(PIXELS[::-1]), Image.fromarray(255 - PIXELS)]
END = b"\xff\xd9"


def encoded(kind: str, pixels: NDArray | Image.Image = PIXELS, **options) -> bytes:
    """A picture in a format of Pillow's, as good as the format is."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    best = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}
    buffer = io.BytesIO()
    image.save(buffer, kind, **best.get(kind, {}) | options)
    return buffer.getvalue()


def moving(kind: str) -> bytes:
    """Three frames or pages, the picture first."""
    return encoded(kind, save_all=True, append_images=FRAMES)


def turned(kind: str) -> bytes:
    """Stored on its side, with the EXIF orientation that puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = np.rot90(PIXELS).copy()
    return heic(on_its_side, exif=exif.tobytes()) if kind == "HEIF" else encoded(kind, on_its_side, exif=exif)


def heic(pixels: NDArray = PIXELS, **options) -> bytes:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, chroma=444, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(values: NDArray, significant: Sequence[int] = ()) -> bytes:
    """Numbers [H, W] or [H, W, 3] as a PNG of 16 bits, with an sBIT chunk where `significant` gives its numbers."""
    kind = 0 if values.ndim == 2 else 2
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    declared = chunk(b"sBIT", bytes(significant)) if significant else b""
    return b"\x89PNG\r\n\x1a\n" + head + declared + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with one chunk more behind its header."""
    return png[:33] + chunk(name, body) + png[33:]


def deep_tiff(values: NDArray, orientation: int = 1, photometric: int | None = None) -> bytes:
    """Numbers [H, W] or [H, W, 3] of 16 bits as a TIFF; `photometric` 0: zero is white."""
    pixels, (height, width) = values.astype("<u2").tobytes(), values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    kind = (2 if channels == 3 else 1) if photometric is None else photometric
    end = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, end if channels == 3 else 16), (259, 3, 1, 1)]
    tags += [(262, 3, 1, kind), (273, 4, 1, end + 8), (274, 3, 1, orientation), (277, 3, 1, channels)]
    tags += [(278, 4, 1, height), (279, 4, 1, len(pixels))]
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + listed + bytes(4) + struct.pack("<4H", 16, 16, 16, 0) + pixels


STORED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: np.rot90,
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 3),
}
"""How an upright picture is stored with each EXIF orientation."""


def halved(content: bytes, fill: bytes = b"\0") -> bytes:
    """The first half of a file, and `fill` in the place of the other."""
    half = len(content) // 2
    return content[:half] + fill * (len(content) - half)


def dicom(values: NDArray, kind: str, *, bits: int = 8, frames: int = 1, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    """Pixels as a DICOM file that names a patient; `kind` is the photometric interpretation."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.4", "1.2.3"
    file = Dataset()
    file.file_meta = meta
    file.PatientName, file.PatientID = "Doe^Jane", "4711"
    shape = values.shape[1:] if frames > 1 else values.shape
    file.Rows, file.Columns = shape[:2]
    file.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if len(shape) == 3:
        file.PlanarConfiguration = 0
    file.NumberOfFrames = frames
    file.PhotometricInterpretation = kind
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * values.dtype.itemsize, bits, bits - 1
    file.PixelRepresentation = 0
    file.add_new(0x7FE00010, "OW" if values.dtype.itemsize > 1 else "OB", values.tobytes())
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def packed_dicom(syntax: str) -> bytes:
    """The DICOM picture packed by run lengths; with another syntax than that of RLE its name says something untrue."""
    import pydicom
    from pydicom.uid import RLELossless

    file = pydicom.dcmread(io.BytesIO(dicom(PIXELS, "RGB")))
    file.compress(RLELossless)
    file.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    file.save_as(buffer)
    return buffer.getvalue()


def profile(space: str, name: str = "linear light") -> bytes:
    """An ICC profile: linear "RGB " of sRGB's primaries, linear "GRAY", or "CMYK" of a table from ink to Lab."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    ascii_name = name.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(78),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
    }
    if space == "RGB ":
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7141), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    elif space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        tags[b"A2B0"] = _ink_to_lab()
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", place + len(body), len(content))
        body += content
    pcs = b"Lab " if space == "CMYK" else b"XYZ "
    device = b"prtr" if space == "CMYK" else b"mntr"
    head = struct.pack(
        ">I4sI4s4s4s", 132 + 12 * len(tags) + len(body), b"\0\0\0\0", 0x02400000, device, space.encode(), pcs
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + number(0.9642) + number(1) + number(0.8249)
    return head + bytes(128 - len(head)) + table + body


def _ink_to_lab() -> bytes:
    """A table of two steps per ink: each ink takes 30 from the lightness, and no ink has a colour."""
    ramp = bytes(range(256))
    cells = b"".join(bytes([max(0, round((100 - 30 * bin(place).count("1")) * 2.55)), 128, 128]) for place in range(16))
    unit = b"".join(struct.pack(">i", 65536 if place % 4 == 0 else 0) for place in range(9))
    return b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + ramp * 4 + cells + ramp * 3


def linear(pixels: NDArray) -> NDArray[np.uint8]:
    """The same colours where light is stored in proportion (gamma 1), uint8."""
    share = pixels / 255.0
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return (light * 255).round().astype(np.uint8)
