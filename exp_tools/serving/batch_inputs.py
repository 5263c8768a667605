"""The inputs of a batch: the images of a folder, or those that a table names."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from exp_tools.data.duplicates.groups import with_groups
from exp_tools.data.images.decode import index_images
from exp_tools.data.labels.issues import Problem, apply_actions, decide
from exp_tools.data.labels.table import typed_labels
from exp_tools.data.labels.validate import check_labels, complete
from exp_tools.data.sources.tables import TABLE_ENDINGS, is_table, read_table, require_columns, with_files
from exp_tools.errors import UserError

POLICY = {
    "untidy_text": "fix",
    "no_lesion": "fix",
    "bad_age": "fix",
    "unknown_sex": "fix",
    "unknown_diagnosis": "note",
    "two_diagnoses": "note",
    "bad_id": "skip",
    "duplicate_id": "skip",
    "two_labels": "skip",
    "missing_image": "skip",
    "ambiguous_image": "skip",
}
"""The action for each problem of a table: a batch continues where it can, and reports what it did."""

MASKS = ("_segmentation", "_superpixels", "_lesion", "_roi")
"""Name endings of pictures in public sets that are masks, not photographs."""


class BatchInputs(NamedTuple):
    """Images to predict.

    labels : label table, a row per image; dx is "" where nothing is known
    files : the image of each row
    problems : what a table had wrong, or masks in a folder, with what was done about it
    """

    labels: pd.DataFrame
    files: list[str]
    problems: list[Problem]


def batch_inputs(source: Path, images: Path | None = None) -> BatchInputs:
    """List the images of a folder or a table.

    Parameters
    ----------
    source : a folder with images at any depth, or a table with a column image_id and, if known,
        lesion_id, dx, age, sex and localization
    images : the folder with the images that a table names, at any depth; None: the table's own

    Raises
    ------
    UserError : there is no such folder or table, it names no image, or the table cannot be read
    """
    if source.is_dir():
        return _of_folder(source)
    if not is_table(source):
        raise UserError(f"{source} is neither a folder with images nor a table ({', '.join(TABLE_ENDINGS)})")
    return _of_table(source, images or source.parent)


def _of_folder(folder: Path) -> BatchInputs:
    found = index_images(folder)
    masks = [path for name, paths in found.items() if name.lower().endswith(MASKS) for path in paths]
    names = {
        name if len(paths) == 1 else path.relative_to(folder).as_posix(): path
        for name, paths in found.items()
        if not name.lower().endswith(MASKS)
        for path in paths
    }
    if not names:
        raise UserError(f"there is no image below {folder}")
    problems = [_mask(path) for path in masks]
    table = complete(pd.DataFrame({"image_id": list(names), "lesion_id": list(names)}, dtype=str))
    return BatchInputs(with_groups(typed_labels(table)), [str(path) for path in names.values()], problems)


def _mask(path: Path) -> Problem:
    rule = f"a mask by its name (…{', …'.join(MASKS)}), not a picture of skin; it is not predicted"
    return Problem("mask", str(path), None, "", path.name, rule, action="skipped")


def _of_table(path: Path, images: Path) -> BatchInputs:
    if not images.is_dir():
        raise UserError(f"there is no folder {images} with the images of {path}")
    text = read_table(path)
    require_columns(text, ["image_id"], str(path))
    text = text.assign(split="", table=path.name)
    if "lesion_id" not in text:
        text["lesion_id"] = text["image_id"]
    every = with_files(complete(text), images)
    absent = every["file"] == ""
    table = every[~absent]
    found = [
        fault for fault in check_labels(table, None) if not (fault.kind == "unknown_diagnosis" and not fault.value)
    ]
    found = sorted([*_missing(every[absent]), *found], key=lambda problem: problem.place)
    problems = decide(found, POLICY)
    kept = apply_actions(table, [problem for problem in problems if problem.kind != "missing_image"])
    if kept.empty:
        raise UserError(f"{path} names no image that is below {images}" + (f": {problems[0]}" if problems else ""))
    return BatchInputs(with_groups(typed_labels(kept)), kept["file"].to_list(), problems)


def _missing(rows: pd.DataFrame) -> list[Problem]:
    """A problem for each row without an image; nothing else of such a row is looked at, since there may be many."""
    cells = zip(rows["table"], rows["row"], rows["image_id"], rows.index, strict=True)
    return [
        Problem(
            "missing_image",
            table,
            int(row),
            "image_id",
            name,
            f"no image file is called {name!r} (any of the formats that are read); add it or take the row out",
            int(place),
        )
        for table, row, name, place in cells
    ]
