"""Download declared files into the download store: resumed, retried, verified and recorded.

The store is a folder outside DVC's outs, which DVC would delete before a stage runs. In it, for a file NAME:

NAME       whole, checked, moved into place in one step
NAME.json  what was checked: url, size, md5, sha256, mtime_ns; while size and time agree it is not hashed again
NAME.part  what has come so far; it outlives Ctrl-C and kill -9, and the next run goes on where it ends
"""

import os
from pathlib import Path
from time import sleep

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from exp_tools.data.acquire.store import (
    Digests,
    difference,
    digests_of,
    one_at_a_time,
    read_json,
    say,
    sidecar,
    size_of,
)
from exp_tools.data.acquire.transfer import Broken, Refused, WrongContent, drop, pull, require_room, where_to_resume
from exp_tools.data.sources.registry import RemoteFile
from exp_tools.errors import UserError
from exp_tools.io import ProgressBar, in_words, write_json

PROGRESS = 2**18  # an attempt that brings this much more than any before does not count as failed
LONGEST_WAIT = 120.0  # seconds, whatever Retry-After asks for: beyond that a person should decide
BACKOFF = wait_exponential_jitter(initial=1, max=60, jitter=1)


def fetch(file: RemoteFile, store: Path, *, timeout: float = 30, attempts: int = 6) -> Path:
    """Path of the verified `file` in `store`, downloaded if need be; instant when it was verified before.

    A file that a person put there is checked and used. `timeout` is the longest silence of the server in seconds,
    `attempts` the number of failures in a row without progress after which to give up.

    Raises
    ------
    UserError
        The file cannot be downloaded (no answer, refusal, wrong content, no room): why, and how to add it by hand.
    """
    target = Path(store) / file.name
    try:
        if _is_remembered(file, target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target):
            if _is_remembered(file, target):  # brought by the process that was waited for
                return target
            digests = _check_present(file, target) if target.exists() else _download(file, target, timeout, attempts)
            mtime_ns = target.stat().st_mtime_ns
            write_json(sidecar(target, ".json"), {**vars(digests), "url": file.url, "mtime_ns": mtime_ns})
    except (Broken, WrongContent, Refused, UserError) as error:
        raise UserError(_by_hand(file, target, str(error))) from error
    except OSError as error:
        raise UserError(_by_hand(file, target, f"{target.parent}: {error.strerror or error}")) from error
    return target


def _is_remembered(file: RemoteFile, target: Path) -> bool:
    record = read_json(sidecar(target, ".json"))
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    unchanged = (record.get("size"), record.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
    return unchanged and not difference(file, record["size"], record["md5"])


def _check_present(file: RemoteFile, target: Path) -> Digests:
    """Digests of a file in the store that was not checked: put there by hand, or changed since."""
    digests = digests_of(target)
    if fault := difference(file, digests.size, digests.md5):
        raise UserError(f"{target} is not the expected file: {fault}; delete it to have it downloaded, or replace it")
    return digests


def _download(file: RemoteFile, target: Path, timeout: float, attempts: int) -> Digests:
    part = sidecar(target, ".part")
    if not where_to_resume(file, part)[0]:
        drop(part)
    if file.size is not None:
        require_room(file, part, file.size)
    bar = ProgressBar(desc=file.name, unit="B", unit_scale=True)
    with bar, requests.Session() as session:
        for last in (False, True):
            try:
                _pull_until_whole(file, part, session, timeout, attempts, bar)
                digests = digests_of(part)
                if fault := difference(file, digests.size, digests.md5):
                    raise WrongContent(f"what came is not the expected file: {fault}")
                break
            except WrongContent as error:
                drop(part)
                if last:
                    raise
                say(f"{file.name}: {error}; trying once more from the start")
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())  # else a power cut after the rename could leave a verified file of zeros
    os.replace(part, target)
    drop(part)
    return digests


def _pull_until_whole(
    file: RemoteFile, part: Path, session: requests.Session, timeout: float, attempts: int, bar: ProgressBar
) -> None:
    """Ask again and again until `part` is whole; attempts that bring the download forward are not counted."""
    best = size_of(part)

    def becomes_whole() -> bool:
        nonlocal best
        try:
            pull(file, part, session, timeout, bar)
        except Broken as error:
            if size_of(part) < best + PROGRESS:
                raise
            best = size_of(part)
            say(f"{file.name}: {error}; going on at {in_words(best)}")
            return False
        return True

    def announce(state: RetryCallState) -> None:
        reason, pause = state.outcome.exception(), state.next_action.sleep
        say(f"{file.name}: {reason}; attempt {state.attempt_number + 1} of {attempts} in {pause:.0f} s")

    retrying = Retrying(
        retry=retry_if_exception_type(Broken),
        stop=stop_after_attempt(attempts),
        wait=_pause,
        before_sleep=announce,
        sleep=sleep,
        reraise=True,
    )
    while not retrying(becomes_whole):
        pass


def _pause(state: RetryCallState) -> float:
    return min(max(BACKOFF(state), state.outcome.exception().wait), LONGEST_WAIT)


def _by_hand(file: RemoteFile, target: Path, reason: str) -> str:
    have, _ = where_to_resume(file, sidecar(target, ".part"))
    size = "" if file.size is None else f"\n  size  {file.size:,} bytes"
    md5 = "" if file.md5 is None else f"\n  MD5   {file.md5}"
    kept = f"\nOr run again: {in_words(have)} are here, and the download goes on from there." if have else ""
    return (
        f"{file.name} could not be brought: {reason}\nTo bring it by hand:\n"
        f"  from  {file.url}\n  to    {target.absolute()}{size}{md5}\n"
        f"A file put there is checked and used, and nothing is downloaded.{kept}"
    )
