"""PH2: 200 dermoscopic images of melanocytic lesions, 80 common nevi, 80 atypical nevi and 40 melanomas.

It may be used for research and education and may not be passed on, so it is never downloaded: `data.dir` is an unpacked
copy. Read are the official layout with its .xlsx or .txt table, and class folders (nev/, atypical/, mel/).
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.images.decode import files_below, index_images
from exp_tools.data.sources.registry import DatasetSpec
from exp_tools.data.sources.tables import only_one, read_sheet, with_files
from exp_tools.errors import UserError

FACTS = DatasetSpec(
    title="PH2",
    licence="research and education only, not to be passed on",
    citation=(
        "Mendonça et al.: PH2, a dermoscopic image database for research and benchmarking, IEEE EMBC 2013, 5437-5440"
    ),
    where="https://www.fc.up.pt/addi/ph2%20database.html",
    classes=("common_nevus", "atypical_nevus", "mel"),
    folders_are_labels=True,
    masks=("_lesion", "_roi"),
    lesion_masks=("_lesion",),
    counts={"images": 200, "dx": {"common_nevus": 80, "atypical_nevus": 80, "mel": 40}},
)
CLASSES = dict(zip(("Common Nevus", "Atypical Nevus", "Melanoma"), FACTS.classes or (), strict=True))
FOLDERS = {
    **dict.fromkeys(("nev", "nevi", "nevus", "common", "common nevus", "common_nevus"), "common_nevus"),
    **dict.fromkeys(("atypical", "atypical nevus", "atypical_nevus", "dysplastic"), "atypical_nevus"),
    **dict.fromkeys(("mel", "melanoma", "melanomas"), "mel"),
}


def read(raw: Path) -> pd.DataFrame:
    """Rows of the set's table (.xlsx before .txt), or of its class folders where there is no table."""
    sheets = [path for path in files_below(raw) if path.suffix == ".xlsx" and "ph2" in path.name.lower()]
    texts = [path for path in files_below(raw) if path.suffix == ".txt" and "ph2" in path.name.lower()]
    if sheets:
        book = only_one(sheets, raw, "workbook of PH2")
        table = _from_rows(read_sheet(book), book)
    elif texts:
        table = _from_text(only_one(texts, raw, "text table of PH2"))
    else:
        return _from_folders(raw)
    return with_files(_lesions(table), raw)


def _lesions(table: pd.DataFrame) -> pd.DataFrame:
    """Each image is a lesion of its own, which is known and so gets a name of its own."""
    return table.assign(lesion_id="PH2_" + table["image_id"].str.strip(), source="ph2")


def _from_rows(rows: list[list[str]], path: Path) -> pd.DataFrame:
    head = next((number for number, cells in enumerate(rows) if "Image Name" in cells), None)
    if head is None or not set(CLASSES) <= set(rows[head]):
        raise UserError(f"{path} has no row with the headings Image Name, {', '.join(CLASSES)}; is it PH2's table?")
    name, places = rows[head].index("Image Name"), {rows[head].index(word): code for word, code in CLASSES.items()}
    ids, codes, numbers = [], [], []
    for number, cells in enumerate(rows[head + 1 :], head + 2):
        if len(cells) > name and cells[name]:
            marked = [code for place, code in places.items() if place < len(cells) and cells[place].upper() == "X"]
            ids.append(cells[name])
            codes.append("+".join(marked))
            numbers.append(number)
    index = pd.Index(numbers, name="row")
    return pd.DataFrame({"image_id": ids, "dx": codes}, index=index, dtype=str).assign(table=path.name)


def _from_text(path: Path) -> pd.DataFrame:
    codes = dict(enumerate(FACTS.classes or ()))
    ids, found, numbers = [], [], []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    if any("Image Name" in cells for cells in rows):  # the workbook, saved as text
        return _from_rows(rows, path)
    for number, (line, cells) in enumerate(zip(lines, rows, strict=True), 1):
        if line.strip().startswith("||"):
            cells = [cell.strip() for cell in line.strip().split("||")[1:]]
        if len(cells) < 3 or not cells[0].upper().startswith("IMD"):
            continue
        ids.append(cells[0])
        found.append(codes.get(int(cells[2]), cells[2]) if cells[2].isdecimal() else cells[2])
        numbers.append(number)
    if not ids:
        raise UserError(f"{path} has no line like `|| IMD003 || … || 0 || …` (or with tabs); is it PH2's table?")
    index = pd.Index(numbers, name="row")
    return pd.DataFrame({"image_id": ids, "dx": found}, index=index, dtype=str).assign(table=path.name)


def _from_folders(raw: Path) -> pd.DataFrame:
    rows = [
        (name, FOLDERS.get(path.parent.name.lower(), path.parent.name), str(path), path.relative_to(raw).as_posix())
        for name, paths in index_images(raw).items()
        if not name.lower().endswith(FACTS.masks)
        for path in paths
    ]
    if not any(code in CLASSES.values() for _, code, _, _ in rows):
        raise UserError(
            f"below {raw} is neither PH2_dataset.xlsx nor PH2_dataset.txt, nor are there class folders "
            "nev/, atypical/ and mel/: expected PH2 in one of these layouts"
        )
    table = pd.DataFrame(rows, columns=["image_id", "dx", "file", "table"], dtype=str)
    return _lesions(table).assign(row=0)
