"""Run the JSON API as a server."""

import contextlib
import logging
import logging.config
import math
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from exp_tools.serving.api.access import Access, read_token
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.connections import Seldom, connection_factory, connection_room, listen
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.predictor import Predictor
from exp_tools.serving.public_url import allowed_hosts, is_local, parse_origin, parse_public_url
from exp_tools.system import collect_garbage, cores

STOP_SECONDS = 30
QUEUE = 2048
"""Connections that may wait to be accepted."""
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


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    at_once: int | None = None,
    public_url: str | None = None,
    cors_origins: Sequence[str] = (),
    token_file: Path | None = None,
    metrics: bool = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; requests that are in work are answered before it ends.

    SIGHUP reads the model file again.

    Parameters
    ----------
    model : the model file
    host, port : where to listen; port 0 takes a free one; the address is printed
    at_once : requests computed at the same time; the cores are shared between them; None: one for each core
    public_url : the address behind a proxy, https://host/base
    cors_origins : origins whose web pages may use the API; "*": all
    token_file : has the bearer token that is asked for; None: none is
    metrics : whether /metrics is answered, for Prometheus

    Raises
    ------
    UserError
        no model of ours, the address is taken or not this machine's, an option that cannot be used, or a limit of open
        files that is too low
    """
    at_once = at_once or cores()
    url = parse_public_url(public_url) if public_url else None
    access = Access(
        hosts=allowed_hosts(host, url),
        origins=tuple(map(parse_origin, cors_origins)),
        token=read_token(token_file) if token_file else None,
        public_url=url,
    )
    limits = Limits(at_once=at_once)
    connection_room(limits.connections)
    with listen(host, port) as listening, _ending_well():
        app = create_app(Predictor(model), limits, access, metrics=metrics)
        torch.set_num_threads(max(1, cores() // at_once))
        logging.config.dictConfig(LOGGING)
        collect_garbage(rarely=False)  # requests leave some
        address = f"[{host}]" if ":" in host else host
        print(f"listening on http://{address}:{listening.getsockname()[1]} (Ctrl-C stops); model {model}", flush=True)
        if not is_local(host):
            lacks = "no encryption" if access.token else "neither passwords nor encryption"
            print(f"warning: others can reach this server; it has {lacks}", file=sys.stderr)
        with _reloading(app.state.serving.reload):
            make_server(app, limits).run(sockets=[listening])


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """A server whose connections keep to the limits; its `run` wants sockets that listen."""
    most, at_a_time = connection_room(limits.connections)
    config = uvicorn.Config(
        app,
        http=connection_factory(limits, most),
        ws="none",
        backlog=at_a_time,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn's, which has one number for connections that are accepted in one go and for those that may wait."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(QUEUE)


@contextlib.contextmanager
def _reloading(reload: Callable[[], None]) -> Iterator[None]:
    """SIGHUP calls `reload` in a thread of its own, one call at a time; a system without that signal does nothing."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # which a signal handler may put into at any moment

    def work() -> None:
        while asked.get():
            while not asked.empty():
                asked.get()
            reload()

    threading.Thread(target=work, daemon=True).start()
    before = signal.signal(signal.SIGHUP, lambda *_: asked.put(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        asked.put(False)


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process with status 0: uvicorn raises the signal again when it has stopped."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
