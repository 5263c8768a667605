"""Tables of the ISIC challenges: one-hot (2018 Task 3, 2019) and binary (2020), with lesions and patients.

All ground-truth tables below the folder are taken together. Also, where present: the metadata tables of
2019 and the LesionGroupings table of 2018 (lesion_id), and 2020's list of duplicates. 2020's images are grouped by
patient. ISIC 2019 contains HAM10000: as an external set next to it, the images that both have are taken out.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.sources.registry import DatasetSpec
from exp_tools.data.sources.tables import (
    header_of,
    joined,
    one_hot_codes,
    read_table,
    tables_below,
    why_not,
    with_files,
)
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES, OTHER_DIAGNOSES

CODES = ("MEL", "NV", "BCC", "AKIEC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
FACTS = DatasetSpec(
    title="ISIC challenge data",
    licence="CC BY-NC 4.0 (2018, 2019: https://creativecommons.org/licenses/by-nc/4.0; 2020: see its page)",
    citation=(
        "Codella et al., arXiv:1902.03368 (2018); Tschandl et al., Sci Data 5:180161, 2018; Combalia et al., "
        "arXiv:1908.02288 (2019); Rotemberg et al., Sci Data 8:34, 2021 (2020)"
    ),
    where="https://challenge.isic-archive.com/data/",
    masks=("_superpixels", "_segmentation"),
    lesion_masks=("_segmentation",),
    classes=(*DIAGNOSES, *(code for code in OTHER_DIAGNOSES if code in ("ak", "scc", "unk", "benign"))),
)


def read(raw: Path) -> pd.DataFrame:
    """Rows of all ground-truth tables, with the other tables' facts about their images."""
    headers = {path: header_of(path) for path in tables_below(raw)}
    truths, duplicates = [], {}
    about: dict[str, dict[str, str]] = {}
    for path, header in headers.items():
        if "image" in header and len(set(header) & set(CODES)) >= 2:
            truths.append(_one_hot(path, header))
        elif {"image_name", "patient_id"} <= set(header) and {"target", "benign_malignant"} & set(header):
            truths.append(_binary(path))
        elif {"image_name_1", "image_name_2"} <= set(header):
            table = read_table(path)
            duplicates |= dict(zip(table["image_name_2"].str.strip(), table["image_name_1"].str.strip(), strict=True))
        elif "image" in header and set(header) & {"lesion_id", "age_approx", "sex", "anatom_site_general"}:
            for row in read_table(path).to_dict("records"):
                about.setdefault(row["image"].strip(), {}).update(row)
    if not truths:
        raise UserError(
            f"there is no ground truth below {raw}: expected a table with the columns image, {', '.join(CODES[:4])}, … "
            f"(2018, 2019) or image_name, patient_id, target (2020){why_not(raw, ('image', *CODES[:4]))}"
        )
    table = joined(*truths)
    ids = table["image_id"].str.strip()
    for column, words in (
        ("lesion_id", ("lesion_id",)),
        ("age", ("age_approx",)),
        ("sex", ("sex",)),
        ("localization", ("anatom_site_general",)),
        ("dx_type", ("diagnosis confirm type",)),
    ):
        said = ids.map(lambda name, words=words: next((about.get(name, {}).get(word, "") for word in words), ""))
        table[column] = table[column].where(table[column] != "", said)
    table["lesion_id"] = table["lesion_id"].where(table["lesion_id"] != "", table["image_id"])
    present = set(ids)
    twin = ids.map(lambda name: duplicates.get(name, ""))
    table["duplicate_of"] = twin.where(twin.isin(present), "")
    return with_files(table.assign(source="isic"), raw)


def _one_hot(path: Path, header: list[str]) -> pd.DataFrame:
    table = read_table(path)
    codes = one_hot_codes(table, [code for code in CODES if code in header]).str.lower()
    return pd.DataFrame({"image_id": table["image"], "dx": codes}).assign(
        **dict.fromkeys(("lesion_id", "age", "sex", "localization", "dx_type", "group"), ""), table=path.name
    )


def _binary(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if "target" in table:
        malignant = table["target"].str.strip().map({"1": "mel", "1.0": "mel", "0": "benign", "0.0": "benign"})
    else:
        malignant = table["benign_malignant"].str.strip().str.lower().map({"malignant": "mel", "benign": "benign"})
    words = table["target" if "target" in table else "benign_malignant"]
    empty = pd.Series("", index=table.index)
    return pd.DataFrame(
        {
            "image_id": table["image_name"],
            "dx": malignant.fillna(words),
            "lesion_id": table.get("lesion_id", empty),
            "age": table.get("age_approx", empty),
            "sex": table.get("sex", empty),
            "localization": table.get("anatom_site_general_challenge", empty),
            "dx_type": "",
            "group": table["patient_id"].str.strip(),
        }
    ).assign(table=path.name)
