"""The diagnosis that a word of a table or the name of a folder means.

`synonyms.csv` is the one list of such words beside the taxonomy's codes and names: `word`, `code`, and `source`, where
the word is used. Most come from the hierarchy of diagnoses of the ISIC Archive (the package isic-metadata, Apache 2.0).
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from exp_tools.errors import UserError, did_you_mean
from exp_tools.taxonomy import DIAGNOSES, OTHER_DIAGNOSES

MOST_SHOWN = 12
LIST = Path(__file__).with_name("synonyms.csv")


def code_of(word: str) -> str:
    """Code of a diagnosis given by code, name or synonym, in any case, with - or _ for spaces; else the word."""
    return _known().get(plain(word), word)


def is_known(word: str) -> bool:
    """Whether a word is the code, the name or a synonym of a diagnosis."""
    return plain(word) in _known()


def plain(word: str) -> str:
    """A word as synonyms are compared: lower case, one space for each run of spaces, `-` and `_`."""
    return " ".join(word.casefold().replace("-", " ").replace("_", " ").split())


def renamed(words: pd.Series, *, any_case: bool) -> tuple[pd.Series, dict[str, str]]:
    """Diagnoses with the code for every name and synonym, and what was read as what.

    Unless `any_case`, a code in another case or with spaces around it stays as it is: in a table that should be in
    codes that is a mistake to be shown, no other word.
    """
    codes = {word: code_of(word) for word in words.unique()}
    other = {word: code for word, code in codes.items() if plain(word) != plain(code)}
    return words.map(codes if any_case else lambda word: other.get(word, word)), other


def require_listed(words: pd.Series, classes: Mapping[str, str | None], where: str) -> None:
    """Raise UserError for words that are neither listed in `data.classes`, nor one of its codes, nor known.

    Parameters
    ----------
    words : what a table or the names of folders say, one per row
    classes : word -> code, in any case
    where : the table or folder, for the message
    """
    listed = {word.strip().casefold() for word in classes}
    codes = set(classes.values())
    meant = words.map(lambda word: word.strip().casefold() in listed or word in codes or is_known(word))
    counts = words[~meant.astype(bool)].value_counts()
    if counts.empty:
        return
    some = counts[:MOST_SHOWN].items()
    shown = ", ".join(f"{word!r} ({count:,}){did_you_mean(word, classes)}" for word, count in some)
    more = f" and {len(counts) - MOST_SHOWN:,} more" if len(counts) > MOST_SHOWN else ""
    raise UserError(
        f"{where}: data.classes does not list {shown}{more}. Add them, each with its class, or null to leave these "
        "rows out"
    )


@cache
def _known() -> dict[str, str]:
    with LIST.open(encoding="utf-8", newline="") as file:
        known = {row["word"]: row["code"] for row in csv.DictReader(file)}
    for diagnosis in reversed((*DIAGNOSES.values(), *OTHER_DIAGNOSES.values())):
        known[plain(diagnosis.name)] = known[plain(diagnosis.code)] = diagnosis.code
    return known
