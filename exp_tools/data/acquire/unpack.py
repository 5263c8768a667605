"""Unpack an archive into a folder: nothing outside it, no decompression bomb, all or nothing, and only once.

Archives come from the network or from anybody's disk, so neither their names nor their sizes are believed.
"""

import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from exp_tools.data.acquire.archives import name_in_zip
from exp_tools.data.acquire.store import one_at_a_time, read_json
from exp_tools.data.images.decode import is_clutter
from exp_tools.errors import UserError
from exp_tools.io import ProgressBar, file_sha256, in_words, require_space, scratch_folder, write_json

MARKER = ".unpacked.json"
CHUNK = 2**20
MAX_RATIO = 200  # of unpacked to packed size; photographs have about 1, tables 10, black-and-white masks 100
UNSUSPICIOUS = 10_000_000  # bytes that may be packed as tightly as they like
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
)


def unpack(archive: Path, target: Path, *, max_bytes: int, max_files: int) -> list[Path]:
    """Unpack a .zip or .tar.gz into the folder `target`; returns the sorted files; does nothing if it was done before.

    The folder appears whole or not at all. One that this function made is replaced when the archive is another one now
    or a file is gone. Names are the archive's own, without what systems leave (`is_clutter`); times and permissions are
    not taken over.

    Parameters
    ----------
    max_bytes, max_files : the most that the archive may hold, unpacked; files, folders and all

    Raises
    ------
    UserError
        No archive, damaged, encrypted, too large, a name that leaves the folder, a link or a device in it, no room; or
        `target` holds files that did not come from here. `target` is then as it was.
    """
    archive, target = Path(archive), Path(target)
    try:
        if files := _files_there(archive, target):
            return files
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target):
            # Another process may have unpacked it while this one waited.
            return _files_there(archive, target) or _unpack(archive, target, max_bytes, max_files)
    except UserError as error:
        raise UserError(f"{archive} was not unpacked: {error}") from error
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise UserError(f"{archive} was not unpacked to {target}: {error.strerror or error}") from error
        raise _damaged(archive, error) from error
    except DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"{archive} is damaged, incomplete or packed in an unknown way ({error}); replace it by a whole copy, "
        "or delete it if it was downloaded"
    )


def _files_there(archive: Path, target: Path) -> list[Path]:
    """The files in `target` when they are exactly those of this archive, else none."""
    marker, status = read_json(target / MARKER), archive.stat()
    if not marker or marker["size"] != status.st_size:
        return []
    if marker["mtime_ns"] != status.st_mtime_ns:
        if marker["sha256"] != file_sha256(archive):
            return []
        write_json(target / MARKER, {**marker, "mtime_ns": status.st_mtime_ns})  # the same, copied: hash it only once
    try:
        whole = all(os.stat(f"{target}/{name}").st_size == size for name, size in marker["files"].items())
    except OSError:
        return []
    return [target / name for name in sorted(marker["files"])] if whole else []


def _unpack(archive: Path, target: Path, max_bytes: int, max_files: int) -> list[Path]:
    if target.exists() and not (target / MARKER).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already and was not unpacked by this program; move it away")
    if foreign := _foreign(target):
        raise UserError(f"{target} holds {foreign}, which came from no archive; move it to a folder of your own")
    status = archive.stat()
    limit = min(max_bytes, max(UNSUSPICIOUS, MAX_RATIO * status.st_size))
    with scratch_folder(target.parent, "unpacking") as scratch:
        sizes = _extract(archive, scratch / "new", limit, max_files)
        if not sizes:
            raise UserError("there is no file in it")
        marker = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file_sha256(archive),
            "files": sizes,
        }
        write_json(scratch / "new" / MARKER, marker)
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(scratch / "new", target)
    return [target / name for name in sorted(sizes)]


