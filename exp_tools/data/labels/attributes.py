"""Attributes of images that a user's table adds to the label table: text columns that begin with EXTRA."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from exp_tools.data.labels.table import EXTRA, MISSING
from exp_tools.errors import UserError, did_you_mean

UNKNOWN = "unknown"
OTHER = "other"
MOST_VALUES = 12
"""More values of an attribute than these are united: numbers in quartiles, the rarest words in OTHER."""


def check_attributes(names: Sequence[str], own: Sequence[str], labels: pd.DataFrame, key: str) -> None:
    """Whether the labels have each attribute, as one of `own` or as extra_<name>.

    Raises
    ------
    UserError : they lack one; `key` says what names it
    """
    known = [*own, *(column.removeprefix(EXTRA) for column in labels if column.startswith(EXTRA))]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"{key} names {name!r}; the label table has {', '.join(known)}{hint}")


def attribute_groups(column: pd.Series) -> pd.Series:
    """The values of a further attribute, few enough to be told apart.

    Where every known value is a finite number, up to MOST_VALUES distinct ones are taken as they are and more fall into
    quartiles, each named by its smallest and its largest number (`3 to 12`; equal numbers are never parted, so that
    there may be fewer than four). Of more than MOST_VALUES words the commonest are kept and the rest is OTHER.

    Parameters
    ----------
    column : text [N]; an empty cell is UNKNOWN, and among numbers so is every spelling of MISSING

    Returns
    -------
    categorical Series [N] with the index of `column`. Its categories occur and are in order: numbers rise, words come
    with the most frequent first, then OTHER, then UNKNOWN
    """
    words = column.fillna("").astype(str).str.split().str.join(" ")
    words = words.where(~words.str.lower().isin(["", UNKNOWN]), UNKNOWN)
    numbers = pd.to_numeric(words.where(~words.str.lower().isin(MISSING)), errors="coerce").astype(float)
    given = ~words.str.lower().isin(MISSING)
    if given.any() and np.isfinite(numbers[given]).all():
        return _numeric_groups(numbers)
    counts = words[words != UNKNOWN].value_counts()
    order = sorted(counts.index, key=lambda word: (-counts[word], word))
    if len(order) > MOST_VALUES:
        kept = [word for word in order[: MOST_VALUES - 1] if word != OTHER]
        words = words.where(words.isin([*kept, UNKNOWN]), OTHER)
        order = [*kept, OTHER]
    return _categorical(words, order)


def _numeric_groups(numbers: pd.Series) -> pd.Series:
    values = np.unique(numbers.dropna())
    if len(values) > MOST_VALUES:
        limits = np.unique(np.quantile(numbers.dropna(), [0.25, 0.5, 0.75], method="inverted_cdf"))
    else:
        limits = values
    members = [values[np.searchsorted(limits, values) == band] for band in range(len(limits) + 1)]
    names = {}
    for some in members:
        if some.size:
            low, high = f"{some[0]:.15g}", f"{some[-1]:.15g}"
            names |= dict.fromkeys(some, low if low == high else f"{low} to {high}")
    return _categorical(numbers.map(names).fillna(UNKNOWN), list(dict.fromkeys(names.values())))


def _categorical(words: pd.Series, order: Sequence[str]) -> pd.Series:
    categories = [*order, UNKNOWN] if (words == UNKNOWN).any() else list(order)
    return words.astype(pd.CategoricalDtype(categories, ordered=True))
