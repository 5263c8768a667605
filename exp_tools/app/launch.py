"""Start the web app: Streamlit in this process, on this machine only by default, without usage statistics."""

import logging.config
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp_tools.app.parts.settings import MAX_UPLOAD_MB, Settings
from exp_tools.errors import UserError
from exp_tools.serving.public_url import PublicUrl, allowed_hosts, is_local, parse_public_url
from exp_tools.system import collect_garbage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPT = Path(__file__).parent / "entry/script.py"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C")
"""Okabe and Ito's colours, which colour-blind people tell apart, without those that vanish on white or black."""
THEME = {
    "light.primaryColor": "#0B6E99",
    "light.backgroundColor": "#FFFFFF",
    "light.secondaryBackgroundColor": "#F1F5F8",
    "light.textColor": "#17242D",
    "dark.primaryColor": "#1677A7",
    "dark.backgroundColor": "#10171D",
    "dark.secondaryBackgroundColor": "#1C262E",
    "dark.textColor": "#E8EEF2",
    "light.codeTextColor": "#17242D",
    "dark.codeTextColor": "#E8EEF2",
    "light.dataframeHeaderTextColor": "#3C4A54",
    "dark.dataframeHeaderTextColor": "#B9C4CC",
    "showWidgetBorder": True,
    "headingFontSizes": ["1.7rem", "1.4rem", "1.2rem", "1.1rem", "1rem", "1rem"],
    "chartCategoricalColors": list(COLOURS),
}


def start(settings: Settings, *, host: str, port: int, public_url: str | None = None) -> None:
    """Serve the app until it is stopped (Ctrl-C, SIGTERM).

    Parameters
    ----------
    settings : what to show
    host : address to listen on; one that is not this machine's own lets others in, and is said so
    port : 1 to 65535
    public_url : the address under which a proxy offers the app, https://host/base

    Raises
    ------
    UserError : the app's packages are missing, or host, port or public_url cannot be used
    """
    if find_spec("streamlit") is None:
        raise UserError("the web app needs Streamlit, which is not installed: pip install -e '.[app]'")
    url = parse_public_url(public_url) if public_url else None
    from starlette.formparsers import MultiPartParser
    from starlette.middleware import Middleware
    from streamlit.starlette import App
    from streamlit.web import bootstrap

    from exp_tools.serving.api.connections import LOGGING, ending_well, listen, make_server
    from exp_tools.serving.api.limits import Limits

    listening = listen(host, port)
    port = listening.getsockname()[1]
    collect_garbage(rarely=False)  # visits leave some
    if not is_local(host):
        print(f"warning: everyone who reaches {host}:{port} can use the app; there is no password", file=sys.stderr)
        if settings.allow_training:
            print("warning: and can run experiments on this machine (--allow-training)", file=sys.stderr)
        if settings.cases:
            print("warning: and sees the data set's test images (--cases)", file=sys.stderr)
    MultiPartParser.spool_max_size = (MAX_UPLOAD_MB + 1) * 2**20  # beyond it an upload would go to a temporary file
    here = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}{url.base if url else ''}"
    print(f"the app: {here}{f', offered as {url}' if url else ''} (stop it with Ctrl-C)", flush=True)
    script = str(SCRIPT)
    sys.argv = [script, settings.to_text()]  # as the script finds it
    bootstrap.load_config_options(options(host, port, url))
    logging.config.dictConfig(LOGGING)
    app = App(script, middleware=[Middleware(Unframed)])
    server = make_server(app, Limits(), ws="websockets-sansio", ws_per_message_deflate=False)
    with ending_well():
        server.run(sockets=[listening])  # Streamlit's own server lets every answer wait for 40 ms


class Unframed:
    """ASGI middleware: no page of another origin may show the app in a frame and have its visitors click there."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def sending(message: "Message") -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", b"frame-ancestors 'self'")
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, sending)


def options(host: str, port: int, url: PublicUrl | None = None) -> dict[str, Any]:
    """Streamlit's options, given at its start, so that no configuration file of the user's changes them."""
    found: dict[str, Any] = {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": MAX_UPLOAD_MB,
        "server.showEmailPrompt": False,
        "server.enableXsrfProtection": True,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "global.disableWidgetStateDuplicationWarning": True,  # a click on a matrix sets filters that have defaults
        "logger.hideWelcomeMessage": True,
        **{f"theme.{name}": value for name, value in THEME.items()},
    }
    if url:
        found |= {
            "server.baseUrlPath": url.base,
            "server.corsAllowedOrigins": [url.origin],
            "browser.serverAddress": url.host,
            "browser.serverPort": url.port,
        }
    if hosts := allowed_hosts(host, url):  # a page elsewhere cannot talk to the app by a name that it points here
        found["server.allowedHosts"] = list(hosts)
    return found
