"""The address under which a server is reached from outside: the host names, origins and base path it answers to."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from exp_tools.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = {"http": 80, "https": 443}
BASE = re.compile(r"(/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True)
class PublicUrl:
    """An address such as https://host:port/base, as the user of a proxy sees it.

    scheme : http or https
    host : lower case, without port; an IPv6 address without brackets
    port : 1 to 65535
    base : the path before every endpoint, without a slash at its end; "" where there is none
    """

    scheme: str
    host: str
    port: int
    base: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, as browsers send them in `Origin`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")

    def __str__(self) -> str:
        return self.origin + self.base


def parse_public_url(text: str) -> PublicUrl:
    """The address of a `--public-url`. Raises UserError when it is none, with an example."""
    url = _split(text, "--public-url", "https://example.org/lesions")
    base = url.path.rstrip("/")
    if not BASE.fullmatch(base) or {".", ".."} & set(base.split("/")):
        raise UserError(f"--public-url {text}: the path {url.path!r} has more than letters, digits and -._~ in it")
    return PublicUrl(url.scheme, url.hostname, url.port or PORTS[url.scheme], base)


def parse_origin(text: str) -> str:
    """The origin of a `--cors-origin`, as browsers write it; `*` stays. Raises UserError when it is none."""
    if text == "*":
        return text
    url = _split(text, "--cors-origin", "https://example.org")
    origin = PublicUrl(url.scheme, url.hostname, url.port or PORTS[url.scheme], "").origin
    if url.path not in ("", "/"):
        raise UserError(f"--cors-origin {text}: an origin has no path; write {origin}")
    return origin


def _split(text: str, option: str, example: str) -> SplitResult:
    try:
        url = urlsplit(text)
        fine = url.scheme in PORTS and url.hostname and (url.port is None or url.port > 0)
    except ValueError:  # a port that is no number, an address in brackets that is none
        fine = False
    if not fine or url.username is not None or url.query or url.fragment or not text.isascii() or " " in text:
        raise UserError(f"{option} {text}: expected http or https, a host and no more than a port, as in {example}")
    return url


def is_local(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, public_url: PublicUrl | None) -> tuple[str, ...] | None:
    """The names that `Host` may have on a server that listens on `host`; None: any, since nobody said which.

    A name that someone else points to this machine (DNS rebinding) is not among them.
    """
    if public_url is None and not is_local(host):
        return None
    wildcard = host in ("", "0.0.0.0", "::")
    names = (*LOOPBACK, *(() if wildcard else (host,)), *((public_url.host,) if public_url else ()))
    return tuple(dict.fromkeys(names))


def host_name(header: str) -> str | None:
    """The name in a `Host` header, without port, in lower case; None where it is none."""
    try:
        url = urlsplit(f"//{header}")
        url.port  # noqa: B018  it is read for the error
    except ValueError:
        return None
    plain = url.username is None and not (url.path or url.query or url.fragment)
    return url.hostname.rstrip(".") if plain and url.hostname else None
