"""Whether the workspace's predictions are of the model and the images that are here now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from exp_tools.evaluation.made_with import LOCK
from exp_tools.io import file_digest
from exp_tools.project import (
    EXTERNAL_IMAGES,
    EXTERNAL_LABELS,
    IMAGES,
    LABELS,
    MODEL,
    PREDICTIONS,
    SPLITS,
)

REMEDY = "`dvc repro evaluate` predicts again"
SMALL = (MODEL, LABELS, SPLITS, EXTERNAL_LABELS)
LARGE = (IMAGES, EXTERNAL_IMAGES)
"""Not read through: their size and what the stage that made them last recorded are compared."""


def watched(root: Path) -> list[Path]:
    """The files whose change may change the answer."""
    return [root / path for path in (LOCK, PREDICTIONS, *SMALL, *LARGE)]


def stale(root: Path) -> list[str]:
    """What has changed since the predictions were made, one sentence each, with the remedy.

    dvc.lock says what they were made from. Times of files say it only where dvc.lock knows nothing of the predictions,
    since `dvc checkout` changes them. [] also where nothing is known.
    """
    if not (root / PREDICTIONS).is_file():
        return []
    stages = _stages(root / LOCK)
    written = _entries(stages.get("evaluate", {}).get("outs")).get(PREDICTIONS.as_posix())
    if written is None:
        model = root / MODEL
        older = model.is_file() and model.stat().st_mtime_ns > (root / PREDICTIONS).stat().st_mtime_ns
        return [f"{PREDICTIONS} is older than {MODEL}: what the page says is of another model; {REMEDY}."] * older
    if written.get("md5") != file_digest(root / PREDICTIONS):
        return [f"{PREDICTIONS} is not the table that {LOCK} records, so it may be of another model; {REMEDY}."]
    used = _entries(stages["evaluate"].get("deps"))
    made = {path: out for stage in stages.values() for path, out in _entries(stage.get("outs")).items()}
    changed = [path for path in SMALL if _differs(root / path, used.get(path.as_posix()))]
    changed += [path for path in LARGE if _replaced(root / path, used.get(path.as_posix()), made.get(path.as_posix()))]
    return [f"{path} is not the one that {PREDICTIONS} was made with; {REMEDY}." for path in changed]


def _differs(path: Path, used: Mapping[str, Any] | None) -> bool:
    return bool(used) and path.is_file() and used.get("md5") != file_digest(path)


def _replaced(path: Path, used: Mapping[str, Any] | None, made: Mapping[str, Any] | None) -> bool:
    if not used or not path.is_file():
        return False
    return used.get("size") != path.stat().st_size or (made is not None and made.get("md5") != used.get("md5"))


def _stages(lock: Path) -> dict[str, Any]:
    if not lock.is_file():
        return {}
    try:
        content = yaml.load(lock.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:  # a merge that was left unfinished
        return {}
    return (content or {}).get("stages") or {}


def _entries(listed: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in listed or []}
