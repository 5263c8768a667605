"""What the header of a model file must hold: types, ranges, and lists that fit together."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SHOWN = 3
LONGEST = 200
Name = Annotated[str, Field(min_length=1, max_length=LONGEST, pattern=r"^[^\x00-\x1f\x7f]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Three = Field(min_length=3, max_length=3)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class PreprocessingFields(_Part):
    """Of preprocess.Preprocessing."""

    image_size: Annotated[int, Field(ge=8, le=4096)]
    resize: Literal["squash", "crop", "pad"]
    hair_removal: bool = False
    colour_constancy: bool = False
    clahe: bool = False


class CalibrationFields(_Part):
    """Of probabilities.Calibration."""

    temperature: Positive
    bias: list[Number]
    decide: Literal["frequent", "balanced", "costs"]
    costs: list[list[Cost]]


class SetFields(_Part):
    """Of prediction_sets.fit_sets."""

    score: Literal["lac", "aps", "raps"]
    coverage: Annotated[float, Field(gt=0, lt=1)]
    needed: Annotated[int, Field(ge=1)]
    lesions: dict[str, Annotated[int, Field(ge=0)]]
    thresholds: dict[str, Cost | None]


class OodFields(_Part):
    """Of ood.judge."""

    method: Literal["residual", "mahalanobis"]
    limit: Positive
    quantile: Share
    flagged: Share
    checks: dict[str, Number]


class VocabularyFields(_Part):
    """Of metadata.Vocabulary."""

    age_mean: Number
    age_std: Positive
    age_median: Number
    sex: list[Name]
    localization: list[Name]


class TrainingFields(BaseModel):
    """What is read of it; there is more."""

    model_config = ConfigDict(strict=True, extra="allow")
    best_epoch: Annotated[int, Field(ge=0)] | None = None
    epochs_run: Annotated[int, Field(ge=0)] | None = None
    validation: dict[str, float | None] = {}


class Header(_Part):
    """The facts of `model_file.ModelFacts`, checked."""

    architecture: Name
    knobs: dict[str, Any]
    task: Name
    classes: Annotated[list[Name], Field(min_length=2)]
    preprocessing: PreprocessingFields
    pixel_mean: Annotated[list[Number], Three]
    pixel_std: Annotated[list[Positive], Three]
    source: Name
    calibration: CalibrationFields | dict[str, None] = {}
    thresholds: dict[str, Share | None] = {}
    prediction_sets: SetFields | dict[str, None] = {}
    ood: OodFields | dict[str, None] = {}
    vocabulary: VocabularyFields | None = None
    training: TrainingFields = TrainingFields()
    versions: dict[str, str] = {}
    format: int

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        count = len(self.classes)
        if len(set(self.classes)) < count:
            raise ValueError("classes has a name twice")
        if isinstance(self.calibration, CalibrationFields):
            rows = [self.calibration.bias, self.calibration.costs, *self.calibration.costs]
            if any(len(row) != count for row in rows):
                raise ValueError(f"calibration is not of {count} classes")
        elif self.calibration:
            raise ValueError("calibration has no usable temperature, bias, decide and costs")
        if isinstance(self.prediction_sets, SetFields):
            if any(
                set(part) != set(self.classes)
                for part in (self.prediction_sets.lesions, self.prediction_sets.thresholds)
            ):
                raise ValueError("prediction_sets is not of the classes")
        elif self.prediction_sets:
            raise ValueError("prediction_sets has no usable score, coverage, needed, lesions and thresholds")
        if self.ood and not isinstance(self.ood, OodFields):
            raise ValueError("ood has no usable method, limit, quantile, flagged and checks")
        return self


def faults_of(content: dict[str, Any]) -> tuple[list[str], str]:
    """The facts of a header that cannot be used, and what is wrong with the first few; ([], "") where all can be.

    `content` is the header as JSON gives it.
    """
    try:
        Header.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        names = [str([*one["loc"], one["msg"].removeprefix("Value error, ").split()[0]][0]) for one in found]
        said = [f"{'.'.join(map(str, one['loc'])) or 'header'}: {one['msg']}" for one in found[:SHOWN]]
        return [name[:LONGEST] for name in dict.fromkeys(names)], " ".join("; ".join(said).split())[: 2 * LONGEST]
    return [], ""
