"""Take a user's files into the project without copying and without ever touching them."""

import shutil
from pathlib import Path


def link_file(origin: Path, target: Path) -> None:
    """Make `target` a symbolic link to `origin`, or a copy where the system allows no links.

    Never a hard link: DVC makes what it caches read-only, and through a hard link that would be the user's original.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(origin.resolve())
    except OSError:
        shutil.copyfile(origin, target)
