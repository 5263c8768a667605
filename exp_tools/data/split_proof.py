"""The proof that no lesion crosses splits: counted from the written files, independently of the splitter."""

import csv
from collections import defaultdict
from pathlib import Path

UNUSED = "unused"
"""Images that are in no split do not count."""


def crossings(splits: Path, labels: Path, duplicates: Path) -> dict[str, int]:
    """How many lesions, groups and pairs of duplicates have images in two splits.

    Parameters
    ----------
    splits : splits.csv, of which image_id and split are read
    labels : labels.csv, of which image_id, lesion_id and group are read
    duplicates : duplicates.csv, of which image_id_1, image_id_2 and accepted are read

    Returns
    -------
    dict with lesions_in_two_splits, groups_in_two_splits and duplicate_pairs_in_two_splits; 0 is what should be

    Raises
    ------
    KeyError : an image of one file is missing in the other
    """
    listed, lesions, groups = defaultdict(set), defaultdict(set), defaultdict(set)
    for row in _rows(splits):
        listed[row["image_id"]].add(row["split"])  # several where an image is listed again
    splits_of = {image_id: found - {UNUSED} for image_id, found in listed.items()}
    for row in _rows(labels):
        found = splits_of[row["image_id"]]
        lesions[row["lesion_id"]] |= found
        if row["group"]:
            groups[row["group"]] |= found
    pairs = [
        splits_of[row["image_id_1"]] | splits_of[row["image_id_2"]]
        for row in _rows(duplicates)
        if row["accepted"] == "True"
    ]
    return {
        "lesions_in_two_splits": sum(len(found) > 1 for found in lesions.values()),
        "groups_in_two_splits": sum(len(found) > 1 for found in groups.values()),
        "duplicate_pairs_in_two_splits": sum(len(found) > 1 for found in pairs),
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
