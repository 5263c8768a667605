"""The JSON API in a thread of the test, on a free port."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from exp_tools.serving.api.connections import listen, make_server
from exp_tools.serving.api.limits import Limits


@dataclass
class Running:
    """A server that answers on 127.0.0.1."""

    server: uvicorn.Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A connection over which something was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection


@contextlib.contextmanager
def running(app: Callable, limits: Limits, ws: str = "none") -> Iterator[Running]:
    """An ASGI app behind the API's own connections."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = make_server(app, limits, ws=ws)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(server, port)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it is so; an AssertionError where it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def everything(connection: socket.socket) -> bytes:
    """All that arrives until the server closes; a connection that was cut off has its end."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while some := connection.recv(65536):
            received += some
    return received
