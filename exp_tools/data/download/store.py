"""What all who write to the download store share: one at a time, room asked for first, small records beside files."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from exp_tools.errors import UserError


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Hold the lock of `target` (a hidden file beside it); wait, and say so, while another process or thread has it.

    The lock belongs to the process, not to the file: one that was killed leaves nothing to clean up.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{target.name}: another process is at it; waiting for it to end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def say(text: str) -> None:
    """Print a line to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to `path`: its name with a suffix more."""
    return path.with_name(path.name + suffix)


def size_of(path: Path) -> int:
    """Bytes in a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def read_json(path: Path) -> dict[str, Any]:
    """A small file of our own; {} when it is missing or damaged, which costs hashing or fetching again and no more."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
