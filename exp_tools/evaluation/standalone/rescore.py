"""Score a prediction table without the model that made it: `exp-tools score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from exp_tools.data.labels.attributes import check_attributes
from exp_tools.data.labels.table import read_labels
from exp_tools.errors import UserError
from exp_tools.evaluation.calibrate import USUAL_SENSITIVITY, choose_threshold
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES
from exp_tools.evaluation.predictions import calibration_of, read_predictions
from exp_tools.evaluation.report.build import METADATA, score_set, with_metadata
from exp_tools.evaluation.report.original_labels import DROPPED
from exp_tools.taxonomy import MELANOMA


def rescore(
    predictions: Path,
    labels: Path,
    *,
    needed: bool,
    split: str | None,
    thresholds: Mapping[str, float | None],
    subgroups: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Score one split of a prediction table.

    Parameters
    ----------
    predictions, labels : the files; metadata (age, sex and so on) are joined from the label table by image
    needed : whether labels that do not fit are an error; otherwise subgroups are `unknown` and a note says so
    split : which rows; None: `test`, or the only split there is
    thresholds : `melanoma` and `abstain`, see the model file. Without that of melanoma it is chosen on the table's own
        validation rows, as `calibrate` does
    subgroups : attributes to score apart
    resamples, seed : of the bootstrap

    Returns
    -------
    The report of `score_set`, and notes for the person.

    Raises
    ------
    UserError : the table is none, lacks the split, or (needed) the labels lack an image; the labels fit and lack one of
        `subgroups`
    """
    every, classes = read_predictions(predictions)
    table = _one_split(every, split, predictions)
    notes = [f"note: {every.attrs['remark']}"] if "remark" in every.attrs else []
    thresholds = dict(thresholds)
    validation = every[every["split"] == "val"]
    if (
        thresholds.get("melanoma") is None
        and MELANOMA in classes
        and len(validation)
        and set(table["split"]) != {"val"}
    ):
        scores, positive = validation[f"p_{MELANOMA}"], (validation["dx"] == MELANOMA).to_numpy()
        thresholds["melanoma"], *_ = choose_threshold(scores, positive, validation["lesion_id"], USUAL_SENSITIVITY)
        notes.append(
            f"note: the melanoma threshold {thresholds['melanoma']} was chosen on the table's validation rows, for a "
            f"sensitivity of {USUAL_SENSITIVITY:.0%}"
        )
    try:
        joined = with_metadata(table, read_labels(labels))
    except UserError as error:
        if needed:
            raise
        notes.append(f"note: no subgroups by age, sex, site or confirmation: {error}")
        joined = table.assign(**dict.fromkeys(METADATA, "unknown")).assign(age=np.nan)
    else:
        check_attributes(subgroups, ATTRIBUTES, joined, "--subgroups (or evaluate.subgroups)")
    report = score_set(
        joined,
        classes,
        calibration=calibration_of(table, classes),
        thresholds=thresholds,
        costs=None,
        subgroups=subgroups,
        resamples=resamples,
        seed=seed,
        dropped=every[every["split"] == DROPPED] if set(table["split"]) == {"test"} else None,
    )
    return report, notes


def _one_split(table: pd.DataFrame, split: str | None, path: Path) -> pd.DataFrame:
    present = sorted(set(table["split"]))
    if split is None:
        split = "test" if "test" in present or len(present) != 1 else present[0]
    if split not in present:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(present) or 'no row at all'}")
    return table[table["split"] == split].reset_index(drop=True)
