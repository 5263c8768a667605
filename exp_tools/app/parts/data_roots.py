"""The files and folders that visitors of the app may name: what is below the data folders given at its start."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exp_tools.errors import UserError
from exp_tools.project import users_path

FOLDERS = ("dir", "second_dir")
TABLES = ("table", "test_table")
WEIGHTS = ("weights", "file")
"""Keys below `model` that name a file; `file` is one of timm's configuration of weights."""
LOCAL, HUB = "local-dir:", "hf-hub:"
"""How names of networks and weights begin that are in a folder here, and in one of a hub."""
NO_FILE = ("none", "imagenet")
"""Weights that are no file here."""


def folders(roots: Sequence[str]) -> list[str]:
    """The folders to choose from: each root, then the folders directly in it; hidden ones are left out."""
    found = []
    for root in roots:
        found.append(root)
        with os.scandir(root) as entries:
            found += sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return found


def require_allowed(changes: Mapping[str, Any], params: Mapping[str, Any], root: Path, roots: Sequence[str]) -> None:
    """Check that a visitor's parameters name no file outside of the data folders.

    What is read as a table is quoted in error messages, and these are in the log that the page shows.

    Parameters
    ----------
    changes : the visitor's values by dotted key
    params : all parameters with these values in place
    root : the project's folder, which relative paths are relative to
    roots : the folders given by `--data-root`

    Raises
    ------
    UserError : a folder or weights are not in `roots`, or a table is not in its folder
    """
    for key, value in _leaves(changes):
        if key.split(".")[0] == "model":
            for path in _files_of_model(key.rpartition(".")[2], value):
                _require_below(users_path(path, root), key, path, roots)
    if not any(key.split(".")[0] == "data" for key in changes):
        return
    touched = {key for key, _ in _leaves(changes)}
    for section, values in _sections(params["data"]):
        named = [key for key in (*FOLDERS, *TABLES) if values.get(key) is not None and f"{section}.{key}" in touched]
        for key in named:
            if key in FOLDERS:
                _require_below(users_path(values[key], root), f"{section}.{key}", values[key], roots)
        moved = any(f"{section}.{key}" in touched for key in FOLDERS)
        for key in TABLES:
            if values.get(key) is not None and (key in named or moved):
                folder = users_path(values.get("dir") or "", root)
                path = Path(os.path.realpath(folder / values[key]))
                if values.get("dir") is None or not path.is_relative_to(folder) or not path.is_file():
                    raise UserError(
                        f"{section}.{key}: {values[key]!r} is no file in {section}.dir; the page reads tables from "
                        "the data folder only"
                    )


def _require_below(path: Path, key: str, value: str, roots: Sequence[str]) -> None:
    if any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        return
    listed = f"choose one of {', '.join(roots)}" if roots else "the app was started without one"
    raise UserError(f"{key}: {value!r} is not in a data folder of this app ({listed}; `exp-tools app --data-root DIR`)")


def _files_of_model(key: str, value: Any) -> Iterator[str]:
    """The paths in a value below `model`: of weights, or of a network with its weights."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _files_of_model(name, one)
    elif isinstance(value, list):
        for one in value:
            yield from _files_of_model(key, one)
    elif isinstance(value, str) and value.startswith(LOCAL):
        yield value.removeprefix(LOCAL)
    elif isinstance(value, str) and key in WEIGHTS and value not in NO_FILE and not value.startswith(HUB):
        yield value


def _sections(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "data", data
    for name, values in (data.get("external") or {}).items():
        yield f"data.external.{name}", values


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
