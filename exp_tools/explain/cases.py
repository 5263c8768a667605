"""The images to explain: a fixed choice, not made by taste."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def choose_cases(table: pd.DataFrame, count: int, classes: Sequence[str], seed: int) -> pd.DataFrame:
    """Choose cases, half of them predicted right and half wrong, spread over the diagnoses, each of another lesion.

    Parameters
    ----------
    table : predictions of one split, with image_id, lesion_id, dx, predicted
    count : how many to choose; where there are too few of one half the other one fills up
    classes : diagnoses in order
    seed : of the choice, which depends on the set of rows and not on their order

    Returns
    -------
    Rows of the table, right ones first, each half in the order of `classes` and then of the image ids.
    """
    generator = np.random.default_rng(seed)
    shuffled = table.sort_values("image_id").iloc[generator.permutation(len(table))].drop_duplicates("lesion_id")
    turns = [str(code) for code in generator.permutation(list(classes))]
    right = shuffled["dx"] == shuffled["predicted"]
    good, bad = _in_turns(shuffled[right], turns), _in_turns(shuffled[~right], turns[::-1])
    wanted_good = max(count - count // 2, count - len(bad))
    good = good[:wanted_good]
    return pd.concat([_sorted(good, classes), _sorted(bad[: count - len(good)], classes)])


def choose_of_each(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """At most `count` rows of each diagnosis, one of each lesion, in the order of their image ids."""
    shuffled = table.sort_values("image_id").iloc[np.random.default_rng(seed).permutation(len(table))]
    return shuffled.drop_duplicates("lesion_id").groupby("dx").head(count).sort_values("image_id")


def _in_turns(table: pd.DataFrame, turns: Sequence[str]) -> pd.DataFrame:
    """Rows reordered: the first of each class, the classes in `turns`, then the second of each, and so on."""
    turn = table["dx"].map({code: place for place, code in enumerate(turns)})
    round_ = table.groupby("dx").cumcount()
    return table.iloc[np.lexsort((turn, round_))]


def _sorted(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    place = table["dx"].map({code: place for place, code in enumerate(classes)})
    return table.iloc[np.lexsort((table["image_id"], place))]
