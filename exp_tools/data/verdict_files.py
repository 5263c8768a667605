"""What people decided, as they wrote it: the files in verdicts/."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from exp_tools.data.sources.tables import read_text_table, require_columns
from exp_tools.errors import UserError

MOST_NAMED = 8
"""Faulty rows that a message names."""


def read_verdict_file(path: Path, columns: Sequence[str], answer: str) -> pd.DataFrame:
    """Read a file of verdicts as text without blanks around it, indexed by line; no file is no verdict.

    Parameters
    ----------
    path : the file
    columns : its columns, `note` the last, which may be absent
    answer : the column with the verdict, read in lower case

    Raises
    ------
    UserError : the file is no table, or lacks a column
    """
    if not path.is_file():  # DVC has said so, where it matters
        return pd.DataFrame(columns=columns, dtype=str)
    table = read_text_table(path)
    require_columns(table, columns[:-1], str(path))
    table = table.assign(**({} if "note" in table else {"note": ""}))[list(columns)]
    table = table.apply(lambda column: column.str.strip())
    table[answer] = table[answer].str.lower()
    return table


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raise one UserError for the faults of a file of verdicts, where there are any."""
    if faults:
        rest = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise UserError(f"{path}: {'; '.join(faults[:MOST_NAMED])}{rest}. Correct these rows, or take them out")
