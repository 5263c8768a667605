"""What an archive is and holds, without unpacking it."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from exp_tools.data.images.decode import is_clutter
from exp_tools.data.images.formats import HEAD, format_of, has_image_ending
from exp_tools.errors import UserError

KINDS = {
    "7z": b"7z\xbc\xaf\x27\x1c",
    "RAR": b"Rar!\x1a\x07",
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
}
TAR_MARK = b"ustar", 257


def archive_kind(path: Path) -> str:
    """The kind of an archive that is no zip, by its first bytes: 7z, RAR, gzip, bzip2, xz, zstd or tar; "" for none."""
    mark, place = TAR_MARK
    try:
        with path.open("rb") as file:
            head = file.read(place + len(mark))
    except OSError:
        return ""
    if head[place:] == mark:
        return "tar"
    return next((kind for kind, start in KINDS.items() if head.startswith(start)), "")


def zip_members(archive: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip archive; UserError where it is none, or not a whole one."""
    try:
        with zipfile.ZipFile(archive) as content:
            return [member for member in content.infolist() if not member.is_dir()]
    except PermissionError as error:
        raise UserError(f"{archive}: there is no permission to read it; chmod u+r {archive}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        with archive.open("rb") as file:
            really = archive_kind(archive) or format_of(file.read(HEAD))
        found = f"its content is {really}" if really else f"{error}"
        raise UserError(f"{archive} is not a whole zip archive ({found}); unpack it yourself or remove it") from error


def name_in_zip(member: zipfile.ZipInfo) -> str:
    """A member's name. One that is not marked as UTF-8 and is UTF-8 all the same is read so, else as code page 437."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def content_digest(members: Sequence[zipfile.ZipInfo]) -> str:
    """Twelve letters that tell archives of different content apart, by the names, sizes and checksums in them."""
    listing = repr([(member.filename, member.CRC, member.file_size) for member in members])
    return hashlib.sha256(listing.encode(errors="replace")).hexdigest()[:12]


def holds_news(archive: Path, members: Sequence[zipfile.ZipInfo], seen: Mapping[str, Path]) -> bool:
    """Whether an archive holds an image that is not among `seen`, by name (in lower case) and size; or no image."""
    images = 0
    with zipfile.ZipFile(archive) as content:
        for member in members:
            parts = Path(name_in_zip(member)).parts
            if any(map(is_clutter, parts)) or not _is_image_in(content, member):
                continue
            images += 1
            there = seen.get(parts[-1].lower())
            if there is None or there.stat().st_size != member.file_size:
                return True
    return not images


def _is_image_in(content: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    if has_image_ending(member.filename):
        return True
    try:
        with content.open(member) as file:
            return bool(format_of(file.read(HEAD)))
    except Exception:  # zipfile raises almost anything on damaged or encrypted files, and unpacking says what it is
        return True
