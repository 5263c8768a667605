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

ARCHIVE_IMAGE, ARCHIVE_LESION = r"ISIC_\d{7}", r"(?:HAM|IL)_\d{7}"
"""Ids of the ISIC Archive, which mean one image and one lesion wherever they stand."""
OWN_SOURCES = ("table", "folder")
"""Names of sources that are not one set: ids of two such sets have nothing to do with each other."""

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

    An id alone says nothing, since every clinic has an image 001: it decides within one archive (ISIC), and within one
    published set. What is removed takes the other photographs of its lesion along.

    Parameters
    ----------
    table : text table of the external set
    main_table, main_labels : text table and label table of the main set; only images with a label count
    duplicates : `prepare.duplicates`; "off" compares ids and bytes, as "known" does, "search" looks for near-duplicates

    Returns
    -------
    The rows that are left, indexed from 0, and how many were removed for which reason: same_id, same_file, same_lesion
    (of a lesion that the main set has, by its id or a near-duplicate, found or listed).
    """
    ids = table["image_id"].str.strip()
    main_ids = main_labels["image_id"].str.strip()
    lesions, main_lesions = (
        each["lesion_id"].where(each["lesion_id"] != each["image_id"], "") for each in (table, main_labels)
    )
    same_id = _in_both(ids, table["source"], main_ids, main_labels["source"], ARCHIVE_IMAGE)
    same_lesion = _in_both(lesions, table["source"], main_lesions, main_labels["source"], ARCHIVE_LESION)
    same_lesion |= ids.isin(_listed_with(main_ids))

    rest = table[~same_id & ~same_lesion & (table["file"] != "")]
    kept = main_table[main_table["image_id"].str.strip().isin(main_ids) & (main_table["file"] != "")]
    own = "external:" + rest.index.astype(str)
    names = [*kept["image_id"].str.strip(), *own]
    mode = "known" if duplicates == "off" else duplicates
    pairs = duplicate_pairs(names, [*kept["file"], *rest["file"]], mode, processes=processes)
    pairs = pairs[pairs["accepted"]]
    across = pairs[pairs["image_id_2"].isin(own) & ~pairs["image_id_1"].isin(own)]
    found = {int(name.removeprefix("external:")): identical for name, identical in _of_each(across)}
    same_file = pd.Series([found.get(place, False) for place in table.index], index=table.index, dtype=bool)
    same_lesion |= pd.Series(table.index.isin(list(found)), index=table.index) & ~same_file

    gone = same_id | same_file | same_lesion
    for column in (lesions, table["group"]):
        taken = set(column[gone]) - {""}
        same_lesion |= column.isin(taken) & ~gone
        gone |= same_lesion
    reasons = {
        "same_id": same_id,
        "same_file": same_file & ~same_id,
        "same_lesion": same_lesion & ~same_id & ~same_file,
    }
    return table[~gone].reset_index(drop=True), {name: int(which.sum()) for name, which in reasons.items()}


def _in_both(
    ids: pd.Series, sources: pd.Series, main_ids: pd.Series, main_sources: pd.Series, archive: str
) -> pd.Series:
    """Which ids [N] mean something that the main set has."""
    wanted, there = (_meaning(*pair, archive) for pair in ((ids, sources), (main_ids, main_sources)))
    return wanted.notna() & wanted.isin(there.dropna())


def _meaning(ids: pd.Series, sources: pd.Series, archive: str) -> pd.Series:
    """What an id means anywhere: itself within an archive, with its source in a published set; missing for others."""
    whole = (sources + "/" + ids).where(~sources.isin(OWN_SOURCES))
    return ids.where(ids.str.fullmatch(archive), whole).where(ids != "")


def _listed_with(main_ids: pd.Series) -> set[str]:
    """Images that a shipped list pairs with one of these."""
    found: set[str] = set()
    for name in WITH_LISTS:
        listed = known_pairs(name)
        if listed is not None:
            for one, other in (("image_id_1", "image_id_2"), ("image_id_2", "image_id_1")):
                found |= set(listed.loc[listed[one].isin(main_ids), other])
    return found - set(main_ids)


def _of_each(across: pd.DataFrame) -> list[tuple[str, bool]]:
    """Each external image that is paired, and whether with the same bytes or pixels in any pair."""
    return list(across.groupby("image_id_2", sort=False)["identical"].any().items())
