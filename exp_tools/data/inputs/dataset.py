"""Packed images as batches, and the order in which an epoch draws them; independent of any training library."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from exp_tools.data.inputs.augment import Magnitudes, augment, generator_for


class Key(NamedTuple):
    """One item of a batch: the image, and the position in the epoch, which seeds its augmentation.

    An index of -1 is padding: nothing is fetched for it.
    """

    epoch: int
    position: int
    index: int


PADDING = -1


class Batch(NamedTuple):
    """A batch as arrays.

    images : uint8 [B, S, S, 3], RGB
    labels : int64 [B], -1 for padding
    index : int64 [B], row in labels.csv, -1 for padding
    metadata : float32 [B, 3], see metadata.encode; zeros where there is none
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    metadata: np.ndarray


class PackedImages:
    """The images of images.npy, fetched a batch at a time; opened again in every process, never copied whole."""

    def __init__(
        self,
        path: Path,
        labels: Sequence[int] | np.ndarray,
        limits: Magnitudes | None = None,
        seed: int = 0,
        metadata: np.ndarray | None = None,
    ):
        self.path, self.limits, self.seed = Path(path), limits, seed
        self.labels = np.asarray(labels, dtype=np.int64)
        self.metadata = metadata
        self._images: np.memmap | None = None
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Fetch the images of `keys`, augmented when there are limits."""
        if self._images is None:
            self._images, self._file = np.load(self.path, mmap_mode="r"), self.path.open("rb")
        self._announce([row for _, _, row in keys if row != PADDING])
        index = np.array([key[2] for key in keys], dtype=np.int64)
        images = np.empty((len(keys), *self._images.shape[1:]), dtype=np.uint8)
        for place, (epoch, position, row) in enumerate(keys):
            if row == PADDING:
                images[place] = 0
            elif self.limits is None:
                images[place] = self._images[row]
            else:
                augment(self._images[row], self.limits, generator_for(self.seed, epoch, position), out=images[place])
        real = index != PADDING
        metadata = np.zeros((len(keys), 3), dtype=np.float32)
        if self.metadata is not None:
            metadata[real] = self.metadata[index[real]]
        return Batch(images, np.where(real, self.labels[index], PADDING), index, metadata)

    def _announce(self, rows: Sequence[int]) -> None:
        """Ask the kernel for a batch's images in one call. Page faults would wait for one after another, and read what
        lies around each: as much as the device's read-ahead, up to fifty times the image."""
        if not hasattr(os, "posix_fadvise"):  # macOS, Windows
            return
        size = self._images[0].nbytes
        for row in rows:
            start = self._images.offset + row * size
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_WILLNEED)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None, "_file": None}


class EpochOrder:
    """Batches of keys for one epoch: a shuffle, or a weighted draw with replacement, by (seed, epoch) alone.

    Batches are at most `batch_size` large and differ by at most one image, so that no lone image is left over, of
    which BatchNorm could take no statistics.

    Of `world` processes, process `rank` gets every world-th key of each batch, so that all together see the batches
    that one process alone would see. Where a short last batch does not go round, a share is filled up with padding.
    """

    def __init__(
        self,
        index: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.index, self.batch_size, self.seed = np.asarray(index), batch_size, seed
        self.weights = None if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
        self.rank, self.world = rank, world
        self.epoch, self.first = 0, 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and the batch of it to begin with."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            drawn = generator.permutation(self.index)
        else:
            drawn = generator.choice(self.index, size=len(self.index), p=self.weights)
        bounds = [len(drawn) * place // len(self) for place in range(len(self) + 1)]
        for start, end in itertools.islice(itertools.pairwise(bounds), self.first, None):
            places = range(start + self.rank, end, self.world)
            yield [Key(self.epoch, place, int(drawn[place])) for place in places] or [Key(self.epoch, 0, PADDING)]


class FixedOrder:
    """Batches of keys in the given order, the same every time."""

    def __init__(self, index: np.ndarray, batch_size: int):
        self.index, self.batch_size = np.asarray(index), batch_size

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.index), self.batch_size):
            yield [
                Key(0, start + place, int(row)) for place, row in enumerate(self.index[start : start + self.batch_size])
            ]
