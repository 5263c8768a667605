"""A study file: settings, seeds and folds, and the experiments that they stand for.

A study is what one claim needs: settings that differ in one respect, each with several seeds (and folds), compared in
one score that was chosen beforehand.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exp_tools.errors import UserError, did_you_mean
from exp_tools.evaluation.compare.runs import FOLD, FOLDS, SCHEME, SEED
from exp_tools.evaluation.metrics.catalogue import COST, HEADLINE, OF_A_CLASS, PARTIAL_AREAS
from exp_tools.param_errors import explain_errors
from exp_tools.params import PARAMS_FILE, Params, load_params
from exp_tools.recipes import arguments, changed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST_NAME = 64
KNOWN_METRICS = (*HEADLINE, COST.key, *OF_A_CLASS, *PARTIAL_AREAS)
Content = TypeVar("Content", bound=BaseModel)
OUTPUTS = Path("studies")
"""A study's results are in a folder of its name in here."""


class Part(BaseModel):
    """A recipe, and values by dotted key that win over it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    recipe: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class StudyFile(BaseModel):
    """The content of a study file; what is left out has the value that is given here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    common: Part = Field(default_factory=Part)
    settings: Annotated[dict[str, Part], Field(min_length=1)]
    baseline: str | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    folds: Annotated[int, Field(ge=3, le=20)] | None = None
    primary: str = "macro_auc"
    metrics: list[str] = ["balanced_accuracy"]
    split: str = "val"

    @model_validator(mode="after")
    def _check(self) -> "StudyFile":
        for name in self.settings:
            if not NAME.fullmatch(name):
                raise ValueError(f"the setting {name!r} needs another name: letters, digits, - and _")
        if self.baseline is not None and self.baseline not in self.settings:
            raise ValueError(
                f"baseline {self.baseline!r} is no setting{did_you_mean(self.baseline, self.settings)}; "
                f"settings are {', '.join(self.settings)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is named twice, and would count twice")
        for name in (self.primary, *self.metrics):
            base = name.partition(":")[0].partition("@")[0]
            if base not in KNOWN_METRICS:
                hint = did_you_mean(base, KNOWN_METRICS)
                raise ValueError(f"no metric {name!r}{hint}; choose of {', '.join(KNOWN_METRICS)}")
        if self.split not in ("val", "test") and not re.fullmatch("external:.+", self.split):
            raise ValueError(f"split is {self.split!r}; write val, test or external:NAME")
        return self


@dataclass(frozen=True)
class Member:
    """One experiment of a study.

    name : of the experiment; it says study, setting, seed and fold
    setting, seed, fold : what it is; fold is None without folds
    params : all parameters that it runs with
    words : arguments of `dvc exp run` that make them of the project's
    """

    name: str
    setting: str
    seed: int
    fold: int | None
    params: Params
    words: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study file that was read and checked against the project's parameters."""

    name: str
    file: Path
    root: Path
    content: StudyFile
    members: tuple[Member, ...]

    @property
    def baseline(self) -> str:
        """The setting that the others are compared with: the first unless the file says otherwise."""
        return self.content.baseline or next(iter(self.content.settings))

    @property
    def folder(self) -> Path:
        """Where its results are written."""
        return self.root / OUTPUTS / self.name

    @property
    def copy(self) -> Path:
        """Where its file is copied to among them, under its own name, which is the study's."""
        return self.folder / f"{self.name}.yaml"

    @cached_property
    def now(self) -> Params:
        """The parameters of the workspace."""
        return load_params(self.root / PARAMS_FILE)

    def member(self, name: str) -> Member:
        """The member of that name; raises UserError where there is none."""
        found = {member.name: member for member in self.members}
        if name not in found:
            raise UserError(f"{self.file} has no member {name!r}{did_you_mean(name, found)}: `--dry` lists them")
        return found[name]

    def of_setting(self, setting: str) -> list[Member]:
        """The members of one setting."""
        return [member for member in self.members if member.setting == setting]


def read_content(file: Path, kind: type[Content]) -> Content:
    """The content of a YAML file as a model of pydantic. Raises UserError for no YAML and for wrong keys and values."""
    try:
        return kind.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise UserError(f"{file}: " + "; ".join(explain_errors(error, kind))) from error


def read_study(file: Path, root: Path) -> Study:
    """Read a study file and work out its members.

    Parameters
    ----------
    file : YAML as docs/studies.md has it; its stem is the study's name
    root : the project's folder

    Raises
    ------
    UserError : the file is not there, is no YAML or has a wrong key or value; a setting has parameters that cannot be;
        two settings are the same
    """
    if not file.is_file():
        near = did_you_mean(file.stem, [path.stem for path in (root / OUTPUTS).glob("*.yaml")])
        raise UserError(f"there is no study file {file}{near}: docs/studies.md says what one holds")
    if not NAME.fullmatch(file.stem):
        raise UserError(f"{file}: a study's name, which begins its experiments' names, has letters, digits, - and _")
    content = read_content(file, StudyFile)
    members = [
        _member(file, root, content, setting, seed, fold)
        for setting in content.settings
        for seed in content.seeds
        for fold in (range(content.folds) if content.folds else (None,))
    ]
    _check_distinct(file, members)
    return Study(file.stem, file, root, content, tuple(members))


def _member(file: Path, root: Path, content: StudyFile, setting: str, seed: int, fold: int | None) -> Member:
    own = content.settings[setting]
    changes: dict[str, Any] = {**content.common.set, **own.set}
    of_study = {SEED: "seeds", FOLD: "folds", FOLDS: "folds"}
    for key in set(changes) & set(of_study):
        raise UserError(f"{file}: {setting} sets {key}, which the study sets by itself: use `{of_study[key]}:`")
    changes[SEED] = seed
    if fold is not None:
        changes |= {SCHEME: "kfold", FOLDS: content.folds, FOLD: fold}
    name = f"{file.stem}-{setting}-seed{seed}" + ("" if fold is None else f"-fold{fold}")
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"{file}: the experiment's name {name} has over {LONGEST_NAME} characters: shorten the setting's"
        )
    try:
        params, combined = changed(root, own.recipe or content.common.recipe, changes)
        words = arguments(combined, root)
    except UserError as error:
        raise UserError(f"{file}: {setting}: {error}") from error
    return Member(name, setting, seed, fold, params, tuple(words))


def _check_distinct(file: Path, members: list[Member]) -> None:
    first: dict[str, str] = {}
    for member in members:
        made = repr(member.params)
        if made in first and first[made] != member.setting:
            raise UserError(f"{file}: {member.setting} and {first[made]} are the same setting: they differ in nothing")
        first.setdefault(made, member.setting)


def needs_data_stages(params: Params, now: Params) -> bool:
    """Whether a member's images differ from the workspace's, so that it must run `download` and `prepare` itself."""

    def of_data(content: Params) -> Mapping[str, Any]:
        return {"data": content.data.model_dump(), "prepare": content.prepare.model_dump()}

    return of_data(params) != of_data(now)
