"""DICOM as a format of Pillow's: the first frame's pixels in 8 bits. Nothing that names a patient is read.

It needs pydicom (the extra `dicom`), so that only `formats` imports it, when such a file comes.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageFile
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from exp_tools.data.images.colours import eight_bits
from exp_tools.data.images.formats import ImageFault

META = 4096
"""Bytes from the start of a file within which it names its transfer syntax."""
_JPEG = "1.2.840.10008.1.2.4."
"""How the transfer syntaxes of the JPEG family begin."""
TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
    "NumberOfFrames",
    "PixelRepresentation",
)
"""All that is read besides pixels, palette and colour profile."""


class DicomImageFile(ImageFile.ImageFile):
    """A DICOM file: mode L or RGB; `info["bits"]` are the bits stored of a pixel, `n_frames` the frames.

    MONOCHROME1 is inverted, YBR becomes RGB, a palette its colours. Rescaling and windows, which radiology uses, are
    not applied: the range of the stored bits becomes 0..255.

    Raises
    ------
    ImageFault
        No picture in it, or one that is packed in a way that pydicom cannot decode here.
    """

    format = "DICOM"
    format_description = "DICOM"

    def _open(self) -> None:
        start = self.fp.read(META)
        if str(DeflatedExplicitVRLittleEndian).encode() in start:  # nothing says how large it becomes
            raise _unread("deflated")
        self.fp.seek(0)
        header = dcmread(self.fp, stop_before_pixels=True, specific_tags=list(TAGS))
        syntax = header.file_meta.get("TransferSyntaxUID")
        if not header.get("Rows") or not header.get("Columns") or syntax is None:
            raise ImageFault("not_an_image", "the DICOM file holds no picture (no rows, columns or transfer syntax)")
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise _unread(syntax.name)
        self._kind = str(header.get("PhotometricInterpretation", ""))
        self._signed = header.get("PixelRepresentation") == 1
        self._size = int(header.Columns), int(header.Rows)
        self._mode = "L" if self._kind.startswith("MONOCHROME") else "RGB"
        self.n_frames = int(header.get("NumberOfFrames") or 1)
        self.is_animated = self.n_frames > 1
        self.holds_jpeg = syntax.startswith(_JPEG)
        self.info["bits"] = int(header.get("BitsStored", 8))
        self.tile = []

    def load(self) -> Any:
        """Decode the first frame."""
        if self._im is None:
            self.fp.seek(0)
            about = Dataset()
            values = pixel_array(self.fp, ds_out=about, index=0)
            bits = self.info["bits"]
            if self._kind == "PALETTE COLOR":
                values, bits = apply_color_lut(values, about), int(about.RedPaletteColorLookupTableDescriptor[2])
            if self._signed:
                values = values.astype(np.int32) + 2 ** (bits - 1)
            pixels = eight_bits(values, 2**bits - 1)
            self.im = Image.fromarray(255 - pixels if self._kind == "MONOCHROME1" else pixels, self._mode).im
            if "ICCProfile" in about:
                self.info["icc_profile"] = bytes(about.ICCProfile)
        return super().load()


def _unread(syntax: str) -> ImageFault:
    rule = f"a DICOM file packed as {syntax} cannot be decoded here: unpack it (gdcmconv --raw, dcmdjpeg) or save a PNG"
    return ImageFault("not_an_image", rule)
