"""From the name in `data.source` to the module that knows that origin.

A source is a module in `exp_tools/data/sources/` with

`FACTS`             what is known of the set: files, licence, classes, counts (`facts.Facts`)
`read(raw)`         the rows of the folder's tables as text: columns of `validation.COLUMNS`, as many as it knows;
                    `file` is the path of the image, "" when there is none, `table` the table's name; the index is
                    the row in that table, unless there is a column `row`
`PARTS`             only in a source that is made of others: their names, each with the key that names its folder
`provide(…)`        only in a source that makes its files itself
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

import pandas as pd

from exp_tools.data.facts import Facts, read_choice
from exp_tools.data.validation import complete
from exp_tools.taxonomy import DIAGNOSES

DRAWN = Facts(
    "Drawn pictures, no medical data",
    classes=tuple(DIAGNOSES),
    masks=("_segmentation",),
    lesion_masks=("_segmentation",),
)
"""The facts of a source that declares none: the embedded sample set."""


def load_source(name: str) -> ModuleType:
    """Import one source by its name."""
    return importlib.import_module(f"exp_tools.data.sources.{name}")


def facts_of(name: str) -> Facts:
    """What is known of a source."""
    return getattr(load_source(name), "FACTS", DRAWN)


def read_source(name: str, raw: Path) -> pd.DataFrame:
    """The rows of the data in `raw` as text, all of `validation.COLUMNS` and `row`, indexed from 0."""
    table = complete(load_source(name).read(raw))
    subset = read_choice(raw).get("subset")
    return table if subset is None else table[table["image_id"].isin(subset)].reset_index(drop=True)


def project_root() -> Path:
    """The project's real root folder, also in queued DVC experiments, which run in a folder of their own."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())
