"""Which images show the same spot of skin, within one set as `prepare.duplicates` asks, and across two sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from exp_tools.data.duplicates.groups import known_pairs, name_pairs
from exp_tools.data.duplicates.keypoints import AREA
from exp_tools.data.images.decode import FORMATS

LONG_SIDE = 512
WITH_LISTS = ("ham10000",)
"""Data sets whose pairs ship with the package. Their image ids are ISIC's, so the list holds for any set with these."""

NO_PAIRS = pd.DataFrame(columns=["first", "second", "inliers", "accepted", "exact"]).astype(
    {"first": int, "second": int, "inliers": int, "accepted": bool, "exact": bool}
)


def photograph(file: str, enough: int | None = None) -> np.ndarray:
    """An image in its own proportions, long side at most LONG_SIDE: uint8 [H, W, 3], RGB.

    Where `enough` pixels will do, a JPEG is decoded at the smallest DCT scale (1/2, 1/4, 1/8) that has as many.
    """
    with Image.open(file, formats=tuple(FORMATS)) as image:
        factor = 1 if enough is None else min(1.0, (enough / (image.width * image.height)) ** 0.5)
        wanted = round(image.width * factor), round(image.height * factor)
        image.draft("RGB", (min(LONG_SIDE, wanted[0]), min(LONG_SIDE, wanted[1])))
        image = ImageOps.exif_transpose(image).convert("RGB")
        image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BILINEAR)
        return np.asarray(image)


class Photographs(NamedTuple):
    """Reads image `place` of a list of files; unlike a function of a function, it can be sent to other processes."""

    files: tuple[str, ...]

    def __call__(self, place: int) -> np.ndarray:
        return photograph(self.files[place], AREA)


def duplicate_pairs(image_ids: Sequence[str], files: Sequence[str], mode: str, *, processes: int = 1) -> pd.DataFrame:
    """Pairs of images that show the same spot of skin.

    Parameters
    ----------
    image_ids, files : name and file of each image [N]
    mode : "known" (files of the same bytes, and the listed pairs), "search" (look for near-duplicates as well; minutes
        for ten thousand images) or "off" (none)
    processes : how many search at once

    Returns
    -------
    DataFrame image_id_1, image_id_2, inliers, accepted, identical
    """
    if mode == "off":
        return name_pairs(NO_PAIRS, image_ids)
    # Here, because the search needs scientific libraries that take a second to load.
    from exp_tools.data.duplicates.search import find_duplicates, identical_files

    identical = identical_files(files)
    found = NO_PAIRS
    if mode == "search":
        found = find_duplicates(Photographs(tuple(files)), len(files), processes=processes)
    pairs = name_pairs(found, image_ids, identical)
    present = set(image_ids)
    there = set(zip(pairs["image_id_1"], pairs["image_id_2"], strict=True))
    for name in WITH_LISTS:
        listed = known_pairs(name)
        if listed is not None:
            new = [
                one in present and two in present and not {(one, two), (two, one)} & there
                for one, two in zip(listed["image_id_1"], listed["image_id_2"], strict=True)
            ]
            pairs = pd.concat([pairs, listed[new].assign(accepted=True, identical=False)], ignore_index=True)
    return pairs.astype({"accepted": bool, "identical": bool})


def without_known_images(
    table: pd.DataFrame, main_table: pd.DataFrame, main_labels: pd.DataFrame, duplicates: str, *, processes: int = 1
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Take out of an external set every image that the main set has: its train, validation and test images alike.

    Parameters
    ----------
    table : text table of the external set
    main_table, main_labels : text table and label table of the main set; only images with a label count
    duplicates : `prepare.duplicates`; "off" compares ids and bytes, as "known" does, "search" looks for near-duplicates

    Returns
    -------
    The rows that are left, indexed from 0, and how many were removed for which reason: same_id, same_file, same_lesion
    (a near-duplicate, found or listed).
    """
    ids = table["image_id"].str.strip()
    same_id = ids.isin(main_labels["image_id"])
    rest = table[~same_id & (table["file"] != "")]
    kept = main_table[main_table["image_id"].str.strip().isin(main_labels["image_id"]) & (main_table["file"] != "")]
    own = "external:" + rest.index.astype(str)
    names = [*kept["image_id"].str.strip(), *own]
    mode = "known" if duplicates == "off" else duplicates
    pairs = duplicate_pairs(names, [*kept["file"], *rest["file"]], mode, processes=processes)
    pairs = pairs[pairs["accepted"]]
    across = pairs[pairs["image_id_2"].isin(own) & ~pairs["image_id_1"].isin(own)]
    same_file = set(across.loc[across["identical"], "image_id_2"])
    similar = set(across["image_id_2"]) - same_file
    gone = {int(name.removeprefix("external:")) for name in same_file | similar}
    removed = {"same_id": int(same_id.sum()), "same_file": len(same_file), "same_lesion": len(similar)}
    return table[~same_id & ~table.index.isin(gone)].reset_index(drop=True), removed
