"""Images with a table in any columns: your own, or that of a set for which there is a ready mapping.

The table is `data.table`, or the only one in the folder that has the columns. `data.test_table` is an optional second
one, whose images are the test set (`split.scheme: auto` or `column`); a column `split` says the same row by row.
Columns without a meaning here are kept as `extra_…`. Without a column for lesions the lesions are unknown.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from exp_tools.data.labels.synonyms import is_known, renamed, require_listed
from exp_tools.data.labels.table import EXTRA
from exp_tools.data.sources.mapping import COLUMNS, PLAIN, Mapping
from exp_tools.data.sources.registry import OPTIONS_OF_TABLES, DatasetSpec, by_words, read_options
from exp_tools.data.sources.tables import (
    header_of,
    ids_of_names,
    joined,
    one_hot_codes,
    only_one,
    read_table,
    tables_below,
    why_not,
    with_named_files,
)
from exp_tools.errors import UserError, did_you_mean

FACTS = DatasetSpec(title=PLAIN.title)
OPTIONS = OPTIONS_OF_TABLES
LICENCES = ("copyright_license", "license", "licence")
"""Columns that name the licence of an image."""
MOST_SHOWN = 12


class _Reading(NamedTuple):
    """What a reading goes by, and the notes that it makes."""

    raw: Path
    mapping: Mapping
    options: dict[str, Any]
    notes: list[str]
    left_out: list[str]


def read(raw: Path) -> pd.DataFrame:
    """Rows of the table, and of the test table behind them."""
    return read_mapped(raw, PLAIN, "table")


def read_mapped(raw: Path, mapping: Mapping, source: str) -> pd.DataFrame:
    """Rows of the table below a folder, read as a mapping and the user's options say.

    Of the result `attrs["notes"]` says in words which rows were left out on purpose, and what was read as what;
    `attrs["left_out"]` has the ids of their images.

    Raises
    ------
    UserError
        No table fits, several do, one cannot be read or lacks a column, a word is not in `data.classes`, no row is left
    """
    options = read_options(raw)
    reading = _Reading(raw, mapping.with_options(options), options, [], [])
    test = raw / options["test_table"] if "test_table" in options else None
    parts = [_rows(path, reading) for path in _tables(reading, test)]
    if test is not None:
        parts.append(_rows(test, reading).assign(split="test"))
    table = joined(*parts)
    table["source"] = table["source"].str.strip().replace("", source)
    table.attrs |= {"notes": reading.notes, "left_out": reading.left_out}
    return table


def _tables(reading: _Reading, test: Path | None) -> list[Path]:
    """The tables that are read: the one that is named, else those that fit, of which most mappings want one."""
    raw, mapping = reading.raw, reading.mapping
    if "table" in reading.options:
        return [raw / reading.options["table"]]
    fitting = [path for path in tables_below(raw) if path != test and _fits(header_of(path), mapping)]
    wanted = [mapping.names_of("image_id")[0], *(mapping.one_hot or [mapping.names_of("dx")[0]])]
    columns = f"the columns {' and '.join(wanted)}" if len(wanted) == 2 else f"the columns {', '.join(wanted)}"
    if mapping.header:
        columns = f"{len(mapping.header)} columns without a header"
    if not fitting:
        raise UserError(
            f"there is no table below {raw} with {columns}{why_not(raw, wanted)}. Name yours with data.table, or say "
            "which of its columns is what: -S 'data.columns={image_id: …, dx: …}'"
        )
    if mapping.splits:
        return fitting
    return [only_one(fitting, raw, f"table with {columns}", "; name the right one with data.table")]


def _fits(header: list[str], mapping: Mapping) -> bool:
    if mapping.header:
        return len(header) == len(mapping.header)
    has_id = set(mapping.names_of("image_id")) & set(header)
    of_class = set(mapping.one_hot or mapping.names_of("dx")) & set(header)
    joins = mapping.one_hot and mapping.join in set(header) - set(mapping.names_of("image_id"))
    return bool(has_id and (of_class or joins))


def _rows(path: Path, reading: _Reading) -> pd.DataFrame:
    raw, mapping = reading.raw, reading.mapping
    cells = read_table(path, mapping.header)
    if cells.empty:
        raise UserError(f"{path.name} has a header and no row: add a row for each image")
    if mapping.join:
        cells = _joined_by(mapping.join, cells, path, raw)
    every = cells = _with_splits(cells, path, reading)
    cells = _licensed(_filtered(cells, path, reading), path, reading)
    names = {column: [name for name in mapping.names_of(column) if name in cells] for column in COLUMNS}
    _require(names, cells, path, reading)
    one_hot = [name for name in mapping.one_hot if name in cells]
    if one_hot and not names["dx"]:
        cells = cells.assign(dx=one_hot_codes(cells, one_hot).replace({"": mapping.otherwise, **mapping.one_hot}))
        names["dx"] = ["dx"]
    ours = {column: _first_filled(cells[found]) for column, found in names.items() if found and column != "dx"}
    rows = pd.DataFrame(ours, index=cells.index).assign(dx=_diagnoses(cells[names["dx"]], path, reading))
    for column, meanings in mapping.values.items():
        if column in rows:
            rows[column] = by_words(rows[column], meanings)
    used = {name for found in names.values() for name in found} | set(one_hot)
    rows = rows.assign(**_extras(cells.drop(columns=list(used & set(cells.columns)))))
    reading.left_out.extend(
        ids_of_names(every[names["image_id"][0]][~every.index.isin(rows.index[rows["dx"].notna()])])
    )
    rows = with_named_files(rows[rows["dx"].notna()].assign(table=path.name), raw)
    if "lesion_id" not in rows:
        rows["lesion_id"] = rows["image_id"]
    return rows if "source" in rows else rows.assign(source="")


def _require(names: dict[str, list[str]], cells: pd.DataFrame, path: Path, reading: _Reading) -> None:
    """Raise UserError when the table lacks a column that is needed, or one that the user names."""
    named = reading.options.get("columns", {})
    one_hot = set(reading.mapping.one_hot) & set(cells)
    needed = [column for column in ("image_id", "dx") if not (column == "dx" and one_hot)]
    for column in dict.fromkeys([*needed, *named]):
        if not names[column]:
            wanted = " or ".join(reading.mapping.names_of(column))
            hint = did_you_mean(reading.mapping.names_of(column)[0], cells.columns)
            raise UserError(
                f"{path.name} has no column {wanted} for {column}{hint}; it has {', '.join(cells.columns)}. Say which "
                f"one it is: -S 'data.columns={{{column}: …}}'"
            )


def _first_filled(cells: pd.DataFrame) -> pd.Series:
    """In each row the first cell that is not empty."""
    return cells.where(cells.apply(lambda column: column.str.strip() != "")).bfill(axis=1).iloc[:, 0].fillna("")


def _diagnoses(cells: pd.DataFrame, path: Path, reading: _Reading) -> pd.Series:
    """The code of each row: as `classes` says, else by the known synonyms; NaN for rows to leave out.

    Of several columns the first counts that is a known diagnosis, else the last that says anything.
    """
    classes = {word.strip().casefold(): code for word, code in reading.mapping.classes.items()}

    def known(word: str) -> bool:
        return word.strip().casefold() in classes or is_known(word)

    chosen = _first_filled(cells[cells.columns[::-1]])
    for name in cells.columns[::-1]:
        chosen = cells[name].where(cells[name].map(known), chosen)
    if reading.options.get("classes"):
        require_listed(chosen, reading.mapping.classes, path.name)
    codes, read_as = renamed(chosen, any_case=reading.mapping.title != PLAIN.title)
    listed = chosen.str.strip().str.casefold()
    left_out = listed.isin([word for word, code in classes.items() if code is None])
    codes = codes.where(~listed.isin(classes), listed.map(lambda word: classes.get(word) or ""))
    for word, count in chosen[left_out].value_counts().items():
        reading.notes.append(f"{path.name}: {count:,} rows of {word!r} are left out, as data.classes says")
    shown = [f"{word} = {code}" for word, code in sorted(read_as.items()) if word.strip().casefold() not in classes]
    if shown:
        more = f" and {len(shown) - MOST_SHOWN:,} more" if len(shown) > MOST_SHOWN else ""
        reading.notes.append(f"{path.name}: read as diagnoses: {', '.join(shown[:MOST_SHOWN])}{more}")
    return codes.mask(left_out)


def _filtered(cells: pd.DataFrame, path: Path, reading: _Reading) -> pd.DataFrame:
    for name, words in reading.mapping.filter.items():
        if name not in cells:
            if name in reading.options.get("filter", {}):
                hint = did_you_mean(name, cells.columns)
                raise UserError(f"{path.name} has no column {name} for data.filter{hint}; it has {', '.join(cells)}")
            continue
        words = [words] if isinstance(words, str) else words
        named = " or ".join(words)
        wanted = [word.strip().casefold() for word in words]
        kept = cells[cells[name].str.strip().str.casefold().isin(wanted)]
        _require_rows(kept, cells[name], path, f"data.filter {name}: {named}")
        if len(kept) < len(cells):
            reading.notes.append(f"{path.name}: {len(kept):,} of {len(cells):,} rows have {name} {named}")
        cells = kept
    return cells


def _licensed(cells: pd.DataFrame, path: Path, reading: _Reading) -> pd.DataFrame:
    """Rows whose licence is one of `data.licences`."""
    wanted = reading.options.get("licences")
    if wanted is None:
        return cells
    name = next((name for name in LICENCES if name in cells), None)
    if name is None:
        raise UserError(
            f"{path.name} has no column {' or '.join(LICENCES)} for data.licences; it has {', '.join(cells)}"
        )
    plain = [_plain_licence(word) for word in wanted]
    kept = cells[cells[name].map(_plain_licence).isin(plain)]
    _require_rows(kept, cells[name], path, f"data.licences {', '.join(wanted)}")
    if len(kept) < len(cells):
        reading.notes.append(f"{path.name}: {len(kept):,} of {len(cells):,} rows have a licence of data.licences")
    return kept


def _plain_licence(word: str) -> str:
    """CC-BY-NC, CC BY-NC 4.0 and cc_by_nc are one licence."""
    return re.sub(r"\d\.\d|[^a-z0]", "", word.casefold())


def _require_rows(kept: pd.DataFrame, words: pd.Series, path: Path, what: str) -> None:
    if kept.empty:
        found = ", ".join(f"{word!r} ({count:,})" for word, count in words.value_counts()[:MOST_SHOWN].items())
        raise UserError(f"{path.name}: no row passes {what}; the column has {found}")


def _joined_by(column: str, cells: pd.DataFrame, path: Path, raw: Path) -> pd.DataFrame:
    """The table with the columns that other tables below the folder have for the same value of a column."""
    for other in tables_below(raw):
        header = header_of(other)
        new = [name for name in header if name not in cells]
        if other == path or column not in header or column not in cells or not new:
            continue
        more = read_table(other).assign(**{column: lambda rows: rows[column].str.strip()})
        if more[column].duplicated().any():
            continue  # a table of something finer, as of images where the column names lesions
        ids = cells[column].str.strip()
        cells = cells.join(ids.to_frame("_").join(more.set_index(column)[new], on="_")[new].fillna(""))
    return cells


def _with_splits(cells: pd.DataFrame, path: Path, reading: _Reading) -> pd.DataFrame:
    """The table with the column `split` that its name or files of row numbers say."""
    for word, split in reading.mapping.splits.items():
        if word in path.name.casefold():
            return cells.assign(split=split)
    by_place = {}
    for name, split in reading.mapping.indexes.items():
        for other in tables_below(reading.raw):
            if other.name == name:
                by_place |= dict.fromkeys(read_table(other)["indexes"].str.strip(), split)
    places = pd.Series([str(place) for place in range(len(cells))], index=cells.index)
    return cells.assign(split=places.map(by_place).fillna("")) if by_place else cells


def _extras(cells: pd.DataFrame) -> dict[str, pd.Series]:
    """Further columns under plain names of their own: lower case, `extra_` in front."""
    found: dict[str, pd.Series] = {}
    for name in cells.columns:
        short = EXTRA + (re.sub(r"\W+", "_", name.casefold()).strip("_") or "column")
        while short in found:
            short += "_"
        found[short] = cells[name]
    return found
