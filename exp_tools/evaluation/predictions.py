"""The prediction table: everything that scoring needs, without the model."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.data.labels.table import ORIGINAL
from exp_tools.errors import UserError
from exp_tools.evaluation.prediction_sets import set_column, set_members
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import bare_cells

ID_COLUMNS = ["image_id", "lesion_id", "group_id", "source", "split", "dx", "predicted"]
LESION_DECISION = "lesion_predicted"
"""Column with the decision on a lesion, from the mean probabilities of its images, in each of their rows."""
TEXTS = [*ID_COLUMNS, LESION_DECISION, "prediction_set", ORIGINAL]
"""Columns that are text, also where each cell looks like a number."""
DECIMALS = 6
"""Decimals of a logit: float32 has no more above 8, and the last bits depend on the batches."""
CLOSE = 1e-3
"""Largest accepted distance of a written probability from softmax(logit / T + b): tables may be rounded."""


def prediction_table(
    labels: pd.DataFrame,
    split: np.ndarray | str,
    logits: np.ndarray,
    classes: Sequence[str],
    calibration: Calibration,
    sets: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Join images with the model's outputs.

    Parameters
    ----------
    labels : rows of the label table, with `dx` already in the task's classes [N]
    split : split of each row [N], or one for all
    logits : float [N, C]
    classes : names of the columns of `logits`
    calibration : of the model; for the probabilities and the decisions
    sets : of the model file; {} or None: it has none

    Returns
    -------
    DataFrame with ID_COLUMNS, LESION_DECISION, prediction_set (where there are sets), p_<class> and logit_<class>.
    Logits are rounded to DECIMALS; the probabilities follow from them in float64 and are not rounded, since scores come
    from them.
    """
    table = labels[["image_id", "lesion_id", "group_id", "source"]].reset_index(drop=True)
    logits = logits.astype(np.float64).round(DECIMALS)
    probabilities = calibration.probabilities(logits)
    codes, lesion = np.array(classes), pd.factorize(table["lesion_id"])[0]
    table = table.assign(
        split=split,
        dx=labels["dx"].to_numpy(),
        predicted=codes[calibration.decisions(probabilities)],
        **{LESION_DECISION: codes[calibration.decisions(_mean_by(lesion, probabilities))[lesion]]},
    )
    if sets:
        table["prediction_set"] = set_column(set_members(sets, classes, probabilities), classes)
    columns = {f"p_{name}": probabilities[:, place] for place, name in enumerate(classes)}
    columns |= {f"logit_{name}": logits[:, place] for place, name in enumerate(classes)}
    return table.assign(**columns)


