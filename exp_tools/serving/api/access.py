"""Who may ask the API: the names it goes by, origins of web pages, and a bearer token."""

import hmac
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from exp_tools.errors import UserError
from exp_tools.serving.api.problems import Problem, shown
from exp_tools.serving.public_url import PublicUrl, host_name

PROTECTED = ("/predict", "/predict/batch", "/model", "/metrics")
"""Pages for which a token is needed, where there is one; the others say nothing that is not public."""
PROBES = ("/health", "/ready")
"""Pages that are answered under any name: load balancers and orchestrators ask by the machine's address."""
LEAST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """Who may ask what.

    hosts : names that `Host` may have; None: any
    origins : origins whose pages may read answers, "*": all
    token : what `Authorization: Bearer` must have for PROTECTED endpoints; None: nothing
    public_url : the address behind a proxy
    """

    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()
    token: str | None = None
    public_url: PublicUrl | None = None

    @property
    def base(self) -> str:
        """The path before every endpoint."""
        return self.public_url.base if self.public_url else ""


def read_token(path: Path) -> str:
    """The token in a file: one line of at least 16 printable ASCII characters. Raises UserError when there is none."""
    make = f"python -c 'import secrets; print(secrets.token_urlsafe())' > {path}"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise UserError(f"the token file {path} cannot be read ({reason}); make one by: {make}") from error
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"the token file {path} must have one line of at least {LEAST_TOKEN} letters, digits and signs; make one "
            f"by: {make}"
        )
    return token


class Guard:
    """ASGI middleware that answers requests of strangers with a problem: wrong_host, unauthorized."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._refusal(scope) if scope["type"] == "http" else None
        await (problem.response() if problem else self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers, access = Headers(scope=scope), self.access
        host = headers.get("host", "")
        known = access.hosts is None or host_name(host) in access.hosts
        if not known and scope["path"] not in PROBES:
            return Problem("wrong_host", f"the server does not go by the name {shown(host)}; see --public-url")
        if access.token is not None and scope["path"] in PROTECTED:
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), access.token.encode())
            if kind.lower() != "bearer" or not right:
                detail = "send the header Authorization: Bearer, with the server's token"
                return Problem("unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return None


class Cors(CORSMiddleware):
    """Starlette's, with a problem as the answer to a web page that may not ask."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        return Problem("wrong_origin", bytes(answer.body).decode()).response()
