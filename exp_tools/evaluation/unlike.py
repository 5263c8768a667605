"""How many images of a set are flagged as unlike the training images, and what a model card says of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FLAG, SCORE = "unlike_training", "unlike_score"
"""Columns of a prediction table; a table of a model that cannot tell has neither."""
Z = 1.959964
"""Of a 95 % interval."""


def unlike_report(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any] | None:
    """Shares of lesions that are flagged: each image counts one over the images of its group.

    Parameters
    ----------
    table : rows of a prediction table, one set
    classes : of the model

    Returns
    -------
    dict with `flagged`, `low`, `high` (95 %, by group), `lesions` (groups), `images` (flagged ones), `median_score`,
    and `by_class`: the first four of each class; None where the table does not say which images are flagged
    """
    if FLAG not in table or not len(table):
        return None
    flags = np.array([str(value).lower() == "true" for value in table[FLAG]])
    groups, truth = table["group_id"].to_numpy(), table["dx"].to_numpy()
    return flagged_share(flags, groups) | {
        "images": int(flags.sum()),
        "median_score": float(pd.to_numeric(table[SCORE], errors="coerce").median()),
        "by_class": {code: flagged_share(flags[truth == code], groups[truth == code]) for code in classes},
    }


def flagged_share(flags: NDArray[np.bool_], groups: NDArray[np.object_]) -> dict[str, Any]:
    """The mean over groups of the share of their images that is flagged, and its 95 % interval.

    Wilson's score interval with the groups as units (Wilson, J Am Stat Assoc 22:209, 1927), which does not collapse
    where none is flagged. NaN without an image.

    Parameters
    ----------
    flags, groups : of each image [N]
    """
    if not len(flags):
        return {"flagged": float("nan"), "low": float("nan"), "high": float("nan"), "lesions": 0}
    share = pd.Series(flags.astype(float)).groupby(groups).mean()
    p, n = float(share.mean()), len(share)
    middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    return {"flagged": p, "low": max(0.0, low), "high": min(1.0, high), "lesions": n}


def unlike_section(ood: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """The card's section: how out-of-distribution images are told, and the share flagged of each set.

    Parameters
    ----------
    ood : of the model's facts
    report : {"test": ..., "external": {name: ...}}
    """
    title = ["## Out-of-distribution images", ""]
    if not ood:
        return [*title, "This model cannot tell them: every image gets a diagnosis, and none is flagged.", ""]
    sets = {"test": report["test"], **report["external"]}
    rows = [(name, found["ood"]) for name, found in sets.items() if found.get("ood")]
    return [
        *title,
        f"An image is flagged if the network's features of it are far from those of the training images "
        f"(`{ood['method']}`), or if it is nearly of one colour, blurred, or without the colours of skin. The limit "
        f"flags {ood['flagged']:.1%} of the validation lesions. A flag proves nothing, and neither does its absence.",
        "",
        "| set | groups of lesions | flagged | 95 % interval |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {row['lesions']:,} | {row['flagged']:.1%} | {row['low']:.1%} to {row['high']:.1%} |"
            for name, row in rows
        ),
        "",
        *(_classes(rows[0][1]["by_class"]) if rows else []),
    ]


def _classes(by_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shares = ", ".join(
        f"`{code}` {row['flagged']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        for code, row in by_class.items()
        if row["lesions"]
    )
    return [f"Flagged of each class on test, with 95 % intervals: {shares}.", ""]
