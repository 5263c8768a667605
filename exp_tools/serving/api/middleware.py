"""The API's middleware: a log line per request, response headers, and internal faults as problem responses."""

import asyncio
import contextlib
import logging
import time
import traceback
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exp_tools.serving.api.problems import Problem

LOG = logging.getLogger("exp_tools.api")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
DRAIN_SECONDS = 10.0
SILENCE_SECONDS = 1.0
GONE = 499
"""The logged status of a client that disconnected before its response."""


class RequestMiddleware:
    """ASGI middleware.

    The log has method, page, status, milliseconds, bytes and a random id, which the answer has too. It has neither
    addresses, file names, form fields nor queries, and a page that is not in `pages` is written as "(other)": an
    address may hold a name. Of a fault of ours the places in the code are logged, not its message, for the same reason.

    Parameters
    ----------
    pages : the paths that may appear in the log
    """

    def __init__(self, app: ASGIApp, pages: Collection[str]) -> None:
        self.app, self.pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = GONE
        except Exception as error:
            places = "".join(traceback.format_tb(error.__traceback__))
            LOG.error("fault id=%s %s\n%s", exchange.name, type(error).__name__, places)
            if exchange.status is None:
                problem = Problem("server_fault", f"the log has more, under the id {exchange.name}")
                await problem.response()(scope, exchange.receive, exchange.send)
        finally:
            self._log(scope, exchange)

    def _log(self, scope: Scope, exchange: "_Exchange") -> None:
        method = scope["method"] if scope["method"] in METHODS else "(other)"
        page = scope["path"] if scope["path"] in self.pages else "(other)"
        took = (time.perf_counter() - exchange.start) * 1000
        level = logging.ERROR if (exchange.status or 500) >= 500 else logging.INFO
        LOG.log(
            level,
            "%s %s %s %.0f ms %d bytes id=%s",
            method,
            page,
            exchange.status,
            took,
            exchange.arrived,
            exchange.name,
        )


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        self.complete = "content-length" not in headers and "transfer-encoding" not in headers
        self.waits = headers.get("expect", "").lower() == "100-continue"
        self.name, self.start = uuid.uuid4().hex[:12], time.perf_counter()
        self.status: int | None = None
        self.arrived = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.arrived += len(message.get("body", b""))
        self.waits = False
        self.complete = self.complete or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._drain()
            self.status = message["status"]
            MutableHeaders(scope=message).update(
                {"X-Request-ID": self.name, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
            )
        await self._send(message)

    async def _drain(self) -> None:
        """Discard the rest of the request for a while: a client that is cut off while sending misses the response.

        One that asked first (Expect: 100-continue) has sent nothing yet, and one that falls silent is not waited for.
        """
        if self.waits:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.complete:
                    await asyncio.wait_for(self.receive(), SILENCE_SECONDS)
