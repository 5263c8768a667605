"""The API's limits: bytes, texts, and requests at once. Those of pixels and scans are `load_image`'s, for everyone."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from exp_tools.serving.api.problems import Problem

MEGABYTE = 1_000_000
FORM_OVERHEAD = 64_000
"""Bytes a form may have besides its images: texts, boundaries, headers of parts."""


@dataclass(frozen=True)
class Limits:
    """Limits of the API.

    at_once : requests computed at the same time, each in a thread
    waiting : requests that may wait, with their images in memory; one more is answered with 429
    image_bytes, batch_bytes : of one image file; of all images of a batch together
    batch_images : images of a batch
    text_bytes, metadata_bytes : of a text field; of a batch's metadata
    upload_seconds : in which a request must have arrived
    header_seconds : in which its head must have arrived, from the connection or the head's first byte
    idle_seconds : for which a connection is kept after an answer; more than the minute for which proxies keep theirs
    send_seconds : after which a client that takes nothing of its answer is cut off
    connections : open at the same time; fewer where the process may open fewer files
    """

    at_once: int = 2
    waiting: int = 30
    image_bytes: int = 10 * MEGABYTE
    batch_bytes: int = 30 * MEGABYTE
    batch_images: int = 32
    text_bytes: int = 200
    metadata_bytes: int = 20_000
    upload_seconds: float = 30.0
    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    send_seconds: float = 60.0
    connections: int = 1000


class Gate:
    """Admits a number of requests and refuses the rest immediately. For one event loop: it has no lock."""

    def __init__(self, limits: Limits) -> None:
        self.places = limits.at_once + limits.waiting
        self.inside = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a request slot. Raises Problem (too_busy) when none is free."""
        if self.inside >= self.places:
            raise Problem(
                "too_busy", f"{self.places} requests are in work; try again in a second", {"Retry-After": "1"}
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
