"""What all writers of the download store share: a lock, a check for space, small records next to files."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from exp_tools.data.sources.registry import RemoteFile
from exp_tools.io import ProgressBar


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Hold the lock of `target` (a hidden file next to it); wait while another process or thread has it.

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


def say(text: str) -> None:
    """Print a line to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


def sidecar(path: Path, suffix: str) -> Path:
    """The file that belongs to `path`: its name with a suffix more."""
    return path.with_name(path.name + suffix)


def size_of(path: Path) -> int:
    """Bytes in a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def read_json(path: Path) -> dict[str, Any]:
    """A small file of our own; {} when it is missing or damaged, which costs hashing or fetching again and no more."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Digests:
    """Size in bytes and hexadecimal digests of a file's content."""

    size: int
    md5: str
    sha256: str


def digests_of(path: Path) -> Digests:
    """Read a file once, with progress, and digest it."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    bar = ProgressBar(
        desc=f"checking {path.name}",
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        leave=False,
    )
    with path.open("rb") as stream, bar:
        while chunk := stream.read(2**20):
            md5.update(chunk)
            sha256.update(chunk)
            size += len(chunk)
            bar.update(len(chunk))
    return Digests(size, md5.hexdigest(), sha256.hexdigest())


def difference(file: RemoteFile, size: int, md5: str) -> str:
    """How a size and an MD5 differ from the declared ones, in words; "" when they do not."""
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, expected were {file.size:,}"
    if file.md5 is not None and md5 != file.md5.lower():
        return f"its MD5 is {md5}, expected was {file.md5}"
    return ""
