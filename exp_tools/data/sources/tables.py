"""Text tables of any delimiter, and one-hot tables, read with every cell as text."""

import csv
import gzip
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.data.images.decode import files_below, index_images
from exp_tools.data.images.formats import has_image_ending, image_id
from exp_tools.errors import UserError, require_readable
from exp_tools.io import bare_cells

TABLE_ENDINGS = (".csv", ".tab", ".tsv", ".csv.gz", ".tsv.gz", ".xlsx")
OTHERS = (".xls", ".ods", ".parquet")
"""Endings of tables that are not read, so that a message can say so."""
LARGEST_TABLE = 2_000_000_000
"""Bytes that a packed table may unpack to."""
MOST_NAMED = 8
YES = ("1", "1.0", "true")
NO = ("0", "0.0", "false", "")


def is_table(path: Path) -> bool:
    """Whether a file is called like a table that is read."""
    return path.name.lower().endswith(TABLE_ENDINGS)


def read_table(path: Path, header: Sequence[str] = ()) -> pd.DataFrame:
    """Read a text table, packed by gzip or not, or the first sheet of a workbook, with every cell as text.

    The index is the line or row number in the file. `header` names the columns of a table that has no names itself.

    Raises
    ------
    UserError : as `read_text_table` and `read_sheet`
    """
    if path.suffix.lower() != ".xlsx":
        return read_text_table(path, header)
    rows = [(number, cells) for number, cells in enumerate(read_sheet(path), 1) if any(cells)]
    if not rows:
        raise UserError(f"{path} cannot be read as a table: its first sheet is empty")
    names = list(header) or rows.pop(0)[1]
    while names and not names[-1]:
        names.pop()
    _require_distinct(names, path)
    index = pd.Index([number for number, _ in rows], name="row")
    return pd.DataFrame([cells[: len(names)] for _, cells in rows], columns=names, index=index, dtype=str)


def _require_distinct(names: list[str], path: Path) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a column twice: {', '.join(names)}")


def _text_of(path: Path) -> str:
    """The text of a table, unpacked where gzip packed it."""
    if path.suffix.lower() != ".gz":
        return path.read_text(encoding="utf-8-sig")
    with gzip.open(path) as file:
        content = file.read(LARGEST_TABLE + 1)
    if len(content) > LARGEST_TABLE:
        raise OSError(f"it unpacks to more than {LARGEST_TABLE:,} bytes")
    return content.decode("utf-8-sig")


