"""Scores a lesion instead of an image: what a visit decides on is the lesion, however many pictures were taken."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import as_arrays


def lesion_view(
    table: pd.DataFrame, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.object_]]:
    """Average the probabilities of a lesion's images.

    Parameters
    ----------
    table : rows of a prediction table, one set
    classes : the C classes

    Returns
    -------
    probabilities [L, C], labels [L] and groups (group_id) [L] of the L lesions, in the order of their first images

    Raises
    ------
    UserError : no image; a lesion with two diagnoses or in two groups; as `predictions.as_arrays`
    """
    if table.empty:
        raise UserError("There is no image to average over lesions: the set is empty.")
    for column, meaning in (("dx", "diagnoses"), ("group_id", "groups")):
        found = table.groupby("lesion_id", sort=False)[column].unique()
        several = found[found.map(len) > 1]
        if len(several):
            raise UserError(
                f"Lesion {several.index[0]!r} has the {meaning} {', '.join(map(str, several.iloc[0]))} in the "
                f"predictions ({len(several):,} such lesions in all); a lesion has one. Mend the label table, or run "
                "`dvc repro` if the predictions are older than the labels."
            )
    probabilities, labels, _ = as_arrays(table, classes)
    lesion, _ = pd.factorize(table["lesion_id"])
    first = np.unique(lesion, return_index=True)[1]
    sums = np.stack([np.bincount(lesion, weights=column) for column in probabilities.T], axis=1)
    return sums / np.bincount(lesion)[:, None], labels[first], table["group_id"].to_numpy(dtype=object)[first]
