"""Whether a user's folder can be read as a whole, and lies apart from those of the pipeline."""

import os
import shlex
from pathlib import Path

from exp_tools.data.images.decode import is_clutter
from exp_tools.data.images.formats import has_image_ending
from exp_tools.errors import UserError, disk_fault


def require_whole(folder: Path, *, dead_links: bool) -> None:
    """Raise UserError for what would be left out without a word: what may not be read, and images whose link is dead.

    Files that may not be read are named here unless they are images, of which each is checked later. `dead_links`:
    whether images that are dead links count; where a table names the images, each missing one is reported later.
    """
    known: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in known else [name for name in folders if not is_clutter(name)]
        known.add(real)
        if not os.access(place, os.R_OK | os.X_OK):
            _stop(PermissionError(13, "", place))
        for path in (Path(place, name) for name in names if not is_clutter(name)):
            is_image = has_image_ending(path.name)
            if dead_links and is_image and path.is_symlink() and not path.exists():
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}, which is not there: bring that back, or take the link "
                    f"away (rm {shlex.quote(str(path))})"
                )
            if not is_image and path.is_file() and not os.access(path, os.R_OK):
                _stop(PermissionError(13, "", str(path)))


def overlap(mine: Path, own: Path) -> bool:
    """Whether one of two folders is the other or is inside it, by any name, link or mount; `own` is of the pipeline."""
    return _is_in(mine, own) or _is_in(own, mine)


def _is_in(inner: Path, outer: Path) -> bool:
    if inner.is_relative_to(outer):
        return True
    if outer.is_symlink() or not outer.exists():  # an output that is a link is refused as such, with its own remedy
        return False
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


def _stop(error: OSError) -> None:
    raise (disk_fault(error) or error) from error
