"""Scores of prediction sets, from the column `prediction_set` of a prediction table: coverage and size.

Each lesion counts once in a coverage and a mean size (an image of a lesion with m images counts 1 / m), as in the
promise that the sets make; `coverage_by_image` counts images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, weighted_intervals
from exp_tools.evaluation.metrics.catalogue import DIFFERENCE
from exp_tools.evaluation.prediction_sets import read_set_column
from exp_tools.evaluation.report.numbers import bracketed, number

COLUMN = "prediction_set"


def set_report(
    table: pd.DataFrame,
    classes: Sequence[str],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    *,
    asked: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Coverage and size of the sets of one set of images; None for a table without them.

    Parameters
    ----------
    table : rows of a prediction table
    classes, labels, predicted : the C classes; true and decided class of each row, int [N]
    asked : the coverage that the sets were fitted for; None: unknown
    resamples, seed : of the bootstrap over lesion groups

    Returns
    -------
    dict with
        asked
        coverage, coverage_by_image, mean_size, and `intervals` of the three
        short : the interval of `coverage` lies below what was asked
        empty : share of the images whose set is empty
        sizes : size -> images
        per_class : class -> lesions, images, coverage and mean_size of its images with their intervals, `small` (fewer
            than SMALL_GROUPS lesion groups), `short`, and `held`: share of the sets of other classes that hold the
            class, a lesion counting once
        by_size : for each size that occurs, images, coverage (by image) and accuracy of the decision; coverage at the
            sizes is not promised, it shows whether large sets mark what is difficult

    Raises
    ------
    UserError : a set holds a word that is no class
    """
    if COLUMN not in table:
        return None
    members = read_set_column(table[COLUMN].to_numpy(), classes)
    groups, size = table["group_id"].to_numpy(), members.sum(axis=1)
    lesion = pd.factorize(table["lesion_id"])[0]
    weight = 1 / np.bincount(lesion)[lesion]
    hit = members[np.arange(len(labels)), labels]
    of_class = {code: labels == place for place, code in enumerate(classes)}
    parts = {"coverage": (weight, hit), "coverage_by_image": (np.ones(len(table)), hit), "mean_size": (weight, size)}
    for code, rows in of_class.items():
        parts |= {(code, "coverage"): (weight * rows, hit), (code, "mean_size"): (weight * rows, size)}
    weights, values = (np.stack([pair[k] for pair in parts.values()]).astype(float) for k in (0, 1))

    def score(drawn: NDArray[np.float64]) -> dict[Any, NDArray[np.float64]]:
        """Weighted means of the parts under how often each image was drawn."""
        below = np.einsum("kn,nr->kr", weights, drawn)
        above = np.einsum("kn,nr->kr", weights * values, drawn)
        means = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
        return dict(zip(parts, means, strict=True))

    found = {name: float(value[0]) for name, value in score(np.ones((len(table), 1))).items()}
    units = {code: int(np.unique(groups[rows]).size) for code, rows in of_class.items()}
    most = {name: float(len(classes)) for name in parts if "mean_size" in (name, name[-1])}
    intervals = weighted_intervals(
        score,
        groups,
        len(table),
        resamples=resamples,
        seed=seed,
        scales=dict.fromkeys(most, DIFFERENCE),
        units={name: units[name[0]] for name in parts if isinstance(name, tuple)},
    )
    bounds = {
        name: {"low": max(low, 0.0), "high": min(high, most.get(name, 1.0))} for name, (low, high) in intervals.items()
    }
    return {
        "asked": asked,
        **{name: found[name] for name in ("coverage", "coverage_by_image", "mean_size")},
        "intervals": {name: bounds[name] for name in ("coverage", "coverage_by_image", "mean_size")},
        "short": _short(bounds["coverage"], asked),
        "empty": float((size == 0).mean()),
        "sizes": {str(k): int(count) for k, count in enumerate(np.bincount(size, minlength=len(classes) + 1))},
        "per_class": {
            code: {
                "lesions": int(np.unique(lesion[rows]).size),
                "images": int(rows.sum()),
                **{name: found[code, name] for name in ("coverage", "mean_size")},
                "intervals": {name: bounds[code, name] for name in ("coverage", "mean_size")},
                "small": units[code] < SMALL_GROUPS,
                "short": _short(bounds[code, "coverage"], asked),
                "held": float(np.average(members[~rows, place], weights=weight[~rows]))
                if (~rows).any()
                else float("nan"),
            }
            for place, (code, rows) in enumerate(of_class.items())
        },
        "by_size": [
            {
                "size": int(k),
                "images": int((size == k).sum()),
                "coverage": float(hit[size == k].mean()),
                "accuracy": float((predicted == labels)[size == k].mean()),
            }
            for k in np.unique(size)
        ],
    }


def _short(bounds: dict[str, float], asked: float | None) -> bool:
    return asked is not None and bounds["high"] < asked


def sets_line(found: Mapping[str, Any]) -> str:
    """The sets of a report in one line."""
    asked = "" if found["asked"] is None else f" (asked {found['asked']:.4g})"
    bounds = found["intervals"]["coverage"]
    least = min((row["coverage"], code) for code, row in found["per_class"].items() if row["images"])
    line = (
        f"prediction sets{asked}: {number(found['coverage'])} {bracketed(bounds['low'], bounds['high'])} of the "
        f"lesions in theirs, least {least[1]} {number(least[0])}; mean size {number(found['mean_size'])} of "
        f"{len(found['per_class'])} classes"
    )
    return line + ("; LESS THAN ASKED" if found["short"] else "")
