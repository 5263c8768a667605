"""The typed view of params.yaml, and its only reader.

Every value comes from the file: no field here has a default (but what an external set or an encoder may leave out), so
this module checks values and never makes one.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from exp_tools.errors import UserError, require_readable
from exp_tools.param_errors import explain_errors
from exp_tools.param_types import (
    Attributes,
    Auto,
    Classes,
    Columns,
    Disturbances,
    ExternalParams,
    Filter,
    Licences,
    ModelParams,
    NotNegative,
    Number,
    Off,
    Positive,
    Probability,
    Query,
    Section,
    Seed,
    Source,
)

PARAMS_FILE = Path("params.yaml")


class DataParams(Section):
    source: Source
    dir: str | None
    second_dir: str | None
    table: str | None
    test_table: str | None
    columns: Columns | None
    classes: Classes | None
    filter: Filter | None
    licences: Licences | None
    query: Query | None
    limit: Annotated[int, Field(ge=20)] | None
    seed: Seed
    sample_images: Annotated[int, Field(ge=20, le=100_000)]
    external: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], ExternalParams]


StopSkip = Literal["stop", "skip"]
StopSkipFix = Literal["stop", "skip", "fix"]
StopNote = Literal["stop", "note"]


class OnProblemParams(Section):
    """The action for each kind of problem."""

    untidy_text: StopSkipFix
    bad_id: StopSkip
    duplicate_id: StopSkip
    two_labels: StopSkip
    two_diagnoses: StopSkip
    no_lesion: StopSkipFix
    unknown_diagnosis: StopSkip
    bad_age: StopSkipFix
    unknown_sex: StopSkipFix
    unknown_split: StopSkip
    listed_duplicate: StopSkip
    missing_image: StopSkip
    ambiguous_image: StopSkip
    unlisted_image: StopNote
    empty_image: StopSkip
    not_an_image: StopSkip
    damaged_image: StopSkip
    unreadable_image: StopSkip
    too_many_pixels: StopSkip
    bad_shape: StopSkip
    wrong_ending: StopSkipFix
    other_pixels: StopSkipFix
    exif_rotation: StopSkipFix
    several_frames: StopSkipFix
    unexpected_count: StopNote


class PrepareParams(Section):
    image_size: Annotated[int, Field(ge=32, le=1024)]
    resize: Literal["squash", "crop", "pad"]
    hair_removal: bool
    colour_constancy: bool
    clahe: bool
    duplicates: Annotated[Literal["known", "search", "off"], Off]
    on_problem: OnProblemParams


class SplitParams(Section):
    seed: Seed
    scheme: Literal["auto", "holdout", "kfold", "official", "paper", "column", "image"]
    fractions: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    folds: Annotated[int, Field(ge=3, le=50)]
    fold: Annotated[int, Field(ge=0)]
    stratify: Attributes

    @model_validator(mode="after")
    def _consistent(self) -> "SplitParams":
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions {self.fractions} add up to {sum(self.fractions):g}; make them add up to 1")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist; with {self.folds} folds choose 0 to {self.folds - 1}")
        if "dx" not in self.stratify:
            raise ValueError(f"stratify {self.stratify} lacks dx; a split always keeps the classes' proportions")
        return self


class AugmentParams(Section):
    preset: Literal["none", "light", "medium", "heavy", "trivial"]
    flip: bool | None
    rotation: Annotated[Number, Field(ge=0, le=180)] | None
    scale: Probability | None
    shift: Probability | None
    shear: Annotated[Number, Field(ge=0, le=45)] | None
    perspective: Annotated[Number, Field(ge=0, le=0.3)] | None
    brightness: Probability | None
    contrast: Probability | None
    saturation: Probability | None
    hue: Annotated[Number, Field(ge=0, le=180)] | None
    erase: Annotated[Number, Field(ge=0, le=1)] | None


class TrainParams(Section):
    seed: Seed
    fraction: Annotated[Number, Field(gt=0, le=1)]
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] | Auto
    accumulate: Annotated[int, Field(ge=1)]
    optimizer: Literal["adamw", "adam", "sgd"]
    lr: Positive
    weight_decay: NotNegative
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None
    momentum: Probability
    eps: Positive
    schedule: Literal["constant", "cosine", "warm_restarts", "one_cycle", "plateau"]
    warmup_epochs: NotNegative
    min_lr: NotNegative
    restart_epochs: Annotated[int, Field(ge=1)]
    restart_factor: Annotated[int, Field(ge=1)]
    plateau_factor: Annotated[Number, Field(gt=0, lt=1)]
    plateau_patience: Annotated[int, Field(ge=1)]
    frozen_epochs: Annotated[int, Field(ge=0)]
    frozen_lr: Positive | None
    unfreeze: Annotated[Number, Field(ge=0, le=1)]
    freeze_norm: bool
    loss: Literal["cross_entropy", "focal"]
    focal_gamma: NotNegative
    label_smoothing: Probability
    class_weights: Literal["none", "balanced", "sqrt"] | dict[str, Positive]
    sampler: Literal["none", "balanced", "sqrt"]
    mixup: NotNegative
    cutmix: NotNegative
    clip_norm: Positive | None
    ema: Annotated[Number, Field(gt=0, lt=1)] | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: bool
    checkpointing: bool
    compile: bool
    deterministic: bool
    select_on: Literal["macro_f1", "balanced_accuracy", "macro_auc", "accuracy", "loss"]
    patience: Annotated[int, Field(ge=1)] | None
    augment: AugmentParams

    @model_validator(mode="after")
    def _consistent(self) -> "TrainParams":
        if self.frozen_epochs >= self.epochs and self.unfreeze > 0:
            raise ValueError(
                f"frozen_epochs {self.frozen_epochs} leaves none of the {self.epochs} epochs to train the backbone; "
                "lower it, or write unfreeze: 0 to train the head alone"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        return self


Costs = dict[str, dict[str, NotNegative]]


class CalibrationParams(Section):
    fit: Literal["temperature_and_bias", "temperature", "none"]
    decide: Literal["frequent", "balanced", "costs"]
    costs: Costs | None
    melanoma_sensitivity: Annotated[Number, Field(gt=0, lt=1)]
    abstain_share: Annotated[Number, Field(ge=0, lt=1)]
    sets: Literal["none", "lac", "aps", "raps"]
    coverage: Annotated[Number, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "CalibrationParams":
        if self.decide == "costs" and self.costs is None:
            raise ValueError("decide: costs needs calibration.costs, for example {mel: {nv: 10}}")
        return self


class OodParams(Section):
    method: Literal["residual", "mahalanobis"]
    quantile: Annotated[Number, Field(ge=0.5, lt=1)]


class EvaluateParams(Section):
    batch_size: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16"]
    tta: Literal["none", "flips", "dihedral"]
    costs: Costs | None
    prevalence: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None
    subgroups: Attributes
    robustness: Disturbances
    robustness_lesions: Annotated[int, Field(ge=1)]
    figures: Literal["png", "svg", "pdf"]
    trials: Annotated[int, Field(ge=1)]
    resamples: Annotated[int, Field(ge=100, le=100_000)]
    seed: Seed


class ExplainParams(Section):
    images: Annotated[int, Field(ge=1, le=200)]
    method: Literal["auto", "gradcam", "attention"]
    seed: Seed


class MachineParams(Section):
    workers: Annotated[int, Field(ge=0)] | Auto
    threads: Annotated[int, Field(ge=1)] | Auto
    processes: Annotated[int, Field(ge=1, le=1024)]
    decoders: Annotated[int, Field(ge=1)] | Auto
    device: Literal["auto", "cpu", "gpu"]
    augment_on: Literal["auto", "cpu", "gpu"]
    checkpoint_steps: Annotated[int, Field(ge=1)] | None


class Params(Section):
    """Everything in params.yaml, one attribute per section."""

    task: Literal["diagnosis", "melanoma"]
    data: DataParams
    prepare: PrepareParams
    split: SplitParams
    model: ModelParams
    train: TrainParams
    ood: OodParams
    calibration: CalibrationParams
    evaluate: EvaluateParams
    explain: ExplainParams
    machine: MachineParams


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises
    ------
    UserError
        The file is missing, is not YAML, or holds wrong keys or values: one message with a line per fault, each naming
        the key, the value, what is allowed, and the nearest allowed word.
    """
    if not path.is_file():
        raise UserError(f"{path} is not here ({Path.cwd()}): run from the project's root folder")
    require_readable(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    return parse_params(content, str(path))


def parse_params(content: Any, name: str = "params.yaml") -> Params:
    """Check the parsed content of a parameter file; `name` is what errors call it. Raises UserError."""
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected sections ({', '.join(Params.model_fields)}), found {content!r}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = explain_errors(error, Params)
        many = f" has {len(lines)} faults" if len(lines) > 1 else ""
        raise UserError(f"{name}{many}: " + ("\n  " if many else "") + "\n  ".join(lines)) from error