def read_text_table(path: Path, names: Sequence[str] = ()) -> pd.DataFrame:
    """Read a delimited text table with every cell as text; the index is the line number in the file, from 2.

    A byte-order mark, CRLF line ends, quoted cells, and commas, semicolons or tabs as delimiters are all read. `names`
    are those of a table without a header.

    Raises
    ------
    UserError
        The file is missing, empty, not UTF-8 text, or a row does not have the header's number of cells: named by line.
    """
    require_readable(path)
    try:
        text = _text_of(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: expected the label table there") from error
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a table of text: {error}; save it as UTF-8 CSV") from error
    if not text.strip() or "\0" in text:
        raise UserError(f"{path} cannot be read as a table of text: it is {'empty' if not text.strip() else 'binary'}")
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    rows, numbers = [], []
    try:
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        header = list(names) or [cell.strip() for cell in next(reader)]
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(cells)
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table of text: line {reader.line_num}: {error}") from error
    wrong = [(number, cells) for number, cells in zip(numbers, rows, strict=True) if len(cells) != len(header)]
    if wrong:
        number, cells = wrong[0]
        raise UserError(
            f"{path} cannot be read as a table of text: line {number} has {len(cells)} cells, the header {len(header)} "
            f"({len(wrong)} such lines); a cell that holds the delimiter {separator!r} must be in double quotes"
        )
    _require_distinct(header, path)
    return bare_cells(pd.DataFrame(rows, columns=header, index=pd.Index(numbers, name="row"), dtype=str))


def require_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> None:
    """Raise UserError when the table lacks a column."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{file} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. "
            f"Needed: {', '.join(columns)}. Rename the column or take the data set's own table"
        )


def tables_below(folder: Path) -> list[Path]:
    """Tables anywhere below a folder, in order of their paths."""
    return [path for path in files_below(folder) if is_table(path)]


def header_of(path: Path) -> list[str]:
    """Column names of a table, or the cells of its first line; empty for a file that is none."""
    require_readable(path)
    try:
        if path.suffix.lower() == ".xlsx":
            return list(read_table(path).columns)
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            line = file.readline().strip()
    except (UnicodeDecodeError, OSError, EOFError, UserError):
        return []
    return [cell.strip().strip('"') for cell in line.split(max(",;\t", key=line.count))]


def why_not(folder: Path, columns: Sequence[str]) -> str:
    """What a message says of the files below a folder that look like tables, and why none is the one wanted."""
    paths = [path for path in files_below(folder) if path.name.lower().endswith((*TABLE_ENDINGS, *OTHERS))]
    said = [f"{path.relative_to(folder).as_posix()} {_why_not(path, columns)}" for path in paths[:MOST_NAMED]]
    more = f"; and {len(paths) - MOST_NAMED:,} more files" if len(paths) > MOST_NAMED else ""
    return f": {'; '.join(said)}{more}" if said else f", nor any file that looks like one ({', '.join(TABLE_ENDINGS)})"


def _why_not(path: Path, columns: Sequence[str]) -> str:
    if not is_table(path):
        return "is no text: save it as CSV in UTF-8"
    try:
        if path.suffix.lower() == ".xlsx":
            found = list(read_table(path).columns)
            return _lacking(found, columns)
        content = _text_of(path).encode() if path.suffix.lower() == ".gz" else path.read_bytes()
    except (UserError, OSError, EOFError, UnicodeDecodeError) as error:
        return f"cannot be read ({error})"
    if not content.strip():
        return "is empty"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        return "is UTF-16 or binary: save it as CSV in UTF-8"
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"is not UTF-8 (byte {content[error.start]:#x} in line {line}): save it as CSV in UTF-8"
    found = header_of(path)
    if found and found[0].startswith("#"):
        return "begins with a comment: take the lines before the header out"
    return _lacking(found, columns)


def _lacking(found: Sequence[str], columns: Sequence[str]) -> str:
    missing = [column for column in columns if column not in found]
    alike = {name.casefold(): name for name in found}
    renamed = [f"{alike[column]} should be {column}" for column in missing if column in alike]
    return f"has no column {', '.join(missing)} ({', '.join(renamed) or 'it has ' + ', '.join(found[:12])})"


def one_hot_codes(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The one column of `columns` that is positive in each row; cells are 1, 1.0, True or 0, 0.0, False, "".

    A row that names no class gives "", one that names several gives "MEL+NV", a cell that says neither yes nor no gives
    "MEL=maybe": no class is called so, so validation reports the row.
    """
    cells = table[list(columns)].apply(lambda column: column.str.strip().str.lower())
    said = cells.isin(YES).to_numpy()
    names = np.array(columns, dtype=object)[said.argmax(axis=1)]
    for row in np.flatnonzero(said.sum(axis=1) != 1):
        names[row] = "+".join(column for column, yes in zip(columns, said[row], strict=True) if yes)
    for row, column in np.argwhere(~(said | cells.isin(NO).to_numpy())):
        names[row] = f"{columns[column]}={table[columns[column]].iloc[row]}"
    return pd.Series(names, index=table.index, dtype=object).astype(str)


def with_files(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Add `file`, the image of each row, and `copies`, other files of that name: found by name, never made from it.

    Spaces around an id and the ending of an image file do no harm.
    """
    found = index_images(folder)
    files, copies = [], []
    for name in table["image_id"].str.strip():
        paths = found.get(name) or found.get(image_id(name)) or []
        files.append(str(paths[0]) if paths else "")
        copies.append(", ".join(path.relative_to(folder).as_posix() for path in paths) if len(paths) > 1 else "")
    text = {"file": files, "copies": copies}
    return table.assign(**{name: pd.Series(cells, index=table.index, dtype=str) for name, cells in text.items()})


def with_named_files(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """`with_files`, and ids that are the names of files: the id is the name without folders and its ending.

    A name with folders means the file at that place, as far as both paths go, and no other of its name. Names that then
    are one id keep their folders, as `a__b`.
    """
    cells = table["image_id"].str.strip().str.replace("\\", "/").str.removeprefix("./")
    named = cells.str.contains("/") | cells.map(has_image_ending)
    named &= ~cells.str.contains(r"(?:^|/)\.\.?(?:/|$)|^/|:")
    if not named.any():
        return with_files(table, folder)
    places: dict[str, list[Path]] = {}
    for name, paths in index_images(folder).items():
        places.setdefault(name.casefold(), []).extend(paths)
    found = {cell: _at_place(cell, places, folder) for cell in cells[named].unique()}
    stems = {cell: image_id(cell.rsplit("/", 1)[-1]) for cell in found}
    often = pd.Series(list(stems.values())).value_counts()
    ids = {cell: stem if often[stem] == 1 else image_id(cell).replace("/", "__") for cell, stem in stems.items()}
    done = with_files(table.assign(image_id=table["image_id"].where(~named, cells.map(ids))), folder)
    sure = {cell: str(paths[0]) if paths else "" for cell, paths in found.items() if len(paths) < 2}
    decided = named & cells.isin(sure)
    return done.assign(file=done["file"].where(~decided, cells.map(sure)), copies=done["copies"].where(~decided, ""))


def ids_of_names(names: pd.Series) -> list[str]:
    """The ids of files by their names or paths: the name without folders and its ending."""
    return [image_id(name.strip().replace("\\", "/").rsplit("/", 1)[-1]) for name in names]


def _at_place(cell: str, places: dict[str, list[Path]], folder: Path) -> list[Path]:
    """Files whose path ends like a cell, or the other way round; the ending of the image may differ or be left out."""
    wanted = "/" + image_id(cell).casefold()
    found = []
    for path in places.get(wanted.rsplit("/", 1)[-1], []):
        place = "/" + image_id(path.relative_to(folder).as_posix()).casefold()
        if place.endswith(wanted) or wanted.endswith(place):
            found.append(path)
    exact = [path for path in found if path.name.casefold() == cell.rsplit("/", 1)[-1].casefold()]
    return exact or found


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Tables under each other, with `row` as the line in its own file; missing columns are ""."""
    numbered = [part if "row" in part else part.assign(row=part.index) for part in parts]
    return pd.concat(numbered, ignore_index=True).fillna("")


def only_one(paths: Sequence[Path], folder: Path, what: str, remedy: str = "; take the others away") -> Path:
    """The only path there is (or one of several that have the same content); else UserError that names them."""
    if len({path.read_bytes() for path in paths}) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        raise UserError(f"below {folder} is more than one {what}: {names}{remedy}")
    return paths[0]


LARGEST_SHEET = 50_000_000
"""Bytes that a part of a workbook may unpack to."""


def read_sheet(path: Path) -> list[list[str]]:
    """Cells of the first sheet as text, row by row from row 1; empty cells are "".

    Raises
    ------
    UserError
        The file is no .xlsx workbook, or a part of it unpacks to more than 50 MB.
    """
    from openpyxl import load_workbook

    require_readable(path)
    try:
        with zipfile.ZipFile(path) as book:
            if large := [part.filename for part in book.infolist() if part.file_size > LARGEST_SHEET]:
                raise ValueError(f"{large[0]} unpacks to more than {LARGEST_SHEET:,} bytes")
        sheet = load_workbook(path, data_only=True).worksheets[0]
    except Exception as error:  # openpyxl raises almost anything on damaged workbooks
        raise UserError(f"{path} cannot be read as an .xlsx workbook: {error}") from error
    return [["" if cell is None else str(cell).strip() for cell in row] for row in sheet.iter_rows(values_only=True)]
