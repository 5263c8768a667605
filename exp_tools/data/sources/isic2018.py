"""The ISIC 2018 Task 3 challenge as it was held: train on HAM10000, test on the official test set.

`split.scheme: auto` (and `official`) keeps the test set and shares HAM10000 out over training and validation.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources import ham10000, isic2018_test
from exp_tools.data.sources.registry import DatasetSpec
from exp_tools.data.sources.tables import joined
from exp_tools.taxonomy import DIAGNOSES

PARTS = (("ham10000", "dir"), ("isic2018_test", "second_dir"))
FACTS = DatasetSpec(
    title="HAM10000 and the ISIC 2018 Task 3 test set",
    licence=ham10000.FACTS.licence,
    citation=isic2018_test.FACTS.citation,
    where=ham10000.FACTS.where,
    classes=tuple(DIAGNOSES),
    masks=ham10000.FACTS.masks,
    lesion_masks=ham10000.FACTS.lesion_masks,
    counts={"images": (11_526, 11_527)},
)


def read(raw: Path) -> pd.DataFrame:
    """Rows of both sets; those of the test set have `split` = `test`."""
    return joined(ham10000.read(raw / "ham10000"), isic2018_test.read(raw / "isic2018_test"))
