"""HAM10000 and PH2 together in HAM10000's seven classes: common and atypical nevi are nevi, melanomas are melanomas."""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources import ham10000, ph2
from exp_tools.data.sources.registry import DatasetSpec
from exp_tools.data.sources.tables import joined
from exp_tools.taxonomy import DIAGNOSES, broader

PARTS = (("ham10000", "dir"), ("ph2", "second_dir"))
FACTS = DatasetSpec(
    title="HAM10000 and PH2",
    licence=f"HAM10000: {ham10000.FACTS.licence}; PH2: {ph2.FACTS.licence}",
    citation=f"{ham10000.FACTS.citation}; {ph2.FACTS.citation}",
    where=f"{ham10000.FACTS.where} and {ph2.FACTS.where}",
    classes=tuple(DIAGNOSES),
    masks=ham10000.FACTS.masks + ph2.FACTS.masks,
    lesion_masks=ham10000.FACTS.lesion_masks + ph2.FACTS.lesion_masks,
    counts={
        "images": 10_215,
        "lesions": 7_670,
        "dx": {"nv": 6865, "mel": 1153, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115},
    },
)


def read(raw: Path) -> pd.DataFrame:
    """Rows of both sets, PH2's in HAM10000's diagnoses."""
    small = ph2.read(raw / "ph2")
    return joined(ham10000.read(raw / "ham10000"), small.assign(dx=small["dx"].map(broader)))
