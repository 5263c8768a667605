"""The API's errors: problem bodies as in RFC 9457, one type for each client fault."""

from contextvars import ContextVar
from typing import Any, NamedTuple

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
SCHEMA = {"$ref": "#/components/schemas/ProblemFields"}
SHOWN = 60
BASE: ContextVar[str] = ContextVar("base", default="")
"""The path before every endpoint, of the request that is answered; "" where there is none."""


class Kind(NamedTuple):
    """An HTTP status and a title, the same for every occurrence."""

    status: int
    title: str


KINDS = {
    "malformed_request": Kind(400, "The request is not well-formed HTTP"),
    "malformed_form": Kind(400, "The form is not well-formed multipart/form-data"),
    "unauthorized": Kind(401, "The request has no valid token"),
    "wrong_origin": Kind(403, "Pages of that origin may not use this server"),
    "not_found": Kind(404, "There is no such endpoint"),
    "wrong_method": Kind(405, "This endpoint does not answer that method"),
    "too_slow": Kind(408, "The request did not arrive in time"),
    "too_large": Kind(413, "The request, an image or a text is too large"),
    "too_many_parts": Kind(413, "The form has too many images or fields"),
    "wrong_content_type": Kind(415, "The request is not multipart/form-data in UTF-8"),
    "not_an_image": Kind(415, "The file is not an image that can be read"),
    "wrong_host": Kind(421, "The server does not go by that name"),
    "empty_image": Kind(422, "The image file is empty"),
    "damaged_image": Kind(422, "The image is damaged or cut off"),
    "too_many_pixels": Kind(422, "The image has too many pixels, or a JPEG too many scans of them"),
    "bad_shape": Kind(422, "The image is a strip or a dot"),
    "wrong_field": Kind(422, "A field is missing, unknown, given twice or of the wrong sort"),
    "wrong_value": Kind(422, "The value of a field is not allowed"),
    "too_busy": Kind(429, "The server has as many requests as it takes at once"),
    "server_fault": Kind(500, "Internal server error"),
    "not_ready": Kind(503, "The server takes no request at the moment"),
}
"""Every kind of problem; the image kinds are those of ImageFault."""


class Problem(Exception):
    """A request that is refused. `detail` is shown to the client: no path of the server, no traceback in it."""

    def __init__(self, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers = kind, detail, headers

    def body(self) -> dict[str, Any]:
        """The members of RFC 9457; `type` leads to the list of kinds, `kind` is its last part, for programs."""
        status, title = KINDS[self.kind]
        return {
            "type": f"{BASE.get()}/problems#{self.kind}",
            "kind": self.kind,
            "status": status,
            "title": title,
            "detail": self.detail,
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), KINDS[self.kind].status, self.headers, media_type=MEDIA_TYPE)


def shown(text: str) -> str:
    """A client's text as it may appear in a detail: quoted, escaped and short."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of these kinds for OpenAPI, by status, each with an example."""
    answers: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        answer = answers.setdefault(
            KINDS[kind].status, {"description": "", "content": {MEDIA_TYPE: {"schema": SCHEMA, "examples": {}}}}
        )
        answer["description"] += ("; or " if answer["description"] else "") + KINDS[kind].title
        example = Problem(kind, "what is wrong, what was expected, what to do").body()
        answer["content"][MEDIA_TYPE]["examples"][kind] = {"value": example}
    return answers
