"""Handfuls of pictures and tables in the layouts of data sets, and the data stages run on them in a folder."""

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from exp_tools.errors import UserError
from helpers.project import ROOT

HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def picture(number: int, width: int = 48, height: int = 36) -> Image.Image:
    """A smooth picture of its own for every number."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 5 + 37 * number, y * 7 + 91 * number, x + y + 53 * number], axis=-1) % 256
    return Image.fromarray(values.astype(np.uint8))


def save(path: Path, number: int = 0) -> Path:
    """Write picture `number` in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


def ham_rows(count: int = 28) -> list[str]:
    """Rows of HAM10000's table: two images per lesion, each class in turn."""
    return [
        f"HAM_{number // 2:07d},ISIC_{number:07d},{CODES[number // 2 % 7]},histo,{40 + number % 40}.0,female,back"
        for number in range(count)
    ]


def write_table(path: Path, rows: list[str], header: str = HAM_HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def ham(folder: Path, rows: list[str] | None = None) -> Path:
    """HAM10000 in its official layout, with an image for each row's id that can be a file's name."""
    rows = ham_rows() if rows is None else rows
    write_table(folder / "HAM10000_metadata.csv", rows)
    for number, row in enumerate(rows):
        image_id = row.split(",")[1].strip().removesuffix(".jpg")
        if image_id and "/" not in image_id and "\\" not in image_id:
            save(folder / f"HAM10000_images_part_{1 + number % 2}" / f"{image_id}.jpg", number)
    return folder


class DataProject:
    """A folder with a params.yaml in which the data stages run; `chdir` is that of pytest's monkeypatch."""

    def __init__(self, folder: Path, chdir, **changes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        content["prepare"] |= {"image_size": 32, "duplicates": "off"}
        content["machine"]["decoders"] = 1
        self.content = content
        self.change(**changes)
        chdir(folder)

    def change(self, **changes) -> "DataProject":
        """Set keys of params.yaml, written as data__dir="…"."""
        content = copy.deepcopy(self.content)
        for dotted, value in changes.items():
            *sections, key = dotted.split("__")
            place = content
            for section in sections:
                place = place[section]
            place[key] = str(value) if isinstance(value, Path) else value
        self.content = content
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return self

    def run(self, *stages: str) -> None:
        for stage in stages or ("download", "prepare", "split"):
            importlib.import_module(f"stages.{stage}").main()

    def fails(self, *stages: str) -> str:
        """Run stages of which one must end with a UserError; returns its message."""
        try:
            self.run(*stages)
        except UserError as error:
            return str(error)
        raise AssertionError("nothing was wrong")

    def labels(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "data/prepared/labels.csv", keep_default_na=False)

    def images(self) -> np.ndarray:
        return np.load(self.folder / "data/prepared/images.npy")

    def splits(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "data/splits.csv", keep_default_na=False)

    def problems(self) -> list[tuple[str, str]]:
        """(kind, action) of each problem that was reported."""
        table = pd.read_csv(self.folder / "data/prepared/problems.csv", keep_default_na=False)
        return list(zip(table["kind"], table["action"], strict=True))

    def metrics(self, name: str) -> dict:
        return json.loads((self.folder / f"metrics/{name}.json").read_text(encoding="utf-8"))

    def written(self) -> set[str]:
        """Every file outside data/raw and the parameters."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and "raw" not in path.relative_to(self.folder).parts and path.name != "params.yaml"
        }
