"""The data sources by name: `data.source` names a module of this package.

A source is a module in `exp_tools/data/sources/` with

`FACTS`             what is known of the set: files, licence, classes, counts (`facts.Facts`)
`read(raw)`         the rows of the folder's tables as text: columns of `validation.COLUMNS`, as many as it knows;
                    `file` is the path of the image, "" when there is none, `table` the table's name; the index is
                    the row in that table, unless there is a column `row`
`PARTS`             only in a source that is made of others: their names, each with the key that names its folder
`provide(…)`        only in a source that makes its files itself
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from exp_tools.data.labels.validate import complete
from exp_tools.io import write_json
from exp_tools.taxonomy import DIAGNOSES


@dataclass(frozen=True)
class RemoteFile:
    """A file as a source declares it.

    name : what it is called in the store
    url : where it is
    size, md5 : bytes and hexadecimal digest; None where they are not published
    archive : it will be unpacked, so room for twice its size is asked for (photographs do not get smaller in archives)
    """

    name: str
    url: str
    size: int | None
    md5: str | None
    archive: bool = False


OPTIONS_FILE = "choice.json"


@dataclass(frozen=True)
class DatasetSpec:
    """One published (or anybody's) data set.

    licence is None for images whose licence only their owner knows; classes is None when the labels themselves say
    which there are. `counts` holds what the whole published set must count to, named and nested as in
    `validate.count_table`; a tuple lists several right answers. `folders_are_labels`: a second copy of an image in
    another folder says something and is not a mere copy. `masks`: how the names of images end that belong to others;
    `lesion_masks`: those of them that show where the lesion is.
    """

    title: str
    licence: str | None = None
    citation: str = ""
    where: str = ""
    classes: tuple[str, ...] | None = None
    files: tuple[RemoteFile, ...] = ()
    folders_are_labels: bool = False
    masks: tuple[str, ...] = ()
    lesion_masks: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceOptions:
    """The user's options for a source: the keys of the parameter section `data`, without the external sets."""

    dir: str | None = None
    second_dir: str | None = None
    table: str | None = None
    test_table: str | None = None
    limit: int | None = None
    seed: int = 0
    sample_images: int = 0


def licence_text(facts: DatasetSpec) -> str:
    """The text of LICENCE.txt; "" when the licence is not ours to know."""
    if facts.licence is None:
        return ""
    lines = [facts.title, f"Licence: {facts.licence}", facts.citation, facts.where]
    return "\n".join(line for line in lines if line) + "\n"


def write_options(raw: Path, **choice: Any) -> None:
    """Record next to the links what the user chose: `table`, `test_table`, `subset` (image ids)."""
    write_json(raw / OPTIONS_FILE, {**read_options(raw), **choice})


def read_options(raw: Path) -> dict[str, Any]:
    """The user's recorded choices; empty when there are none."""
    path = raw / OPTIONS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


DRAWN = DatasetSpec(
    "Drawn pictures, no medical data",
    classes=tuple(DIAGNOSES),
    masks=("_segmentation",),
    lesion_masks=("_segmentation",),
)
"""The facts of a source that declares none: the embedded sample set."""


def load_source(name: str) -> ModuleType:
    """Import one source by its name."""
    return importlib.import_module(f"exp_tools.data.sources.{name}")


def spec_of(name: str) -> DatasetSpec:
    """The specification of a source."""
    return getattr(load_source(name), "FACTS", DRAWN)


def read_source(name: str, raw: Path) -> pd.DataFrame:
    """The rows of the data in `raw` as text, all of `validation.COLUMNS` and `row`, indexed from 0."""
    table = complete(load_source(name).read(raw))
    subset = read_options(raw).get("subset")
    return table if subset is None else table[table["image_id"].isin(subset)].reset_index(drop=True)
