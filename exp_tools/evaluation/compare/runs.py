"""Load the runs of a comparison: predictions and parameters of an experiment, branch, commit or file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from exp_tools.errors import UserError
from exp_tools.evaluation.calibrate import USUAL_SENSITIVITY, choose_threshold, threshold_at_specificity
from exp_tools.evaluation.made_with import KEPT, LOCK, at_revision, parameters_of
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.io import scratch_folder
from exp_tools.params import PARAMS_FILE
from exp_tools.project import MODEL
from exp_tools.revisions import WORKSPACE, read_at_revision

SEED, FOLD = "train.seed", "split.fold"
FOLDS, SCHEME = "split.folds", "split.scheme"
LEAKY = "image"
"""The split.scheme that parts lesions."""
MELANOMA_SENSITIVITY = "calibration.melanoma_sensitivity"
# What changes no prediction of the set.
IRRELEVANT = (
    "machine.",
    "explain.",
    "ood.",
    MELANOMA_SENSITIVITY,
    "calibration.abstain_share",
    "evaluate.resamples",
    "evaluate.seed",
    "evaluate.costs",
    "evaluate.prevalence",
    "evaluate.figures",
    "data.external",
)


@dataclass(frozen=True)
class Run:
    """One trained model's predictions of one set.

    name : as the user called it; of a table that is called predictions.csv its folder
    table : the rows of a prediction table that belong to the set, by image_id
    classes : in the order of the model
    params : all that made it, flat (`train.lr`), where params.yaml was at hand; empty: unknown
    validation : the rows of the validation split, on which operating points are chosen; None: none at hand
    remark : what the reader must know of the table
    """

    name: str
    table: pd.DataFrame
    classes: tuple[str, ...]
    params: Mapping[str, Any]
    validation: pd.DataFrame | None = None
    remark: str = ""

    @property
    def seed(self) -> Any:
        """The seed of training; None: unknown."""
        return self.params.get(SEED)

    @property
    def fold(self) -> Any:
        """Which part of a k-fold split is the test set; None: unknown, or no such split."""
        return self.params.get(FOLD) if self.params.get(SCHEME) == "kfold" else None

    @property
    def settings(self) -> dict[str, Any]:
        """What distinguishes one configuration from another: the parameters except seed and fold."""
        return {
            key: value
            for key, value in self.params.items()
            if key not in (SEED, FOLD) and not key.startswith(IRRELEVANT)
        }

    def threshold(self, point: str, code: str) -> float:
        """The probability of a class from which on an image is flagged, at one of `catalogue.POINTS`.

        NaN where validation does not say. The model's own is chosen again by what `calibrate` does.
        """
        if self.validation is None:
            return float("nan")
        scores, positive = self.validation[f"p_{code}"].to_numpy(), (self.validation["dx"] == code).to_numpy()
        if point != "threshold":
            return threshold_at_specificity(scores, positive, int(point.rpartition("_")[2]) / 100)
        wanted = self.params.get(MELANOMA_SENSITIVITY, USUAL_SENSITIVITY)
        found, *_ = choose_threshold(scores, positive, self.validation["lesion_id"], wanted)
        return float("nan") if found is None else found


@dataclass(frozen=True)
class Tables:
    """All rows of a prediction table, by what the user called it.

    word : the user's word
    table : every row, of all splits
    classes : in the order of the model
    params : all that made it, flat; empty: unknown
    """

    word: str
    table: pd.DataFrame
    classes: tuple[str, ...]
    params: Mapping[str, Any]

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of a split, by image_id; none where there is no such split."""
        return self.table[self.table["split"] == split].sort_values("image_id", ignore_index=True)

    def run(self, split: str) -> Run:
        """The predictions of one split. Raises UserError where it has no row."""
        rows = self.rows(split)
        if rows.empty:
            present = ", ".join(sorted(set(self.table["split"]))) or "no row at all"
            raise UserError(f"the predictions of {self.word} have no split {split!r}; they have {present}")
        validation = self.table[self.table["split"] == "val"].reset_index(drop=True)
        return Run(
            _short(self.word),
            rows,
            self.classes,
            self.params,
            validation if len(validation) and split != "val" else None,
            self.table.attrs.get("remark", ""),
        )


