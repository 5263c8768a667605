"""From the name in `data.source` to the module that knows that origin.

A source is a module in `exp_tools/data/sources/` with two functions:

`provide(data, raw, *, root, processes) -> str`
    fill the folder `raw` with the origin's images and tables, in the origin's own layout; returns what it did, in words
`read(raw) -> DataFrame`
    the rows of the folder's table as text: image_id, lesion_id, dx, dx_type, age, sex, localization, source,
    `file` (path of the image, "" when there is none) and `table` (the table's name); the index is the row in that table
"""

import importlib
import os
from pathlib import Path
from types import ModuleType


def load_source(name: str) -> ModuleType:
    """Import one source by its name; the others are not touched, so that they are no dependency of a stage."""
    return importlib.import_module(f"exp_tools.data.sources.{name}")


def project_root() -> Path:
    """The project's real root folder, also in queued DVC experiments, which run in a folder of their own."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())
