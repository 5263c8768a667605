"""Sets that are only ever tested on: what the main set has too is taken out."""

import pandas as pd

from exp_tools.data.duplicates.pairs import duplicate_pairs


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
