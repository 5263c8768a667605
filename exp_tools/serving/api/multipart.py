"""Read a multipart form into memory, within limits.

Starlette's own reader takes a form that is cut off for a whole one without its last file, and moves files above 1 MB to
the disk, which nothing of a client's may touch. The parsing itself is python-multipart's.
"""

import asyncio
import json
import math
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from exp_tools.errors import UserError
from exp_tools.serving.api.limits import FORM_OVERHEAD, Limits
from exp_tools.serving.api.problems import Problem, shown
from exp_tools.serving.predictor import Patient

PATIENT_FIELDS = ("age", "sex", "localization")
FEW = 16
"""Parts a form may have besides its images; one with more is not read to its end."""


@dataclass
class Part:
    """One field of a form; `is_file` where the client gave it a file's name, which is not kept."""

    name: str
    is_file: bool
    content: bytearray = field(default_factory=bytearray)


async def read_form(request: Request, limits: Limits, *, files: int, total: int, text: int) -> list[Part]:
    """The parts of a multipart request, in order.

    Parameters
    ----------
    files : how many images are expected at most
    total : bytes of the files together
    text : bytes of a text field

    Raises
    ------
    Problem : wrong_content_type, malformed_form, too_large, too_many_parts, too_slow
    starlette.requests.ClientDisconnect : the client went away
    """
    most = total + FORM_OVERHEAD
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise Problem("too_large", f"the request has {int(declared):,} bytes; at most {most:,} are taken")
    reader = _Reader(_boundary(request.headers.get("content-type", "")), files, text)
    arrived = 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                arrived += len(chunk)
                if arrived > most:
                    raise Problem("too_large", f"the request has more than {most:,} bytes, the most that is taken")
                reader.write(chunk)
    except TimeoutError:
        raise Problem("too_slow", f"the request did not arrive within {limits.upload_seconds:g} seconds") from None
    return reader.finish()


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise Problem(
            "wrong_content_type",
            f"the content type is {shown(kind.decode('latin-1')) if kind else 'missing'}; send multipart/form-data",
        )
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "us-ascii"):
        raise Problem("wrong_content_type", f"the charset is {shown(charset)}; send UTF-8")
    if not options.get(b"boundary"):
        raise Problem("malformed_form", "the content type names no boundary")
    return options[b"boundary"]


class _Reader:
    """Collects the parts while their bytes come in."""

    def __init__(self, boundary: bytes, files: int, text: int) -> None:
        self.files, self.text = files, text
        self.parts: list[Part] = []
        self.header, self.value = bytearray(), bytearray()
        self.disposition = b""
        self.ended = False
        callbacks = {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}
        try:
            self.parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Problem("malformed_form", f"the form cannot be read: {error}") from error

    def write(self, chunk: bytes) -> None:
        try:
            self.parser.write(chunk)
        except FormParserError as error:
            raise Problem("malformed_form", f"the form cannot be read: {error}") from error

    def finish(self) -> list[Part]:
        if not self.ended:
            raise Problem("malformed_form", "the form is cut off: its last boundary is missing")
        return self.parts

    def on_part_begin(self) -> None:
        self.disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if b"name" not in options:
            raise Problem("malformed_form", "a part of the form has no name")
        self.parts.append(Part(_text(options[b"name"], "a field's name"), b"filename" in options))
        if len(self.parts) > self.files + FEW:
            raise Problem("too_many_parts", f"the form has more than {self.files + FEW} fields and images")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.content += data[start:end]
        if not part.is_file and len(part.content) > self.text:
            raise Problem("too_large", f"the field {shown(part.name)} has more than {self.text:,} bytes")

    def on_end(self) -> None:
        self.ended = True


def sort_parts(
    parts: list[Part], file_field: str, text_fields: tuple[str, ...], *, files: int
) -> tuple[list[bytes], dict[str, str]]:
    """The files of a form, at most so many, and its texts by name; a text field that is empty is left out.

    Raises
    ------
    Problem
        too_many_parts; wrong_field (missing, unknown, twice, a file for a text or a text for a file);
        wrong_value (no UTF-8)
    """
    contents: list[bytes] = []
    texts: dict[str, str] = {}
    for part in parts:
        if part.name == file_field and part.is_file:
            contents.append(bytes(part.content))
        elif part.name == file_field:
            raise Problem("wrong_field", f"{file_field!r} is text; it must be sent as a file, with a file name")
        elif part.name not in text_fields:
            known = ", ".join((file_field, *text_fields))
            raise Problem("wrong_field", f"there is no field {shown(part.name)}; the fields are {known}")
        elif part.is_file:
            raise Problem("wrong_field", f"{part.name!r} is a file; it must be sent as text")
        elif part.name in texts:
            raise Problem("wrong_field", f"{part.name!r} is given twice")
        else:
            texts[part.name] = _text(part.content, part.name)
    if len(contents) > files:
        raise Problem("too_many_parts", f"the form has {len(contents)} images; at most {files} are taken")
    if not contents:
        raise Problem("wrong_field", f"there is no image; send it as a file in the field {file_field!r}")
    return contents, {name: text for name, text in texts.items() if text.strip()}


def patient_of(values: dict[str, Any], most: int, where: str = "") -> Patient:
    """The patient of a form; a field that is missing, None or "unknown" is unknown.

    Raises
    ------
    Problem : wrong_field (an unknown name), wrong_value (no number, out of range, too long, unprintable)
    """
    for name in values:
        if name not in PATIENT_FIELDS:
            fields = ", ".join(PATIENT_FIELDS)
            raise Problem("wrong_field", f"{where}there is no field {shown(name)}; the fields are {fields}")
    words = {name: _word(values.get(name), name, most, where) for name in ("sex", "localization")}
    try:
        return Patient(age=_age(values.get("age"), where), **words)
    except UserError as error:
        raise Problem("wrong_value", f"{where}{error}") from error


def patients_of(text: str | None, count: int, most: int) -> list[Patient]:
    """The patients of a batch, from JSON: a list of objects, one for each image in its order; None: nothing is known.

    Raises
    ------
    Problem : wrong_value (no JSON, or another number of patients), and as patient_of
    """
    if text is None:
        return [Patient()] * count
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem("wrong_value", "metadata is not JSON; send a list with an object for each image") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Problem("wrong_value", "metadata must be a list with an object for each image")
    if len(entries) != count:
        raise Problem("wrong_value", f"metadata has {len(entries)} entries for {count} images")
    return [patient_of(entry, most, f"metadata[{place}]: ") for place, entry in enumerate(entries)]


def _age(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "unknown"):
        return None
    plain = isinstance(value, str) and value.isascii() and "_" not in value
    try:
        age = float(value) if plain or (isinstance(value, int | float) and not isinstance(value, bool)) else math.nan
    except (ValueError, OverflowError):
        age = math.nan
    if not math.isfinite(age):
        raise Problem("wrong_value", f"{where}the age is {shown(str(value))}; expected a number of years")
    return age


def _word(value: Any, name: str, most: int, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > most:
        raise Problem("wrong_value", f"{where}{name} must be text of at most {most} bytes, without control characters")
    return None if value.strip().lower() in ("", "unknown") else value.strip()


def _text(content: bytes | bytearray, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("wrong_value", f"{name} is not UTF-8 text") from error
