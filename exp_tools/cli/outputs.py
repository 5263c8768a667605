"""Where a command may write: never over a file of the user's, an input or a link.

A command replaces what it wrote before, which is told by content: a table by its columns, a picture by io.MARK.
"""

import csv
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from exp_tools.errors import UserError
from exp_tools.project import OUTPUT_FILES, OUTPUT_FOLDERS, find_project

OUTPUTS = (*OUTPUT_FILES, *OUTPUT_FOLDERS)


def may_write(out: Path, is_own: Callable[[Path], bool], *, inputs: Iterable[Path | None] = ()) -> None:
    """Raise UserError unless `out` is free to be written: before any work, and with nothing touched.

    Parameters
    ----------
    out : the file that will be written
    is_own : whether an existing file is an earlier output of the command, which may be replaced
    inputs : files that the command reads
    """
    for given in inputs:
        if given is not None and os.path.isfile(given) and os.path.isfile(out) and os.path.samefile(out, given):
            raise UserError(f"{out} is what the command reads ({given}). Nothing was written. Name another output")
    if out.is_symlink():
        raise UserError(
            f"{out} is a symbolic link to {os.readlink(out)}. Nothing was written. Name the file itself, or take the "
            f"link away (rm {shlex.quote(str(out))})"
        )
    root = find_project(out.absolute().parent)
    place = out.parent.resolve() / out.name
    if (root / "dvc.yaml").is_file() and any(place.is_relative_to(root.resolve() / own) for own in OUTPUTS):
        raise UserError(f"{out} belongs to the pipeline, which removes it on its next run. Name another output")
    if out.is_dir():
        raise UserError(f"{out} is a folder. Nothing was written. Name a file in it: {out / 'NAME'}")
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is a device, not a file. Nothing was written. Name a file")
    if out.is_file() and out.stat().st_size and not is_own(out):
        move = shlex.join(["mv", str(out), str(out.with_name(out.name + ".mine"))])
        raise UserError(
            f"{out} exists, and this command did not write it. Nothing was written. Name another output, or move that "
            f"file away ({move})"
        )
    parent = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if os.path.lexists(folder))
    if not parent.is_dir():
        raise UserError(f"{out}: {parent} is not a folder. Nothing was written. Name another output")
    try:  # whoever is root may write anywhere by the permissions, and still not into /proc or a read-only disk
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".exp-tools-"):
            pass
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"{out}: {parent} cannot be written to ({why}). Nothing was written. Name another output"
        ) from error


def is_table(*columns: str) -> Callable[[Path], bool]:
    """A CSV whose header has these columns, quoted (as `io.write_csv` does at need) or not."""

    def is_own(path: Path) -> bool:
        return set(columns) <= set(next(csv.reader([_first_line(path)]), []))

    return is_own


def starts_with(text: str) -> Callable[[Path], bool]:
    """A text file whose first line is this."""
    return lambda path: _first_line(path).rstrip("\r\n") == text


def is_report(*keys: str) -> Callable[[Path], bool]:
    """A JSON file with these keys."""

    def is_own(path: Path) -> bool:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(content, dict) and content.keys() >= set(keys)

    return is_own


def is_drawn_by_us(path: Path) -> bool:
    """A PNG with MARK."""
    from PIL import Image, UnidentifiedImageError

    from exp_tools.io import MARK

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return MARK.items() <= getattr(image, "text", {}).items()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def holds(text: str) -> Callable[[Path], bool]:
    """A file that has this text anywhere in its bytes."""
    return lambda path: text.encode() in path.read_bytes()


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(100_000)
