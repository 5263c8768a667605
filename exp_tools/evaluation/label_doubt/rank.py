"""Rank lesions by how doubtful their label is, from predictions of models that have not seen them.

Northcutt, Jiang, Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021 (cleanlab).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import lesion_view

try:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
except ModuleNotFoundError:  # said by `require_cleanlab`
    find_label_issues = get_label_quality_scores = None

COLUMNS = [
    "rank",
    "image_id",
    "lesion_id",
    "dx",
    "suggested",
    "self_confidence",
    "suggested_confidence",
    "likely_wrong",
    "images_of_lesion",
]


def require_cleanlab() -> None:
    """Raise UserError where cleanlab is not installed."""
    if get_label_quality_scores is None:
        raise UserError("the ranking of labels needs cleanlab, which is not installed: pip install -e '.[labels]'")


def rank_labels(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Rank the lesions of a prediction table, the most doubtful label first.

    The probabilities of a lesion's images are averaged: a lesion has one label. The score is cleanlab's
    self-confidence, the probability of the given label. It is not adjusted by class: adjusted, or by margin, it found
    fewer of the labels that were swapped on purpose (docs/data.md).

    Parameters
    ----------
    table : rows of a prediction table, each predicted by a model that was not trained on its lesion
    classes : the C classes

    Returns
    -------
    DataFrame with COLUMNS, one row per image, the images of a lesion next to each other, the most doubtful one first:
    rank (of the lesion, from 1), dx (the given label), suggested (the most probable class; "" where that is the given
    one), self_confidence and suggested_confidence (of the lesion, 0 to 1), likely_wrong (cleanlab's estimate of which
    labels are wrong, from the confident joint), images_of_lesion

    Raises
    ------
    UserError : as `lesion_view`; cleanlab is not installed
    """
    require_cleanlab()
    probabilities, labels, _, _ = lesion_view(table, classes)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    codes, best = np.array(classes, dtype=object), probabilities.argmax(axis=1)
    lesions = pd.DataFrame(
        {
            "lesion_id": table["lesion_id"].unique(),
            "dx": codes[labels],
            "suggested": np.where(best == labels, "", codes[best]),
            "self_confidence": get_label_quality_scores(labels, probabilities, method="self_confidence"),
            "suggested_confidence": probabilities[np.arange(len(best)), best],
            "likely_wrong": _issues(labels, probabilities),
        }
    )
    lesions = lesions.sort_values(["self_confidence", "lesion_id"], kind="stable", ignore_index=True)
    lesions.insert(0, "rank", np.arange(1, len(lesions) + 1))
    place = {name: number for number, name in enumerate(classes)}
    numbers = table[[f"p_{name}" for name in classes]].to_numpy()
    own = numbers[np.arange(len(table)), table["dx"].map(place).to_numpy()]
    images = table[["image_id", "lesion_id"]].assign(
        own=own, images_of_lesion=table.groupby("lesion_id")["image_id"].transform("size")
    )
    ranked = images.merge(lesions, on="lesion_id").sort_values(["rank", "own", "image_id"], ignore_index=True)
    return ranked[COLUMNS]


def _issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which labels are likely wrong, bool [L]; of one class alone none is."""
    present, numbers = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return np.zeros(len(labels), dtype=bool)
    some = probabilities[:, present]
    some = some / np.maximum(some.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "May not flag all label issues")  # of a class with a handful of lesions
        return find_label_issues(numbers, some, n_jobs=1)
