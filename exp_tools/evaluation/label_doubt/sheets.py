"""Contact sheets of doubtful labels, and the table to write verdicts into."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from exp_tools.data.label_verdicts import COLUMNS, RELABEL
from exp_tools.data.sources.tables import read_text_table
from exp_tools.errors import UserError
from exp_tools.io import bare_cells, write_csv, write_png
from exp_tools.taxonomy import NOT_MELANOMA

ACROSS, DOWN = 6, 5
TILE, GAP, LINE, TITLE = 200, 12, 16, 34
LETTERS = 30
RANKING, TO_JUDGE = "ranking.csv", "to_judge.csv"
PAGE, PAGES = "labels_{:03d}.png", "labels_[0-9]*.png"
_NOTE = re.compile(r"given .+ \d+\.\d%, suggested (?P<suggested>.+) \d+\.\d%")
"""The note of a row to judge, from which `is_not_judged` tells what we wrote."""

Picture = Callable[[str], NDArray[np.uint8] | None]
"""Gives the image of an image_id as uint8 [H, W, 3], RGB; None where it is not at hand."""


def to_judge(ranking: pd.DataFrame, judged: set[str], most: int) -> pd.DataFrame:
    """The most doubtful lesions with a suggestion that nobody has judged yet, one row each, at most `most`.

    The row is that of the lesion's image whose own probability of the given label is lowest.

    Parameters
    ----------
    ranking : as `rank.rank_labels`
    judged : images with a verdict; the other images of their lesions are judged too
    most : lesions, at most
    """
    done = set(ranking.loc[ranking["image_id"].isin(judged), "lesion_id"])
    open_ = ranking[(ranking["suggested"] != "") & ~ranking["lesion_id"].isin(done)]
    return open_.drop_duplicates("lesion_id").head(most).reset_index(drop=True)


def is_not_judged(path: Path) -> bool:
    """Whether a file is a list of `write_proposal` as that wrote it: with no verdict, and no other text than ours."""
    try:
        table = read_text_table(path)
    except UserError:
        return False
    return set(COLUMNS) <= set(table.columns) and all(
        (found := _NOTE.fullmatch(row.note)) and row.dx == _to_relabel(found["suggested"]) and not row.verdict.strip()
        for row in table.itertuples()
    )


def _to_relabel(suggested: str) -> str:
    """The diagnosis to write in advance; "" for a class that is none."""
    return "" if suggested == NOT_MELANOMA else suggested


def write_proposal(
    folder: Path, ranking: pd.DataFrame, chosen: pd.DataFrame, picture: Picture, diagnoses: Mapping[str, str]
) -> list[Path]:
    """Write the ranking, the rows to judge and their contact sheets, numbered alike; the sheets.

    Parameters
    ----------
    folder : it gets RANKING, TO_JUDGE, PAGES (earlier ones go), and a .gitignore for the pages where it has none
    ranking, chosen : as `rank.rank_labels` and `to_judge`
    picture : where the pictures come from
    diagnoses : as `given_diagnoses`
    """
    chosen = chosen.assign(
        given=[
            f"{diagnoses[row.image_id]} ({row.dx})" if row.dx == NOT_MELANOMA and row.image_id in diagnoses else row.dx
            for row in chosen.itertuples()
        ]
    )
    rounded = {"self_confidence": ranking["self_confidence"].round(6)}
    rounded |= {"suggested_confidence": ranking["suggested_confidence"].round(6)}
    write_csv(folder / RANKING, ranking.assign(**rounded))
    notes = [", ".join(_words(row)) for row in chosen.itertuples()]
    rows = {"image_id": chosen["image_id"], "verdict": "", "dx": chosen["suggested"].map(_to_relabel), "note": notes}
    write_csv(folder / TO_JUDGE, pd.DataFrame(rows)[COLUMNS])
    if not os.path.lexists(folder / ".gitignore"):
        (folder / ".gitignore").write_text(f"{PAGES}\n", encoding="utf-8")
    pages = []
    for start in range(0, len(chosen), ACROSS * DOWN):
        some = chosen.iloc[start : start + ACROSS * DOWN]
        pages.append(folder / PAGE.format(len(pages) + 1))
        title = f"labels {start + 1} to {start + len(some)} of {len(chosen)}: the rows of {TO_JUDGE}"
        write_png(pages[-1], _page(title, some, start + 1, picture))
    for old in set(folder.glob(PAGES)) - set(pages):
        old.unlink()
    return pages


def _words(row) -> tuple[str, str]:
    """The given label of a row and the suggested one, with their probabilities."""
    return (
        f"given {row.given} {row.self_confidence:.1%}",
        f"suggested {row.suggested} {row.suggested_confidence:.1%}",
    )


def _page(title: str, rows: pd.DataFrame, first: int, picture: Picture) -> Image.Image:
    cell = TILE + GAP, TILE + 4 * LINE + GAP
    height = TITLE + -(-len(rows) // ACROSS) * cell[1] + GAP
    sheet = Image.new("RGB", (ACROSS * cell[0] + GAP, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, GAP // 2), title, fill="black", font=ImageFont.load_default(16))
    for place, row in enumerate(rows.itertuples()):
        left, top = GAP + place % ACROSS * cell[0], TITLE + place // ACROSS * cell[1]
        pixels = picture(row.image_id)
        if pixels is None:
            draw.rectangle((left, top, left + TILE, top + TILE), outline="gray")
            draw.text((left + GAP, top + TILE // 2), "picture not at hand", fill="dimgray", font=font)
        else:
            image = Image.fromarray(pixels)
            scale = TILE / max(image.size)
            size = tuple(max(1, round(side * scale)) for side in image.size)
            sheet.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top))
        others = f", {row.images_of_lesion} images" if row.images_of_lesion > 1 else ""
        given, suggested = _words(row)
        words = [
            (f"{first + place}: {row.image_id}", "black"),
            (given, "black"),
            (suggested, "firebrick"),
            (f"{row.lesion_id}{others}", "dimgray"),
        ]
        for number, (text, colour) in enumerate(words):
            draw.text((left, top + TILE + 2 + number * LINE), text[:LETTERS], fill=colour, font=font)
    return sheet


def packed_pictures(labels: Path, images: Path) -> Picture:
    """Pictures from the packed images of `prepare`; none at hand where the two files are not there."""
    if not (labels.is_file() and images.is_file()):
        return lambda image_id: None
    names = bare_cells(pd.read_csv(labels, usecols=["image_id"], dtype=str, keep_default_na=False))["image_id"]
    place, pixels = dict(zip(names, range(len(names)), strict=True)), np.load(images, mmap_mode="r")
    fits = len(names) == len(pixels)
    return lambda image_id: np.asarray(pixels[place[image_id]]) if fits and image_id in place else None


def given_diagnoses(labels: Path) -> dict[str, str]:
    """The diagnosis of each image of the set, which the classes of a task may hide; {} where the table is not there."""
    if not labels.is_file():
        return {}
    table = bare_cells(pd.read_csv(labels, usecols=["image_id", "dx"], dtype=str, keep_default_na=False))
    return dict(zip(table["image_id"], table["dx"], strict=True))


def how_to_judge(folder: Path, verdicts: Path) -> str:
    """What to do with the files, in words."""
    return (
        f"Look at the sheets, write {RELABEL} (dx has the suggestion, where that is a diagnosis; change it if need "
        f"be), drop or keep into {folder / TO_JUDGE}, and copy the rows that you have judged to {verdicts}. The "
        "ranking is a model's doubt, not a finding: nothing was changed"
    )
