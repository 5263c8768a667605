"""Whether the server of a container answers: `python -m exp_tools.serving.health`, the container's health check.

One image runs the app or the API, on any port. Which one is read from the command of the container's first process.
"""

import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

SERVERS = {"app": (8501, "/_stcore/health"), "api": (8000, "/health")}
"""Port by default, and the page that answers while the server is well."""
TIMEOUT = 4


def address(command: list[str]) -> str:
    """The page to ask of a server that was started by `command`, as `exp-tools api --port 8001`."""
    words = [word for part in command for word in part.replace("=", " ").split()]
    port, page = SERVERS[next((word for word in words if word in SERVERS), "app")]
    if "--port" in words[:-1]:
        port = int(words[words.index("--port") + 1])
    base = ""
    if page == SERVERS["app"][1] and "--public-url" in words[:-1]:  # the API answers without its base path too
        base = urlsplit(words[words.index("--public-url") + 1]).path.rstrip("/")
    return f"http://127.0.0.1:{port}{base}{page}"


def main(process: str = "1") -> int:
    """0: the server of the process answers; 1: it does not, which is said."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").split("\0")
        urllib.request.urlopen(address(command), timeout=TIMEOUT).close()
    except (OSError, ValueError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
