"""Averaged probabilities of several models as one more result."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.groups import Group, why_unpaired
from exp_tools.evaluation.compare.runs import Run
from exp_tools.evaluation.predictions import LESION_DECISION, as_arrays, decisions, prediction_table
from exp_tools.evaluation.probabilities import Calibration


def ensemble(name: str, groups: Sequence[Group]) -> Group:
    """A group of one repeat: the mean probabilities over the repeats of each group, then over the groups.

    It decides for the class that most of its models decide for, of equals the one of the highest mean probability: each
    model keeps its own rule, as in a single run.

    Raises
    ------
    UserError : the groups know other classes or have other test images
    """
    first = groups[0]
    for group in groups[1:]:
        if reason := why_unpaired(group, first):
            raise UserError(f"--ensemble: {group.name} and {first.name} cannot be averaged: {reason}")
    table = _averaged([group.repeats for group in groups], first.classes)
    validations = [[run.validation for run in group.runs] if group.folds == 1 else [None] for group in groups]
    validation = None
    if all(one is not None for tables in validations for one in tables):
        sets = [set(one["image_id"]) for tables in validations for one in tables]
        if all(one == sets[0] for one in sets):
            ordered = [[one.sort_values("image_id", ignore_index=True) for one in tables] for tables in validations]
            validation = _averaged(ordered, first.classes)
    runs = tuple(run for group in groups for run in group.runs)
    mean = Run(name, table, first.classes, {}, validation)
    averaged = sum(len(group.repeats) for group in groups)
    return Group(name, runs, (table.assign(run=0),), 1, first.classes, averaged=averaged, mean=mean)


def _averaged(groups: Sequence[Sequence[pd.DataFrame]], classes: Sequence[str]) -> pd.DataFrame:
    """The prediction table of the mean over groups of tables of the same images in the same order."""
    shares = [1 / len(tables) for tables in groups for _ in tables]
    tables = [table for group in groups for table in group]
    mean = np.average([as_arrays(table, classes)[0] for table in tables], axis=0, weights=shares)
    # Logits whose softmax are the means, so that the ensemble is a prediction table like any other.
    logits = np.log(np.clip(mean, np.finfo(float).tiny, 1))
    base, codes = tables[0], np.array(classes)
    made = prediction_table(base, base["split"].to_numpy(), logits, classes, Calibration.none(len(classes)))
    for column in ("predicted", LESION_DECISION):
        votes = np.sum([np.eye(len(classes))[decisions(table, classes, column)] for table in tables], axis=0)
        lesion_mean = mean
        if column == LESION_DECISION:
            lesion_mean = pd.DataFrame(mean).groupby(base["lesion_id"].to_numpy()).transform("mean").to_numpy()
        most = votes == votes.max(axis=1, keepdims=True)
        made[column] = codes[np.where(most, lesion_mean, -1).argmax(axis=1)]
    return made
