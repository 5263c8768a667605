"""The API's middleware: known endpoints, a log line per request, response headers, faults as problems."""

import asyncio
import contextlib
import logging
import re
import time
import traceback
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exp_tools.serving.api.metrics import Metrics
from exp_tools.serving.api.problems import BASE, Problem
from exp_tools.serving.api.serving import Serving

LOG = logging.getLogger("exp_tools.api")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
DRAIN_SECONDS = 10.0
SILENCE_SECONDS = 1.0
SAFE = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""What a browser may do with an answer: no page may show it in a frame, and /docs may do no more than look well."""
GONE = 499
"""The logged status of a client that disconnected before its response."""


class Gzip(GZipMiddleware):
    """Starlette's, but not for a client that says it takes no gzip (RFC 9110, 12.5.3)."""

    refused = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = scope["type"] == "http" and self.refused.search(Headers(scope=scope).get("accept-encoding", ""))
        await (self.app if refused else super().__call__)(scope, receive, send)


class RequestMiddleware:
    """ASGI middleware.

    The app sees the path without the proxy's base path and without a slash at its end, and GET for HEAD, whose answer
    is sent without its body.

    The log has method, endpoint, status, milliseconds, bytes and a random id, which the answer has too. It has neither
    addresses, file names, form fields nor queries, and an endpoint that is not in `pages` is written as "(other)": an
    address may hold a name. Of a fault of ours the places in the code are logged, not its message, for the same reason.

    Parameters
    ----------
    pages : the paths that may appear in the log
    base : the path before every endpoint; requests may have it or not
    serving : has the model of the request, scope["service"], whose checksum the answer has
    metrics : counts the requests; None: nobody does
    """

    def __init__(
        self, app: ASGIApp, pages: Collection[str], base: str, serving: Serving, metrics: Metrics | None
    ) -> None:
        self.app, self.pages, self.base, self.serving, self.metrics = app, pages, base, serving, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        service = self.serving.current
        scope = dict(
            scope, path=self._page(scope["path"]), method="GET" if method == "HEAD" else method, service=service
        )
        exchange = _Exchange(scope, receive, send, service.served["sha256"], bare=method == "HEAD")
        BASE.set(self.base)
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
            self._log(method if method in METHODS else "(other)", scope["path"], exchange)

    def _page(self, path: str) -> str:
        if self.base and f"{path}/".startswith(f"{self.base}/"):
            path = path[len(self.base) :]
        return path.removesuffix("/") or "/"

    def _log(self, method: str, path: str, exchange: "_Exchange") -> None:
        page = path if path in self.pages else "(other)"
        took = time.perf_counter() - exchange.start
        if self.metrics:
            self.metrics.observe(method, page, exchange.status or 500, took)
        level = logging.ERROR if (exchange.status or 500) >= 500 else logging.INFO
        LOG.log(
            level,
            "%s %s %s %.0f ms %d bytes id=%s",
            method,
            page,
            exchange.status,
            1000 * took,
            exchange.arrived,
            exchange.name,
        )


class _Exchange:
    """One request and its answer, which is `bare` without its body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, checksum: str, *, bare: bool) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send, self.checksum, self.bare = receive, send, checksum, bare
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
                {
                    "X-Request-ID": self.name,
                    "X-Model-SHA256": self.checksum,
                    "Cache-Control": "no-store",
                    "Content-Security-Policy": SAFE,
                    "X-Content-Type-Options": "nosniff",
                }
            )
        elif self.bare:
            message = {**message, "body": b""}
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
