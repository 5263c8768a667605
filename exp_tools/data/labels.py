"""The label table: read as text, checked whole, then typed. Nothing is dropped in silence."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.errors import UserError, require_file
from exp_tools.taxonomy import DIAGNOSES

LABEL_COLUMNS = [
    "image_id",
    "lesion_id",
    "group_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
    "source",
]
SEXES = ("female", "male", "unknown")
MISSING = ("", "na", "nan", "none", "null")
MAX_SHOWN = 12


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data: where it stands, what was found, and which rule it breaks."""

    kind: str
    file: str
    row: int | None
    column: str
    value: str
    rule: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        column = f", {self.column}" if self.column else ""
        return f"{where}{column}: {self.rule}"


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a delimited text table with every cell as text; the index is the line number in the file, from 2.

    A byte-order mark, CRLF line ends, and commas, semicolons or tabs as delimiters are all read.

    Raises
    ------
    UserError
        The file is missing, empty, not text, or its rows do not have the header's number of cells.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: expected the label table there") from error
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a table of text: {error}") from error
    table.columns = table.columns.str.strip()
    table.index = pd.RangeIndex(2, 2 + len(table), name="row")
    return table


def require_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> None:
    """Raise UserError when the table lacks a column."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{file} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. "
            f"Needed: {', '.join(columns)}. Rename the column or take the data set's own table"
        )


def check_labels(table: pd.DataFrame) -> list[Problem]:
    """Every fault of a text label table, none of them fatal here.

    Parameters
    ----------
    table : text columns image_id, lesion_id, dx, age, sex; `file` (path of the image, "" when not found), and `table`
        (name of the file a row comes from); the index is the row in that file

    Returns
    -------
    list of Problem, in row order; empty when all is well
    """
    from pandera.errors import SchemaErrors
    from pandera.pandas import Check, Column, DataFrameSchema

    missing_age = table["age"].str.lower().isin(MISSING)
    age = pd.to_numeric(table["age"].where(~missing_age, "0"), errors="coerce")
    view = table.assign(age_value=age)
    known = list(DIAGNOSES)
    schema = DataFrameSchema(
        {
            "image_id": Column(
                str,
                [
                    Check.str_matches(r"^[^/\\\x00-\x1f]+$", error="bad_id"),
                    Check(lambda ids: ~ids.isin([".", ".."]), error="bad_id"),
                    Check(lambda ids: ~ids.duplicated(keep="first"), error="duplicate_id"),
                ],
            ),
            "lesion_id": Column(str, Check.str_length(min_value=1, error="no_lesion")),
            "dx": Column(str, Check.isin(known, error="unknown_diagnosis")),
            "age_value": Column(float, Check.in_range(0, 120, error="bad_age"), coerce=True, nullable=False),
            "sex": Column(str, Check.isin([*SEXES, ""], error="unknown_sex")),
            "file": Column(str, Check.str_length(min_value=1, error="missing_image")),
        }
    )
    cases = pd.DataFrame(columns=["index", "column", "check", "failure_case"])
    try:
        schema.validate(view, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
    problems = []
    for case in cases.itertuples():
        kind = "bad_age" if case.column == "age_value" else str(case.check)
        column = {"age_value": "age", "file": "image_id"}.get(case.column, case.column)
        value = table.at[case.index, column]
        file = table.at[case.index, "table"]
        problems.append(Problem(kind, file, int(case.index), column, value, _rule(kind, value)))
    problems += _lesions_with_two_diagnoses(table)
    return sorted(problems, key=lambda problem: (problem.file, problem.row or 0, problem.column))


def _rule(kind: str, value: str) -> str:
    if kind == "unknown_diagnosis":
        near = difflib.get_close_matches(value.strip().lower(), list(DIAGNOSES), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"diagnosis {value!r} is unknown; known: {', '.join(DIAGNOSES)}{hint}"
    return {
        "bad_id": f"{value!r} cannot be an image id: it must be a plain file name without folders",
        "duplicate_id": f"image {value!r} stands in the table twice; keep one row",
        "no_lesion": "lesion_id is empty; without it the same lesion could be in train and test",
        "bad_age": f"age {value!r} is no number from 0 to 120; leave it empty when it is not known",
        "unknown_sex": f"sex {value!r}; expected one of {', '.join(SEXES)} or nothing",
        "missing_image": f"no image file for {value!r} (.jpg, .jpeg, .png or .bmp); add it or take the row out",
    }[kind]


def _lesions_with_two_diagnoses(table: pd.DataFrame) -> list[Problem]:
    named = table[table["lesion_id"] != ""]
    first = named.groupby("lesion_id")["dx"].transform("first")
    return [
        Problem(
            "two_diagnoses",
            row["table"],
            int(number),
            "dx",
            row["dx"],
            f"lesion {row['lesion_id']!r} is {row['dx']!r} here, {first[number]!r} before; a lesion has one diagnosis",
        )
        for number, row in named[named["dx"] != first].iterrows()
    ]


def typed_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Turn a checked text table into the label table (LABEL_COLUMNS): age as a number, "unknown" for empty words."""
    lower_age = table["age"].str.lower()
    labels = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "lesion_id": table["lesion_id"],
            "group_id": table["lesion_id"],
            "dx": table["dx"],
            "dx_type": table["dx_type"].replace("", "unknown"),
            "age": pd.to_numeric(table["age"].where(~lower_age.isin(MISSING), np.nan)),
            "sex": table["sex"].replace("", "unknown"),
            "localization": table["localization"].replace("", "unknown"),
            "source": table["source"],
        }
    )
    return labels.reset_index(drop=True)


def read_labels(path: Path) -> pd.DataFrame:
    """Read labels.csv as `prepare` wrote it; a missing age is NaN, every other column is text."""
    require_file(path, "prepare")
    types = {column: str for column in LABEL_COLUMNS if column != "age"}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={"age": [""]})


def stop_on(problems: list[Problem]) -> None:
    """Raise one UserError that lists the problems (the first dozen in words, all of them by kind)."""
    if not problems:
        return
    kinds = pd.Series([problem.kind for problem in problems]).value_counts().sort_index()
    shown = "\n  ".join(str(problem) for problem in problems[:MAX_SHOWN])
    rest = f"\n  … and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    raise UserError(f"the data have {len(problems)} problem(s) ({counts}); nothing was written:\n  {shown}{rest}")


def summarise_labels(labels: pd.DataFrame) -> dict[str, object]:
    """Counts that describe a label table: images, lesions, classes, sex, source, what is missing."""
    return {
        "images": len(labels),
        "lesions": int(labels["lesion_id"].nunique()),
        "groups": int(labels["group_id"].nunique()),
        "lesions_with_several_images": int((labels["lesion_id"].value_counts() > 1).sum()),
        "classes": _counts(labels["dx"]),
        "sex": _counts(labels["sex"]),
        "source": _counts(labels["source"]),
        "dx_type": _counts(labels["dx_type"]),
        "missing": {
            "age": int(labels["age"].isna().sum()),
            "sex": int((labels["sex"] == "unknown").sum()),
            "localization": int((labels["localization"] == "unknown").sum()),
        },
    }


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts().sort_index().items()}
