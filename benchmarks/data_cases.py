"""Preparing, loading, augmenting and splitting images, and looking for duplicates among them."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks.case import Case, compare, of_times, seconds
from benchmarks.plain_decode import SIZE, decode_with_pillow
from exp_tools.data.duplicates.pairs import Photographs
from exp_tools.data.duplicates.search import find_duplicates
from exp_tools.data.images.pack import pack_images
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.augment import PRESETS, Magnitudes, augment, generator_for
from exp_tools.data.inputs.dataset import FixedOrder, PackedImages
from exp_tools.data.splits import allocate_groups
from exp_tools.system import cores

MEDIUM = Magnitudes(**PRESETS["medium"])
HAM10000 = 10_015
DUPLICATES_SECONDS = 240


def plain_augmentation() -> v2.Compose:
    """The preset `medium` as a user of torchvision writes it."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(90, translate=(0.05, 0.05), scale=(0.9, 1.1), shear=5),
            v2.ColorJitter(0.15, 0.15, 0.15, 7 / 360),
        ]
    )


def prepare_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """`prepare`'s decoding against Pillow alone, on as many processes."""
    chunks = [files[start : start + 32] for start in range(0, len(files), 32)]

    def rival() -> None:
        with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
            list(pool.map(decode_with_pillow, chunks))

    return compare(
        "prepare",
        "images/s",
        len(files),
        lambda: pack_images(files, scratch / "images.npy", Preprocessing(SIZE), processes=cores()),
        rival,
        against="Pillow decode + resize, same cores",
        target=0.9,
        repeats=repeats,
    )


def loader_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """Augmented batches from packed images on one core, against torchvision from JPEG with the same transforms."""
    torch.set_num_threads(1)
    some = files[:96]
    pack_images(some, scratch / "loader.npy", Preprocessing(SIZE), processes=cores())
    packed = PackedImages(scratch / "loader.npy", np.zeros(len(some)), MEDIUM)
    transforms = v2.Compose([v2.Resize((SIZE, SIZE)), plain_augmentation()])

    def rival() -> None:
        for start in range(0, len(some), 32):
            torch.stack([transforms(decode_image(str(file))) for file in some[start : start + 32]])

    return compare(
        "loader",
        "images/s",
        len(some),
        lambda: [packed.__getitems__(keys) for keys in FixedOrder(np.arange(len(some)), 32)],
        rival,
        against="torchvision v2 from JPEG, one core",
        target=10,
        repeats=repeats,
    )


def augment_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """The augmentation alone, of pixels in memory, on one core."""
    torch.set_num_threads(1)
    some = files[:96]
    pack_images(some, scratch / "augment.npy", Preprocessing(SIZE), processes=cores())
    pixels = np.load(scratch / "augment.npy")
    tensors = list(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    transforms = plain_augmentation()
    out = np.empty_like(pixels[0])

    def ours() -> None:
        for place, image in enumerate(pixels):
            augment(image, MEDIUM, generator_for(0, 1, place), out=out)

    return compare(
        "augment",
        "images/s",
        len(some),
        ours,
        lambda: [transforms(tensor) for tensor in tensors],
        against="torchvision v2 on tensors, one core",
        target=10,
        repeats=repeats,
    )


def split_case(repeats: int) -> Case:
    """Splitting as many rows as HAM10000 has."""
    generator = np.random.default_rng(0)
    groups = np.sort(generator.integers(0, 7470, HAM10000)).astype(str)
    dx = generator.choice(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"], 7470)[groups.astype(int)]
    times = [seconds(lambda: allocate_groups(dx, groups, [0.7, 0.15, 0.15], 0)) for _ in range(repeats)]
    return of_times("split", times, 2.0, f"{HAM10000:,} rows in 2 s")


def duplicates_case(files: list[Path], repeats: int) -> Case:
    """The search for near-duplicates, in proportion to the time that all of HAM10000 may take."""
    photographs = Photographs(tuple(str(file) for file in files))
    limit = DUPLICATES_SECONDS * len(files) / HAM10000
    work = {"count": len(files), "processes": cores()}
    times = [seconds(lambda: find_duplicates(photographs, **work)) for _ in range(repeats)]
    return of_times(
        "duplicates", times, limit, f"{len(files):,} images at the rate of {HAM10000:,} in {DUPLICATES_SECONDS} s"
    )
