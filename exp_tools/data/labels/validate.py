"""Check the whole text label table: every fault is listed, none is fatal here."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from exp_tools.data.images.formats import EXTENSIONS
from exp_tools.data.labels.issues import Problem
from exp_tools.data.labels.synonyms import code_of
from exp_tools.data.labels.table import EXTRA, MISSING
from exp_tools.errors import did_you_mean

SEXES = ("female", "male", "unknown")
SEX_WORDS = {"f": "female", "m": "male", "w": "female", "woman": "female", "man": "male"}
OLDEST = 120
IMAGE_ENDING = rf"(?i)({'|'.join(map(re.escape, EXTENSIONS))})$"
MOST_NAMED = 20
"""Diagnoses that a message names of one lesion."""

COLUMNS = {
    "image_id": "",
    "lesion_id": "",
    "dx": "",
    "dx_type": "",
    "age": "",
    "sex": "",
    "localization": "",
    "source": "",
    "split": "",
    "group": "",
    "duplicate_of": "",
    "file": "",
    "copies": "",
    "table": "",
}
"""Columns of the text table, with the value of one that a source does not give. `group`: what must stay together like
the images of a lesion (a patient), "" for none; `duplicate_of`: the image that the set's own list calls the same;
`copies`: all files of that name, where there are several."""


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """A source's table with all of COLUMNS, `row` (the line in its file) and its further columns, indexed from 0.

    Ids of lesions and groups are brought to `one_spelling`: two spellings of one lesion would be two lesions. A word of
    labels.MISSING in another column is an empty cell, but for `unknown`, which vocabularies have.
    """
    if "row" not in table:
        table = table.assign(row=table.index)
    table = table.reset_index(drop=True)
    further = [column for column in table if column.startswith(EXTRA)]
    lacking = {column: value for column, value in COLUMNS.items() if column not in table}
    table = table.assign(**lacking)
    lesions = one_spelling(table["lesion_id"])
    # A lesion that is called like its image and has no other one: nothing is known of it, and it stays like the image.
    unknown = (table["lesion_id"] == table["image_id"]) & ((lesions == "") | ~lesions.duplicated(keep=False))
    return table.assign(
        lesion_id=table["lesion_id"].where(unknown, lesions),
        group=one_spelling(table["group"]),
        **{column: _emptied(table[column]) for column in ("dx", "dx_type", "age", "sex", "localization", "split")},
    )[[*COLUMNS, "row", *further]]


def _emptied(column: pd.Series) -> pd.Series:
    words = [word for word in MISSING if word != "unknown"]
    return column.where(~column.str.strip().str.casefold().isin(words), "")


def one_spelling(ids: pd.Series) -> pd.Series:
    """Ids as text [N], each in one spelling.

    No outer spaces, one space between words, whole numbers without `.0` (`12.0`, as a spreadsheet or pandas writes 12),
    full-width and other compatibility characters as plain ones (Unicode NFKC), no characters that nobody sees (of no
    width, soft hyphens), every dash a hyphen, no ending of an image file. Ids that then differ in case only take the
    most common of their spellings. A word of labels.MISSING is not an id and becomes "".
    """
    distinct = pd.Series(ids.unique(), dtype=object)
    tidy = distinct.map(_plain)
    tidy = tidy.str.replace(r"^(\d+)\.0*$", r"\1", regex=True).str.replace(IMAGE_ENDING, "", regex=True)
    tidy = tidy.where(~tidy.str.casefold().isin(MISSING), "")
    spelled = ids.map(dict(zip(distinct, tidy, strict=True)))
    by_fold = {word.casefold(): word for word in _most_common_spellings(spelled)}
    return spelled.map(lambda word: by_fold[word.casefold()]).astype(ids.dtype)


def _plain(text: str) -> str:
    plain = {"Pd": "-", "Cf": ""}  # dashes, and what has no width
    text = "".join(plain.get(unicodedata.category(sign), sign) for sign in unicodedata.normalize("NFKC", text))
    return " ".join(text.split())


def check_labels(table: pd.DataFrame, classes: Sequence[str] | None) -> list[Problem]:
    """Every fault of a text label table.

    Parameters
    ----------
    table : as `complete` gives it
    classes : the diagnosis codes of the source; None where the labels themselves say which there are

    Returns
    -------
    list of Problem in the table's order, empty when all is well. Later checks look at tidied text, so that a code with
    a stray space is one fault and not three.
    """
    tidy = tidied(table, classes)
    problems = [
        _problem("untidy_text", table, place, column, fixed=tidy.at[place, column])
        for column in tidy
        for place in table.index[table[column] != tidy[column]]
    ]
    view = table.assign(**{column: tidy[column] for column in tidy})
    problems += [_problem(kind, table, place, column) for kind, place, column in _schema_cases(view, classes)]
    problems = [_with_fix(problem, view, classes) for problem in problems]
    problems += _repeated_ids(view)
    unknown = [problem.place for problem in problems if problem.kind == "unknown_diagnosis"]
    problems += _lesions_with_two_diagnoses(view.drop(index=unknown))
    return sorted(problems, key=lambda problem: (problem.place, problem.column, problem.kind))


def tidied(table: pd.DataFrame, classes: Sequence[str] | None) -> pd.DataFrame:
    """The text columns without outer spaces and the endings of image files, words of vocabularies in their case."""
    text = table[["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "split"]]
    text = text.apply(lambda column: column.str.strip())
    shorter = text["image_id"].str.replace(IMAGE_ENDING, "", regex=True)
    named = text["dx"] if classes is not None else text["dx"].map(code_of)
    vocabulary = list(classes) if classes is not None else _most_common_spellings(named)
    by_fold = {word.casefold(): word for word in vocabulary}
    return text.assign(
        image_id=shorter,
        lesion_id=text["lesion_id"].where(text["lesion_id"] != text["image_id"], shorter),
        dx=named.map(lambda word: by_fold.get(word.casefold(), word)),
        sex=text["sex"].where(~text["sex"].str.lower().isin(SEXES), text["sex"].str.lower()),
        split=text["split"].str.lower(),
    )


def _most_common_spellings(words: pd.Series) -> list[str]:
    """Of words that differ in case only, the most common one, the first in order among equals."""
    counts = words.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    best: dict[str, str] = {}
    for word in counts.index:
        best.setdefault(word.casefold(), word)
    return list(best.values())


def _schema_cases(table: pd.DataFrame, classes: Sequence[str] | None) -> list[tuple[str, int, str]]:
    """Kind, row and column of every finding of pandera."""
    from pandera.errors import SchemaErrors
    from pandera.pandas import Check, Column, DataFrameSchema

    lower_age = table["age"].str.lower()
    age = pd.to_numeric(table["age"].where(~lower_age.isin(MISSING), "0"), errors="coerce")
    named = (
        Check.isin(list(classes), error="unknown_diagnosis")
        if classes is not None
        else Check.str_matches(r"^\w[\w .()'-]*$", error="unknown_diagnosis")
    )
    plain_id = Check.str_matches(r"^(?!\.{1,2}$)[^/\\\x00-\x1f]+$", error="bad_id")
    schema = DataFrameSchema(
        {
            "image_id": Column(str, plain_id),
            "lesion_id": Column(str, Check.str_length(min_value=1, error="no_lesion")),
            "dx": Column(str, named),
            "age_value": Column(float, Check.in_range(0, OLDEST, error="bad_age"), coerce=True, nullable=False),
            "sex": Column(str, Check.isin([*SEXES, ""], error="unknown_sex")),
            "split": Column(str, Check.isin(["train", "val", "test", ""], error="unknown_split")),
            "file": Column(str, Check.str_length(min_value=1, error="missing_image")),
            "copies": Column(str, Check.isin([""], error="ambiguous_image")),
            "duplicate_of": Column(str, Check.isin([""], error="listed_duplicate")),
        }
    )
    try:
        schema.validate(table.assign(age_value=age), lazy=True)
    except SchemaErrors as error:
        columns = {"age_value": "age", "file": "image_id", "copies": "image_id", "duplicate_of": "image_id"}
        return [
            (
                "bad_age" if case.column == "age_value" else str(case.check),
                int(case.index),
                columns.get(case.column, case.column),
            )
            for case in error.failure_cases.itertuples()
        ]
    return []


def _problem(kind: str, table: pd.DataFrame, place: int, column: str, fixed: str | None = None) -> Problem:
    row = table.loc[place]
    return Problem(kind, row["table"], int(row["row"]), column, row[column], "", int(place), fixed)


def _with_fix(problem: Problem, table: pd.DataFrame, classes: Sequence[str] | None) -> Problem:
    """The problem with its rule in words and, where there is an honest one, its fix."""
    row, kind, value = table.loc[problem.place], problem.kind, problem.value
    fixed = problem.fixed
    if kind == "bad_age":
        fixed = ""
    elif kind == "unknown_sex":
        fixed = SEX_WORDS.get(value.strip().lower(), "unknown")
    elif kind == "no_lesion":
        fixed = row["image_id"]
    rule = {
        "untidy_text": f"{value!r} should read {fixed!r}; fix writes it so",
        "bad_id": f"{value!r} cannot be an image id: it must be a plain file name without folders",
        "unknown_diagnosis": _unknown_diagnosis(value, classes),
        "no_lesion": "lesion_id is empty; without it the same lesion could be in train and test (fix: the image's id)",
        "bad_age": f"age {value!r} is not a number from 0 to {OLDEST}; leave it empty when unknown (fix does so)",
        "unknown_sex": f"sex {value!r}; expected one of {', '.join(SEXES)} or nothing (fix writes {fixed!r})",
        "unknown_split": f"split {value!r}; expected train, val, test or nothing",
        "missing_image": f"no image file for {value!r} (.jpg, .png, .bmp, .tif, .webp); add it or take the row out",
        "ambiguous_image": f"several files are called {value!r}: {row['copies']}; keep the right one",
        "listed_duplicate": f"the set's own list of duplicates calls it the same picture as {row['duplicate_of']!r}",
    }[kind]
    return Problem(kind, problem.file, problem.row, problem.column, value, rule, problem.place, fixed)


def _unknown_diagnosis(value: str, classes: Sequence[str] | None) -> str:
    known = f"; known: {', '.join(classes)}" if classes is not None else ""
    if not value.strip():
        return f"there is no diagnosis{known}"
    if "+" in value or "=" in value:
        return f"{value!r}: a row of a one-hot table needs exactly one class, said as 1, 1.0 or True{known}"
    hint = did_you_mean(value.strip().lower(), classes or [])
    return f"diagnosis {value!r} is unknown{known}{hint}"


def _repeated_ids(table: pd.DataFrame) -> list[Problem]:
    """Ids that occur again: with the same diagnosis (all but the first), or with several (every row)."""
    problems = []
    again = table[table["image_id"].duplicated(keep=False)]
    for image_id, rows in again.groupby("image_id", sort=False):
        codes = list(dict.fromkeys(rows["dx"]))
        if len(codes) > 1:
            rule = f"image {image_id!r} has several diagnoses: {', '.join(codes)}; keep the right row"
            problems += [_said("two_labels", table, place, "dx", rule) for place in rows.index]
        else:
            first = int(rows["row"].iloc[0])
            rule = f"image {image_id!r} is already in row {first}; keep one row"
            problems += [_said("duplicate_id", table, place, "image_id", rule) for place in rows.index[1:]]
    return problems


def _lesions_with_two_diagnoses(table: pd.DataFrame) -> list[Problem]:
    named = table[table["lesion_id"] != ""]
    several = named.groupby("lesion_id")["dx"].transform("nunique") > 1
    problems = []
    for lesion_id, rows in named[several].groupby("lesion_id", sort=False):
        if rows["image_id"].nunique() == 1:
            continue  # one image with two labels, which is said as such
        shown = rows.drop_duplicates("dx").head(MOST_NAMED)
        found = ", ".join(f"{code} in row {number}" for code, number in zip(shown["dx"], shown["row"], strict=True))
        found += f" (of {len(rows):,} rows)" if len(rows) > len(shown) else ""
        rule = f"lesion {lesion_id!r} has several diagnoses: {found}; a lesion has one"
        problems += [_said("two_diagnoses", table, place, "dx", rule) for place in rows.index]
    return problems


def _said(kind: str, table: pd.DataFrame, place: int, column: str, rule: str) -> Problem:
    row = table.loc[place]
    return Problem(kind, row["table"], int(row["row"]), column, row[column], rule, int(place))


def count_table(table: pd.DataFrame) -> dict[str, Any]:
    """How a published set is recognised: images, lesions, and how often each value occurs in a column."""
    words = {
        column: table[column].replace("", "unknown").value_counts().to_dict() for column in ("dx", "dx_type", "sex")
    }
    per_lesion = table["lesion_id"].value_counts()
    return {
        "images": len(table),
        "lesions": len(per_lesion),
        "lesions with several images": int((per_lesion > 1).sum()),
        "ages missing": int(table["age"].str.lower().isin(MISSING).sum()),
        "localizations": int(table.loc[table["localization"] != "unknown", "localization"].nunique()),
        **words,
    }


def check_counts(table: pd.DataFrame, expected: Mapping[str, Any], name: str) -> list[Problem]:
    """Compare the (tidied) table with the counts of the whole published set.

    Fewer images than published are a subset: that is noted, and nothing else is compared.
    """
    if not expected:
        return []
    found = count_table(table)
    sizes = np.atleast_1d(expected["images"])
    if found["images"] < sizes.min():
        rule = f"{found['images']:,} of {sizes.min():,} images: a subset, so its counts are not compared"
        return [Problem("unexpected_count", name, None, "", str(found["images"]), rule, action="noted")]
    problems = []
    for what, count in expected.items():
        parts = count.items() if isinstance(count, Mapping) else [("", count)]
        for word, right in parts:
            is_now = found[what].get(word, 0) if word else found[what]
            if is_now not in np.atleast_1d(right):
                rule = (
                    f"{what} {word}".strip() + f": {is_now:,}, but the published set has {right}; is it the right copy?"
                )
                problems.append(Problem("unexpected_count", name, None, word and what, str(is_now), rule))
    return problems
