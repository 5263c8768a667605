"""Errors whose message is for the user, and how a script ends."""

import atexit
import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """An error that the user can fix: the message says what is wrong, where, what was expected and what to do.

    Stages and the command line print the message alone, without a traceback, and exit with status 1.
    """


class Stopped(Exception):
    """A signal ended the work cleanly: the message says what was saved; `status` is the exit status."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint for an error message: " (did you mean 'x'?)" with the nearest choice, "" where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


_OF_THE_SYSTEM = {
    errno.ENOSPC: ("no space is left on the disk", "Make room there (`df -h` shows each disk)"),
    errno.EDQUOT: ("your share of the disk is used up", "Make room there (`quota` shows how much you may use)"),
    errno.EFBIG: ("a file may not get that large here", "Raise the limit (`ulimit -f unlimited`) or use another disk"),
    errno.EROFS: ("the file system is read-only", "Make it writable, or work in a folder on another disk"),
    errno.EACCES: (
        "no permission",
        "`ls -ld` shows whose it is; `chmod -R u+rwX` gives you the right",
    ),
    errno.EPERM: ("the system does not permit it", "`ls -ld` and `lsattr -d` show whose it is and what forbids it"),
    errno.EIO: ("the disk or network share reports an error", "Look at the disk; copy the data to another one"),
    errno.ENAMETOOLONG: ("the name is too long", "Use a shorter one"),
    errno.ENOTDIR: ("a file is where a folder is needed", "Move it away or name another place"),
    errno.EISDIR: ("a folder is where a file is needed", "Move it away or name another place"),
    errno.EMFILE: ("too many files are open", "Raise the limit: `ulimit -n 4096`"),
}
"""Faults of disks and permissions, which are the user's to fix: what is wrong, and the remedy."""


def disk_fault(error: Exception, path: Path | str | None = None, doing: str = "") -> UserError | None:
    """An error of the operating system as one sentence that names the file and the remedy; None for any other error.

    Libraries report a full disk in their own ways (NumPy without a number, Rust's as text), which are known here.

    Parameters
    ----------
    path : the file, where the error does not name it
    doing : what was not possible, as "could not be written"
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if "No space left" in str(error) or re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC
    if isinstance(error, UserError) or number not in _OF_THE_SYSTEM:
        return None
    what, remedy = _OF_THE_SYSTEM[number]
    named = path or getattr(error, "filename2", None) or getattr(error, "filename", None) or "a file"
    said = f"{named} {doing}: {what}" if doing else f"{named}: {what}"
    return UserError(f"{said}. {remedy}, then repeat the command")


@contextlib.contextmanager
def calling(folder: Path, name: str | Path) -> Iterator[None]:
    """Errors of the block name the user's own folder instead of a temporary one that stands for it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(name))) from error


def require_file(path: Path, maker: str) -> None:
    """Raise UserError when a stage's input is not there; `maker` names the stage that makes it."""
    if not path.is_file():
        raise UserError(
            f"{path} is not here; make it with `dvc repro {maker}`, or fetch it with `dvc pull` where a remote holds it"
        )


def require_readable(path: Path) -> None:
    """Raise UserError when a file is there and may not be read: no permission is no damage."""
    with contextlib.suppress(FileNotFoundError), faults_of_the_system(), path.open("rb"):
        pass


@contextlib.contextmanager
def faults_of_the_system() -> Iterator[None]:
    """Errors of disks and permissions in the block are UserErrors, see `disk_fault`."""
    try:
        yield
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        raise fault from error


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main function and end the process, after a UserError or Stopped with message and status."""
    status = 0
    try:
        with faults_of_the_system():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except Stopped as stopped:
        if str(stopped):  # of several processes one speaks
            print(stopped, file=sys.stderr)
        status = stopped.status
    end_process(status)


def end_process(status: int) -> NoReturn:
    """End the process after its exit handlers, but free no objects: with torch and timm that takes a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)
