"""Every bad request has its documented answer: a problem body with the status and kind of its fault, never a crash."""

import contextlib
import gzip
import json
import logging
import random
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
import torch
from helpers.api import Running, everything, running
from helpers.bad_pictures import BOMBS
from helpers.models import encoded, photograph, save_tiny_model
from helpers.project import ROOT
from helpers.raw_requests import RAW
from PIL import Image
from starlette.testclient import TestClient

from exp_tools.serving.api.access import Access
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.problems import KINDS
from exp_tools.serving.predictor import Predictor

GOOD = photograph(1)
LIMITS = Limits(image_bytes=1_000_000, batch_bytes=2_000_000, batch_images=4)
JSON_FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> TestClient:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    return TestClient(create_app(Predictor(save_tiny_model(folder / "model.safetensors", metadata=True)), LIMITS))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    """For requests that no library sends."""
    model = save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")
    access = Access(hosts=("localhost", "127.0.0.1"), origins=("https://clinic.example",))
    with running(create_app(Predictor(model), LIMITS, access), LIMITS) as server:
        yield server


def image(content: bytes, name: str = "photo.jpg", **fields: str) -> dict[str, Any]:
    return {"files": [("image", (name, content, "image/jpeg"))], "data": fields}


def images(*contents: bytes, metadata: str | None = None) -> dict[str, Any]:
    data = {} if metadata is None else {"metadata": metadata}
    return {"files": [("images", ("photo.jpg", content, "image/jpeg")) for content in contents], "data": data}


def raw(*parts: tuple[str, bytes], boundary: str = "b", end: bytes = b"--b--\r\n", kind: str = "") -> dict[str, Any]:
    """A form written by hand: headers and content of each part."""
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return {"content": body + end, "headers": {"content-type": kind or f"multipart/form-data; boundary={boundary}"}}


