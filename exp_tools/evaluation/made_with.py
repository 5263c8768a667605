"""The parameters that a prediction table was made with, whatever params.yaml says by now.

dvc.lock holds those of the run that wrote the table; params.yaml adds what no stage lists (`machine`).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from exp_tools.errors import UserError
from exp_tools.io import file_digest
from exp_tools.params import PARAMS_FILE, parse_params

KEPT = ".csv.gz"
"""How the name of a table that `exp-tools score --keep` wrote ends."""
LOCK = "dvc.lock"
STAGES = ("download", "prepare", "external", "features", "split", "train", "ood", "calibrate", "evaluate")
"""All that a prediction table depends on, in the order of the pipeline."""


def parameters_of(predictions: Path) -> dict[str, Any]:
    """The parameters of a table: NAME.yaml next to NAME.csv.gz, else those of the project in whose folder it is.

    Empty where there are none. A table that is not the one that dvc.lock names has the parameters of now.
    """
    path = parameters_file(predictions)
    if path is None:
        return {}
    content = _parsed(path.read_text(encoding="utf-8"))
    lock = path.with_name(LOCK)
    if path.name != PARAMS_FILE.name or not lock.is_file():
        return _checked(content)
    locked = _parsed(lock.read_text(encoding="utf-8"))
    name = predictions.resolve().relative_to(path.resolve().parent).as_posix()
    outs = locked.get("stages", {}).get("evaluate", {}).get("outs", [])
    written = {out.get("path"): out.get("md5") for out in outs}
    return as_locked(content, locked) if written.get(name) == file_digest(predictions) else _checked(content)


def parameters_file(predictions: Path) -> Path | None:
    """Where the parameters of a table are: NAME.yaml next to NAME.csv.gz, else params.yaml in its folder or above."""
    own = predictions.with_name(predictions.name.removesuffix(KEPT) + ".yaml")
    folders = predictions.resolve().parent, predictions.resolve().parent.parent
    beside = [own] if predictions.name.endswith(KEPT) else [folder / PARAMS_FILE for folder in folders]
    return next((path for path in beside if path.is_file()), None)


def at_revision(text: str | None, lock: str | None) -> dict[str, Any]:
    """The parameters of the predictions of a commit, from its params.yaml and its dvc.lock."""
    return as_locked(_parsed(text), _parsed(lock))


def as_locked(content: Mapping[str, Any], locked: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the values that the stages of a dvc.lock ran with."""
    found = dict(content)
    stages = locked.get("stages", {})
    # `external` lists `prepare` too, and may have run with other values, or not since: those of the images win.
    for stage in sorted(STAGES, key=lambda stage: stage != "external"):
        for key, value in stages.get(stage, {}).get("params", {}).get(PARAMS_FILE.name, {}).items():
            found = _with(found, key.split("."), value)
    return _checked(found)


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by value (1e-3 or 0.001); those of other versions of the project as they stand."""
    with suppress(UserError):
        return parse_params(dict(content)).model_dump(mode="json")
    return dict(content)


def _with(content: Mapping[str, Any], keys: Iterable[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    inner = content.get(first)
    return {**content, first: _with(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _parsed(text: str | None) -> dict[str, Any]:
    content = None
    with suppress(yaml.YAMLError):
        content = yaml.safe_load(text) if text else None
    return content if isinstance(content, dict) else {}
