"""labels.csv: one row per image, in the order of images.npy; made from a checked text table."""

from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.errors import require_file
from exp_tools.io import bare_cells

MISSING = ("", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "nil", "none", "not available", "null", "unknown")
"""Spellings of unknown values in tables (an age, a site, the id of a lesion or a group), in lower case."""

LABEL_COLUMNS = [
    "image_id",
    "lesion_id",
    "group",
    "group_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
    "source",
    "split",
]
"""`group`: what the source or a user's table says must stay together (a patient), "" where it says nothing. `group_id`:
what does stay together, see `duplicates.groups.group_ids`. `split`: the official split of the source, or that of a
user's table, "" where there is none."""

EXTRA = "extra_"
"""How the columns begin that a table has beyond these; their cells are text."""

LICENCE = f"{EXTRA}copyright_license"
"""The licence of each image, where a table of the ISIC Archive names it."""

SET = "set"
"""The column of the external sets' labels.csv that names the set of each image."""


ORIGINAL = "dx_original"
"""The diagnosis before verdicts/labels.csv; a column only where that file changed a label or dropped an image."""

VERDICT = "verdict"
"""Next to it what was said of the image: relabel, drop or "". An image with `drop` is used for nothing."""

DROPPED_FROM = "dropped_from"
"""The column of splits.csv with the split that a dropped image would be in, "" for others; absent without any."""


def typed_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Turn a checked text table into a label table: age as a number, "unknown" for empty words.

    It has LABEL_COLUMNS but `group_id`, which `duplicates.groups.with_groups` adds, and the further columns of the
    table, which begin with EXTRA.
    """
    further = [column for column in table if column.startswith(EXTRA)]
    labels = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "lesion_id": table["lesion_id"],
            "group": table["group"],
            "dx": table["dx"],
            "dx_type": table["dx_type"].replace("", "unknown"),
            "age": pd.to_numeric(table["age"].where(~table["age"].str.lower().isin(MISSING), np.nan)),
            "sex": table["sex"].replace("", "unknown"),
            "localization": table["localization"].replace("", "unknown"),
            "source": table["source"],
            "split": table["split"],
            **{column: table[column].str.strip().replace("", "unknown") for column in further},
        }
    )
    return labels.reset_index(drop=True)


def read_labels(path: Path) -> pd.DataFrame:
    """Read labels.csv as `prepare` or `external` wrote it; a missing age is NaN, every other column is text."""
    require_file(path, "external" if path.parent.name == "external" else "prepare")
    table = bare_cells(pd.read_csv(path, dtype=str, keep_default_na=False))
    return table.assign(age=pd.to_numeric(table["age"]))


def lesions_known(labels: pd.DataFrame) -> bool:
    """Whether the lesion of every image is known: one that is called like its image is not."""
    return not (labels["lesion_id"] == labels["image_id"]).any()


def summarise_labels(labels: pd.DataFrame) -> dict[str, object]:
    """Counts that describe a label table: images, lesions, classes, sex, source, what is missing."""
    return {
        "images": len(labels),
        "lesions": int(labels["lesion_id"].nunique()),
        "lesions_known": lesions_known(labels),
        "groups": int(labels["group_id"].nunique()),
        "groups_with_several_lesions": int((labels.groupby("group_id")["lesion_id"].nunique() > 1).sum()),
        "groups_with_several_diagnoses": int((labels.groupby("group_id")["dx"].nunique() > 1).sum()),
        "lesions_with_several_images": int((labels["lesion_id"].value_counts() > 1).sum()),
        "classes": _counts(labels["dx"]),
        "sex": _counts(labels["sex"]),
        "source": _counts(labels["source"]),
        "dx_type": _counts(labels["dx_type"]),
        **({"licences": _counts(labels[LICENCE])} if LICENCE in labels else {}),
        "missing": {
            "age": int(labels["age"].isna().sum()),
            "sex": int((labels["sex"] == "unknown").sum()),
            "localization": int((labels["localization"] == "unknown").sum()),
        },
    }


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts().sort_index().items()}


def read_splits(path: Path) -> pd.DataFrame:
    """Read splits.csv as `split` wrote it."""
    require_file(path, "split")
    types = {"image_id": str, "group_id": str, "dx": str, "split": str, "fold": "Int64"}
    return bare_cells(pd.read_csv(path, dtype=types, keep_default_na=False, na_values={"fold": [""]}))
