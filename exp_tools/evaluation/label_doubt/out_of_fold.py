"""One prediction per image, by models that have not seen its lesion: from the test splits of runs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from exp_tools.evaluation.compare.ensemble import ensemble
from exp_tools.evaluation.compare.request import gather
from exp_tools.evaluation.compare.runs import LEAKY, SCHEME


def out_of_fold(words: Sequence[str], *, root: Path, predictions: str) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    """Read the test predictions of runs; folds are pooled, seeds and settings are averaged.

    Parameters
    ----------
    words, root, predictions : as in `compare.request.gather`

    Returns
    -------
    The prediction table, its classes, and what it was made from, in words.

    Raises
    ------
    UserError : as `gather`; settings of other test images
    """
    groups, first = gather(words, None, root=root, predictions=predictions, split="test", averaged=False)
    several = len(groups) > 1 or len(first.repeats) > 1
    table = (ensemble("out of fold", groups) if several else first).repeats[0]
    trainings = sum(group.trainings for group in groups)
    said = f"{len(table):,} images of {table['lesion_id'].nunique():,} lesions"
    if first.folds > 1:
        said += f", each predicted out-of-fold ({first.folds} folds)"
    else:
        said += ": the test split alone; the labels of the other images are ranked by the folds of split.scheme kfold"
    said += f", the mean of {trainings} trainings" if trainings > 1 else ""
    runs = [run for group in groups for run in group.runs]
    if any(run.params.get(SCHEME) == LEAKY for run in runs):
        said += "\nLEAKY: the split parts lesions, so that models have seen the label that they should doubt"
    notes = dict.fromkeys(note for group in groups for note in group.notes)
    return table, first.classes, "\n".join([said, *notes])
