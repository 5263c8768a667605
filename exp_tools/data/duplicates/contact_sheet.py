"""Pictures of the pairs worth a look: the weakest accepted and the strongest rejected ones, or all, page by page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from exp_tools.io import write_png

COLUMNS = 4
_TILE = (200, 150)
_GAP = 10
_LINE = 16
_CELL = (2 * _TILE[0] + _GAP, _TILE[1] + 3 * _LINE + _GAP)
_TITLE = 30
ON_PAGE = 24


def draw_pairs(
    path: Path, picture: Callable[[str], np.ndarray], report: pd.DataFrame, *, accepted: int = 40, rejected: int = 24
) -> None:
    """Draw pairs of different lesions side by side, with ids, diagnoses and inliers, into one PNG.

    Parameters
    ----------
    path : the PNG to write
    picture : gives the image of an image_id as uint8 [H, W, 3], RGB
    report : result of `pair_report`
    accepted, rejected : how many to draw of each kind at most: the accepted with the fewest inliers, the rejected with
        the most, both counted up from the doubtful end
    """
    across = report[~report["same_lesion"]]
    taken = across[across["accepted"]].sort_values("inliers", kind="stable")
    left = across[~across["accepted"]].sort_values("inliers", ascending=False, kind="stable")
    parts = [
        (f"accepted, fewest inliers first: {min(accepted, len(taken))} of {len(taken)}", taken.head(accepted)),
        (f"rejected, most inliers first: {min(rejected, len(left))} of {len(left)}", left.head(rejected)),
    ]
    _draw(path, picture, [(title, list(pairs.itertuples())) for title, pairs in parts])


def draw_pages(folder: Path, picture: Callable[[str], np.ndarray], pairs: pd.DataFrame) -> list[Path]:
    """Draw every pair of a report, numbered from 1, ON_PAGE on each of pairs_001.png, pairs_002.png, …: the files."""
    rows = list(pairs.itertuples())
    paths = []
    for start in range(0, len(rows), ON_PAGE):
        some = rows[start : start + ON_PAGE]
        paths.append(folder / f"pairs_{start // ON_PAGE + 1:03d}.png")
        title = f"pairs {start + 1} to {start + len(some)} of {len(rows)}: the rows of to_judge.csv"
        _draw(paths[-1], picture, [(title, some)], first=start + 1)
    return paths


def _draw(path: Path, picture: Callable[[str], np.ndarray], parts: list[tuple[str, list]], first: int = 0) -> None:
    """Titles with pairs below; numbered from `first` on where that is not 0."""
    height = sum(_TITLE + -(-len(pairs) // COLUMNS) * _CELL[1] for _, pairs in parts)
    sheet = Image.new("RGB", (COLUMNS * (_CELL[0] + _GAP) + _GAP, height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = _GAP
    for title, pairs in parts:
        draw.text((_GAP, top), title, fill="black", font=ImageFont.load_default(16))
        for number, pair in enumerate(pairs):
            corner = _GAP + number % COLUMNS * (_CELL[0] + _GAP), top + _TITLE + number // COLUMNS * _CELL[1]
            _draw_pair(sheet, draw, font, corner, pair, picture, f"{first + number}: " if first else "")
        top += _TITLE + -(-len(pairs) // COLUMNS) * _CELL[1]
    write_png(path, sheet)


def _draw_pair(
    sheet, draw, font, corner: tuple[int, int], pair, picture: Callable[[str], np.ndarray], number: str
) -> None:
    left, top = corner
    for image_id, lesion, dx in (
        (pair.image_id_1, pair.lesion_1, pair.dx_1),
        (pair.image_id_2, pair.lesion_2, pair.dx_2),
    ):
        image = Image.fromarray(picture(image_id))
        image.thumbnail(_TILE)
        sheet.paste(image, (left, top))
        draw.text((left, top + _TILE[1]), f"{image_id} {dx}", fill="black", font=font)
        draw.text((left, top + _TILE[1] + _LINE), str(lesion), fill="dimgray", font=font)
        left += _TILE[0] + _GAP // 2
    ages = "" if np.isnan(pair.age_difference) else f", ages differ by {pair.age_difference:g}"
    sex = "" if pd.isna(pair.same_sex) else ", same sex" if pair.same_sex else ", other sex"
    alike = "" if np.isnan(pair.similarity) else f", {pair.similarity:.2f} alike"
    colour = "black" if pair.same_dx else "firebrick"
    draw.text(
        (corner[0], top + _TILE[1] + 2 * _LINE),
        f"{number}{pair.inliers} inliers{ages}{sex}{alike}",
        fill=colour,
        font=font,
    )
