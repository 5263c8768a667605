"""Schemas of the API's responses, for OpenAPI: with meanings, ranges and an example each."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from exp_tools.ood.checks import REASONS
from exp_tools.serving.api.problems import KINDS
from exp_tools.serving.predictor import DISCLAIMER, SCOPE

DRAWN = "this model was trained on synthetic images: its output means nothing on real skin"
Share = Field(ge=0, le=1)


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Served(Answer):
    """The model that answered, and the data it was trained on."""

    name: str = Field(description="of the model file", examples=["model.safetensors"])
    architecture: str = Field(examples=["soft_attention"])
    sha256: str = Field(description="of the model file", examples=["0" * 64])
    trained_on: str = Field(description="name of the training data", examples=["ham10000"])
    warning: str | None = Field(description="set where the training data are synthetic images")


class Guess(Answer):
    code: str = Field(examples=["nv"])
    name: str = Field(examples=["Melanocytic nevus"])
    probability: float = Share


class PredictionFields(Answer):
    diagnosis: str = Field(
        description="code of the class that the model decides for; it need not be the most probable one",
        examples=["nv"],
    )
    name: str = Field(examples=["Melanocytic nevus"])
    description: str
    malignant: bool | None = Field(description="malignant or pre-malignant; null: not said")
    probability: float = Field(ge=0, le=1, description="of the diagnosis, calibrated")
    probabilities: dict[str, float] = Field(description="of every class; they add up to 1")
    top: list[Guess] = Field(description="the most probable classes, best first")
    entropy: float = Field(ge=0, le=1.000001, description="0: certain; 1: knows nothing")
    abstain: bool | None = Field(description="too uncertain: leave it to a human; null: the model has no threshold")
    melanoma: bool | None = Field(description="flagged by the model's melanoma threshold; null: it has none")
    melanoma_probability: float | None = Field(ge=0, le=1)
    prediction_set: list[str] | None = Field(
        description="codes of the classes that the image does not exclude, at the coverage of the model's "
        "`prediction_sets`; null: the model file has no sets",
        examples=[["mel", "nv"]],
    )
    set_note: str | None = Field(description="the set in words, with what it does not promise; null likewise")
    unlike_training: bool | None = Field(
        description="flagged as out of distribution, unlike the training images; null: the model file has no detector"
    )
    unlike_score: float | None = Field(ge=0, description="distance from the training images, 1 at the limit")
    unlike_why: str | None = Field(description="why it is flagged, or that the model file has no detector")
    notes: list[str] = Field(description="what to know of this input")
    disclaimer: str = Field(examples=[DISCLAIMER])
    overlays: dict[str, str] = Field(
        description="by method, where asked for: the image under its heat map with a legend, a PNG in base64"
    )


class PredictionAnswer(PredictionFields):
    """A prediction for one image."""

    model: Served
    notice: str = Field(description="what the model does not see", examples=[SCOPE])


class ProblemFields(Answer):
    """A problem as in RFC 9457."""

    type: str = Field(json_schema_extra={"format": "uri-reference"})
    kind: str = Field(json_schema_extra={"enum": list(KINDS)})
    status: int
    title: str
    detail: str


class BatchEntry(Answer):
    """One image of a batch: a prediction or a problem."""

    index: int = Field(ge=0, description="index among the images of the request")
    prediction: PredictionFields | None
    problem: ProblemFields | None


class BatchAnswer(Answer):
    """The images of a batch, in their order."""

    results: list[BatchEntry]
    predicted: int
    refused: int
    model: Served
    notice: str
    disclaimer: str


class HealthAnswer(Answer):
    status: str = Field(examples=["ok"])
    inside: int = Field(description="requests being worked on or waiting")
    places: int = Field(description="request slots; when all are taken, the next request is answered with 429")


class ReadyAnswer(Answer):
    status: str = Field(examples=["ready"])
    model: Served


class ClassFacts(Answer):
    code: str
    name: str
    description: str
    malignant: bool | None


class ModelAnswer(Served):
    """The facts of the model file, and the inputs that the API accepts."""

    task: str
    classes: list[ClassFacts]
    preprocessing: dict[str, Any] = Field(description="how an image is prepared: size in pixels, resize, filters")
    calibration: dict[str, Any] = Field(description="temperature, bias (class order), and the decision rule")
    thresholds: dict[str, float | None]
    prediction_sets: dict[str, Any] = Field(
        description="score, coverage, thresholds and validation lesions of the sets; empty: the model file has none"
    )
    uses_metadata: bool
    vocabulary: dict[str, list[str]] | None = Field(description="values of sex and localization the model has seen")
    explanations: list[str]
    validation: dict[str, float] = Field(description="scores on the validation set, as training found them")
    versions: dict[str, str]
    limits: dict[str, Any]
    disclaimer: str


class KindAnswer(Answer):
    kind: str
    status: int
    title: str


def prediction_example() -> dict[str, Any]:
    """A made-up answer that fits PredictionAnswer."""
    return {
        "diagnosis": "nv",
        "name": "Melanocytic nevus",
        "description": "a common mole",
        "malignant": False,
        "probability": 0.81,
        "probabilities": {"mel": 0.19, "nv": 0.81},
        "top": [
            {"code": "nv", "name": "Melanocytic nevus", "probability": 0.81},
            {"code": "mel", "name": "Melanoma", "probability": 0.19},
        ],
        "entropy": 0.7,
        "abstain": False,
        "melanoma": True,
        "melanoma_probability": 0.19,
        "prediction_set": ["mel", "nv"],
        "set_note": "melanoma cannot be excluded: the set holds every diagnosis that the model knows (2), so it "
        "excludes none",
        "unlike_training": True,
        "unlike_score": 1.4,
        "unlike_why": REASONS["features"],
        "notes": [],
        "disclaimer": DISCLAIMER,
        "overlays": {},
        "model": {
            "name": "model.safetensors",
            "architecture": "timm",
            "sha256": "0" * 64,
            "trained_on": "synthetic",
            "warning": DRAWN,
        },
        "notice": SCOPE,
    }
