"""The embedded sample data set: synthetic dermoscopy-like images in HAM10000's official layout.

It lets the whole pipeline run offline in minutes. It is a stand-in for plumbing and teaching: the pictures follow
textbook descriptions, not patients, and no number that comes from them is a medical result. The ids (SYN_…, SYL_…)
cannot be taken for those of real images.

The proportions below are those of HAM10000 (Tschandl et al., Sci Data 5:180161, 2018), rounded; no row is copied.
"""

import functools
import math
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from exp_tools.data.synthetic.scene import draw_lesion
from exp_tools.errors import UserError
from exp_tools.io import ProgressBar, write_csv

METADATA = "HAM10000_metadata.csv"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
MASKS = "HAM10000_segmentations_lesion_tschandl"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
JPEG_QUALITY = 90

ROOMY_SAMPLE = 300
"""From this many images on, no class is so small that a split by lesion leaves one of its parts without it."""
FEWEST_LESIONS = 9
FEWEST_IMAGES = 12


class Population(NamedTuple):
    """Whom a diagnosis is found in, where, how often, and how it was established."""

    images: int  # of 10,015
    multiplicity: tuple[int, ...]  # lesions with 1, 2, 3, … images, of 7,470
    dx_type: dict[str, int]  # per cent
    age: tuple[float, float]  # mean and standard deviation
    male: float
    localization: dict[str, int]  # per cent


# In the order of the blocks of HAM10000's table.
POPULATIONS = {
    "bkl": Population(
        1099,
        (440, 220, 55, 8, 2, 2),
        {"histo": 70, "consensus": 24, "confocal": 6},
        (65, 13),
        0.57,
        {"face": 29, "back": 18, "lower extremity": 16, "upper extremity": 9, "chest": 7, "trunk": 7, "abdomen": 4}
        | {"scalp": 3, "neck": 3, "unknown": 2, "hand": 1, "ear": 1},
    ),
    "df": Population(
        115,
        (39, 26, 8),
        {"histo": 48, "consensus": 52},
        (52, 14),
        0.55,
        {"lower extremity": 71, "upper extremity": 21, "abdomen": 3, "back": 2, "foot": 2, "genital": 1},
    ),
    "mel": Population(
        1113,
        (230, 278, 100, 4, 1, 1),
        {"histo": 100},
        (61, 15),
        0.62,
        {"back": 29, "upper extremity": 19, "lower extremity": 17, "face": 9, "chest": 6, "abdomen": 6, "trunk": 4}
        | {"neck": 3, "foot": 3, "ear": 2, "scalp": 1, "unknown": 1},
    ),
    "vasc": Population(
        142,
        (64, 25, 8, 1),
        {"histo": 47, "consensus": 53},
        (51, 21),
        0.49,
        {"trunk": 22, "lower extremity": 19, "abdomen": 19, "back": 15, "upper extremity": 8, "face": 6, "chest": 4}
        | {"hand": 4, "neck": 2, "scalp": 1},
    ),
    "bcc": Population(
        514,
        (175, 118, 33, 1),
        {"histo": 100},
        (67, 14),
        0.62,
        {"back": 36, "face": 20, "lower extremity": 11, "upper extremity": 10, "chest": 9, "scalp": 4, "abdomen": 4}
        | {"neck": 3, "trunk": 2, "unknown": 1},
    ),
    "nv": Population(
        6705,
        (4415, 699, 268, 18, 2, 1),
        {"follow_up": 55, "histo": 37, "consensus": 8},
        (46, 16),
        0.51,
        {"lower extremity": 22, "back": 21, "trunk": 19, "abdomen": 13, "upper extremity": 10, "foot": 4, "chest": 3}
        | {"unknown": 2, "face": 1, "neck": 1, "hand": 1, "genital": 1, "scalp": 1, "ear": 1, "acral": 1},
    ),
    "akiec": Population(
        327,
        (151, 57, 18, 2),
        {"histo": 100},
        (67, 12),
        0.68,
        {"face": 35, "lower extremity": 20, "upper extremity": 19, "back": 9, "scalp": 4, "hand": 4, "chest": 4}
        | {"neck": 3, "abdomen": 1, "ear": 1},
    ),
}

# Shares of lesions with gaps in their record; most gaps come together, as in HAM10000.
_NO_RECORD = 0.0047
_NO_AGE = 0.0010
_NO_SEX = 0.0010


def sample_table(images: int, seed: int) -> pd.DataFrame:
    """The table of a sample, without its images.

    Parameters
    ----------
    images : number of rows, at least 1; small samples lack the rare classes, from 300 on every class has 9 lesions
    seed : another seed gives other lesions

    Returns
    -------
    DataFrame with `COLUMNS`, in blocks by diagnosis with the images of a lesion next to each other, as in HAM10000;
    age is in years, a multiple of 5, missing (NaN) in about 0.6 % of the lesions

    Raises
    ------
    UserError : fewer than one image is asked for
    """
    if images < 1:
        raise UserError(f"A synthetic sample needs at least 1 image, not {images}; about 1,400 make a useful one.")
    rng = np.random.default_rng((seed, 2))
    views = {dx: _views(count, POPULATIONS[dx], images, rng) for dx, count in _class_sizes(images).items()}
    lesions = pd.concat([_lesions(dx, counts, rng) for dx, counts in views.items()], ignore_index=True)
    lesions["lesion_id"] = [f"SYL_{number + 1:07d}" for number in rng.permutation(len(lesions))]
    gaps = np.split(
        rng.permutation(len(lesions)),
        np.cumsum([round(share * len(lesions)) for share in (_NO_RECORD, _NO_AGE, _NO_SEX)]),
    )
    lesions.loc[np.concatenate([gaps[0], gaps[1]]), "age"] = np.nan
    lesions.loc[np.concatenate([gaps[0], gaps[2]]), "sex"] = "unknown"
    lesions.loc[gaps[0], "localization"] = "unknown"
    table = lesions.loc[lesions.index.repeat(np.concatenate(list(views.values())))].reset_index(drop=True)
    table["image_id"] = [f"SYN_{number + 1:07d}" for number in rng.permutation(images)]
    return table[list(COLUMNS)]


