"""HAM10000: 10,015 dermoscopic images of 7,470 pigmented lesions in seven diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Sci Data 5:180161, 2018. CC BY-NC 4.0.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.files import write_csv
from exp_tools.data.images import find_images
from exp_tools.data.labels import read_text_table, require_columns
from exp_tools.data.links import link_file
from exp_tools.data.subset import subset_of_lesions
from exp_tools.errors import UserError
from exp_tools.params import DataParams

TABLE = "HAM10000_metadata.csv"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
WHERE_TO_GET = "https://doi.org/10.7910/DVN/DBW86T"


def provide(data: DataParams, raw: Path, *, root: Path, processes: int) -> str:
    """Link an unpacked local copy (`data.dir`) into `raw`: the table and each image that it names."""
    if data.dir is None:
        raise UserError(
            "data.source ham10000 needs data.dir, the folder of an unpacked copy; "
            f"get the set from {WHERE_TO_GET} and set it with -S data.dir=FOLDER"
        )
    folder = (root / data.dir).resolve()
    if not folder.is_dir():
        raise UserError(f"data.dir {data.dir!r}: there is no folder {folder}")
    table = read(folder)
    keep = table
    if data.limit is not None:
        keep = table[subset_of_lesions(table, data.limit, data.seed)]
    raw.mkdir(parents=True, exist_ok=True)
    for file in keep["file"]:
        if file:
            path = Path(file)
            link_file(path, raw / path.relative_to(folder))
    if len(keep) < len(table):
        write_csv(raw / TABLE, read_text_table(folder / TABLE).loc[keep.index])
    else:
        link_file(folder / TABLE, raw / TABLE)
    return f"{len(keep):,} of {len(table):,} images of HAM10000 linked from {data.dir}"


def read(raw: Path) -> pd.DataFrame:
    """Rows of the folder's table with the file of each image, wherever below the folder it lies."""
    table = read_text_table(raw / TABLE)
    require_columns(table, COLUMNS, TABLE)
    files = find_images(raw)
    origin = table["dataset"] if "dataset" in table else pd.Series("ham10000", index=table.index)
    return table[list(COLUMNS)].assign(
        source=origin,
        file=[str(files.get(image_id, "")) for image_id in table["image_id"]],
        table=TABLE,
    )
