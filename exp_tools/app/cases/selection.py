"""Which cases are shown, and in what order: pure functions on the table of cases."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from exp_tools.app.cases.table import OF

OUTCOMES = ("wrong", "right", "all")
ORDERS = {
    "largest loss first": ("loss", False),
    "highest probability first": ("confidence", False),
    "lowest probability first": ("confidence", True),
    "most unlike the training images first": ("unlike_score", False),
}
"""How cases may be sorted: the column, and whether it rises."""


@dataclass(frozen=True)
class Filters:
    """What a case must be like. Empty: anything.

    of_set : `test` or `external:NAME`
    outcome : of OUTCOMES
    true, predicted : codes of classes
    confidence : lowest and highest probability of the prediction, both included
    attributes : values by attribute
    unlike : whether the image is unlike the training images; None: either
    sizes : numbers of classes in the prediction set
    """

    of_set: str
    outcome: str = "all"
    true: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()
    confidence: tuple[float, float] = (0.0, 1.0)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unlike: bool | None = None
    sizes: tuple[int, ...] = ()


def select(table: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The rows that pass all filters, in the order of the table.

    Raises
    ------
    KeyError : a filter needs a column that the table lacks
    """
    low, high = filters.confidence
    kept = (table["split"] == filters.of_set) & table["confidence"].between(low, high)
    if filters.outcome != "all":
        kept &= table["right"] == (filters.outcome == "right")
    wanted = {"dx": filters.true, "predicted": filters.predicted, "set_size": filters.sizes}
    wanted |= {OF + name: values for name, values in filters.attributes.items()}
    for column, values in wanted.items():
        if values:
            kept &= table[column].isin(values)
    if filters.unlike is not None:
        kept &= table["unlike_training"] == filters.unlike
    return table[kept]


def orders(table: pd.DataFrame) -> list[str]:
    """The orders for which the table has the column."""
    return [order for order, (column, _) in ORDERS.items() if column in table]


def ordered(table: pd.DataFrame, order: str) -> pd.DataFrame:
    """The rows in one of ORDERS; equal ones stay in the order of the table, missing values come last."""
    column, rises = ORDERS[order]
    return table.sort_values(column, ascending=rises, kind="stable", ignore_index=True)