def _foreign(target: Path) -> str:
    """A file in a folder that was unpacked here which somebody else put there; "" when there is none."""
    known = {MARKER, *read_json(target / MARKER).get("files", {})}
    names = (path.relative_to(target).as_posix() for path in sorted(target.rglob("*")) if not path.is_dir())
    return next((name for name in names if name not in known), "")


def _extract(archive: Path, folder: Path, limit: int, max_files: int) -> dict[str, int]:
    """Write the archive's files below `folder`; returns their names and sizes. At most `limit` bytes are written."""
    folder.mkdir(parents=True)
    sizes: dict[str, int] = {}
    folders: set[PurePosixPath] = set()
    left = limit
    with ProgressBar(desc=f"unpacking {archive.name}", unit="B", unit_scale=True) as bar:
        for count, (name, stream) in enumerate(_entries(archive, folder, limit, bar), start=1):
            if count > max_files:
                raise UserError(f"it holds more than {max_files:,} files, the most that are expected")
            path = _safe(name)
            if stream is None or any(map(is_clutter, path.parts)):
                continue
            if str(path) in sizes:
                raise UserError(f"it holds {name!r} twice")
            if path.parent not in folders:
                (folder / path.parent).mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            with (folder / path).open("wb") as out:
                while chunk := stream.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise _too_large(limit)
                    out.write(chunk)
                    bar.update(len(chunk))
                sizes[str(path)] = out.tell()
    return sizes


def _entries(archive: Path, folder: Path, limit: int, bar: ProgressBar) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every entry of the archive; a folder has no content."""
    if zipfile.is_zipfile(archive):
        return _zip_entries(archive, folder, limit, bar)
    with archive.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            return _tar_entries(archive, limit)
    raise UserError("it is neither a zip nor a tar.gz archive, or its end is missing")


def _zip_entries(archive: Path, folder: Path, limit: int, bar: ProgressBar) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as container:
        declared = sum(member.file_size for member in container.infolist())
        if declared > limit:
            raise _too_large(limit)
        require_space(folder, declared, "unpacking it")
        bar.reset(declared)
        for member in container.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 when it was packed on Windows
            name = name_in_zip(member)
            if member.flag_bits & 1:
                raise UserError(f"{name!r} in it is encrypted; unpack it by hand and use the folder")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(name)
            if name.endswith("/") or kind == stat.S_IFDIR:
                yield name, None
            else:
                with container.open(member) as stream:
                    yield name, stream


def _tar_entries(archive: Path, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    with gzip.open(archive) as stream:
        bounded = _Bounded(stream, limit)
        with tarfile.open(fileobj=bounded, mode="r|") as container:
            for member in container:
                if not (member.isreg() or member.isdir()):
                    raise _not_plain(member.name)
                yield member.name, container.extractfile(member)
        while bounded.read(CHUNK):  # to the very end, where gzip's checksum is
            pass


class _Bounded:
    """The stream of a tar archive; its headers can request any amount of memory."""

    def __init__(self, stream: IO[bytes], limit: int):
        self.stream = stream
        self.limit = limit
        self.left = 2 * limit + UNSUSPICIOUS  # headers and padding are up to 1.5 kB a file

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise _too_large(self.limit)
        return content


def _safe(name: str) -> PurePosixPath:
    """The name as a path below any folder, on any system."""
    parts = re.split(r"[/\\]", name)
    leaves = [part for part in parts if re.match(r"[A-Za-z]:", part) or (part.strip(" .") == "" and len(part) > 1)]
    if name.startswith(("/", "\\")) or leaves or "\0" in name:
        raise UserError(f"the name {name!r} in it leads out of the folder; do not trust this archive")
    return PurePosixPath(*(part for part in parts if part not in ("", ".")))


def _not_plain(name: str) -> UserError:
    return UserError(f"{name!r} in it is a link or a device, not a file; do not trust this archive")


def _too_large(limit: int) -> UserError:
    return UserError(f"it unpacks to more than {in_words(limit)}, the most that is expected of such an archive")
