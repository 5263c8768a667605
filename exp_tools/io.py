"""File helpers: atomic writes, temporaries that killed runs leave, links without copies, hashes."""

import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from exp_tools.errors import UserError, disk_fault

if TYPE_CHECKING:
    from PIL.Image import Image

MAKER = f"{re.sub(r'[^A-Za-z0-9]', '', platform.node())[:32]}-{os.getpid()}"
"""This machine and process, in the names of temporaries."""
_DAY = 86_400
MARK = {"Software": "exp-tools"}
"""Text in PNG files that this project draws; a command replaces no other."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on any error.

    Temporaries of the same file that killed processes left are removed first. A full or read-only disk is a UserError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{MAKER}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except Exception as error:
        of_others = {getattr(error, "filename", None)} - {None, *map(str, (temporary, path, path.parent))}
        fault = None if of_others else disk_fault(error, path, "could not be written")
        if fault is None:
            raise
        raise fault from error


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None, name: str = "exp-tools") -> Iterator[Path]:
    """An empty folder in `parent` (default: the system's place for such), removed at the end.

    Those of the same name that killed processes left are removed first.
    """
    parent = Path(parent or tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent, name)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=f".{MAKER}.tmp", dir=parent))
    except OSError as error:
        raise (disk_fault(error, parent, "cannot be written to") or error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporaries of `atomic_write` and `scratch_folder` whose process is gone: of killed runs.

    Only what has the whole name that we give goes. Of another machine (a shared disk) nobody can tell what runs there:
    its temporaries go when they are older than a day.
    """
    pattern = re.compile(rf"\.{re.escape(name)}\.(\w+\.)?((?P<machine>[A-Za-z0-9]*)-)?(?P<process>\d+)\.tmp")
    for entry in os.scandir(folder):
        found = pattern.fullmatch(entry.name)
        if not found or _at_work(found["machine"], int(found["process"]), entry.stat(follow_symlinks=False).st_mtime):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _at_work(machine: str | None, process: int, changed: float) -> bool:
    """Whether a temporary's maker may still be there; a process that started later has only got its number."""
    import psutil  # here, since there is hardly ever a leftover

    if machine not in (None, MAKER.rpartition("-")[0]):
        return time.time() - changed < _DAY
    try:
        return psutil.Process(process).create_time() <= changed
    except psutil.NoSuchProcess:
        return False


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, floats rounded to six decimals and NaN as null: small, stable, valid everywhere."""
    with atomic_write(path) as temporary:
        text = json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NO_FORMULA = re.compile(r"'*[-+]?(\d+\.?\d*|\.\d+)?([eE][-+]?\d+)?")


def guard_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would take for a formula; see `bare_cells`.

    Such a text begins with =, +, -, @, a tab or a line end and is no number (OWASP, CSV injection).
    """
    return _with_texts(table, lambda text: f"'{text}" if _computes(text) else text)


def bare_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the apostrophes of `guard_cells`: every text as it was before."""
    return _with_texts(table, lambda text: text[1:] if text[:1] == "'" and _computes(text) else text)


def _computes(text: str) -> bool:
    return bool(_FORMULA.match(text)) and not _NO_FORMULA.fullmatch(text)


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = {}
    for name in table:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            cells = table[name].tolist()
            new = [change(cell) if isinstance(cell, str) else cell for cell in cells]
            if any(one is not other for one, other in zip(cells, new, strict=True)):
                changed[name] = pd.Series(new, index=table.index, dtype=table[name].dtype)
    return table.assign(**changed) if changed else table


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, with "\\n" line ends on every platform and its cells guarded (`guard_cells`)."""
    texts = (cell for name in table.select_dtypes(exclude="number") for cell in table[name] if isinstance(cell, str))
    returns = any("\r" in text for text in texts)  # which Python's csv leaves bare, and readers take for a line's end
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with atomic_write(path) as temporary:
        guard_cells(table).to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8", quoting=quoting)


def write_png(path: Path, picture: "Image") -> None:
    """Write a picture of Pillow's as PNG, with MARK."""
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    for key, text in MARK.items():
        about.add_text(key, text)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=about)


def plain(value: Any) -> Any:
    """A value as JSON allows it: NumPy's numbers as plain ones, floats with six decimals, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def link_file(origin: Path, target: Path) -> None:
    """Make `target` a symbolic link to `origin`, or a copy where the system allows no links.

    Never a hard link: DVC makes what it caches read-only, and through a hard link that would be the user's original.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(origin.resolve())
    except OSError:
        shutil.copyfile(origin, target)


class ProgressBar(tqdm):
    """tqdm's bar on a terminal; elsewhere (nohup, Slurm, a log) a line per minute, none for what takes less."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.on_terminal = sys.stderr.isatty()
        slow = {} if self.on_terminal else {"mininterval": 60, "maxinterval": 60, "miniters": 1, "delay": 60}
        super().__init__(*args, **slow | options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the bar, or write its line."""
        if self.on_terminal:
            return super().display(msg, pos)
        if self.n or msg:
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()
        return True


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise UserError when the disk of `folder` (which exists) has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs {in_words(needed)} in {folder}, where {in_words(free)} are free; "
            f"make room for {in_words(needed - free)} more"
        )


def in_words(size: int) -> str:
    """A number of bytes for people: 999 bytes, 1.37GB (powers of 1000, as in the progress bars)."""
    return f"{size} bytes" if size < 1000 else tqdm.format_sizeof(size, "B")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex digits: what names a model to people and programs."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """MD5 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
