"""Select a smaller set with the same class proportions, of whole lesions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from exp_tools.errors import UserError
from exp_tools.taxonomy import broader, task_label


def subset_of_lesions(table: pd.DataFrame, limit: int, seed: int) -> np.ndarray:
    """Choose about `limit` rows: whole lesions, each class in its proportion, at least one lesion per class.

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


def as_task(labels: pd.DataFrame, task: str, classes: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Give an external set the classes that a model knows.

    A diagnosis that the model does not know becomes the one that it is a kind of (an atypical nevus is a nevus).

    Parameters
    ----------
    labels : label table of the external set
    task : the model's task
    classes : the model's classes

    Returns
    -------
    The rows whose class the model knows, with `dx` in its classes (the index stays: rows of images.npy), and how many
    rows of each other diagnosis were left out.

    Raises
    ------
    UserError
        No row is left.
    """
    code = labels["dx"].where(labels["dx"].isin(list(classes)), labels["dx"].map(broader))
    named = code.map(lambda one: task_label(task, one))
    known = named.isin(list(classes))
    if not known.any():
        raise UserError(
            f"the model knows none of the external set's diagnoses: {', '.join(sorted(set(labels['dx'])))}; "
            f"it knows {', '.join(classes)}"
        )
    return labels.assign(dx=named)[known], labels.loc[~known, "dx"].value_counts().sort_index().to_dict()
