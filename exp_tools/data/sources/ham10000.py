"""HAM10000: 10,015 dermoscopic images of 7,470 pigmented lesions in seven diagnoses.

Any layout that is found in the wild is read: two part folders, one flat folder, class folders, both spellings of
Kaggle's folders, the table as .csv or .tab with seven or eight columns.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.images.decode import files_below
from exp_tools.data.sources.registry import DatasetSpec, RemoteFile
from exp_tools.data.sources.tables import read_text_table, require_columns, why_not, with_files
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES

DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
FACTS = DatasetSpec(
    title="HAM10000",
    licence="CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0): name the authors, no commercial use",
    citation="Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5:180161, 2018",
    where="https://doi.org/10.7910/DVN/DBW86T",
    classes=tuple(DIAGNOSES),
    files=(
        RemoteFile(
            "HAM10000_images_part_1.zip",
            f"{DATAVERSE}/3172585",
            1_366_522_108,
            "4639bfa73ab251610530a97c898e6e46",
            archive=True,
        ),
        RemoteFile(
            "HAM10000_images_part_2.zip",
            f"{DATAVERSE}/3172584",
            1_403_566_547,
            "da43d6cc50f6613013be07e8986b384b",
            archive=True,
        ),
        RemoteFile(
            "HAM10000_metadata.csv",
            f"{DATAVERSE}/4338392?format=original",
            690_218,
            "8f85fb1aa29d80a2797247e434deb79d",
        ),
    ),
    masks=("_segmentation",),
    lesion_masks=("_segmentation",),
    counts={
        "images": 10_015,
        "lesions": 7_470,
        "lesions with several images": 1_956,
        "ages missing": 57,
        "localizations": 14,
        "dx": {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115},
        "dx_type": {"histo": 5340, "follow_up": 3704, "consensus": 902, "confocal": 69},
        "sex": {"male": 5406, "female": 4552, "unknown": 57},
    },
)
TABLE = "HAM10000_metadata"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")


def read(raw: Path) -> pd.DataFrame:
    """Rows of the folder's table with the file of each image, wherever below the folder it lies."""
    path = find_table(raw)
    table = read_text_table(path)
    require_columns(table, COLUMNS, path.name)
    origin = table["dataset"].str.strip() if "dataset" in table else ""
    return with_files(table[list(COLUMNS)].assign(source=origin, table=path.name), raw).assign(
        source=lambda rows: rows["source"].replace("", "ham10000")
    )


def find_table(folder: Path) -> Path:
    """The table of the set below a folder; of several, all must have the same content."""
    found = [
        path
        for path in files_below(folder)
        if path.stem.lower() == TABLE.lower() and path.suffix.lower() in (".csv", ".tab", ".tsv", "")
    ]
    if not found:
        raise UserError(
            f"there is no {TABLE}.csv (or .tab) below {folder}{why_not(folder, COLUMNS)}. It comes with the images "
            f"({FACTS.where}). A table of another name is read with data.source=table and data.table. "
            "For class folders without a table use data.source=folder"
        )
    if len({path.read_bytes() for path in found}) > 1:
        raise UserError(
            f"below {folder} are several different tables {TABLE}: "
            + ", ".join(path.relative_to(folder).as_posix() for path in found)
            + "; point to the folder of one of them"
        )
    return found[0]
