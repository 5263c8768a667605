"""One HTTP request that appends the missing rest to a partial file.

Next to NAME.part is NAME.part.json: where the part is from, and the validator (ETag or date) that says whether the
server's file is still the same. A part is only continued with that, or when an MD5 will tell in the end.
"""

import contextlib
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
from requests import exceptions as http

from exp_tools.data.acquire.store import read_json, say, sidecar, size_of
from exp_tools.data.sources.registry import RemoteFile
from exp_tools.io import ProgressBar, in_words, require_space, write_json

CHUNK = 2**16  # what a stalled or cut connection may lose


class Broken(Exception):
    """The transfer failed in a way that may pass by itself; `wait` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class WrongContent(Exception):
    """The server's file is not the declared one."""


class Refused(Exception):
    """An answer that does not change by asking again."""


def pull(file: RemoteFile, part: Path, session: requests.Session, timeout: float, bar: ProgressBar) -> None:
    """Append the missing rest to `part`; afterwards it is complete, but not yet verified.

    Raises
    ------
    Broken, WrongContent, Refused
        As above; what came stays in `part`.
    UserError
        The size was not declared, the server tells it now, and there is no room for it.
    """
    start, validator = where_to_resume(file, part)
    if start == file.size:
        return
    headers = {"Accept-Encoding": "identity"}  # a packed transfer could be neither measured nor resumed
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and validator:
        headers["If-Range"] = validator
    try:
        with session.get(file.url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416 and start:
                _check_end(response, part, start)
                return
            begin, total = _agree(response, file, start, validator)
            if begin < start:
                say(f"{file.name}: the server cannot resume, or its file has changed; starting from the first byte")
            if file.size is None and total is not None:
                require_room(file, part, total)
            bar.reset(total)
            bar.initial = bar.n = begin
            _append(response, file, part, begin, total, bar)
    except (http.InvalidURL, http.InvalidSchema, http.MissingSchema, http.TooManyRedirects) as error:
        raise Refused(str(error)) from error
    except http.RequestException as error:
        raise Broken(_describe(error, timeout)) from error


def require_room(file: RemoteFile, part: Path, total: int) -> None:
    """Raise UserError unless the disk has room for the rest of `total` bytes and for unpacking an archive."""
    remaining = max(0, total - size_of(part))
    require_space(part.parent, remaining + (total if file.archive else 0), f"downloading {file.name}")


def drop(part: Path) -> None:
    """Remove a part and its record."""
    part.unlink(missing_ok=True)
    sidecar(part, ".json").unlink(missing_ok=True)


def where_to_resume(file: RemoteFile, part: Path) -> tuple[int, str | None]:
    """Bytes of `part` to resume from and the validator of their file; 0 when they cannot be trusted."""
    have = size_of(part)
    origin = read_json(sidecar(part, ".json"))
    validator = origin.get("validator") if origin.get("url") == file.url else None
    too_long = file.size is not None and have > file.size
    if too_long or not (validator or file.md5):  # two versions joined would go unnoticed
        return 0, None
    return have, validator


def _agree(response: requests.Response, file: RemoteFile, start: int, validator: str | None) -> tuple[int, int | None]:
    """Offset of the first byte that `response` brings and the size of the whole file, None where it is unknown."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        raise Broken(f"the server answered {status} {response.reason}", _retry_after(response))
    if status not in (200, 206):
        raise Refused(f"the server answered {status} {response.reason}")
    begin, total = 0, None
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != start:
            raise WrongContent(f"asked for the bytes from {start:,}, the server gave others")
        if validator and _validator(response) not in (None, validator):  # it does not know If-Range
            raise WrongContent("the server's file has changed since the download began")
        begin, total = start, None if span[2] == "*" else int(span[2])
    elif "Content-Encoding" not in response.headers and response.headers.get("Content-Length", "").isdigit():
        total = int(response.headers["Content-Length"])
    if None not in (total, file.size) and total != file.size:
        raise WrongContent(f"the server offers {total:,} bytes, not the expected {file.size:,}")
    return begin, file.size if total is None else total


def _append(
    response: requests.Response, file: RemoteFile, part: Path, begin: int, total: int | None, bar: ProgressBar
) -> None:
    with part.open("ab" if begin else "wb") as stream:
        if begin == 0:
            write_json(sidecar(part, ".json"), {"url": file.url, "validator": _validator(response)})
        have = begin
        for chunk in response.iter_content(CHUNK):
            have += len(chunk)
            if total is not None and have > total:
                raise WrongContent(f"the server sent more than the expected {total:,} bytes")
            stream.write(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise Broken(f"the connection ended after {in_words(have)} of {in_words(total)}")


def _check_end(response: requests.Response, part: Path, start: int) -> None:
    """A server has no byte after `start`: right when its file ends there, else the part is not of this file."""
    if response.headers.get("Content-Range", "") != f"bytes */{start}":
        raise WrongContent(f"the server's file ends before the {in_words(start)} that are here")


def _validator(response: requests.Response) -> str | None:
    """The validator for If-Range: a strong ETag, or else the date."""
    if "Content-Encoding" in response.headers:
        return None
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float:
    """The header in seconds, whether it is a number or a date; 0 where there is none or it is neither."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def _describe(error: http.RequestException, timeout: float) -> str:
    """The error in words, without the addresses of Python objects in requests' own texts."""
    if isinstance(error, http.ConnectTimeout):
        return f"no connection within {timeout:g} s"
    if isinstance(error, http.Timeout) or "Read timed out" in str(error):
        return f"no byte came for {timeout:g} s"
    if isinstance(error, http.ChunkedEncodingError):
        return "the connection was cut"
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return "no connection: " + re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", str(cause or error))
