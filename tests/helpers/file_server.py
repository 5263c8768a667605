"""A local HTTP server for download tests: Range, ETag and If-Range done right, and every way to go wrong on demand.

A file is bytes, or a `Pattern`, which is made on the fly and so may be large. Each request takes the next `Answer` from
`server.script`; when the script is empty it is answered as it should be. `server.log` holds what was asked.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 2**16


@dataclass(frozen=True)
class Pattern:
    """Bytes that depend on their place, so that a piece in the wrong place never goes unnoticed."""

    size: int
    key: int = 0

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            content = hashlib.shake_128(f"{self.key} {block}".encode()).digest(BLOCK)
            yield content[max(0, start - block * BLOCK) : stop - block * BLOCK]

    def content(self) -> bytes:
        return b"".join(self.read(0, self.size))

    def md5(self) -> str:
        digest = hashlib.md5()
        for chunk in self.read(0, self.size):
            digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class Answer:
    """One answer of the server; without arguments the right one."""

    status: int | None = None  # this, with a short text for a body
    headers: dict[str, str] = field(default_factory=dict)  # more headers, or other values of the usual ones
    ranges: bool = True  # False: the whole file with 200, whatever was asked
    sized: bool = True  # False: no Content-Length, the end of the connection is the end
    cut: int | None = None  # close the connection after so many bytes of the body
    stall: int | None = None  # fall silent after so many bytes, until the server is closed
    corrupt: int | None = None  # flip the bits of the byte at this place of the file
    extra: bytes = b""  # sent after the end


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    if_range: str | None


class FileServer:
    """`with FileServer({"/a.zip": b"..."}) as server: server.url("/a.zip")`."""

    def __init__(self, files: dict[str, bytes | Pattern]):
        self.files = files
        self.script: list[Answer] = []
        self.log: list[Request] = []
        self.etag = '"one"'
        self.lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def next_answer(self, request: Request) -> Answer:
        with self.lock:
            self.log.append(request)
            return self.script.pop(0) if self.script else Answer()

    def __enter__(self) -> "FileServer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def do_GET(self) -> None:
        request = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        answer = self.owner.next_answer(request)
        if answer.status is not None:
            self._send_head(answer.status, {"Content-Length": "4", **answer.headers})
            self.wfile.write(b"oops")
            return
        body = self.owner.files[self.path]
        size = len(body) if isinstance(body, bytes) else body.size
        start, status = self._range(request, answer), 206
        headers = {"ETag": self.owner.etag, "Content-Length": str(size)}
        if start is None:
            start, status = 0, 200
        elif start >= size:
            self._send_head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0", **answer.headers})
            return
        else:
            headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}", "Content-Length": str(size - start)}
        if not answer.sized:
            del headers["Content-Length"]
        self._send_head(status, headers | answer.headers)
        self._send_body(body, start, size, answer)

    def _range(self, request: Request, answer: Answer) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.range or "")
        same = request.if_range in (None, self.owner.etag)
        return int(asked[1]) if asked and same and answer.ranges else None

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes | Pattern, start: int, size: int, answer: Answer) -> None:
        sent, last = 0, min((n for n in (answer.cut, answer.stall) if n is not None), default=size)
        chunks = [body[start:]] if isinstance(body, bytes) else body.read(start, size)
        try:
            for chunk in chunks:
                place = start + sent
                if answer.corrupt is not None and place <= answer.corrupt < place + len(chunk):
                    at = answer.corrupt - place
                    chunk = chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
                self.wfile.write(chunk[: last - sent])
                sent += min(len(chunk), last - sent)
                if sent == last:
                    break
            if answer.cut is None and answer.stall is None:
                self.wfile.write(answer.extra)
            elif answer.stall is not None:
                self.owner.closing.wait(60)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away, as a killed one does

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' screen; `FileServer.log` has it."""
