"""The embedded sample set: synthetic images in HAM10000's official layout, for tests and teaching, not for medicine."""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources import ham10000
from exp_tools.data.sources.registry import SourceOptions
from exp_tools.data.synthetic.generate import write_sample


def provide(wanted: SourceOptions, raw: Path, *, root: Path, processes: int) -> str:
    """Draw `sample_images` pictures (at most `limit`) and their table into `raw`."""
    images = min(wanted.sample_images, wanted.limit or wanted.sample_images)
    write_sample(raw, images=images, seed=wanted.seed, processes=processes)
    return f"{images:,} synthetic images drawn: a stand-in for trying things out, no medical data"


def read(raw: Path) -> pd.DataFrame:
    """Rows of the table, with the file of each image."""
    return ham10000.read(raw).assign(source="synthetic")
