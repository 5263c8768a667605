"""The JSON API: predictions over HTTP, from one trained model.

Research and teaching only. It has neither passwords nor encryption: it listens on this machine alone unless asked
otherwise, and belongs behind a proxy that has both where others shall reach it.
"""

import importlib.metadata
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from exp_tools.data.images.formats import READ
from exp_tools.serving.api import schemas
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.middleware import RequestMiddleware
from exp_tools.serving.api.multipart import PATIENT_FIELDS, patient_of, patients_of, read_form, sort_parts
from exp_tools.serving.api.problems import KINDS, Problem, documented, shown
from exp_tools.serving.api.service import Service
from exp_tools.serving.predictor import DISCLAIMER, Predictor

UPLOAD_PROBLEMS = [
    "malformed_form",
    "too_slow",
    "too_large",
    "too_many_parts",
    "wrong_content_type",
    "wrong_field",
    "wrong_value",
    "too_busy",
    "server_fault",
]
IMAGE_PROBLEMS = ["not_an_image", "empty_image", "damaged_image", "too_many_pixels", "bad_shape"]


def create_app(predictor: Predictor, limits: Limits | None = None) -> FastAPI:
    """The API around a model.

    Parameters
    ----------
    predictor : serves every request; it is tried once, so that a model that gives NaN or infinite is never served
    limits : None: as in Limits

    Raises
    ------
    UserError : the model gives NaN or infinite
    """
    limits = limits or Limits()
    service = Service(predictor, limits)
    service.try_out()
    app = FastAPI(
        title="Skin-lesion classification",
        version=importlib.metadata.version("skin-lesion-experiments"),
        description=DISCLAIMER,
        docs_url=None,  # its page would load scripts from another server
        redoc_url=None,
    )
    app.add_middleware(
        RequestMiddleware, pages={"/", "/health", "/model", "/predict", "/predict/batch", "/problems", "/openapi.json"}
    )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, Any]:
        pages = ["POST /predict", "POST /predict/batch", *(f"GET /{page}" for page in ("model", "health", "problems"))]
        return {"pages": pages, "description": "/openapi.json", "disclaimer": DISCLAIMER}

    @app.get("/health", response_model=schemas.HealthAnswer, summary="Whether the server answers, and how busy it is")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "inside": service.gate.inside, "places": service.gate.places})

    @app.get("/model", response_model=schemas.ModelAnswer, summary="What the model is and what the API takes")
    async def model() -> JSONResponse:
        return JSONResponse(service.model_card())

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
        kinds = service.known(explain)
        with service.gate.place():
            parts = await read_form(request, limits, files=1, total=limits.image_bytes, text=limits.text_bytes)
            files, texts = sort_parts(parts, "image", PATIENT_FIELDS, files=1)
            patient = patient_of(texts, limits.text_bytes)
            content = await service.run(service.predict, files[0], patient, kinds)
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
        with service.gate.place():
            parts = await read_form(
                request, limits, files=limits.batch_images, total=limits.batch_bytes, text=limits.metadata_bytes
            )
            files, texts = sort_parts(parts, "images", ("metadata",), files=limits.batch_images)
            patients = patients_of(texts.get("metadata"), len(files), limits.text_bytes)
            content = await service.run(service.predict_batch, files, patients)
        return JSONResponse(content)

    return app


def _only_queries(request: Request, *allowed: str) -> None:
    for name in request.query_params:
        if name not in allowed:
            raise Problem("wrong_field", f"there is no query {shown(name)}; there is {', '.join(allowed) or 'none'}")


async def _answer_problem(_: Request, problem: Problem) -> JSONResponse:
    return problem.response()


async def _answer_http(_: Request, error: HTTPException) -> JSONResponse:
    kind = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "server_fault")
    return Problem(kind, "the pages are listed at /", dict(error.headers or {})).response()


_FILE = {
    "type": "string",
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
