"""A folder that a stage refills on every run without ever losing a user's file.

DVC leaves such a folder alone (`cache: false, persist: true` in dvc.yaml), so that the stage itself empties it, and
removes only what a stage made: MARKER lists that. Anything else in the folder stops the stage before it does anything.
"""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from exp_tools.data.images.decode import is_clutter
from exp_tools.errors import UserError, calling, disk_fault
from exp_tools.io import scratch_folder, write_json

MARKER = "made.json"
"""In the folder: name and content of each file that the stage made; no times, no paths, since it is hashed."""
LOCK = Path("dvc.lock")


@contextlib.contextmanager
def refilled(folder: Path, key: str) -> Iterator[Path]:
    """Yield an empty folder to fill; on success its files take the place of those that a stage made in `folder`.

    Parameters
    ----------
    folder : the output; on any error it stays as it was
    key : the parameter that names the folder of a user's files, for messages

    Raises
    ------
    UserError
        `folder` holds a file that no stage made or that was changed since, is a link or is a file.
    """
    old = files_made(folder, key)
    with scratch_folder(folder.parent, folder.name) as fresh:
        try:
            with calling(fresh, folder):
                yield fresh
            _swap(fresh, folder, old)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(fresh)):
                raise
            raise (disk_fault(error, folder, "could not be filled") or error) from error


@contextlib.contextmanager
def looking_again(folder: Path, key: str) -> Iterator[None]:
    """Around what may find fault with the user's files: then the next `dvc repro` fills the folder again.

    The user is about to change the files that it was filled from. DVC does not look behind links, and fails at one
    whose file is gone: the links go, and MARKER says why. Nothing happens where DVC does not run the stage.
    """
    try:
        yield
    except UserError:
        if "DVC_STAGE" in os.environ:
            with contextlib.suppress(
                UserError
            ):  # what is not the pipeline's stays, and the first fault is the one to say
                _take_links_away(folder, key)
        raise


def _take_links_away(folder: Path, key: str) -> None:
    names = files_made(folder, key)
    left = {name: _content(folder / name) for name in names if not (folder / name).is_symlink()}
    for name in names:
        if name not in left:
            (folder / name).unlink()
    write_json(folder / MARKER, left | {"": "the data had problems; the next `dvc repro` links them again"})


def files_made(folder: Path, key: str) -> list[str]:
    """The files in a folder, by their names in it, all of which a stage made; raises UserError as `refilled`."""
    typed = shlex.quote(str(folder))
    if folder.is_symlink():
        target = folder.resolve()
        raise UserError(
            f"{folder} is a symbolic link to {target}; the pipeline needs a folder of its own there, which it empties. "
            f"Nothing was touched. Take the link away (rm {typed}) and set {key} to {target}: its files are linked "
            "one by one, never changed"
        )
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; the pipeline needs a folder there. Move it away")
    names = [name for name in _files(folder) if name != MARKER and not is_clutter(Path(name).name)]
    if names and not (folder / MARKER).is_file():
        if _recorded(folder):
            return names
        raise UserError(
            f"{folder} holds {names[0]}{_more(names)} and no {MARKER}, the list of what the pipeline made, so they may "
            f"be yours. Nothing was touched. Move them out (mv {typed} FOLDER) and set {key} to where they are; or, "
            f"if you need none of them, delete {folder}"
        )
    made = _marked(folder) if names else {}
    foreign = [name for name in names if name not in made]
    changed = [name for name in names if name in made and _content(folder / name) != made[name]]
    for wrong, what in (
        (foreign, "which the pipeline did not make"),
        (changed, "which was changed after the pipeline made it"),
    ):
        if wrong:
            raise UserError(
                f"{folder} holds {wrong[0]}{_more(wrong)}, {what}. Nothing was touched. The pipeline empties this "
                f"folder: keep your files in one of your own, and set {key} to it. Move (or delete) {folder / wrong[0]}"
            )
    return names


def _swap(fresh: Path, folder: Path, old: list[str]) -> None:
    """Files of `fresh` in the place of the `old` ones. Stopped half-way, MARKER still names every file there is."""
    new = {name: _content(fresh / name) for name in _files(fresh)}
    write_json(fresh / MARKER, new)
    needed = {parent for name in new for parent in Path(name).parents}
    for place in needed:  # all that takes room on the disk, before anything goes
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # an old file of that name, which goes now
            (folder / place).mkdir(parents=True)
    for name in old:
        (folder / name).unlink()
    for place in sorted({parent for name in old for parent in Path(name).parents[:-1]} - needed, reverse=True):
        with contextlib.suppress(OSError):  # it holds something else
            (folder / place).rmdir()
    folder.mkdir(exist_ok=True)
    os.replace(fresh / MARKER, folder / MARKER)
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh / name, folder / name)


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, links to folders among them, in order."""
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*links, *names)]
    return sorted(found)


def _content(path: Path) -> str:
    """Identifies a file: the name of a link's target, or the MD5 of a file's bytes."""
    if path.is_symlink():
        return f"link to {Path(os.readlink(path)).name}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _marked(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{folder / MARKER} cannot be read ({error}). Nothing was touched. Move what is yours out of {folder}, and "
            "delete the rest"
        ) from error


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1:,} more" if len(names) > 1 else ""


def _recorded(folder: Path) -> bool:
    """Whether a folder without MARKER is an output of earlier: dvc.lock names its hash, today or in Git's history."""
    if not LOCK.is_file():
        return False
    digest = _dvc_digest(folder)
    if digest in LOCK.read_text(encoding="utf-8"):
        return True
    command = ["git", "log", "-1", "--format=%h", "-S", digest, "--", LOCK.name]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.returncode == 0 and bool(found.stdout.strip())


def _dvc_digest(folder: Path) -> str:
    """The hash that dvc.lock has of a folder's content."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name in _files(folder):
        if not is_clutter(Path(name).name):
            with (folder / name).open("rb") as file:
                content = hashlib.file_digest(file, "md5").hexdigest()
            tree.add(tuple(name.split("/")), None, HashInfo("md5", content))
    tree.digest()
    return str(tree.oid)
