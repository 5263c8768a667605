"""A smaller set with the same make-up: whole lesions, the same class proportions."""

import numpy as np
import pandas as pd


def subset_of_lesions(table: pd.DataFrame, limit: int, seed: int) -> np.ndarray:
    """Choose about `limit` rows: whole lesions, each class in its proportion, at least one lesion a class.

    Parameters
    ----------
    table : rows with lesion_id and dx
    limit : at most this many rows, unless the classes alone need more
    seed : same seed, same choice

    Returns
    -------
    bool array [len(table)], True for the rows to keep
    """
    if limit >= len(table):
        return np.ones(len(table), dtype=bool)
    generator = np.random.default_rng([seed, 0x11A17])
    keep: set[str] = set()
    share = limit / len(table)
    for _, rows in table.groupby("dx", sort=True):
        sizes = rows.groupby("lesion_id", sort=True).size()
        order = sizes.iloc[generator.permutation(len(sizes))]
        room = max(1, int(len(rows) * share))
        chosen = order.index[order.cumsum() <= room]
        keep.update(chosen if len(chosen) else order.index[:1])
    return table["lesion_id"].isin(keep).to_numpy()
