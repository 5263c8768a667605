"""Your own images with a table in HAM10000's columns, of which only image_id and dx are required.

The table is `data.table`, or the only one in the folder that has these columns. `data.test_table` is an optional second
one, whose images are the test set (`split.scheme: auto` or `column`); a column `split` says the same row by row.
Classes are what is the column `dx`. Without a column lesion_id the lesions are unknown.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources.registry import DatasetSpec, read_options
from exp_tools.data.sources.tables import (
    header_of,
    joined,
    only_one,
    read_text_table,
    require_columns,
    tables_below,
    why_not,
    with_files,
)
from exp_tools.errors import UserError

FACTS = DatasetSpec(title="your own images and table")
COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "source", "split", "group")


def read(raw: Path) -> pd.DataFrame:
    """Rows of the table, and of the test table behind them."""
    choice = read_options(raw)
    test = raw / choice["test_table"] if "test_table" in choice else None
    if "table" in choice:
        path = raw / choice["table"]
    else:
        fitting = [path for path in tables_below(raw) if path != test and {"image_id", "dx"} <= set(header_of(path))]
        if not fitting:
            wanted = "with the columns image_id and dx"
            raise UserError(
                f"there is no table below {raw} {wanted}{why_not(raw, ('image_id', 'dx'))}. Name yours with data.table"
            )
        path = only_one(fitting, raw, "table with the columns image_id and dx", "; name the right one with data.table")
    parts = [_rows(path, raw)]
    if test is not None:
        parts.append(_rows(test, raw).assign(split="test"))
    return joined(*parts)


def _rows(path: Path, raw: Path) -> pd.DataFrame:
    table = read_text_table(path)
    require_columns(table, ("image_id", "dx"), path.name)
    table = table[[column for column in COLUMNS if column in table]]
    if "lesion_id" not in table:
        table = table.assign(lesion_id=table["image_id"])
    named = table["source"].str.strip().replace("", "table") if "source" in table else "table"
    return with_files(table.assign(source=named, table=path.name), raw)
