"""The key points of all pictures of a search, in files that every process maps."""

from pathlib import Path

import numpy as np

from exp_tools.data.duplicates.keypoints import MAX_POINTS, KeyPoints
from exp_tools.data.duplicates.neighbours import LOOK
from exp_tools.data.duplicates.retrieval import Meetings, Vocabulary

VOTING_POINTS = 224
"""Strongest key points of each picture that vote for candidates."""


class Stored:
    """Of each picture: counts of key points, sizes (long side in pixels), looks, and the key points themselves."""

    def __init__(self, folder: Path, mode: str = "r") -> None:
        self.counts, self.sizes, self.looks, self.places, self.descriptors = (
            np.load(folder / f"{name}.npy", mmap_mode=mode).view(np.ndarray)  # slices of a memmap take microseconds
            for name in ("counts", "sizes", "looks", "places", "descriptors")
        )

    def __getitem__(self, picture: int) -> KeyPoints:
        found = self.counts[picture]
        return KeyPoints(self.places[picture, :found], self.descriptors[picture, :found])

    def voting(self, picture: int) -> KeyPoints:
        """The strongest key points."""
        return KeyPoints(*(column[:VOTING_POINTS] for column in self[picture]))


def create_store(folder: Path, total: int) -> None:
    """Make the files, empty, for so many pictures."""
    for name, kind, shape in (
        ("counts", np.int32, (total,)),
        ("sizes", np.int32, (total,)),
        ("looks", np.float32, (total, LOOK)),
        ("places", np.float32, (total, MAX_POINTS, 2)),
        ("descriptors", np.uint8, (total, MAX_POINTS, 128)),
    ):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=kind, shape=shape)


def save_arrays(folder: Path, arrays: Vocabulary | Meetings, name: str) -> None:
    """Store a tuple of arrays under a name."""
    for field, values in arrays._asdict().items():
        np.save(folder / f"{name}-{field}.npy", values)


def load_arrays(folder: Path, kind: type, name: str) -> Vocabulary | Meetings:
    """The tuple of arrays under a name, mapped."""
    return kind(*(np.load(folder / f"{name}-{field}.npy", mmap_mode="r") for field in kind._fields))
