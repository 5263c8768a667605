"""The prediction table: everything that scoring needs, without the model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.validation import softmax

ID_COLUMNS = ["image_id", "lesion_id", "group_id", "source", "split", "dx", "predicted"]
LESION_DECISION = "lesion_predicted"
"""Column with the decision on a lesion, from the mean probabilities of its images, in each of their rows."""
DECIMALS = 6
"""Decimals of a logit: float32 has no more above 8, and the last bits depend on the batches."""
CLOSE = 1e-3
"""Largest accepted distance of a written probability from softmax(logit / temperature): tables may be rounded."""


def prediction_table(
    labels: pd.DataFrame, split: np.ndarray | str, logits: np.ndarray, classes: Sequence[str], temperature: float
) -> pd.DataFrame:
    """Join images with the model's outputs.

    Parameters
    ----------
    labels : rows of the label table, with `dx` already in the task's classes [N]
    split : split of each row [N], or one for all
    logits : float [N, C]
    classes : names of the columns of `logits`
    temperature : p = softmax(logit / temperature)

    Returns
    -------
    DataFrame with ID_COLUMNS, p_<class> and logit_<class>; logits are rounded to DECIMALS, the probabilities are what
    follows from them in float64, not rounded: scores come from them
    """
    table = labels[["image_id", "lesion_id", "group_id", "source"]].reset_index(drop=True)
    table = table.assign(split=split, dx=labels["dx"].to_numpy(), predicted=np.array(classes)[logits.argmax(axis=1)])
    logits = logits.astype(np.float64).round(DECIMALS)
    probabilities = softmax(logits, temperature)
    columns = {f"p_{name}": probabilities[:, place] for place, name in enumerate(classes)}
    columns |= {f"logit_{name}": logits[:, place] for place, name in enumerate(classes)}
    return table.assign(**columns)


def read_predictions(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read predictions.csv; returns the table and its classes in order.

    Probabilities are computed again from the logits and the temperature that relates the two, so that a table that was
    written with few digits has no probability of 0 and no ties that rounding made.

    Raises UserError when it is no such table, names an image twice in a split, or holds an unknown diagnosis or
    probabilities that are not softmax(logit / temperature) of one temperature.
    """
    if not path.is_file():
        raise UserError(f"there is no prediction table {path}; make it with `dvc repro` or fetch it with `dvc pull`")
    table = pd.read_csv(path, dtype=dict.fromkeys(ID_COLUMNS, str), keep_default_na=False)
    missing = [column for column in ID_COLUMNS if column not in table]
    classes = [column.removeprefix("logit_") for column in table if column.startswith("logit_")]
    if missing or not classes:
        raise UserError(f"{path} is not a prediction table: it lacks {', '.join(missing) or 'logit_<class> columns'}")
    without = [name for name in classes if f"p_{name}" not in table]
    if without:
        raise UserError(f"{path} has logits but no probabilities (p_<class>) of: {', '.join(without)}")
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
    if len(table):
        exact = softmax(table[[f"logit_{name}" for name in classes]].to_numpy(), temperature_of(table, classes))
        columns = [f"p_{name}" for name in classes]
        off = np.flatnonzero((np.abs(exact - table[columns].to_numpy()) > CLOSE).any(axis=1))
        if off.size:
            raise UserError(
                f"{path}, row {off[0] + 2}: the probabilities (p_<class>) are not softmax(logit_<class> / temperature) "
                f"with the temperature of the other rows; {off.size} such rows. One table holds one model's predictions"
            )
        table[columns] = exact
    return table, classes


def temperature_of(table: pd.DataFrame, classes: Sequence[str]) -> float:
    """The temperature that relates the logits and the probabilities of a table: 1.0 where it cannot be determined.

    log p differs between the two likeliest classes by the difference of their logits over the temperature. Rounding
    spoils small probabilities most, so an image counts with the square of its second one. Of a table that was rounded
    to six decimals the answer is good to about four digits.
    """
    logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=float)
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)
    order = np.argsort(-probabilities, axis=1)[:, :2]
    if order.shape[1] < 2:
        return 1.0
    first, second = (np.take_along_axis(probabilities, order[:, [k]], axis=1)[:, 0] for k in (0, 1))
    between = np.take_along_axis(logits, order[:, [0]], axis=1) - np.take_along_axis(logits, order[:, [1]], axis=1)
    usable = (second > 0) & (first > second)
    gaps = np.log(first[usable] / second[usable]) * second[usable]
    temperature = gaps @ (between[usable, 0] * second[usable]) / max(gaps @ gaps, np.finfo(float).tiny)
    return float(temperature) if temperature > 0 else 1.0


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
                f"predictions ({len(several):,} such lesions in all); a lesion has one. Fix the label table, or run "
                "`dvc repro` if the predictions are older than the labels."
            )
    probabilities, labels, _ = as_arrays(table, classes)
    lesion, _ = pd.factorize(table["lesion_id"])
    first = np.unique(lesion, return_index=True)[1]
    sums = np.stack([np.bincount(lesion, weights=column) for column in probabilities.T], axis=1)
    mean = sums / np.bincount(lesion)[:, None]
    predicted = decisions(table, classes, LESION_DECISION)[first] if LESION_DECISION in table else mean.argmax(axis=1)
    return mean, labels[first], table["group_id"].to_numpy(dtype=object)[first], predicted
