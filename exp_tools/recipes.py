"""Recipes: published ways to train, as partial parameter files in `recipes/`, and as arguments for DVC."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from exp_tools.errors import UserError, did_you_mean
from exp_tools.params import PARAMS_FILE, Params, load_params, parse_params

FOLDER = Path("recipes")

REFUSED_BY_DVC = "-S there_is_no_such_recipe=true"
"""`dvc exp run` stops at this word. Without it a failed `$(exp-tools recipe …)` would have DVC run something else."""


@dataclass(frozen=True)
class Recipe:
    """A partial parameter file: its name, its first comment line, and the changes it makes to the parameters."""

    name: str
    summary: str
    changes: dict[str, Any]


def list_recipes(root: Path) -> list[Recipe]:
    """The recipes of the project in `root`, by name; raises UserError where it has none or one cannot be read."""
    files = sorted((root / FOLDER).glob("*.yaml"))
    if not files:
        raise UserError(f"no recipes in {root / FOLDER}: run inside the project's folder")
    return [_read(file) for file in files]


def find_recipe(root: Path, name: str) -> Recipe:
    """One recipe; raises UserError, with the nearest name, where there is none."""
    recipes = {recipe.name: recipe for recipe in list_recipes(root)}
    if name not in recipes:
        hint = did_you_mean(name, recipes)
        raise UserError(f"no recipe {name!r}; choose one of {', '.join(recipes)}{hint}")
    return recipes[name]


def merged(recipe: Recipe, params: Params) -> Params:
    """The parameters with the recipe's changes; raises UserError for a key or value that parameters cannot have."""
    return parse_params(_merge(params, recipe.changes), str(FOLDER / f"{recipe.name}.yaml"))


def words(recipe: Recipe, root: Path) -> list[str]:
    """The recipe as arguments `-S key=value` of `dvc exp run`, checked against the project's parameters.

    No argument holds a space or a quotation mark: they survive `$(…)` without quotes. A later `-S` of a key wins.

    Raises
    ------
    UserError
        The recipe or the parameter file has a fault, or a value cannot be written as such a word.
    """
    params = merged(recipe, load_params(root / PARAMS_FILE))
    found = []
    for key, value in _leaves(params, recipe.changes):
        if isinstance(value, dict):  # DVC adds entries to those of an older dictionary, and refuses new keys in it
            found.append(f"-S {key}=null")
        found.append(f"-S {key}={_word(value, key)}")
    return found


def changed(root: Path, recipe: str | None, changes: Mapping[str, Any]) -> tuple[Params, Recipe]:
    """The project's parameters with a recipe and single changes, and all of these as one recipe.

    Parameters
    ----------
    root : the project's folder
    recipe : name of one of its recipes, or None
    changes : values by dotted key, which win over the recipe's

    Raises
    ------
    UserError : a key or value that parameters cannot have
    """
    params = load_params(root / PARAMS_FILE)
    found = find_recipe(root, recipe) if recipe else Recipe("none", "", {})
    content = merged(found, params).model_dump()
    combined = deepcopy(found.changes)
    for key, value in changes.items():
        _put(content, key, value)
        _put(combined, key, value)
    return parse_params(content, "the choice"), Recipe("the choice", "", combined)


def arguments(recipe: Recipe, root: Path) -> list[str]:
    """As `words`, each `-S` and each `key=value` apart, for a process that no shell starts."""
    return [part for word in words(recipe, root) for part in word.split(" ", 1)]


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"{key}: {section} is not a section of the parameters")
    content[last] = value


def _read(file: Path) -> Recipe:
    text = file.read_text(encoding="utf-8")
    try:
        changes = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    first = text.splitlines()[0] if text else ""
    if not first.startswith("# ") or not isinstance(changes, dict):
        raise UserError(f"{file}: a recipe is a comment that says what it is, then sections of the parameters")
    return Recipe(file.stem, first.removeprefix("# "), changes)


def _merge(section: BaseModel, changes: dict[str, Any]) -> dict[str, Any]:
    """The section's content with the changes; a dictionary that is not a section (class weights) is replaced whole."""
    content = section.model_dump()
    for key, value in changes.items():
        inner = getattr(section, str(key), None)
        content[key] = _merge(inner, value) if isinstance(inner, BaseModel) and isinstance(value, dict) else value
    return content


def _leaves(section: BaseModel, changes: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and typed value of every change."""
    for key, value in changes.items():
        inner = getattr(section, key)
        if isinstance(inner, BaseModel):
            yield from _leaves(inner, value, f"{path}{key}.")
        else:
            yield path + key, inner


def _word(value: Any, key: str) -> str:
    """A value in the grammar of Hydra's overrides, which DVC uses; raises UserError for text it reads otherwise."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_word(item, key) for item in value)}]"
    if isinstance(value, BaseModel):  # an entry of a list
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return f"{{{','.join(f'{_word(name, key)}:{_word(item, key)}' for name, item in value.items())}}}"
    if not re.fullmatch(r"(?!(null|true|false|nan|inf)$)[A-Za-z_./][A-Za-z0-9_./-]*", value, re.IGNORECASE):
        raise UserError(f"{key} is {value!r}, which no word of `dvc exp run` can hold; write it into {PARAMS_FILE}")
    return value
