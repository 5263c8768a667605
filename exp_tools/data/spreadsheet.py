"""The first sheet of an .xlsx workbook as rows of text: all that a label table needs of the format (ECMA-376)."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from exp_tools.errors import UserError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LARGEST = 50_000_000


def read_sheet(path: Path) -> list[list[str]]:
    """Cells of the first sheet as text, row by row from row 1; empty cells are "".

    Raises
    ------
    UserError
        The file is no such workbook, or a part of it unpacks to more than 50 MB.
    """
    try:
        with zipfile.ZipFile(path) as book:
            strings = _part(book, "xl/sharedStrings.xml") if "xl/sharedStrings.xml" in book.namelist() else None
            sheet = _part(book, "xl/worksheets/sheet1.xml")
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as an .xlsx workbook: {error}") from error
    shared = [] if strings is None else [_text(item) for item in strings.iter(f"{_MAIN}si")]
    rows: list[list[str]] = []
    for row in sheet.iter(f"{_MAIN}row"):
        number = int(row.get("r", len(rows) + 1))
        rows += [[] for _ in range(min(number, 1_048_576) - len(rows))]
        for cell in row.iter(f"{_MAIN}c"):
            column = _column(cell.get("r", ""), len(rows[-1]))
            rows[-1] += [""] * (column + 1 - len(rows[-1]))
            rows[-1][column] = _value(cell, shared)
    return rows


def _part(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if book.getinfo(name).file_size > _LARGEST:
        raise RuntimeError(f"{name} unpacks to more than {_LARGEST:,} bytes")
    return ElementTree.fromstring(book.read(name))


def _value(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell).strip()
    value = cell.findtext(f"{_MAIN}v") or ""
    if cell.get("t") == "s" and value.isdecimal() and int(value) < len(shared):
        value = shared[int(value)]
    return value.strip()


def _text(item: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in item.iter(f"{_MAIN}t"))


def _column(reference: str, fallback: int) -> int:
    """Position of a column from a cell's name: A1 is 0, AA3 is 26."""
    letters = re.match(r"[A-Z]{1,3}", reference)
    if not letters:
        return fallback
    place = 0
    for letter in letters[0]:
        place = place * 26 + ord(letter) - ord("A") + 1
    return place - 1
