"""Run the JSON API as a server."""

import contextlib
import ipaddress
import logging
import logging.config
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import uvicorn

from exp_tools.errors import UserError
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.predictor import Predictor
from exp_tools.system import collect_garbage, cores

STOP_SECONDS = 30
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "exp_tools.api": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "python_multipart": {"level": "CRITICAL"},  # its warnings quote bytes of the form
    },
}


def serve(model: Path, *, host: str = "127.0.0.1", port: int = 8000, at_once: int | None = None) -> None:
    """Serve a model until SIGTERM or Ctrl-C; requests that are in work are answered before it ends.

    Parameters
    ----------
    model : the model file
    host, port : where to listen; port 0 takes a free one; the address is printed
    at_once : requests computed at the same time; the cores are shared between them; None: one for each core

    Raises
    ------
    UserError : no model of ours, or the address is taken or not this machine's
    """
    at_once = at_once or cores()
    with _listen(host, port) as listening, _ending_well():
        torch.set_num_threads(max(1, cores() // at_once))  # which the predictor takes for its share
        app = create_app(Predictor(model), Limits(at_once=at_once))
        logging.config.dictConfig(LOGGING)
        collect_garbage(rarely=False)  # requests leave some
        address = f"[{host}]" if ":" in host else host
        print(f"listening on http://{address}:{listening.getsockname()[1]} (Ctrl-C stops); model {model}", flush=True)
        if not _is_local(host):
            print("warning: others can reach this server; it has neither passwords nor encryption", file=sys.stderr)
        config = uvicorn.Config(
            app, access_log=False, log_config=None, server_header=False, timeout_graceful_shutdown=STOP_SECONDS
        )
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process with status 0: uvicorn raises the signal again when it has stopped."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose others by --host and --port") from error


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
