"""Run the JSON API as a server."""

import contextlib
import logging.config
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from exp_tools.serving.api.access import Access, read_token
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.connections import LOGGING, connection_room, ending_well, listen, make_server
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.predictor import Predictor
from exp_tools.serving.public_url import allowed_hosts, is_local, parse_origin, parse_public_url
from exp_tools.system import collect_garbage, cores, settle_memory


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
    with listen(host, port) as listening, ending_well():
        torch.set_num_threads(max(1, cores() // at_once))  # which the predictor takes for its share
        app = create_app(Predictor(model), limits, access, metrics=metrics)
        logging.config.dictConfig(LOGGING)
        collect_garbage(rarely=False)  # requests leave some
        settle_memory()
        address = f"[{host}]" if ":" in host else host
        print(f"listening on http://{address}:{listening.getsockname()[1]} (Ctrl-C stops); model {model}", flush=True)
        if not is_local(host):
            lacks = "no encryption" if access.token else "neither passwords nor encryption"
            print(f"warning: others can reach this server; it has {lacks}", file=sys.stderr)
        with _reloading(app.state.serving.reload):
            make_server(app, limits, ws="none").run(sockets=[listening])


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
            settle_memory()

    threading.Thread(target=work, daemon=True).start()
    before = signal.signal(signal.SIGHUP, lambda *_: asked.put(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        asked.put(False)
