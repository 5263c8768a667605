"""Connections of a server: how many there may be, how long one may wait, and a log that nobody can fill."""

import asyncio
import contextlib
import functools
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from exp_tools.errors import UserError
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.problems import Problem

LOG = logging.getLogger("exp_tools.api")
STOP_SECONDS = 30
QUEUE = 2048
"""Connections that may wait to be accepted."""
OWN_FILES = 64
"""Files that the process opens besides its connections."""
LEAST_FILES = 128


def connection_room(most: int) -> tuple[int, int]:
    """How many connections there may be, and how many of them are accepted in one go.

    Between accepting a connection and closing the one that makes room for it, asyncio accepts three times more: that
    many descriptors stay free, so that accepting never fails.

    Parameters
    ----------
    most : connections wanted

    Raises
    ------
    UserError : the process may open too few files
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return most, 100
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return most, 100
    if files < LEAST_FILES:
        raise UserError(f"the server may open {files} files and needs {LEAST_FILES}; allow more by `ulimit -n 1024`")
    at_a_time = min(100, files // 16)
    return min(most, files - OWN_FILES - 4 * at_a_time), at_a_time


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose others by --host and --port") from error


def make_server(app: ASGIApp, limits: Limits, **options: Any) -> uvicorn.Server:
    """A server whose connections keep to the limits; its `run` wants sockets that listen.

    Parameters
    ----------
    options : for uvicorn.Config
    """
    most, at_a_time = connection_room(limits.connections)
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, limits=limits, most=most, waiting={}),
        backlog=at_a_time,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=STOP_SECONDS,
        **options,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn's, which has one number for connections that are accepted in one go and for those that may wait."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(QUEUE)


class Connection(H11Protocol):
    """uvicorn's connection, with what it lacks.

    - Small answers leave at once. asyncio sees to that only for sockets that name their protocol, and those of
      `socket.create_server` do not: Nagle's algorithm then waits for the client's delayed acknowledgement, 40 ms.
    - The head of a request must arrive within `limits.header_seconds` of its first byte, however little comes at a
      time, and its answer must be taken within `limits.send_seconds`.
    - Where all `most` places are taken, the connection that has waited longest for a request makes room.
    - What is no HTTP is answered by a problem body too.

    Parameters
    ----------
    waiting : the connections without a request in work, longest wait first, shared by all
    """

    def __init__(
        self, *arguments: Any, limits: Limits, most: int, waiting: dict["Connection", asyncio.TimerHandle], **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self.limits, self.most, self.waiting = limits, most, waiting
        self.sending: asyncio.TimerHandle | None = None
        self.upgraded = False
        self.begun = True  # whether a head is under way: it should be, on a new connection
        self.access_log = False  # uvicorn's would have addresses and paths

    @property
    def in_work(self) -> bool:
        """Whether the head of a request is here and its answer is not yet complete; a WebSocket's never is."""
        return self.upgraded or (self.cycle is not None and not self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting), None)
            if longest is None:
                self.refuse(Problem("too_busy", f"{self.most} connections are open", {"Retry-After": "1"}))
                return
            longest.stop_waiting()
            longest.transport.abort()
        self.wait(self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.in_work:
            self.stop_waiting()
        elif not self.begun:
            self.stop_waiting()
            self.wait(self.limits.header_seconds)
        self.begun = True

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self.upgraded = True
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.in_work and not self.transport.is_closing():
            self.begun = False
            self.wait(self.limits.idle_seconds)

    def wait(self, seconds: float) -> None:
        """Wait so long for a request, unless one is waited for already."""
        if self not in self.waiting:
            self.waiting[self] = self.loop.call_later(seconds, self.give_up)

    def stop_waiting(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()

    def give_up(self) -> None:
        self.stop_waiting()
        if not self.begun:
            self.transport.close()
            return
        seconds = f"{self.limits.header_seconds:g}"
        self.refuse(Problem("too_slow", f"the head of the request did not arrive within {seconds} seconds"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.sending = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.sending:
            self.sending.cancel()
            self.sending = None

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem("malformed_request", "the request is not HTTP/1.1, or its head is too long"))

    def refuse(self, problem: Problem) -> None:
        """Answer at once, whatever else is under way, and close; an answer that has begun is cut off."""
        requested = self.conn.our_state is h11.SEND_RESPONSE
        if not requested and self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        if requested:  # whoever works on it learns that nobody waits any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        answer = problem.response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        without_body = requested and self.scope["method"] == "HEAD"
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers),
            h11.Data(data=b"" if without_body else answer.body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()
        LOG.info("(no request) %s %s", answer.status_code, problem.kind)


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process with status 0: uvicorn raises the signal again when it has stopped."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Seldom(logging.Filter):
    """At most one line a second of each message; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = str(record.msg).partition("\n")[0]
        if len(self.seen) > 100:
            self.seen.clear()
        now = time.monotonic()
        last, left_out = self.seen.get(key, (-math.inf, 0))
        if now - last < 1:
            self.seen[key] = last, left_out + 1
            return False
        self.seen[key] = now, 0
        if key.startswith("socket.accept()"):  # asyncio's; neither the socket nor the traceback tell more
            record.msg, record.args, record.exc_info = f"{key}: a connection could not be accepted", (), None
        if left_out:
            record.msg = f"{record.msg} ({left_out:,} more like it)"
        return True


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "filters": {"seldom": {"()": Seldom}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
        "seldom": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["seldom"]},
    },
    "loggers": {
        "exp_tools.api": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["seldom"], "level": "ERROR", "propagate": False},
        "asyncio": {"handlers": ["seldom"], "level": "WARNING", "propagate": False},
        "python_multipart": {"level": "CRITICAL"},  # its warnings quote bytes of the form
    },
}
