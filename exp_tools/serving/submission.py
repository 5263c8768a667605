"""The submission of the ISIC challenges: a row per image with a score per diagnosis, from which others score us.

Their balanced accuracy takes the largest value of a row for the prediction, and a tie for none (isic-challenge-scoring
5.6.0, `_to_labels`). So the values are decision scores: the largest is the model's decision, whatever its rule.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.data.images.formats import image_id
from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import decisions
from exp_tools.evaluation.probabilities import Calibration

COLUMNS = {
    "ISIC 2018": ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"),
    "ISIC 2019": ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"),
}
NEVER_TAUGHT = "unk"
"""A column of ISIC 2019 of which no training image exists: a model may lack it, its scores are 0 then."""
STEP = 1e-9
"""Relative lead of the decision over values that would tie with it."""


def check_submission(classes: Sequence[str], files: Sequence[str]) -> None:
    """Whether these files, predicted in these classes, can be submitted.

    Raises
    ------
    UserError : the classes are those of no challenge; two files have the same name without ending
    """
    submission_columns(classes)
    names = pd.Series([image_id(Path(file).name) for file in files])
    twice = np.flatnonzero(names.duplicated())
    if twice.size:
        first = int(np.flatnonzero(names == names[twice[0]])[0])
        raise UserError(
            f"a submission names an image by its file name without ending, and {files[first]} and {files[twice[0]]} "
            f"are both {names[twice[0]]} ({twice.size:,} such); rename one, or take one away"
        )


def submission_columns(classes: Sequence[str]) -> tuple[str, ...]:
    """The columns after `image` of the challenge whose diagnoses these classes are. Raises UserError where none is."""
    for columns in COLUMNS.values():
        missing = {column.lower() for column in columns} ^ set(classes)
        if not missing or (missing == {NEVER_TAUGHT} and NEVER_TAUGHT not in classes):
            return columns
    wanted = " or ".join(f"those of {name} ({', '.join(columns).lower()})" for name, columns in COLUMNS.items())
    raise UserError(
        f"--format isic needs a model whose classes are {wanted}; this model's are {', '.join(classes)}. Omit --format "
        "for a table of these"
    )


def is_submission(path: Path) -> bool:
    """Whether a file is a submission. A challenge's ground truth has the same columns, with 0 and 1 alone."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError):
        return False
    if tuple(table) not in [("image", *columns) for columns in COLUMNS.values()]:
        return False
    scores = table.drop(columns="image").apply(pd.to_numeric, errors="coerce").to_numpy()
    return bool(((scores > 0) & (scores < 1)).any())


def submission(
    table: pd.DataFrame, files: Sequence[str], classes: Sequence[str], calibration: Calibration
) -> pd.DataFrame:
    """The submission of a prediction table.

    Parameters
    ----------
    table : rows of a prediction table [N]
    files : the image file of each row [N]
    classes, calibration : of the model, see `check_submission`

    Returns
    -------
    DataFrame [image, <columns of the challenge>], one row per image: its file name without ending and the scores of
    `decision_scores`
    """
    probabilities = table[[f"p_{code}" for code in classes]].to_numpy(dtype=float)
    found = decision_scores(probabilities, decisions(table, classes), calibration)
    scores = pd.DataFrame(found, columns=[code.upper() for code in classes])
    scores = scores.reindex(columns=list(submission_columns(classes)), fill_value=0.0)
    scores.insert(0, "image", [image_id(Path(file).name) for file in files])
    return scores


def decision_scores(
    probabilities: NDArray[np.float64], decided: NDArray[np.int64], calibration: Calibration
) -> NDArray[np.float64]:
    """How much of the worst expected cost each decision saves, as a share of the highest cost: float [N, C] in [0, 1].

    With the rule `frequent` these are the probabilities. With `balanced` they are w p with a weight w in (0, 1] for
    each class, so that what looks at one class alone (AUC, average precision) is that of the probabilities. The
    decision of a row is always its only largest value.

    Parameters
    ----------
    probabilities : [N, C]
    decided : the class that the calibration's rule decides for, int [N]
    """
    costs = np.array(calibration.costs)
    worst = costs.max(axis=1)
    scores = np.clip(probabilities @ (worst[:, None] - costs) / (worst.max() or 1.0), 0.0, 1.0)
    rows = np.arange(len(scores))
    lead = scores[rows, decided]
    others = np.where(np.eye(scores.shape[1], dtype=bool)[decided], -1.0, scores).max(axis=1)
    tied = np.flatnonzero(lead <= others * (1 + STEP))
    scores[tied] *= 1 - STEP
    scores[tied, decided[tied]] = np.maximum(np.maximum(lead, others), STEP)[tied]
    return scores