def read_run(word: str, root: Path, predictions: str, split: str) -> Run:
    """Read the rows of one split (test, val or external:NAME) of a run; otherwise as `read_tables`.

    Raises
    ------
    UserError : as `read_tables`; no row of the split
    """
    return read_tables(word, root, predictions).run(split)


def read_tables(word: str, root: Path, predictions: str) -> Tables:
    """Read all predictions of a run.

    Parameters
    ----------
    word : `workspace`; a DVC experiment, branch, tag or commit of the project in `root`; or a prediction table
    root : the project's folder
    predictions : the prediction table's path in the project

    Raises
    ------
    UserError : there is no such version; it has no predictions, or they are not at hand
    """
    if Path(word).is_file():
        table, classes = read_predictions(Path(word))
        params = flat_params(parameters_of(Path(word)))
    elif word == WORKSPACE.name:
        table, classes = read_predictions(root / predictions)
        params = flat_params(parameters_of(root / predictions))
    elif word.endswith((".csv", KEPT)):
        raise UserError(f"there is no file {word}")
    else:
        table, classes = _predictions_of(word, root, predictions)
        written, lock = (read_at_revision(word, root, name) for name in (PARAMS_FILE, LOCK))
        if predictions_are_older(lock):
            raise UserError(
                f"the predictions of {word} are of an earlier model than its own: it was trained and not evaluated "
                "(`dvc exp run` with a target before `evaluate`). Run it again to the end"
            )
        params = flat_params(at_revision(written, lock))
    return Tables(word, table, tuple(classes), params)


def predictions_are_older(lock: str | None) -> bool:
    """Whether the model that a dvc.lock says was evaluated is another than the one it says was made."""
    stages = (yaml.safe_load(lock or "") or {}).get("stages", {})
    made = {out["path"]: out.get("md5") for out in stages.get("calibrate", {}).get("outs", [])}
    used = {dep["path"]: dep.get("md5") for dep in stages.get("evaluate", {}).get("deps", [])}
    model = MODEL.as_posix()
    return model in made and model in used and made[model] != used[model]


def _short(word: str) -> str:
    path = Path(word)
    if path.name.endswith(KEPT):
        return path.name.removesuffix(KEPT)
    if path.name != "predictions.csv" or not path.is_file():
        return word
    folder = path.resolve().parent
    return folder.parent.name if folder.name == "data" else folder.name


def _predictions_of(word: str, root: Path, path: str) -> tuple[pd.DataFrame, list[str]]:
    text = read_at_revision(word, root, path)
    if text is None:
        lock = read_at_revision(word, root, "dvc.lock") or ""
        if f"path: {path}\n" not in lock:
            raise UserError(f"{word} has no {path}: it was not evaluated. Run its experiment again with `dvc exp run`")
        raise UserError(
            f"{path} of {word} is neither in DVC's cache nor in its remote. Fetch it with `dvc exp pull REMOTE {word}` "
            f"(an experiment) or `dvc pull --all-branches --all-tags`; or make it again: `dvc exp apply {word}` (or "
            "`git switch`), then `dvc repro evaluate`"
        )
    with scratch_folder() as folder:
        copy = folder / "predictions.csv"
        copy.write_text(text, encoding="utf-8")
        try:
            return read_predictions(copy)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), f"{path} of {word}")) from error


def flat_params(content: dict[str, Any]) -> dict[str, Any]:
    """Parameters by dotted key, without the knobs of architectures that are not in use."""
    model = content.get("model")
    if isinstance(model, dict):  # knobs of architectures that are not in use
        used = model.get("name")
        model = {key: value for key, value in model.items() if key == used or not isinstance(value, dict)}
        content = content | {"model": model}
    return _flat(content)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
