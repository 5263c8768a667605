"""A finished run as files: labels, packed images, splits, predictions and, where it is wanted, an external set."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from exp_tools.evaluation.predictions import prediction_table
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
from helpers.models import CLASSES
from helpers.predictions import scaled

SIDE = 96
SPLIT = ["train", "val", *["test"] * 10]
TRUE = ["bcc", "mel", "nv"] * 4
PREDICTED = ["bcc", "mel", "nv", "mel", "mel", "mel", "bcc", "nv", "nv", "bcc", "mel", "bcc"]
"""Of images 0..11; of the ten test images 3, 5, 7 and 11 are wrong."""
WRONG = ["IMG_03", "IMG_05", "IMG_07", "IMG_11"]


def label_table(count: int = 12, prefix: str = "IMG") -> pd.DataFrame:
    """Images of which two and two are of one lesion; 1 (validation) and 2 (test) are torn apart from 0 and 3."""
    number = np.arange(count)
    lesions = [f"LES_{n // 2}" for n in number]
    if count > 3:
        lesions[1], lesions[2] = "LES_1", "LES_0"
    return pd.DataFrame(
        {
            "image_id": [f"{prefix}_{n:02}" for n in number],
            "lesion_id": lesions,
            "group": "",
            "group_id": lesions,
            "dx": np.resize(TRUE, count),
            "dx_type": np.resize(["histo", "follow_up"], count),
            "age": np.resize([30.0, 55.0, np.nan], count),
            "sex": np.resize(["female", "male", "unknown"], count),
            "localization": np.resize(["back", "face"], count),
            "source": "ham10000",
            "split": "",
            "extra_skin_tone": np.resize(["dark", "light"], count),
        }
    )


def logits_of(predicted: list[str]) -> np.ndarray:
    """Logits [N, 3] that decide for these classes, each image surer than the one before."""
    codes = np.array(predicted)[:, None] == np.array(CLASSES)
    return codes * np.linspace(0.5, 3.0, len(predicted))[:, None]


def write_run(root: Path, *, logits: np.ndarray | None = None, external: bool = False) -> pd.DataFrame:
    """Write the files; returns predictions.csv."""
    labels = label_table()
    logits = logits_of(PREDICTED) if logits is None else logits
    save(root, LABELS, labels)
    save(root, SPLITS, labels[["image_id", "group_id", "dx"]].assign(split=SPLIT, fold=""))
    save_images(root / IMAGES, len(labels))
    shown = np.array(SPLIT) != "train"
    table = prediction_table(labels[shown], np.array(SPLIT)[shown], logits[shown], CLASSES, scaled(len(CLASSES)))
    if external:
        own = label_table(4).assign(set="ph2")[["set", *labels.columns]]
        unknown = label_table(2, "DDI").assign(set="ddi")  # of classes that the model does not know: not predicted
        save(root, EXTERNAL_LABELS, pd.concat([unknown, own])[own.columns])
        save_images(root / EXTERNAL_IMAGES, len(unknown) + len(own), first=100)
        more = prediction_table(own, "external:ph2", logits_of(["nv"] * 4), CLASSES, scaled(len(CLASSES)))
        table = pd.concat([table, more], ignore_index=True)
    save(root, PREDICTIONS, table)
    return table


def write_lock(root: Path) -> None:
    """A dvc.lock that says that the files here are of one run."""
    used = [{"path": path.as_posix(), **_facts(root / path)} for path in (MODEL, LABELS, SPLITS, IMAGES)]
    made = [{"path": PREDICTIONS.as_posix(), **_facts(root / PREDICTIONS)}]
    stages = {"prepare": {"outs": [used[3]]}, "evaluate": {"deps": used, "outs": made}}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def _facts(path: Path) -> dict:
    return {"hash": "md5", "md5": file_digest(path), "size": path.stat().st_size}


def save(root: Path, path: Path, table: pd.DataFrame) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(root / path, index=False, lineterminator="\n")


def save_images(path: Path, count: int, first: int = 0) -> None:
    """Squares, each of its number's colour with a bright spot."""
    pixels = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    pixels += np.arange(first, first + count, dtype=np.uint8)[:, None, None, None]
    pixels[:, 20:50, 30:70] += 90
    np.save(path, pixels)
