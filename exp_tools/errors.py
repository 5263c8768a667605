"""Errors whose message is for the user, and how a script ends."""

import atexit
import contextlib
import difflib
import os
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
        raise UserError(f"{path} is not here; make it with `dvc repro {maker}` or fetch it with `dvc pull`")


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main function and end the process, after a UserError or Stopped with message and status."""
    status = 0
    try:
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
