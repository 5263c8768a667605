"""Which images show the same spot of skin, within one set as `prepare.duplicates` asks, and across two sets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from exp_tools.data.duplicates.groups import known_pairs, name_pairs
from exp_tools.data.duplicates.verdicts import pair_key, with_verdicts
from exp_tools.data.images.decode import ImageFault, load_image
from exp_tools.data.images.preprocess import Preprocessing

LONG_SIDE = 512
WITH_LISTS = ("ham10000",)
"""Data sets whose pairs ship with the package. Their image ids are ISIC's, so the list holds for any set with these."""

ARCHIVE_IMAGE, ARCHIVE_LESION = r"ISIC_\d{7}", r"(?:HAM|IL)_\d{7}"
"""Ids of the ISIC Archive, which mean one image and one lesion wherever they stand."""
OWN_SOURCES = ("table", "folder")
"""Names of sources that are not one set: ids of two such sets have nothing to do with each other."""

NO_PAIRS = pd.DataFrame(
    columns=["first", "second", "inliers", "accepted", "exact", "size", "similarity", "agrees"]
).astype({"first": int, "second": int, "inliers": int, "accepted": bool, "exact": bool, "size": int})


def photograph(file: str, side: int = LONG_SIDE) -> np.ndarray:
    """An image in its own proportions, long side at most `side`, decoded as `prepare` does: uint8 [H, W, 3], RGB.

    Raises
    ------
    ImageFault
        As `load_image`.
    """
    return load_image(file, Preprocessing(image_size=side, resize="keep"))


class Photographs(NamedTuple):
    """Reads image `place` of a list of files; unlike a function of a function, it can be sent to other processes."""

    files: tuple[str, ...]

    def __call__(self, place: int, side: int) -> np.ndarray:
        return photograph(self.files[place], side)


def duplicate_pairs(
    about: pd.DataFrame,
    files: Sequence[str],
    mode: str,
    *,
    verdicts: pd.DataFrame | None = None,
    vectors: np.ndarray | None = None,
    processes: int = 1,
    on_fault: Callable[[int, ImageFault], None] | None = None,
) -> pd.DataFrame:
    """Pairs of images that show the same spot of skin.

    Parameters
    ----------
    about : image_id and, where known, age, sex, localization of each image [N]
    files : file of each image [N]
    mode : "known" (files of the same bytes, and the listed pairs), "search" (look for near-duplicates as well; minutes
        for ten thousand images) or "off" (none, whatever the verdicts say)
    verdicts : as `verdicts.read_verdicts` gives them; they win over the list and the search
    vectors : embedding of each image, which proposes more pairs to the search
    processes : how many search at once
    on_fault : is told of each image that the search cannot decode; None: the search passes over it in silence, because
        the caller's own check names it

    Returns
    -------
    DataFrame as `groups.name_pairs`
    """
    image_ids = about["image_id"].to_list()
    if mode == "off":
        return name_pairs(NO_PAIRS, image_ids)
    # Here, because the search needs scientific libraries that take a second to load.
    from exp_tools.data.duplicates.neighbours import as_facts
    from exp_tools.data.duplicates.search import find_duplicates, identical_files

    identical = identical_files(files)
    found = NO_PAIRS
    if mode == "search":
        found = find_duplicates(
            Photographs(tuple(files)),
            len(files),
            facts=as_facts(about),
            vectors=vectors,
            processes=processes,
            on_fault=on_fault or (lambda place, fault: None),
        )
    pairs = name_pairs(found, image_ids, identical)
    for name in WITH_LISTS:
        pairs = with_listed(pairs, known_pairs(name), set(image_ids))
    return with_verdicts(pairs, verdicts, set(image_ids))


def with_listed(pairs: pd.DataFrame, listed: pd.DataFrame | None, present: set[str]) -> pd.DataFrame:
    """The pairs, and those of a shipped list whose images are present: a listed pair is accepted."""
    if listed is None:
        return pairs
    listed = listed[listed["image_id_1"].isin(present) & listed["image_id_2"].isin(present)]
    judged = {
        pair_key(*row[:2]): row[2] for row in listed[["image_id_1", "image_id_2", "judged"]].itertuples(index=False)
    }
    keys = [pair_key(*row) for row in pairs[["image_id_1", "image_id_2"]].itertuples(index=False)]
    said = pd.Series([judged.get(key, "") for key in keys], index=pairs.index, dtype=object)
    rejected = (said != "") & ~pairs["accepted"]
    pairs = pairs.assign(accepted=pairs["accepted"] | rejected, judged=pairs["judged"].where(~rejected, said))
    new = [pair_key(*row) not in set(keys) for row in listed[["image_id_1", "image_id_2"]].itertuples(index=False)]
    more = listed[new].assign(accepted=True, identical=False)
    return pd.concat([pairs, more], ignore_index=True) if len(more) else pairs