def read_predictions(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read predictions.csv; returns the table and its classes in order.

    Columns `temperature` and `bias_<class>`, as `exp-tools score --keep` writes them, stand for the probabilities.
    Otherwise these are computed again from the logits and the calibration that relates the two, so that a table that
    was written with few digits has no probability of 0 and no ties that rounding made. A table with probabilities alone
    is taken as it is, its logits are their logarithms, and `attrs["remark"]` says so: a probability of 0 counts as half
    a unit of the last digit.

    Raises UserError when it is no such table, names an image twice in a split, or holds an unknown diagnosis or
    probabilities that are not softmax(logit / T + b) with one T and b.
    """
    if not path.is_file():
        raise UserError(f"there is no prediction table {path}; make it with `dvc repro` or fetch it with `dvc pull`")
    try:
        table = bare_cells(pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a table: {error}".splitlines()[0]) from error
    missing = [column for column in ID_COLUMNS if column not in table]
    classes = [column.removeprefix("logit_") for column in table if column.startswith("logit_")]
    alone = not classes
    if alone:
        classes = [column.removeprefix("p_") for column in table if column.startswith("p_")]
    if missing or not classes:
        raise UserError(
            f"{path} is not a prediction table: it lacks {', '.join(missing) or 'p_<class> and logit_<class> columns'}"
        )
    beside = ["temperature", *(f"bias_{name}" for name in classes)]
    small = not alone and beside[0] in table
    if small:
        table = table.assign(**{f"p_{name}": 0.0 for name in classes})
    without = [name for name in classes if f"p_{name}" not in table]
    if without:
        raise UserError(f"{path} has logits but no probabilities (p_<class>) of: {', '.join(without)}")
    if alone:
        table = table.assign(**{f"logit_{name}": 0.0 for name in classes})
    numbers = [f"{kind}_{name}" for kind in ("p", "logit") for name in classes]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    holes = table[table[numbers].isna().any(axis=1)]
    if len(holes):
        row = holes.index[0] + 2
        raise UserError(f"{path}, row {row}: a probability or logit is NaN or no number; {len(holes)} such rows")
    twice = table[table.duplicated(["split", "image_id"], keep="first")]
    if len(twice):
        raise UserError(
            f"{path}: {len(twice)} images stand there twice in a split, the first is {twice['image_id'].iloc[0]} in "
            f"row {twice.index[0] + 2}; a score would count them twice. Make the file again with `dvc repro evaluate`"
        )
    unknown = table[~table["dx"].isin(classes)]
    if len(unknown):
        raise UserError(
            f"{path}, row {unknown.index[0] + 2}: the diagnosis {unknown['dx'].iloc[0]!r} is not a class of the "
            f"file ({', '.join(classes)}); {len(unknown)} such rows"
        )
    if alone and len(table):
        return _with_logits(table, classes, path), classes
    if small:
        return _unpacked(table, classes, beside, path), classes
    if len(table):
        exact = calibration_of(table, classes).probabilities(table[[f"logit_{name}" for name in classes]].to_numpy())
        columns = [f"p_{name}" for name in classes]
        off = np.flatnonzero((np.abs(exact - table[columns].to_numpy()) > CLOSE).any(axis=1))
        if off.size:
            raise UserError(
                f"{path}, row {off[0] + 2}: the probabilities (p_<class>) are not softmax(logit_<class> / T + b) with "
                f"the T and b of the other rows; {off.size} such rows. One table holds one model's predictions"
            )
        table[columns] = exact
    return table, classes


def _unpacked(table: pd.DataFrame, classes: Sequence[str], beside: list[str], path: Path) -> pd.DataFrame:
    """A table of logits, T and b with its probabilities."""
    known = table.reindex(columns=beside).apply(pd.to_numeric, errors="coerce").drop_duplicates()
    if len(known) > 1 or not np.isfinite(known).all(axis=None) or (known["temperature"] <= 0).any():
        raise UserError(
            f"{path}: the columns {', '.join(beside)} must hold one temperature above 0 and one bias of each class, "
            "the same in each row: one table holds one model's predictions"
        )
    table = table.drop(columns=beside)
    if len(table):
        temperature, *bias = known.iloc[0].tolist()
        calibration = replace(Calibration.none(len(classes)), temperature=temperature, bias=bias)
        logits = table[[f"logit_{name}" for name in classes]].to_numpy()
        table[[f"p_{name}" for name in classes]] = calibration.probabilities(logits)
    return table


def _with_logits(table: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.DataFrame:
    """A table of probabilities alone, with their logarithms as logits."""
    columns = [f"p_{name}" for name in classes]
    probabilities = table[columns].to_numpy(dtype=float)
    off = np.flatnonzero(
        (np.abs(probabilities.sum(axis=1) - 1) > CLOSE * len(classes)) | (probabilities < 0).any(axis=1)
    )
    if off.size:
        raise UserError(
            f"{path}, row {off[0] + 2}: p_<class> are no probabilities: each must be 0 or more and a row must sum to "
            f"1; {off.size} such rows"
        )
    digits = next((n for n in range(1, 16) if np.array_equal(probabilities, probabilities.round(n))), 16)
    least = 0.5 * 10.0**-digits
    probabilities = np.maximum(probabilities, least)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table[columns] = probabilities
    table[[f"logit_{name}" for name in classes]] = np.log(probabilities)
    table.attrs["remark"] = (
        f"{path} has probabilities and no logits: scores rest on their {digits} decimals, equal ones are ties, and 0 "
        f"counts as {least:g}"
    )
    return table


def calibration_of(table: pd.DataFrame, classes: Sequence[str]) -> Calibration:
    """The temperature and bias that relate the logits and the probabilities of a table; none where undetermined.

    log p_c = logit_c / T + b_c - a term of the image: least squares over all images and classes, once more without
    images that do not follow. Rounding spoils small probabilities most: in a rounded table each counts with its
    square, and the answer is good to about four digits of six. The decision rule is unknown: a table's own decisions
    are scored.
    """
    logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=float)
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)
    known = probabilities > 0
    rounded = np.array_equal(probabilities, probabilities.round(8))
    weights = np.where(known, probabilities**2 if rounded else 1.0, 0.0)
    targets = np.log(np.where(known, probabilities, 1.0))
    slope, bias = _line(logits, targets, weights)
    off = _centred(targets - slope * logits - bias, weights)
    distance = (np.abs(off) * np.sqrt(weights)).max(axis=1, initial=0)
    follows = distance <= 10 * np.median(distance) + 1e-9 if len(table) else np.ones(0, bool)
    slope, bias = _line(logits[follows], targets[follows], weights[follows])
    plain = Calibration.none(len(classes))
    return replace(plain, temperature=1 / slope, bias=(bias - bias.mean()).tolist()) if slope > 1e-6 else plain


def _line(
    logits: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Slope and intercepts [C] of targets over logits [N, C], each image with a level of its own; least squares."""
    num_classes = logits.shape[1]
    columns = [logits, *(np.broadcast_to(row, logits.shape) for row in np.eye(num_classes))]
    roots = np.sqrt(weights).ravel()
    matrix = np.stack([_centred(column, weights).ravel() * roots for column in columns], axis=1)
    slope, *bias = np.linalg.lstsq(matrix, _centred(targets, weights).ravel() * roots, rcond=1e-10)[0]
    return float(slope), np.array(bias)


def _centred(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    totals = weights.sum(axis=1, keepdims=True)
    return values - (weights * values).sum(axis=1, keepdims=True) / np.where(totals > 0, totals, 1.0)


def _mean_by(index: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means [G, C] of the rows [N, C] of each group, whose numbers are `index` [N]."""
    sums = np.stack([np.bincount(index, weights=column) for column in values.T], axis=1)
    return sums / np.bincount(index)[:, None]


def as_arrays(table: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [N, C], labels [N] and logits [N, C] of a prediction table."""
    unknown = sorted(set(table["dx"]) - set(classes))
    if unknown:
        raise UserError(f"the predictions hold diagnoses that the model does not know: {', '.join(unknown)}")
    logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=float)
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)
    labels = table["dx"].map({name: place for place, name in enumerate(classes)}).to_numpy()
    return probabilities, labels, logits


def decisions(table: pd.DataFrame, classes: Sequence[str], column: str = "predicted") -> NDArray[np.int64]:
    """The decided class of each row, int [N]. Raises UserError for one that is no class."""
    places = table[column].map({name: place for place, name in enumerate(classes)})
    if places.isna().any():
        raise UserError(f"the predictions decide for {table.loc[places.isna(), column].iloc[0]!r}, which is no class")
    return places.to_numpy(dtype=np.int64)


def lesion_view(
    table: pd.DataFrame, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.object_], NDArray[np.int64]]:
    """Average the probabilities of a lesion's images.

    Parameters
    ----------
    table : rows of a prediction table, one set
    classes : the C classes

    Returns
    -------
    probabilities [L, C], labels [L], groups (group_id) [L] and decisions [L] of the L lesions, in the order of their
    first images

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
                f"predictions ({len(several):,} such lesions in all); a lesion has one. Correct the labels of that "
                "table, or, if it is the pipeline's and older than its labels, run `dvc repro`."
            )
    probabilities, labels, _ = as_arrays(table, classes)
    lesion, _ = pd.factorize(table["lesion_id"])
    first = np.unique(lesion, return_index=True)[1]
    mean = _mean_by(lesion, probabilities)
    predicted = decisions(table, classes, LESION_DECISION)[first] if LESION_DECISION in table else mean.argmax(axis=1)
    return mean, labels[first], table["group_id"].to_numpy(dtype=object)[first], predicted