def draw_sample_image(lesion_id: str, image_id: str, dx: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture (uint8 [450, 600, 3], RGB) and lesion mask (bool [450, 600]) of one row of `sample_table(…, seed)`."""
    return draw_lesion(dx, lesion_seed=(seed, 0, int(lesion_id[4:])), view_seed=(seed, 1, int(image_id[4:])))


def write_sample(folder: Path, *, images: int, seed: int, processes: int = 1) -> None:
    """Draw a sample into `folder`, in HAM10000's official layout: two folders of JPEGs, one of the lesions' masks and
    a table.

    The same bytes for the same `images` and `seed`, whatever `processes`. The table is written last: a folder without
    it is incomplete. A sample that was in the folder before is replaced.

    Raises
    ------
    UserError : fewer than one image is asked for
    """
    table = sample_table(images, seed)
    folder = Path(folder)
    (folder / METADATA).unlink(missing_ok=True)
    for part in (*PARTS, MASKS):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for stale in (folder / part).glob("SYN_*"):
            stale.unlink()
    draw = functools.partial(_write_image, folder=folder, images=images, seed=seed)
    rows = list(table[["lesion_id", "image_id", "dx"]].itertuples(index=False, name=None))
    for _ in ProgressBar(_map(draw, rows, processes), total=images, desc="drawing", unit="image"):
        pass
    write_csv(folder / METADATA, table)


def _map(draw: functools.partial, rows: list[tuple[str, str, str]], processes: int) -> Iterator[None]:
    if processes <= 1:
        yield from map(draw, rows)
        return
    # Spawned, not forked: a fork of a process that runs threads (OpenCV's, PyTorch's) can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(draw, rows, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_image(row: tuple[str, str, str], *, folder: Path, images: int, seed: int) -> None:
    lesion_id, image_id, dx = row
    picture, mask = draw_sample_image(lesion_id, image_id, dx, seed)
    part = PARTS[int(image_id[4:]) > images // 2]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / part / f"{image_id}.jpg").write_bytes(jpeg.tobytes())
    _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    (folder / MASKS / f"{image_id}_segmentation.png").write_bytes(png.tobytes())


def _class_sizes(images: int) -> dict[str, int]:
    """Images of each class: HAM10000's proportions by largest remainder, rare classes topped up from the nevi."""
    total = sum(population.images for population in POPULATIONS.values())
    exact = {dx: images * population.images / total for dx, population in POPULATIONS.items()}
    sizes = {dx: math.floor(share) for dx, share in exact.items()}
    by_remainder = sorted(exact, key=lambda dx: exact[dx] - sizes[dx], reverse=True)
    for dx in by_remainder[: images - sum(sizes.values())]:
        sizes[dx] += 1
    if images >= ROOMY_SAMPLE:
        for dx in sizes:
            sizes["nv"] -= max(FEWEST_IMAGES - sizes[dx], 0)
            sizes[dx] = max(FEWEST_IMAGES, sizes[dx])
    return sizes


def _views(count: int, population: Population, images: int, rng: np.random.Generator) -> np.ndarray:
    """Number of images of each lesion of a class, `count` in all."""
    views: list[int] = []
    while sum(views) < count:
        drawn = int(_draw(rng, dict(enumerate(population.multiplicity, start=1)), 1)[0])
        views.append(min(drawn, count - sum(views)))
    while images >= ROOMY_SAMPLE and len(views) < FEWEST_LESIONS:
        views[int(np.argmax(views))] -= 1
        views.append(1)
    return np.array(views, dtype=np.intp)


def _lesions(dx: str, views: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The metadata of each lesion of a class."""
    population = POPULATIONS[dx]
    count = len(views)
    age = np.clip(5 * np.round(rng.normal(*population.age, size=count) / 5), 0, 85)
    sex = np.where(rng.random(count) < population.male, "male", "female")
    return pd.DataFrame(
        {
            "dx": np.full(count, dx, dtype=object),
            "dx_type": _draw(rng, population.dx_type, count),
            "age": age,
            "sex": sex.astype(object),
            "localization": _draw(rng, population.localization, count),
        }
    )


def _draw(rng: np.random.Generator, weights: dict, count: int) -> np.ndarray:
    weight = np.array(list(weights.values()), float)
    values: Iterable = list(weights)
    return np.array(values, dtype=object)[rng.choice(len(weight), size=count, p=weight / weight.sum())]
