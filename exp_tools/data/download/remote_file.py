"""What a source declares about a file that is downloaded, and whether a file on disk is that one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class RemoteFile:
    """A file as a source declares it.

    name : what it is called in the store
    url : where it is
    size, md5 : bytes and hexadecimal digest; None where nobody publishes them
    archive : it will be unpacked, so room for twice its size is asked for (photographs do not get smaller in archives)
    """

    name: str
    url: str
    size: int | None
    md5: str | None
    archive: bool = False


@dataclass(frozen=True)
class Digests:
    """Size in bytes and hexadecimal digests of a file's content."""

    size: int
    md5: str
    sha256: str


def digests_of(path: Path) -> Digests:
    """Read a file once, with progress, and digest it."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    bar = tqdm(
        desc=f"checking {path.name}",
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
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
