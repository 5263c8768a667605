"""Who is in train, validation and test: counts for a flow diagram and a table of their make-up."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

SPLITS = {"train": "train", "val": "validation", "test": "test"}
UNKNOWN = "unknown"


def participants(
    labels: pd.DataFrame, split: Sequence[str], classes: Sequence[str], prepared: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the images of each split, and what was left out before.

    Parameters
    ----------
    labels : label table, its `dx` in the model's classes
    split : of each row: train, val, test or another word for images that were in none
    classes : of the model
    prepared : metrics/data.json

    Returns
    -------
    dict with
        flow : read (rows of the source), left_out, problems (kind -> action -> count), images, unused (in no split)
        leak : test images whose group is in train too; absent where there is none, as should be
        splits : train, val and test -> images, lesions, classes, sex and localization (value -> images), age
            {"median", "low" (first quartile), "high" (third), "unknown" (images)}
    """
    table = labels.assign(split=list(split))
    flow = {
        "read": prepared["rows_read"],
        "left_out": prepared["rows_left_out"],
        "problems": prepared["problems"],
        "images": len(table),
        "unused": int((~table["split"].isin(list(SPLITS))).sum()),
    }
    seen = set(table.loc[table["split"] == "train", "group_id"])
    leak = int((table.loc[table["split"] == "test", "group_id"].isin(seen)).sum())
    known = {"leak": leak} if leak else {}
    return known | {"flow": flow, "splits": {name: _make_up(table[table["split"] == name], classes) for name in SPLITS}}


def _make_up(part: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    ages = part["age"].astype(float)
    quartiles = ages.quantile([0.25, 0.5, 0.75]).tolist()
    return {
        "images": len(part),
        "lesions": part["lesion_id"].nunique(),
        "classes": {code: int((part["dx"] == code).sum()) for code in classes},
        "sex": _counts(part["sex"]),
        "localization": _counts(part["localization"]),
        "age": {
            "median": quartiles[1],
            "low": quartiles[0],
            "high": quartiles[2],
            "unknown": int(ages.isna().sum()),
        },
    }


def _counts(column: pd.Series) -> dict[str, int]:
    words = column.fillna("").astype(str).str.strip().replace("", UNKNOWN)
    return words.value_counts().sort_index().to_dict()
