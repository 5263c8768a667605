"""Start the web app: Streamlit in this process, on this machine only by default, without usage statistics."""

import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from exp_tools.app.parts.settings import MAX_UPLOAD_MB, Settings
from exp_tools.errors import UserError
from exp_tools.system import collect_garbage

SCRIPT = Path(__file__).parent / "entry/script.py"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
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
    "showWidgetBorder": "true",
    "headingFontSizes": '["1.7rem", "1.4rem", "1.2rem", "1.1rem", "1rem", "1rem"]',
    "chartCategoricalColors": f"[{', '.join(repr(colour) for colour in COLOURS)}]".replace("'", '"'),
}


def start(settings: Settings, *, host: str, port: int) -> None:
    """Serve the app until it is stopped (Ctrl-C, SIGTERM).

    Parameters
    ----------
    settings : what to show
    host : address to listen on; one that is not this machine's own lets others in, and is said so
    port : 1 to 65535

    Raises
    ------
    UserError : the app's packages are missing, or host and port cannot be used
    """
    if find_spec("streamlit") is None:
        raise UserError("the web app needs Streamlit, which is not installed: pip install -e '.[app]'")
    _require_free(host, port)
    collect_garbage(rarely=False)  # visits leave some
    if host not in LOOPBACK:
        print(f"warning: everyone who reaches {host}:{port} can use the app; there is no password", file=sys.stderr)
        if settings.allow_training:
            print("warning: and can run experiments on this machine (--allow-training)", file=sys.stderr)
    from starlette.formparsers import MultiPartParser
    from streamlit.web.cli import main

    MultiPartParser.spool_max_size = (MAX_UPLOAD_MB + 1) * 2**20  # beyond it an upload would go to a temporary file
    print(f"the app: http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} (stop it with Ctrl-C)", flush=True)
    main(
        ["run", str(SCRIPT), *options(host, port), "--", settings.to_text()],
        prog_name="streamlit",
        standalone_mode=False,
    )


def options(host: str, port: int) -> list[str]:
    """Streamlit's options, all by flag, so that no configuration file of the user's changes them."""
    values = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": MAX_UPLOAD_MB,
        "server.showEmailPrompt": "false",
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.hideWelcomeMessage": "true",
        **{f"theme.{name}": value for name, value in THEME.items()},
    }
    found = [f"--{name}={value}" for name, value in values.items()]
    if host in LOOPBACK:  # a page elsewhere cannot talk to the app by a name that it points here
        found += [f"--server.allowedHosts={name}" for name in LOOPBACK]
    return found


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error.strerror or error}); try another --port"
            ) from error
