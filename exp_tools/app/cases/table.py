"""The predicted images of the workspace with what is known of each: the table that the Cases page filters."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.data.labels.table import EXTRA, SET, read_labels, read_splits
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES, attribute_values, ordered_values
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.project import EXTERNAL_IMAGES, EXTERNAL_LABELS, IMAGES, LABELS, PREDICTIONS, SPLITS

TEST = "test"
EXTERNAL = "external:"
OF = "of_"
"""How the columns begin that hold the value of an attribute as its subgroup is called (age: the band)."""
METADATA = ("dx_type", "age", "sex", "localization")
TRUTH = {"true": True, "false": False}
SMALLEST = 1e-300
"""Of a true class whose probability is 0: its loss is large and finite."""


class Cases(NamedTuple):
    """The test images and those of the external sets.

    table : one row per case, by image_id: the columns of the prediction table, METADATA, extra_<name>, and
        place : row in the packed images of its set
        confidence : probability of the prediction, which need not be the highest
        loss : -log of the probability of the true class
        right : whether the two classes are the same
        of_<name> : the value of each attribute
        set_size (int), unlike_training (bool), unlike_score (float) : where the prediction table has them, else absent
    classes : in the model's order
    attributes : each attribute with more than one value, and its values in order
    labels : label table of each set, whose row is a row of the packed images; `predicted_split` is the split of each
        image, "" where that is unknown
    packed : packed images of each set
    """

    table: pd.DataFrame
    classes: list[str]
    attributes: dict[str, list[str]]
    labels: dict[str, pd.DataFrame]
    packed: dict[str, Path]

    @property
    def sets(self) -> list[str]:
        """The sets that there are: `test`, then `external:NAME`."""
        return list(self.labels)

    def pixels(self, of_set: str, places: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The packed squares [S, S, 3] in these rows; no other is read."""
        packed = np.load(self.packed[of_set], mmap_mode="r")
        return [np.array(packed[place]) for place in places]


def set_name(of_set: str) -> str:
    """A set's name for people."""
    return "test split" if of_set == TEST else f"external set {of_set.removeprefix(EXTERNAL)}"


def files_of(root: Path) -> list[Path]:
    """All that the table is read from."""
    return [root / path for path in (PREDICTIONS, LABELS, IMAGES, SPLITS, EXTERNAL_LABELS, EXTERNAL_IMAGES)]


def read_cases(root: Path) -> Cases:
    """Join predictions, labels and packed images.

    Raises
    ------
    UserError : a file is missing or damaged, or they are not of one run; paths in it are relative to `root`
    """
    try:
        return _read(root)
    except UserError as error:
        raise UserError(str(error).replace(f"{root}/", "")) from error


def _read(root: Path) -> Cases:
    predictions, classes = read_predictions(root / PREDICTIONS)
    labels: dict[str, pd.DataFrame] = {}
    packed: dict[str, Path] = {}
    parts = []
    for of_set in [TEST, *(name for name in predictions["split"].unique() if name.startswith(EXTERNAL))]:
        ours = predictions[predictions["split"] == of_set]
        if ours.empty:
            continue
        external = of_set != TEST
        packed[of_set] = root / (EXTERNAL_IMAGES if external else IMAGES)
        every = read_labels(root / (EXTERNAL_LABELS if external else LABELS))
        _require_fit(packed[of_set], len(every), external)
        of_rows = every.assign(predicted_split=of_set if external else _splits(root, every))
        known = of_rows[of_rows[SET] == of_set.removeprefix(EXTERNAL)] if external else of_rows
        parts.append(_joined(ours, known, EXTERNAL_LABELS if external else LABELS))
        labels[of_set] = known
    if not parts:
        raise UserError(f"{PREDICTIONS} has no image of the test split; make it again with `dvc repro evaluate`")
    table = _measured(pd.concat(parts, ignore_index=True), classes).sort_values("image_id", ignore_index=True)
    table, attributes = _with_attributes(table)
    return Cases(table, classes, attributes, labels, packed)


