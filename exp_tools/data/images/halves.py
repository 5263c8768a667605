"""Pictures that stop half-way although the decoder does not mind: it fills what is missing with grey or black.

A JPEG that was cut off and closed, and any file that was downloaded half and is zeros from there on, may decode without
an error.
"""

import os
import re
from collections.abc import Iterator
from typing import IO

from exp_tools.data.images.limits import require_scans, require_segments

COMPRESSED = {"PNG": b"IEND\xaeB`\x82", "WEBP": b"", "AVIF": b"", "HEIF": b""}
"""Formats whose files have no long run of zeros at their end, and how a whole one of them ends, where that is known."""
ZEROS, SHARE = 64, 0.05
"""Zero bytes at the end that a whole file does not have: at least so many, and so large a part of it."""
_MORE = b"\0" * 16
_SCAN, _END = 0xDA, b"\xff\xd9"
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_NEXT_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def require_end(file: IO[bytes], kind: str) -> None:
    """Raise ValueError when a file of COMPRESSED is zeros from somewhere to its end; `file` is at its start after."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ZEROS))
    if not any(file.read()):
        file.seek(0)
        content = file.read().rstrip(b"\0")
        zeros, end = size - len(content), COMPRESSED[kind]
        if zeros >= SHARE * size and not (end and content.endswith(end)):
            raise ValueError(f"its last {zeros:,} of {size:,} bytes are zeros, as after half a download")
    file.seek(0)


def without_end(content: bytes) -> bytes:
    """A JPEG's bytes such that Pillow finds it truncated when its coded pixels are fewer than its size.

    The end marker gives way to a few bytes, which let the decoder read ahead, and zeros at the end of a file without
    that marker are dropped: a decoder that wants more than there is then has to say so. About ten blocks too few may
    stay unseen. A file of several scans keeps its end, which its decoding needs.

    Raises
    ------
    ValueError
        A progressive picture lacks some of its scans.
    ImageFault
        More segments or scans than are decoded, see `limits`.
    """
    frame, first, scans = 0, b"", []
    for marker, body, place in _segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, first = marker, body
        elif marker == _SCAN:
            if frame in _BASELINE and not scans and body[:1] == first[5:6]:
                end = content.find(_END, place)
                return content[:end] + _MORE if end >= 0 else content.rstrip(b"\0")
            scans.append(body)
            require_scans(int.from_bytes(first[3:5], "big"), int.from_bytes(first[1:3], "big"), len(scans))
    if frame == _PROGRESSIVE and not _complete(first, scans):
        raise ValueError("its last scans are missing")
    return content


def _segments(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker and body of each segment up to the end marker, and where what follows it begins."""
    place, number = 2, 0
    while (found := _NEXT_MARKER.search(content, place)) and content[found.start() + 1] != _END[1]:
        start, number = found.end(), number + 1
        require_segments(number)
        length = int.from_bytes(content[start : start + 2], "big")
        place = start + max(2, length)
        yield content[start - 1], content[start + 2 : place], place


def _complete(frame: bytes, scans: list[bytes]) -> bool:
    """Whether the scans of a progressive picture bring every coefficient of every component to its last bit."""
    ids = [frame[6 + 3 * number] for number in range(frame[5])] if len(frame) >= 6 + 3 * frame[5] else []
    missing = {(component, coefficient) for component in ids for coefficient in range(64)}
    for scan in scans:
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        if bits & 15 == 0:
            chosen = scan[1 : 1 + 2 * count : 2]
            missing -= {(component, place) for component in chosen for place in range(first, last + 1)}
    return not missing
