"""Search any folder of images for duplicates, outside the pipeline: `exp-tools duplicates`."""

from pathlib import Path

import pandas as pd

from exp_tools.data.duplicates.contact_sheet import draw_pairs
from exp_tools.data.duplicates.groups import pair_report
from exp_tools.data.duplicates.pairs import duplicate_pairs, photograph
from exp_tools.data.images.decode import index_images
from exp_tools.data.sources.tables import read_text_table, require_columns
from exp_tools.errors import UserError
from exp_tools.io import write_csv

ABOUT = {"lesion_id": "", "dx": "", "sex": "unknown", "age": ""}


def search_folder(folder: Path, table: Path | None, out: Path, *, processes: int = 1) -> str:
    """Find pairs of images below a folder that show the same spot of skin.

    Parameters
    ----------
    folder : images, at any depth; names without ending are their ids
    table : CSV with image_id and, if there, lesion_id, dx, sex, age, to say whether a pair agrees
    out : folder for pairs.csv (as `groups.pair_report`) and pairs.png (pairs of different lesions)
    processes : how many search at once; the result does not depend on it

    Returns
    -------
    what was found, in words

    Raises
    ------
    UserError
        There are fewer than two images, or the table lacks image_id.
    """
    files = {name: paths[0] for name, paths in sorted(index_images(folder).items())}
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} images; a pair needs two")
    labels = _labels(list(files), table)
    pairs = duplicate_pairs(list(files), [str(path) for path in files.values()], "search", processes=processes)
    report = pair_report(labels, pairs)
    write_csv(out / "pairs.csv", report)
    draw_pairs(out / "pairs.png", lambda image_id: photograph(str(files[image_id])), report)
    accepted = report[report["accepted"]]
    across = int((~accepted["same_lesion"]).sum())
    return (
        f"{len(accepted):,} pairs among {len(files):,} images, {across:,} of them not known to be of one lesion; "
        f"{out / 'pairs.csv'}, {out / 'pairs.png'}"
    )


def _labels(image_ids: list[str], table: Path | None) -> pd.DataFrame:
    """The known facts of each image; an image without a lesion id is a lesion of its own."""
    known = pd.DataFrame({"image_id": image_ids})
    if table is not None:
        given = read_text_table(table)
        require_columns(given, ["image_id"], str(table))
        columns = ["image_id", *(name for name in ABOUT if name in given.columns)]
        known = known.merge(given[columns].drop_duplicates("image_id"), on="image_id", how="left")
    known = known.assign(**{name: value for name, value in ABOUT.items() if name not in known}).fillna(ABOUT)
    lesion = known["lesion_id"].where(known["lesion_id"] != "", known["image_id"])
    return known.assign(lesion_id=lesion, age=pd.to_numeric(known["age"], errors="coerce"))
