"""The project's root, and the paths of its stages' outputs: the same as in dvc.yaml."""

import os
from pathlib import Path

VERDICTS = Path("verdicts/duplicates.csv")
"""What people said of pairs of images; it is in Git."""
LABEL_VERDICTS = Path("verdicts/labels.csv")
"""What people said of labels; it is in Git."""

RAW = Path("data/raw")
LABELS = Path("data/prepared/labels.csv")
IMAGES = Path("data/prepared/images.npy")
MASKS = Path("data/prepared/masks.npy")
PREPROCESSING = Path("data/prepared/preprocessing.json")
PROBLEMS = Path("data/prepared/problems.csv")
DUPLICATES = Path("data/prepared/duplicates.csv")
EXTERNAL_RAW = Path("data/external_raw")
EXTERNAL_LABELS = Path("data/external/labels.csv")
EXTERNAL_IMAGES = Path("data/external/images.npy")
EXTERNAL_PROBLEMS = Path("data/external/problems.csv")
FEATURES = Path("data/features")
SPLITS = Path("data/splits.csv")
NETWORK = Path("models/network.safetensors")
OOD = Path("models/ood.safetensors")
VALIDATION = Path("data/validation.csv")
MODEL = Path("models/model.safetensors")
RELEASED = Path("models/released")
"""A trained model, in Git."""
SUMS = "SHA256SUMS"
"""In there: what `sha256sum` writes of the model file, a line of digest and name."""
PREDICTIONS = Path("data/predictions.csv")
DATA_METRICS = Path("metrics/data.json")
EXTERNAL_METRICS = Path("metrics/external.json")
SPLIT_METRICS = Path("metrics/split.json")
TRAIN_METRICS = Path("metrics/train")
VALIDATION_METRICS = Path("metrics/validation.json")
CALIBRATION_REPORT = Path("metrics/calibration.json")
EVALUATE_METRICS = Path("metrics/evaluate.json")
REPORT = Path("metrics/report.json")
EXPLAIN_METRICS = Path("metrics/explain.json")
CARD = Path("MODEL_CARD.md")

CURVES = Path("plots/curves")
FIGURES = Path("plots/figures")
EXPLAIN_FIGURES = Path("plots/explain")
DATA_FIGURES = Path("plots/data")

OUTPUT_FOLDERS = (RAW, EXTERNAL_RAW, FEATURES, TRAIN_METRICS, CURVES, FIGURES, EXPLAIN_FIGURES, DATA_FIGURES)
"""Folders with nothing but outputs, all of which DVC or a stage removes before it makes them again."""
OUTPUT_FILES = (
    *(LABELS, IMAGES, MASKS, PREPROCESSING, PROBLEMS, DUPLICATES, EXTERNAL_LABELS, EXTERNAL_IMAGES, EXTERNAL_PROBLEMS),
    *(SPLITS, NETWORK, OOD, VALIDATION, MODEL, PREDICTIONS, DATA_METRICS, EXTERNAL_METRICS, SPLIT_METRICS),
    *(VALIDATION_METRICS, CALIBRATION_REPORT, EVALUATE_METRICS, REPORT, EXPLAIN_METRICS, CARD),
)
FILLED = (*OUTPUT_FOLDERS, LABELS.parent, EXTERNAL_LABELS.parent)
"""Folders of outputs, in which a user's own images have no place."""

RUNS_FOLDER = "runs"
RUNS = Path(os.environ.get("DVC_ROOT") or ".") / RUNS_FOLDER
"""State of unfinished training, in the project itself also for queued experiments, which run in folders elsewhere."""


def project_root() -> Path:
    """The project's real root folder, also in queued DVC experiments, which run in a folder of their own."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def users_path(path: str, root: Path) -> Path:
    """A path of a user's parameters: `~` is the home folder, anything else is relative to the project's root."""
    return Path(os.path.realpath(root / os.path.expanduser(path)))


def has_released(root: Path) -> bool:
    """Whether a project comes with a trained model; its bytes are not looked at."""
    return (root / RELEASED / SUMS).is_file()


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a dvc.yaml; `start` itself where there is none."""
    return next((folder for folder in (start, *start.parents) if (folder / "dvc.yaml").is_file()), start)