def _require_fit(images: Path, rows: int, external: bool) -> None:
    """Check that the packed images are there, and as many as the labels."""
    name = (EXTERNAL_IMAGES if external else IMAGES).as_posix()
    stage = "external" if external else "prepare"
    if not images.is_file():
        raise UserError(
            f"{name} is not here; make it with `dvc repro {stage}`, or fetch it with `dvc pull` where a remote holds it"
        )
    try:
        shape = np.load(images, mmap_mode="r").shape
    except (OSError, ValueError, EOFError) as error:
        remedy = f"remove it, then `dvc checkout` or `dvc repro {stage}`"
        raise UserError(f"{name} is damaged ({str(error).splitlines()[0]}); {remedy}") from error
    if len(shape) != 4 or shape[0] != rows:
        labels = (EXTERNAL_LABELS if external else LABELS).as_posix()
        raise UserError(
            f"{name} has {shape[0]:,} images and {labels} {rows:,} rows: they are of different runs; `dvc repro` makes "
            "both again"
        )


def _splits(root: Path, labels: pd.DataFrame) -> pd.Series | str:
    """The split of each image; "" where splits.csv is missing or of other images."""
    try:
        splits = read_splits(root / SPLITS)
    except UserError:
        return ""
    return splits["split"] if splits["image_id"].equals(labels["image_id"]) else ""


def _joined(predictions: pd.DataFrame, labels: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Predictions with the metadata of their images, and `place`."""
    known = labels.drop_duplicates("image_id").set_index("image_id")
    further = [column for column in known if column.startswith(EXTRA)]
    known = known.assign(place=labels.drop_duplicates("image_id").index)
    lost = predictions.loc[~predictions["image_id"].isin(known.index), "image_id"]
    if len(lost):
        raise UserError(
            f"{len(lost):,} of {len(predictions):,} images of {PREDICTIONS} are not in {path}, the first is "
            f"{lost.iloc[0]}: the images were prepared anew after the predictions; `dvc repro evaluate` predicts them"
        )
    return predictions.join(known[[*METADATA, *further, "place"]], on="image_id")


def _measured(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The table with confidence, loss, right, and what later versions of it have, as numbers."""
    probabilities = table[[f"p_{code}" for code in classes]].to_numpy(float)
    number = {code: place for place, code in enumerate(classes)}
    unknown = table[~table["predicted"].isin(classes)]
    if len(unknown):
        raise UserError(
            f"{PREDICTIONS}: {unknown['image_id'].iloc[0]} is predicted as {unknown['predicted'].iloc[0]!r}, which is "
            "no class of the file; make it again with `dvc repro evaluate`"
        )
    rows = np.arange(len(table))
    of_true = probabilities[rows, table["dx"].map(number).to_numpy(int)]
    found = table.assign(
        confidence=probabilities[rows, table["predicted"].map(number).to_numpy(int)],
        loss=-np.log(np.maximum(of_true, SMALLEST)),
        right=table["dx"] == table["predicted"],
    )
    if "prediction_set" in table:
        words = table["prediction_set"].fillna("").astype(str)
        found = found.assign(prediction_set=words, set_size=words.str.split().str.len())
    if "unlike_score" in table:
        found = found.assign(unlike_score=pd.to_numeric(table["unlike_score"], errors="coerce"))
    if "unlike_training" in table:
        flags = table["unlike_training"].astype(str).str.lower().map(TRUTH)
        found = found.assign(unlike_training=flags.fillna(False).astype(bool))
    return found


def _with_attributes(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The table with the value of each attribute, and the values of those that have more than one."""
    names = [*ATTRIBUTES, *(column.removeprefix(EXTRA) for column in table if column.startswith(EXTRA))]
    values = attribute_values(table, names)
    table = table.assign(**{OF + name: column.astype(str) for name, column in values.items()})
    ordered = {name: [str(value) for value in ordered_values(name, column)] for name, column in values.items()}
    return table, {name: some for name, some in ordered.items() if len(some) > 1}
