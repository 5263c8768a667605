"""Labels in the classes that a model knows."""

from collections.abc import Sequence

import pandas as pd

from exp_tools.errors import UserError
from exp_tools.taxonomy import broader, task_label


def as_task(labels: pd.DataFrame, task: str, classes: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Give an external set the classes that a model knows.

    A diagnosis that the model does not know becomes the one that it is a kind of (an atypical nevus is a nevus).

    Parameters
    ----------
    labels : label table of the external set
    task : the model's task
    classes : the model's classes

    Returns
    -------
    The rows whose class the model knows, with `dx` in its classes (the index stays: rows of images.npy), and how many
    rows of each other diagnosis were left out.

    Raises
    ------
    UserError
        No row is left.
    """
    code = labels["dx"].where(labels["dx"].isin(list(classes)), labels["dx"].map(broader))
    named = code.map(lambda one: task_label(task, one))
    known = named.isin(list(classes))
    if not known.any():
        raise UserError(
            f"the model knows none of the external set's diagnoses: {', '.join(sorted(set(labels['dx'])))}; "
            f"it knows {', '.join(classes)}"
        )
    return labels.assign(dx=named)[known], labels.loc[~known, "dx"].value_counts().sort_index().to_dict()
