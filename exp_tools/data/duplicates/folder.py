"""Search any folder of images for duplicates, outside the pipeline: `exp-tools duplicates`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.data.duplicates.contact_sheet import draw_pages
from exp_tools.data.duplicates.groups import pair_report
from exp_tools.data.duplicates.pairs import duplicate_pairs, photograph
from exp_tools.data.duplicates.verdicts import COLUMNS
from exp_tools.data.images.decode import index_images
from exp_tools.data.sources.tables import read_table, require_columns
from exp_tools.errors import UserError
from exp_tools.io import write_csv

ABOUT = {"lesion_id": "", "dx": "", "sex": "unknown", "age": "", "localization": "unknown"}
MOST_NAMED = 8

Embed = Callable[[Sequence[Path]], np.ndarray]
"""Gives the embedding of each file, float [N, D]; anything where a file cannot be decoded."""


def search_folder(
    folder: Path, table: Path | None, out: Path, *, embed: Embed | None = None, processes: int = 1
) -> str:
    """Find pairs of images below a folder that show the same spot of skin.

    Parameters
    ----------
    folder : images, at any depth; names without ending are their ids
    table : CSV with image_id and, if there, lesion_id, dx, sex, age, localization, to say whether a pair agrees
    out : folder for pairs.csv (as `groups.pair_report`), and for the pairs that are not known to be of one lesion:
        pairs_001.png, … and to_judge.csv, which has their rows in the same order for a person's verdicts
    embed : proposes pairs with similar embeddings as well
    processes : how many search at once; the result does not depend on it

    Returns
    -------
    what was found, in words, with the images that cannot be decoded

    Raises
    ------
    UserError
        There are fewer than two images that can be decoded, or the table lacks image_id.
    """
    files = {name: paths[0] for name, paths in sorted(index_images(folder).items())}
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} images; a pair needs two")
    labels = _labels(list(files), table)
    paths = list(files.values())
    unread: list[str] = []
    pairs = duplicate_pairs(
        labels,
        [str(path) for path in paths],
        "search",
        vectors=None if embed is None else embed(paths),
        processes=processes,
        on_fault=lambda place, fault: unread.append(f"{paths[place]}: {fault}"),
    )
    if len(unread) > len(files) - 2:
        raise UserError(f"fewer than two images of {folder} can be decoded: {_listed(unread)}")
    report = pair_report(labels, pairs)
    to_judge = report[~report["same_lesion"] & ~report["identical"]]
    to_judge = to_judge.sort_values(["accepted", "inliers"], ascending=[False, False], kind="stable", ignore_index=True)
    write_csv(out / "pairs.csv", report)
    ids = to_judge[["image_id_1", "image_id_2"]].set_axis(COLUMNS[:2], axis=1)
    write_csv(out / "to_judge.csv", ids.assign(same="", note=""))
    pages = draw_pages(out, lambda image_id: photograph(str(files[image_id])), to_judge)
    for old in set(out.glob("pairs_[0-9]*.png")) - set(pages):
        old.unlink()
    accepted = report[report["accepted"]]
    across = int((~accepted["same_lesion"]).sum())
    said = (
        f"{len(accepted):,} pairs among {len(files):,} images, {across:,} of them not known to be of one lesion; "
        f"{out / 'pairs.csv'}\n{len(to_judge):,} pairs to look at, the accepted ones first: {len(pages)} pages "
        f"{out / 'pairs_*.png'}. Write yes or no beside a pair in {out / 'to_judge.csv'}, and copy the rows that you "
        "have judged to verdicts/duplicates.csv"
    )
    return said + (f"\n{len(unread):,} images cannot be decoded and have no pairs: {_listed(unread)}" if unread else "")


def _listed(unread: list[str]) -> str:
    rest = f"; and {len(unread) - MOST_NAMED:,} more" if len(unread) > MOST_NAMED else ""
    return "; ".join(unread[:MOST_NAMED]) + rest


def _labels(image_ids: list[str], table: Path | None) -> pd.DataFrame:
    """The known facts of each image; an image without a lesion id is a lesion of its own."""
    known = pd.DataFrame({"image_id": image_ids})
    if table is not None:
        given = read_table(table)
        require_columns(given, ["image_id"], str(table))
        columns = ["image_id", *(name for name in ABOUT if name in given.columns)]
        known = known.merge(given[columns].drop_duplicates("image_id"), on="image_id", how="left")
    known = known.assign(**{name: value for name, value in ABOUT.items() if name not in known}).fillna(ABOUT)
    known = known.assign(**{name: known[name].replace("", "unknown") for name in ("sex", "localization")})
    lesion = known["lesion_id"].where(known["lesion_id"] != "", known["image_id"])
    return known.assign(lesion_id=lesion, age=pd.to_numeric(known["age"], errors="coerce"))