def without_known_images(
    table: pd.DataFrame,
    main_table: pd.DataFrame,
    main_labels: pd.DataFrame,
    duplicates: str,
    *,
    verdicts: pd.DataFrame | None = None,
    processes: int = 1,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Take out of an external set every image that the main set has: its train, validation and test images alike.

    An id alone says nothing, since every clinic has an image 001: it decides within one archive (ISIC), and within one
    published set. What is removed takes the other photographs of its lesion along.

    Parameters
    ----------
    table : text table of the external set
    main_table, main_labels : text table and label table of the main set; only images with a label count
    duplicates : `prepare.duplicates`; "off" compares ids and bytes, as "known" does, "search" looks for near-duplicates
    verdicts : as `verdicts.read_verdicts` gives them; one counts here when the main set has one of its images only

    Returns
    -------
    The rows that are left, indexed from 0, and how many were removed for which reason: same_id, same_file, same_lesion
    (of a lesion that the main set has, by its id or a near-duplicate: found, listed, or judged one).
    """
    ids = table["image_id"].str.strip()
    main_ids = main_labels["image_id"].str.strip()
    lesions, main_lesions = (
        each["lesion_id"].where(each["lesion_id"] != each["image_id"], "") for each in (table, main_labels)
    )
    same_id = _in_both(ids, table["source"], main_ids, main_labels["source"], ARCHIVE_IMAGE)
    same_lesion = _in_both(lesions, table["source"], main_lesions, main_labels["source"], ARCHIVE_LESION)
    same_lesion |= ids.isin(_paired_with(set(main_ids), set(ids), verdicts))

    rest = table[~same_id & ~same_lesion & (table["file"] != "")]
    kept = main_table[main_table["image_id"].str.strip().isin(main_ids) & (main_table["file"] != "")]
    own = "external:" + rest.index.astype(str)
    about = pd.concat([kept.assign(image_id=kept["image_id"].str.strip()), rest.assign(image_id=own)])
    mode = "known" if duplicates == "off" else duplicates
    pairs = duplicate_pairs(about, about["file"].to_list(), mode, processes=processes)
    pairs = pairs[pairs["accepted"]]
    across = pairs[pairs["image_id_2"].isin(own) & ~pairs["image_id_1"].isin(own)]
    across = across[~_denied(across, dict(zip(own, ids[rest.index], strict=True)), set(main_ids), verdicts)]
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


def _paired_with(main_ids: set[str], ids: set[str], verdicts: pd.DataFrame | None) -> set[str]:
    """Images that a shipped list or a verdict pairs with one of the main set."""
    listed = [known_pairs(name) for name in WITH_LISTS]
    pairs = pd.concat([each.assign(accepted=True, identical=False) for each in listed if each is not None])
    pairs = with_verdicts(pairs.reset_index(drop=True), verdicts, main_ids | ids)
    pairs = pairs[pairs["accepted"]]
    found: set[str] = set()
    for one, other in (("image_id_1", "image_id_2"), ("image_id_2", "image_id_1")):
        found |= set(pairs.loc[pairs[one].isin(main_ids), other])
    return found - main_ids


def _denied(
    across: pd.DataFrame, id_of: dict[str, str], main_ids: set[str], verdicts: pd.DataFrame | None
) -> np.ndarray:
    """Which found pairs of an image of the main set and an external one, by its name here, a verdict takes back."""
    if verdicts is None:
        return np.zeros(len(across), bool)
    denied = verdicts[verdicts["same"] == "no"]
    keys = {pair_key(*row) for row in denied[["image_id", "other_image_id"]].itertuples(index=False)}
    return np.array(
        [
            id_of[other] not in main_ids and pair_key(one, id_of[other]) in keys
            for one, other in across[["image_id_1", "image_id_2"]].itertuples(index=False)
        ],
        dtype=bool,
    )


def _of_each(across: pd.DataFrame) -> list[tuple[str, bool]]:
    """Each external image that is paired, and whether with the same bytes or pixels in any pair."""
    return list(across.groupby("image_id_2", sort=False)["identical"].any().items())