FILE = 'Content-Disposition: form-data; name="image"; filename="a.jpg"'


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one byte of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def spoiled(content: bytes) -> bytes:
    """A PNG with a wrong checksum in the middle of its pixels."""
    place = content.index(b"IDAT") + 20
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n"
IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "empty_image"),
    "one byte": (lambda: b"\xff", "not_an_image"),
    "text": (lambda: b"a letter", "not_an_image"),
    "HTML": (lambda: b"<!doctype html><script>alert(1)</script>", "not_an_image"),
    "SVG": (lambda: SVG, "not_an_image"),
    "PostScript, which Pillow would start another program for": (lambda: POSTSCRIPT, "not_an_image"),
    "PDF": (lambda: b"%PDF-1.7\n" + bytes(300), "not_an_image"),
    "JPEG 2000": (lambda: encoded(Image.new("RGB", (8, 8)), "JPEG2000"), "not_an_image"),
    "a DICOM file without a picture": (lambda: bytes(128) + b"DICM", "not_an_image"),
    "a HEIC file of its first bytes": (lambda: b"\0\0\0 ftypheic\0\0\0\0mif1heic" + bytes(50), "not_an_image"),
    "ZIP": (lambda: b"PK\x03\x04" + bytes(300), "not_an_image"),
    "a gzipped JPEG": (lambda: gzip.compress(GOOD), "not_an_image"),
    "a pickle": (lambda: b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "not_an_image"),
    "zeros": (lambda: bytes(50_000), "not_an_image"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(50_000), "not_an_image"),
    "the first half of a JPEG": (lambda: GOOD[: len(GOOD) // 2], "damaged_image"),
    "a JPEG's header alone": (lambda: GOOD[:200], "damaged_image"),
    "the first half of a JPEG, closed": (lambda: GOOD[: len(GOOD) // 2] + b"\xff\xd9", "damaged_image"),
    "half a PNG": (lambda: photograph(1, "PNG")[:2000], "damaged_image"),
    "half a WebP": (lambda: photograph(1, "WEBP")[:600], "damaged_image"),
    "half a TIFF": (lambda: photograph(1, "TIFF")[:9000], "damaged_image"),
    "a PNG with a wrong checksum": (lambda: spoiled(photograph(1, "PNG")), "damaged_image"),
    "a PNG with one byte of its pixels": (lambda: png(1000, 1000), "damaged_image"),
    "a strip": (lambda: encoded(Image.new("RGB", (1, 500)), "PNG"), "bad_shape"),
    **{name: bomb for name, bomb in BOMBS.items() if "EXIF" not in name and "comments" not in name},
    "too many bytes": (lambda: GOOD + bytes(LIMITS.image_bytes), "too_large"),
}


REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "100 MB": ("/predict", image(bytes(100_000_000)), "too_large"),
    "no form": ("/predict", {}, "wrong_content_type"),
    "JSON": ("/predict", {"json": {"image": "aGk="}}, "wrong_content_type"),
    "the image alone": ("/predict", {"content": GOOD, "headers": {"content-type": "image/jpeg"}}, "wrong_content_type"),
    "a plain form": ("/predict", {"data": {"image": "x"}}, "wrong_content_type"),
    "another charset": (
        "/predict",
        raw((FILE, GOOD), kind="multipart/form-data; boundary=b; charset=punycode"),
        "wrong_content_type",
    ),
    "no boundary": ("/predict", raw((FILE, GOOD), kind="multipart/form-data"), "malformed_form"),
    "another boundary": ("/predict", raw((FILE, GOOD), boundary="c"), "malformed_form"),
    "a boundary of 10,000 letters": ("/predict", raw((FILE, GOOD), boundary="b" * 10_000), "malformed_form"),
    "no last boundary": ("/predict", raw((FILE, GOOD), end=b""), "malformed_form"),
    "nothing in the form": ("/predict", {"content": b"", "headers": JSON_FORM}, "malformed_form"),
    "a part without a name": ("/predict", raw(("Content-Type: image/jpeg", GOOD)), "malformed_form"),
    "a header of 100 kB": ("/predict", raw((FILE + "\r\nX: " + "x" * 60_000, GOOD)), "malformed_form"),
    "a header that is none": ("/predict", raw(("no header", GOOD)), "malformed_form"),
    "no image": ("/predict", {"files": [("age", (None, "60"))]}, "wrong_field"),
    "the image as text": ("/predict", {"files": [("image", (None, "a.jpg"))]}, "wrong_field"),
    "a wrong field for the image": ("/predict", {"files": [("file", ("a.jpg", GOOD))]}, "wrong_field"),
    "the image's field as in a batch": ("/predict", images(GOOD), "wrong_field"),
    "an unknown field": ("/predict", image(GOOD, localisation="back"), "wrong_field"),
    "the age twice": (
        "/predict",
        {"files": [*image(GOOD)["files"], ("age", (None, "50")), ("age", (None, "60"))]},
        "wrong_field",
    ),
    "the age as a file": ("/predict", {"files": [*image(GOOD)["files"], ("age", ("age.txt", b"50"))]}, "wrong_field"),
    "two images": ("/predict", {"files": image(GOOD)["files"] * 2}, "too_many_parts"),
    "a hundred fields": (
        "/predict",
        {"files": [*image(GOOD)["files"], *((f"f{number}", (None, "1")) for number in range(100))]},
        "too_many_parts",
    ),
    "an age that is not a number": ("/predict", image(GOOD, age="sixty"), "wrong_value"),
    "NaN as age": ("/predict", image(GOOD, age="NaN"), "wrong_value"),
    "infinity as age": ("/predict", image(GOOD, age="-Infinity"), "wrong_value"),
    "an age beyond all numbers": ("/predict", image(GOOD, age="1e999"), "wrong_value"),
    "an age below 0": ("/predict", image(GOOD, age="-1"), "wrong_value"),
    "an age above 120": ("/predict", image(GOOD, age="121"), "wrong_value"),
    "an age in other digits": ("/predict", image(GOOD, age="٦٠"), "wrong_value"),
    "an age with an underscore": ("/predict", image(GOOD, age="6_0"), "wrong_value"),
    "an age of 500 digits": ("/predict", image(GOOD, age="1" * 500), "too_large"),
    "huge text": ("/predict", image(GOOD, sex="x" * 100_000), "too_large"),
    "a NUL in a text": ("/predict", image(GOOD, localization="ba\0ck"), "wrong_value"),
    "a text that turns the line around": ("/predict", image(GOOD, localization="\u202eback"), "wrong_value"),
    "a text of other bytes": (
        "/predict",
        raw((FILE, GOOD), ('Content-Disposition: form-data; name="sex"', b"\xff\xfe")),
        "wrong_value",
    ),
    "an unknown map": ("/predict?explain=lime", image(GOOD), "wrong_value"),
    "a map this model has not": ("/predict?explain=gradcam&explain=attention", image(GOOD), "wrong_value"),
    "an unknown query": ("/predict?explian=gradcam", image(GOOD), "wrong_field"),
    "a batch of nothing": ("/predict/batch", {"files": [("metadata", (None, "[]"))]}, "wrong_field"),
    "a batch of too many": ("/predict/batch", images(*[GOOD] * 5), "too_many_parts"),
    "a batch of too many bytes": ("/predict/batch", images(*[bytes(900_000)] * 3), "too_large"),
    "metadata that are not JSON": ("/predict/batch", images(GOOD, metadata="age=60"), "wrong_value"),
    "metadata a thousand lists deep": ("/predict/batch", images(GOOD, metadata="[" * 19_000), "wrong_value"),
    "metadata for more images": ("/predict/batch", images(GOOD, metadata="[{}, {}]"), "wrong_value"),
    "metadata as an object": ("/predict/batch", images(GOOD, metadata='{"age": 60}'), "wrong_value"),
    "metadata as numbers": ("/predict/batch", images(GOOD, metadata="[60]"), "wrong_value"),
    "NaN in metadata": ("/predict/batch", images(GOOD, metadata='[{"age": NaN}]'), "wrong_value"),
    "a long number in metadata": (
        "/predict/batch",
        images(GOOD, metadata='[{"age": 1%s}]' % ("0" * 400)),
        "wrong_value",
    ),
    "true as age": ("/predict/batch", images(GOOD, metadata='[{"age": true}]'), "wrong_value"),
    "a list as sex": ("/predict/batch", images(GOOD, metadata='[{"sex": ["male"]}]'), "wrong_value"),
    "half a character in metadata": ("/predict/batch", images(GOOD, metadata='[{"sex": "\\ud800"}]'), "wrong_value"),
    "an unknown word in metadata": ("/predict/batch", images(GOOD, metadata='[{"name": "x"}]'), "wrong_field"),
    "another page": ("/predict/../../etc/passwd", image(GOOD), "not_found"),
    "a page that only shows": ("/model", image(GOOD), "wrong_method"),
}


def problem(answer, kind: str) -> dict[str, Any]:
    """The problem body of an answer, which must be of this kind and in its documented form."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (body["kind"], answer.status_code) == (kind, KINDS[kind].status), body
    assert body == {
        "type": f"/problems#{kind}",
        "kind": kind,
        "status": KINDS[kind].status,
        "title": KINDS[kind].title,
        "detail": body["detail"],
    }
    assert 5 < len(body["detail"]) < 300
    assert not re.search(r"Traceback|site-packages|\.py|\b0x|/tmp|safetensors", body["detail"])
    return body


CASES = [
    *(("image", name, kind) for name, (_, kind) in IMAGES.items()),
    *(("request", name, kind) for name, (_, _, kind) in REQUESTS.items()),
    *(("raw", name, kind) for name, (_, kind) in RAW.items()),
]


def sampled(cases: list[tuple[str, str, str | None]]) -> list:
    """The cases; all but the first of each sort and kind of problem are for `make test-all`."""
    seen, found = set(), []
    for sort, name, kind in cases:
        marks = [pytest.mark.sweep] if (sort, kind) in seen else []
        seen.add((sort, kind))
        found.append(pytest.param(sort, name, kind, marks=marks, id=f"{sort}: {name}"))
    return found


@pytest.mark.parametrize(("sort", "name", "kind"), sampled(CASES))
def test_a_bad_request_has_its_documented_answer(client, server, caplog, sort, name, kind):
    caplog.set_level(logging.INFO)
    if sort == "image":
        content = IMAGES[name][0]()
        problem(client.post("/predict", **image(content)), kind)
        if len(content) + len(GOOD) < LIMITS.batch_bytes:
            body = client.post("/predict/batch", **images(GOOD, content)).json()
            assert (body["predicted"], body["results"][1]["problem"]["kind"]) == (1, kind)
    elif sort == "request":
        page, request, _ = REQUESTS[name]
        problem(client.post(page, **request), kind)
    else:
        raw_problem(server, RAW[name][0], kind)
    assert [
        record.getMessage() for record in caplog.records if record.exc_info or record.levelno > logging.WARNING
    ] == []


def raw_problem(server: Running, sent: bytes, kind: str | None) -> None:
    """The last answer to these bytes is a problem of that kind, or nothing at all; the next client is served."""
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):  # it may be refused before all is sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        received = everything(connection)
    if kind is None:
        assert received == b""
    else:
        answer = received[received.rindex(b"HTTP/1.1 ") :]
        head, body = answer.split(b"\r\n\r\n", 1)
        assert b"content-type: application/problem+json" in head
        problem(SimpleNamespace(status_code=int(head[9:12]), **answer_of(body)), kind)
    assert requests.get(f"{server.url}/health", timeout=10).json()["inside"] == 0


def answer_of(body: bytes) -> dict[str, Any]:
    content = {"content-type": "application/problem+json"}
    return {"headers": content, "text": body.decode(), "json": lambda: json.loads(body)}


def test_the_corpus_is_as_large_as_it_says_and_has_every_kind_of_problem():
    assert len(CASES) >= 120
    met = {kind for _, _, kind in CASES} - {None}
    others = {"too_slow", "too_busy", "server_fault", "unauthorized", "not_ready"}  # are in the API's other tests
    assert met == set(KINDS) - others


def test_the_documentation_has_every_kind_with_its_status():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, flags=re.MULTILINE)
    assert documented == [(str(kind.status), name) for name, kind in KINDS.items()]


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "C:\\windows\\system32", "photo\0.jpg", "фото 🩺.jpg", "a" * 3000, "", "x.exe", ".jpg"],
)
def test_a_files_name_does_not_matter(client, name):
    expected = client.post("/predict", **image(GOOD)).json()
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: text/html'
    answer = client.post("/predict", **raw((head, GOOD)))
    assert (answer.status_code, answer.json()) == (200, expected)


def test_a_body_that_does_not_say_its_length_is_cut_at_the_limit(client):
    arrived = 0

    def endless():
        nonlocal arrived
        yield b"--b\r\n" + FILE.encode() + b"\r\n\r\n"
        for _ in range(100):
            arrived += 50_000
            yield bytes(50_000)

    problem(client.post("/predict", content=endless(), headers=JSON_FORM), "too_large")


def test_a_form_that_was_tampered_with_never_breaks_the_server(client):
    """Bytes of good forms are cut, doubled, replaced: the answer is 200 or a documented problem."""
    chance = random.Random(0)
    good = [
        raw((FILE, GOOD), ('Content-Disposition: form-data; name="age"', b"60"))["content"],
        raw((FILE, photograph(1, "PNG")), ('Content-Disposition: form-data; name="sex"', "männlich".encode()))[
            "content"
        ],
    ]
    statuses = set()
    for _ in range(300):
        body = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(chance.choice([200, len(body)]))
            act = chance.choice(["replace", "delete", "double", "insert"])
            if act == "replace":
                body[place] = chance.randrange(256)
            elif act == "delete":
                del body[place : place + chance.randint(1, 30)]
            elif act == "double":
                body[place:place] = body[place : place + chance.randint(1, 200)]
            else:
                body[place:place] = chance.choice([b"\r\n", b"--b", b"--b--", b"\0", b";", b'"', b"filename*=utf-8''x"])
        answer = client.post("/predict", content=bytes(body), headers=JSON_FORM)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            problem(answer, answer.json()["kind"])
            assert answer.status_code < 500
        else:
            assert json.loads(answer.text)["diagnosis"]
    assert {200, 400, 422} <= statuses
