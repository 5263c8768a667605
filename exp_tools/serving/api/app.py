"""The JSON API: predictions over HTTP, from one trained model.

Research and teaching only. It has no encryption: it listens on this machine alone unless asked otherwise, and belongs
behind a proxy that has it where others shall reach it.
"""

import importlib.metadata
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from exp_tools.data.images.formats import READ
from exp_tools.serving.api import schemas
from exp_tools.serving.api.access import PROTECTED, Access, Cors, Guard
from exp_tools.serving.api.docs_page import docs_page
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.metrics import Metrics
from exp_tools.serving.api.middleware import Gzip, RequestMiddleware
from exp_tools.serving.api.multipart import PATIENT_FIELDS, patient_of, patients_of, read_form, sort_parts
from exp_tools.serving.api.problems import KINDS, Problem, documented, shown
from exp_tools.serving.api.service import Service
from exp_tools.serving.api.serving import Serving
from exp_tools.serving.predictor import DISCLAIMER, SCOPE, Predictor

MET_EVERYWHERE = ["malformed_request", "wrong_host"]
UPLOAD_PROBLEMS = [
    "malformed_form",
    "unauthorized",
    "too_slow",
    "too_large",
    "too_many_parts",
    "wrong_content_type",
    "wrong_field",
    "wrong_value",
    "too_busy",
    "server_fault",
    *MET_EVERYWHERE,
]
IMAGE_PROBLEMS = ["not_an_image", "empty_image", "damaged_image", "too_many_pixels", "bad_shape"]


def create_app(
    predictor: Predictor, limits: Limits | None = None, access: Access | None = None, *, metrics: bool = False
) -> FastAPI:
    """The API around a model; `app.state.serving` has the model in use, and can read its file again.

    Parameters
    ----------
    predictor : serves every request; it is tried once, so that a model that gives NaN or infinite is never served
    limits, access : None: as in Limits and Access
    metrics : whether /metrics is answered

    Raises
    ------
    UserError : the model gives NaN or infinite
    """
    limits, access = limits or Limits(), access or Access()
    serving = Serving(predictor, limits)
    counted = Metrics(serving) if metrics else None
    app = FastAPI(
        title="Skin-lesion classification",
        version=importlib.metadata.version("skin-lesion-experiments"),
        description=f"{DISCLAIMER} {SCOPE}",
        servers=[{"url": str(access.public_url)}] if access.public_url else None,
        docs_url=None,  # its page would load scripts from another server
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call their functions
    )
    app.state.serving = serving
    _add_pages(app, serving, limits)
    if counted:

        @app.get("/metrics", include_in_schema=False)
        async def numbers() -> Response:
            return counted.response()

    if access.token is not None:
        _describe_token(app)
    pages = {getattr(route, "path", "") for route in app.routes}
    app.add_middleware(Gzip, minimum_size=1000, compresslevel=4)
    app.add_middleware(Guard, access=access)
    app.add_middleware(RequestMiddleware, pages=pages, base=access.base, serving=serving, metrics=counted)
    if access.origins:
        app.add_middleware(
            Cors,
            allow_origins=access.origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "X-Model-SHA256", "X-Request-ID"],
        )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)
    return app


