"""What people said of pairs of images: verdicts/duplicates.csv, which wins over the shipped list and the search."""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources.tables import read_text_table
from exp_tools.data.verdict_files import MOST_NAMED, read_verdict_file, refuse
from exp_tools.errors import UserError

COLUMNS = ["image_id", "other_image_id", "same", "note"]
ANSWERS = ("yes", "no")


def is_not_judged(path: Path) -> bool:
    """Whether a file is a list of pairs to judge in which nobody has written yet, which may be made anew."""
    try:
        table = read_text_table(path)
    except UserError:
        return False
    written = [name for name in ("same", "note") if name in table and (table[name].str.strip() != "").any()]
    return set(COLUMNS) <= set(table.columns) and not written


def pair_key(one: str, other: str) -> tuple[str, str]:
    """The two ids in alphabetical order."""
    return (one, other) if one <= other else (other, one)


def read_verdicts(path: Path) -> pd.DataFrame:
    """Read the verdicts on pairs of images: columns COLUMNS, as text, `same` yes or no, indexed by line; no file is no
    verdict.

    Raises
    ------
    UserError
        The file is no table, a row lacks an id or an answer, pairs an image with itself, contradicts another
        row, or says that two images differ which other rows unite: all such rows are named by line.
    """
    table = read_verdict_file(path, COLUMNS, "same")
    refuse(path, _faults(table))
    return table


def _faults(table: pd.DataFrame) -> list[str]:
    faults, said = [], {}
    for line, one, other, same, _ in table.itertuples():
        key = pair_key(one, other)
        if not (one and other):
            faults.append(f"line {line} names one image only")
        elif one == other:
            faults.append(f"line {line} pairs {one} with itself")
        elif same not in ANSWERS:
            faults.append(f"line {line}: same is {same!r}, it must be yes or no")
        elif said.setdefault(key, (line, same))[1] != same:
            faults.append(f"line {line} says {same} of {one} and {other}, line {said[key][0]} says {said[key][1]}")
    leader: dict[str, str] = {}

    def lead(image: str) -> str:
        while leader.get(image, image) != image:
            image = leader[image]
        return image

    for (one, other), (_, same) in said.items():
        if same == "yes":
            leader[lead(one)] = lead(other)
    for (one, other), (line, same) in said.items():
        if same == "no" and lead(one) == lead(other):
            faults.append(f"line {line} says no of {one} and {other}, which the rows that say yes unite")
    return faults


def with_verdicts(pairs: pd.DataFrame, verdicts: pd.DataFrame | None, present: set[str]) -> pd.DataFrame:
    """The pairs as people judged them: `yes` accepts a pair, also one that nobody proposed, `no` takes it back.

    Parameters
    ----------
    pairs : as `groups.name_pairs`
    verdicts : as `read_verdicts`; verdicts on images that are not present say nothing here
    present : the images
    """
    if verdicts is None or verdicts.empty:
        return pairs
    here = verdicts[verdicts["image_id"].isin(present) & verdicts["other_image_id"].isin(present)]
    said = {pair_key(row.image_id, row.other_image_id): row.same == "yes" for row in here.itertuples()}
    keys = [pair_key(*row) for row in pairs[["image_id_1", "image_id_2"]].itertuples(index=False)]
    verdict = pd.Series([said.get(key) for key in keys], index=pairs.index, dtype=object)
    judged = verdict.notna()
    pairs = pairs.assign(
        accepted=pairs["accepted"].where(~judged, verdict == True).astype(bool),  # noqa: E712
        judged=pairs["judged"].where(~judged, "verdict"),
    )
    new = [key for key, same in said.items() if same and key not in set(keys)]
    if not new:
        return pairs
    more = pd.DataFrame(new, columns=["image_id_1", "image_id_2"])
    more = more.assign(inliers=0, accepted=True, identical=False, size=0, judged="verdict")
    return pd.concat([pairs, more], ignore_index=True)


def still_united(labels: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """The pairs judged different that share a group all the same, in words; "" when there are none."""
    group_of = labels.set_index("image_id")["group_id"]
    denied = verdicts[verdicts["same"] == "no"]
    ends = [group_of.reindex(denied[column]) for column in COLUMNS[:2]]
    united = denied[ends[0].notna().to_numpy() & (ends[0].to_numpy() == ends[1].to_numpy())]
    if united.empty:
        return ""
    named = ", ".join(f"{row.image_id} and {row.other_image_id}" for row in united.head(MOST_NAMED).itertuples())
    rest = f" and {len(united) - MOST_NAMED} more pairs" if len(united) > MOST_NAMED else ""
    return f"{named}{rest}, which stay together all the same: their lesion_id, their group, or other pairs unite them"
