"""A search space: which parameters a search may change, in what range, and what it looks at."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from exp_tools.errors import UserError, did_you_mean
from exp_tools.param_errors import explain_errors
from exp_tools.params import Params
from exp_tools.recipes import arguments, changed
from exp_tools.studies.plan import NAME, OUTPUTS, Part, read_content

SCORES = {
    "macro_auc": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "accuracy": "maximize",
    "loss": "minimize",
}
"""Scores of metrics/validation.json, and which way is better."""
BY_EPOCH = ("macro_auc", "balanced_accuracy", "loss")
"""Those that training prints after each epoch, on which trials can be pruned."""


class Range(BaseModel):
    """Numbers from low to high, whole ones where both bounds are; on a logarithmic scale, or in steps."""

    model_config = ConfigDict(extra="forbid", strict=True)

    low: int | float
    high: int | float
    log: bool = False
    step: Annotated[int | float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: low must be less")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log: true and step do not go together")
        return self

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)


Choices = Annotated[list[bool | int | float | str], Field(min_length=2)]


class SpaceFile(BaseModel):
    """The content of a search space; what is left out has the value that is given here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    common: Part = Field(default_factory=Part)
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]
    score: str | Annotated[list[str], Field(min_length=2, max_length=2)] = "macro_auc"
    prune: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("space", mode="before")
    @classmethod
    def _kinds(cls, space: Any) -> Any:
        """Say of which kind a value is, where it is neither: pydantic would name only one of the two."""
        if not isinstance(space, dict):
            return space
        for key, value in space.items():
            if isinstance(value, dict):
                try:
                    Range.model_validate(value)
                except ValidationError as error:
                    raise ValueError(f"{key}: " + "; ".join(explain_errors(error, Range))) from error
            elif not (isinstance(value, list) and len(value) >= 2):
                raise ValueError(
                    f"{key} is {value!r}; write a range {{low: …, high: …}} or a list of at least 2 choices"
                )
        return space

    @model_validator(mode="after")
    def _check(self) -> "SpaceFile":
        for name in self.scores:
            if name not in SCORES:
                raise ValueError(f"no score {name!r}{did_you_mean(name, SCORES)}; choose of {', '.join(SCORES)}")
        return self

    @property
    def scores(self) -> list[str]:
        """The one or two scores."""
        return [self.score] if isinstance(self.score, str) else self.score


@dataclass(frozen=True)
class Space:
    """A search space that was read and checked: its lowest and its highest values are parameters that can be."""

    name: str
    file: Path
    root: Path
    content: SpaceFile

    @property
    def folder(self) -> Path:
        """Where its results are written."""
        return self.root / OUTPUTS / self.name

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Arguments of `dvc exp run` for these values. Raises UserError for parameters that cannot be."""
        return arguments(self._changed(values)[1], self.root)

    def _changed(self, values: Mapping[str, Any]) -> tuple[Params, Any]:
        common = self.content.common
        return changed(self.root, common.recipe, {**common.set, **values})


def read_space(file: Path, root: Path) -> Space:
    """Read a search space.

    Raises
    ------
    UserError : the file is not there, is no YAML or has a wrong key or value; a bound or choice is no value that the
        parameter can have; a key is in `common` and in `space`
    """
    if not file.is_file():
        raise UserError(f"there is no search space {file}: docs/studies.md says what one holds")
    if not NAME.fullmatch(file.stem):
        raise UserError(f"{file}: a search's name, which begins its experiments' names, has letters, digits, - and _")
    content = read_content(file, SpaceFile)
    if both := sorted(set(content.space) & set(content.common.set)):
        raise UserError(f"{file}: {both[0]} is in common.set and in space: it is one or the other")
    space = Space(file.stem, file, root, content)
    for key, values in content.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            first = {name: one.low if isinstance(one, Range) else one[0] for name, one in content.space.items()}
            try:
                space.words(first | {key: value})
            except UserError as error:
                raise UserError(f"{file}: {key} = {value}: {error}") from error
    return space
