"""The table of predictions: everything a score needs, without the model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.errors import UserError
from exp_tools.evaluation.calibration import softmax

ID_COLUMNS = ["image_id", "lesion_id", "group_id", "source", "split", "dx", "predicted"]
DECIMALS = 6


def prediction_table(
    labels: pd.DataFrame, split: np.ndarray | str, logits: np.ndarray, classes: Sequence[str], temperature: float
) -> pd.DataFrame:
    """Join images with what the model says of them.

    Parameters
    ----------
    labels : rows of the label table, with `dx` already in the task's classes [N]
    split : split of each row [N], or one for all
    logits : float [N, C]
    classes : names of the columns of `logits`
    temperature : p = softmax(logit / temperature)

    Returns
    -------
    DataFrame with ID_COLUMNS, p_<class> and logit_<class>, rounded to six decimals
    """
    table = labels[["image_id", "lesion_id", "group_id", "source"]].reset_index(drop=True)
    table = table.assign(split=split, dx=labels["dx"].to_numpy(), predicted=np.array(classes)[logits.argmax(axis=1)])
    logits = logits.astype(np.float64).round(DECIMALS)
    probabilities = softmax(logits, temperature).round(DECIMALS)
    columns = {f"p_{name}": probabilities[:, place] for place, name in enumerate(classes)}
    columns |= {f"logit_{name}": logits[:, place] for place, name in enumerate(classes)}
    return table.assign(**columns)


def read_predictions(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read predictions.csv; returns the table and its classes in order. Raises UserError when it is no such table."""
    if not path.is_file():
        raise UserError(f"there is no prediction table {path}; make it with `dvc repro` or fetch it with `dvc pull`")
    table = pd.read_csv(path, dtype=dict.fromkeys(ID_COLUMNS, str), keep_default_na=False)
    missing = [column for column in ID_COLUMNS if column not in table]
    classes = [column.removeprefix("logit_") for column in table if column.startswith("logit_")]
    if missing or not classes:
        raise UserError(f"{path} is no prediction table: it lacks {', '.join(missing) or 'logit_<class> columns'}")
    return table, classes


def as_arrays(table: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [N, C] that add up to one, labels [N] and logits [N, C] of a prediction table.

    The rounding of the file is undone by dividing each row by its sum.
    """
    unknown = sorted(set(table["dx"]) - set(classes))
    if unknown:
        raise UserError(f"the predictions hold diagnoses that the model does not know: {', '.join(unknown)}")
    logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=float)
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)
    labels = table["dx"].map({name: place for place, name in enumerate(classes)}).to_numpy()
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, logits
