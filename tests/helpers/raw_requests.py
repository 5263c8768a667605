"""Requests that no HTTP library would send, with the answer that each gets: status and kind of problem."""

import gzip

from helpers.models import photograph

HOST = b"Host: localhost\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
BODY = PART + photograph(1) + b"\r\n--b--\r\n"


def get(line: bytes = b"GET /health HTTP/1.1", headers: bytes = HOST) -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes, line: bytes = b"POST /predict HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + FORM + headers + b"\r\n" + body


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
RAW: dict[str, tuple[bytes, str | None]] = {
    "no HTTP": (b"hello\r\n\r\n", "malformed_request"),
    "the first bytes of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), "malformed_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed_request"),
    "HTTP/0.9": (b"GET /health\r\n\r\n", "malformed_request"),
    "a letter as version": (get(b"GET /health HTTP/x.y"), "malformed_request"),
    "a method with signs": (get(b"G@T /health HTTP/1.1"), "malformed_request"),
    "no Host": (get(headers=b""), "malformed_request"),
    "two Hosts": (get(headers=HOST * 2), "malformed_request"),
    "a NUL in a header": (get(headers=HOST + b"X: a\0b\r\n"), "malformed_request"),
    "a header without a colon": (get(headers=HOST + b"X\r\n"), "malformed_request"),
    "a space in a header's name": (get(headers=HOST + b"X Y: z\r\n"), "malformed_request"),
    "a header of 1 MB": (get(headers=HOST + b"X: " + b"x" * 1_000_000 + b"\r\n"), "malformed_request"),
    "100,000 headers": (get(headers=HOST + b"X: y\r\n" * 100_000), "malformed_request"),
    "a path of 1 MB": (get(b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1"), "malformed_request"),
    "other bytes in the path": (get(b"GET /\xff\xfe HTTP/1.1"), "malformed_request"),
    "a length below zero": (post(b"Content-Length: -1\r\n", BODY), "malformed_request"),
    "a length that is no number": (post(b"Content-Length: 1e3\r\n", BODY), "malformed_request"),
    "two lengths": (post(length(BODY) + b"Content-Length: 5\r\n", BODY), "malformed_request"),
    "an unknown transfer coding": (post(b"Transfer-Encoding: gzip\r\n", BODY), "malformed_request"),
    "two transfer codings": (post(b"Transfer-Encoding: chunked, gzip\r\n", BODY), "malformed_request"),
    "a chunk's size that is no number": (post(CHUNKED, b"zz\r\n" + BODY), "malformed_request"),
    "a chunk's size below zero": (post(CHUNKED, b"-5\r\n" + BODY), "malformed_request"),
    "a chunk of more bytes than there are": (post(CHUNKED, b"F" * 30 + b"\r\n" + BODY), "malformed_request"),
    "a chunk that is longer than its size": (post(CHUNKED, b"5\r\n" + BODY), "malformed_request"),
    "a bad chunk after a good one": (post(CHUNKED, b"5\r\n--b\r\n\r\nzz\r\n"), "malformed_request"),
    "a gzipped form": (post(length(gzip.compress(BODY)), gzip.compress(BODY)), "malformed_form"),
    "chunked, and the last chunk first": (post(CHUNKED, b"0\r\n\r\n"), "malformed_form"),
    "half of the body, and no more": (post(length(BODY), BODY[:500]), None),
    "half of the head, and no more": (HOST, None),
    "nothing": (b"", None),
    "an unknown method": (get(b"BREW /predict HTTP/1.1"), "wrong_method"),
    "TRACE": (get(b"TRACE /health HTTP/1.1"), "wrong_method"),
    "CONNECT": (get(b"CONNECT example.org:443 HTTP/1.1"), "not_found"),
    "OPTIONS of the server": (get(b"OPTIONS * HTTP/1.1"), "not_found"),
    "a NUL in the path": (get(b"GET /health%00 HTTP/1.1"), "not_found"),
    "half a character in the path": (get(b"GET /%C3%28 HTTP/1.1"), "not_found"),
    "a line's end in the path": (get(b"GET /health%0d%0aX:y HTTP/1.1"), "not_found"),
    "slashes": (get(b"GET //health HTTP/1.1"), "not_found"),
    "a path of 10 kB": (get(b"GET /" + b"x" * 10_000 + b" HTTP/1.1"), "not_found"),
    "an upgrade of a page for uploads": (
        get(b"GET /predict HTTP/1.1", HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"),
        "wrong_method",
    ),
    "another name": (get(b"GET /model HTTP/1.1", b"Host: evil.example\r\n"), "wrong_host"),
    "a name that is none": (get(b"GET /model HTTP/1.1", b"Host: a/b@c:d\r\n"), "wrong_host"),
    "an unknown origin": (
        get(
            b"OPTIONS /predict HTTP/1.1",
            HOST + b"Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n",
        ),
        "wrong_origin",
    ),
    "a header of its own from a known origin": (
        get(
            b"OPTIONS /predict HTTP/1.1",
            HOST + b"Origin: https://clinic.example\r\nAccess-Control-Request-Method: POST\r\n"
            b"Access-Control-Request-Headers: X-Own\r\n",
        ),
        "wrong_origin",
    ),
}
