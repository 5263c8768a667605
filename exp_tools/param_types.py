"""The types of the parameters in params.yaml, the base of its sections, and the section `model`."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Column = Literal["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "source", "split", "group"]
"""The columns of a table of images that mean something here."""


def _number_written_as_text(value: Any) -> Any:
    """YAML 1.1 reads `3e-05`, which DVC writes for `-S train.lr=3e-5`, as a string."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        return float(value)
    return value


def _off(value: Any) -> Any:
    """YAML 1.1 reads `off` as false."""
    return "off" if value is False else value


Number = Annotated[float, BeforeValidator(_number_written_as_text)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Auto = Literal["auto"]
Off = BeforeValidator(_off)


class Section(BaseModel):
    """A group of parameters: an unknown or missing key is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=False)


Source = Literal[
    "synthetic",
    "ham10000",
    "isic2018",
    "isic2018_test",
    "ph2",
    "combined",
    "isic",
    "isic_archive",
    "folder",
    "table",
    "bcn20000",
    "ddi",
    "derm7pt",
    "fitzpatrick17k",
    "hiba",
    "isic_2016",
    "isic_2017",
    "isic_2024",
    "milk10k",
    "mskcc",
    "pad_ufes_20",
]


def _as_text(value: Any) -> Any:
    """Keys, and cells that YAML reads as numbers or truth values, as the table's text."""
    if isinstance(value, dict):
        return {_as_text(key): _as_text(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return [_as_text(cell) for cell in value]
    return value if value is None or isinstance(value, str) else str(value)


def _without_repeats(names: list[str]) -> list[str]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} is named twice; name each once")
    return names


Attributes = Annotated[list[str], Field(min_length=1), AfterValidator(_without_repeats)]
"""Names of columns of the label table; those of a user's table are checked where the labels are read."""
Disturbance = Literal[
    "hair",
    "ruler",
    "dark_corner",
    "blur",
    "motion",
    "jpeg",
    "noise",
    "brightness",
    "colour_cast",
    "crop",
    "bubbles",
]
Disturbances = Annotated[list[Disturbance], AfterValidator(_without_repeats)]
Words = str | list[str]
Columns = Annotated[dict[Column, Words], BeforeValidator(_as_text)]
Classes = Annotated[dict[str, Annotated[str, Field(min_length=1)] | None], BeforeValidator(_as_text)]
Filter = Annotated[dict[str, Words], BeforeValidator(_as_text)]
Query = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
Licences = Annotated[list[str], Field(min_length=1)]


class ExternalParams(Section):
    """A set that is only ever tested on; what it does not say is null."""

    source: Source
    dir: str | None = None
    table: str | None = None
    columns: Columns | None = None
    classes: Classes | None = None
    filter: Filter | None = None
    licences: Licences | None = None


class EncoderParams(Section):
    """A network of timm's whose weights stay as they are."""

    backbone: str
    weights: str
    options: dict[str, Any] | None = None


class ProbeParams(Section):
    encoders: Annotated[list[EncoderParams], Field(min_length=1)]
    metadata: bool
    head: Literal["linear", "knn", "mlp"]
    hidden: Annotated[int, Field(ge=1, le=65_536)]

    @field_validator("encoders")
    @classmethod
    def _each_once(cls, encoders: list[EncoderParams]) -> list[EncoderParams]:
        for place, encoder in enumerate(encoders):
            if encoder in encoders[:place]:
                raise ValueError(
                    f"{encoder.backbone} with the weights {encoder.weights} is named twice, which adds nothing; name "
                    "each encoder once"
                )
        return encoders


class SoftAttentionParams(Section):
    backbone: str
    drop_path: Probability
    place: Literal["last", "inner"]
    enabled: bool
    heads: Annotated[int, Field(ge=1, le=256)]
    kernel_size: Literal[1, 3, 5, 7]
    concat: bool
    dropout: Probability


class TimmParams(Section):
    backbone: str
    drop_path: Probability
    dropout: Probability
    options: dict[str, Any] | None


class EmasParams(Section):
    output_stride: Literal[16, 32]
    dropout: Probability


class EfficientNetV2Params(Section):
    size: Literal["s", "m", "l"]
    drop_path: Probability
    head: Literal["deep", "linear"]
    dropout: Probability


class MultimodalParams(Section):
    backbone: str
    drop_path: Probability
    enabled: bool
    metadata_dropout: Probability
    dropout: Probability


class ModelParams(Section):
    name: Literal["soft_attention", "emas", "efficientnet_v2", "multimodal", "timm", "probe"]
    weights: str
    soft_attention: SoftAttentionParams
    emas: EmasParams
    efficientnet_v2: EfficientNetV2Params
    multimodal: MultimodalParams
    timm: TimmParams
    probe: ProbeParams

    @property
    def architecture(self) -> dict[str, Any]:
        """The knobs of the architecture in use."""
        return getattr(self, self.name).model_dump()
