"""The official test set of ISIC 2018 Task 3, which is the test set of HAM10000: 1,511 images in seven diagnoses.

Its table comes in two forms: the challenge's one-hot table, which says nothing of lesions, and the Dataverse's, in
HAM10000's columns. Some releases list ISIC_0035068, which has no image: that is reported as missing_image.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources.ham10000 import DATAVERSE
from exp_tools.data.sources.registry import DatasetSpec, RemoteFile
from exp_tools.data.sources.tables import (
    header_of,
    one_hot_codes,
    only_one,
    read_table,
    tables_below,
    why_not,
    with_files,
)
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES

FACTS = DatasetSpec(
    title="ISIC 2018 Task 3 test set",
    licence="CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0): name the authors, no commercial use",
    citation=(
        "Codella et al.: Skin lesion analysis toward melanoma detection 2018, arXiv:1902.03368; Tschandl, Rosendahl, "
        "Kittler: The HAM10000 dataset, Scientific Data 5:180161, 2018"
    ),
    where="https://doi.org/10.7910/DVN/DBW86T",
    classes=tuple(DIAGNOSES),
    files=(
        RemoteFile(
            "ISIC2018_Task3_Test_Images.zip",
            f"{DATAVERSE}/3855824",
            None,
            "0488b6f65849e310857d9207daa55a21",
            archive=True,
        ),
        RemoteFile(
            "ISIC2018_Task3_Test_GroundTruth.csv",
            f"{DATAVERSE}/6924466?format=original",
            None,
            "2b5663aacc9644740f27e355cf7f369a",
        ),
    ),
    counts={"images": (1511, 1512)},
)


def read(raw: Path) -> pd.DataFrame:
    """Rows of the set's table, whichever form it has."""
    codes = [code.upper() for code in DIAGNOSES]
    fitting = [
        path
        for path in tables_below(raw)
        if {"image_id", "dx"} <= set(header_of(path)) or {"image", *codes} <= set(header_of(path))
    ]
    if not fitting:
        raise UserError(
            f"there is no table below {raw} with the columns image_id, dx or image, {', '.join(codes)}"
            f"{why_not(raw, ('image', *codes))}. ISIC2018_Task3_Test_GroundTruth.csv comes with the images "
            f"({FACTS.where})"
        )
    path = only_one(fitting, raw, "table of the test set")
    table = read_table(path)
    if "dx" not in table:
        one_hot = one_hot_codes(table, codes)
        table = pd.DataFrame({"image_id": table["image"], "dx": one_hot.str.lower()}, index=table.index)
    known = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    table = table[[column for column in known if column in table]]
    if "lesion_id" not in table:
        table = table.assign(lesion_id=table["image_id"])
    return with_files(table.assign(source="isic2018_test", split="test", table=path.name), raw)