def _add_pages(app: FastAPI, serving: Serving, limits: Limits) -> None:
    gate = serving.gate

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, Any]:
        pages = [f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods]
        return {"pages": pages, "description": "/openapi.json", "documentation": "/docs", "disclaimer": DISCLAIMER}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/health", response_model=schemas.HealthAnswer, summary="Whether the server answers, and how busy it is")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "inside": gate.inside, "places": gate.places})

    @app.get(
        "/ready",
        response_model=schemas.ReadyAnswer,
        responses=documented("not_ready", *MET_EVERYWHERE),
        summary="Whether the next request would be taken, and by which model",
    )
    async def ready(request: Request) -> JSONResponse:
        if gate.inside >= gate.places:
            raise Problem("not_ready", f"all {gate.places} request slots are taken", {"Retry-After": "1"})
        return JSONResponse({"status": "ready", "model": _service(request).served})

    @app.get("/model", response_model=schemas.ModelAnswer, summary="What the model is and what the API takes")
    async def model(request: Request) -> JSONResponse:
        return JSONResponse(_service(request).model_card())

    @app.get("/problems", response_model=list[schemas.KindAnswer], summary="Every kind of problem")
    async def problems() -> JSONResponse:
        return JSONResponse([{"kind": name, **kind._asdict()} for name, kind in KINDS.items()])

    @app.post(
        "/predict",
        response_model=schemas.PredictionAnswer,
        responses={
            200: {"content": {"application/json": {"example": schemas.prediction_example()}}},
            **documented(*UPLOAD_PROBLEMS, *IMAGE_PROBLEMS),
        },
        openapi_extra=_form(["image"], {"image": _FILE, **_PATIENT}),
        summary="Predict one image",
    )
    async def predict(
        request: Request,
        explain: Annotated[list[str], Query(description="heat maps wanted: gradcam, attention (see /model)")] = [],  # noqa: B006
    ) -> JSONResponse:
        _only_queries(request, "explain")
        service = _service(request)
        kinds = service.known(explain)
        with gate.place():
            parts = await read_form(request, limits, files=1, total=limits.image_bytes, text=limits.text_bytes)
            files, texts = sort_parts(parts, "image", PATIENT_FIELDS, files=1)
            patient = patient_of(texts, limits.text_bytes)
            content = await serving.run(service.predict, files[0], patient, kinds)
        return JSONResponse(content)

    @app.post(
        "/predict/batch",
        response_model=schemas.BatchAnswer,
        responses=documented(*UPLOAD_PROBLEMS),
        openapi_extra=_form(["images"], {"images": {"type": "array", "items": _FILE}, "metadata": _METADATA}),
        summary="Predict several images; one that cannot be used does not stop the others",
    )
    async def predict_batch(request: Request) -> JSONResponse:
        _only_queries(request)
        with gate.place():
            parts = await read_form(
                request, limits, files=limits.batch_images, total=limits.batch_bytes, text=limits.metadata_bytes
            )
            files, texts = sort_parts(parts, "images", ("metadata",), files=limits.batch_images)
            patients = patients_of(texts.get("metadata"), len(files), limits.text_bytes)
            content = await serving.run(_service(request).predict_batch, files, patients)
        return JSONResponse(content)


def _service(request: Request) -> Service:
    """The model of this request, see RequestMiddleware."""
    return request.scope["service"]


def _describe_token(app: FastAPI) -> None:
    """Say in the OpenAPI description which endpoints need the token."""
    described = app.openapi()
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path in set(PROTECTED) & set(described["paths"]):
        for operation in described["paths"][path].values():
            operation["security"] = [{"token": []}]


def _only_queries(request: Request, *allowed: str) -> None:
    for name in request.query_params:
        if name not in allowed:
            raise Problem("wrong_field", f"there is no query {shown(name)}; there is {', '.join(allowed) or 'none'}")


async def _answer_problem(_: Request, problem: Problem) -> JSONResponse:
    return problem.response()


async def _answer_http(_: Request, error: HTTPException) -> JSONResponse:
    kind = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "server_fault")
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return Problem(kind, "the endpoints are listed at /", headers).response()


_FILE = {
    "type": "string",
    "format": "binary",  # what generators of clients look at; the next line is what OpenAPI 3.1 says
    "contentMediaType": "application/octet-stream",
    "description": f"{READ}; its name is ignored",
}
_PATIENT = {
    "age": {"type": "number", "minimum": 0, "maximum": 120, "description": "years", "examples": [60]},
    "sex": {"type": "string", "examples": ["female"]},
    "localization": {"type": "string", "examples": ["back"]},
}
_METADATA = {
    "type": "string",
    "contentMediaType": "application/json",
    "description": "a JSON list with an object (age, sex, localization, all optional) for each image, in their order",
    "examples": ['[{"age": 60, "sex": "female", "localization": "back"}, {}]'],
}


def _form(required: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": fields, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
