"""Contact sheets: the most confident mistakes, and the missed melanomas.

A sheet is for looking, not for counting: it says how many there are of what it shows a few of.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exp_tools.evaluation.plots.style import STYLE, new_figure, save_figure, set_title
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.taxonomy import MELANOMA

# Inches. A sheet is one pair of axes whose units are inches: tiles lie where they are put.
TILE = 1.55
ACROSS, DOWN = TILE + 0.22, TILE + 0.78
NAME, WORDS = 1.1, 0.7
LETTERS = 30  # fit below a tile
LETTERS_OF_NAME = 14  # fit next to the tiles
ONE_COLUMN = 3  # up to so many classes in one column; more take two
FEWEST_ACROSS, MISSED_ACROSS, MOST_MISSED = 4, 6, 24


class Block(NamedTuple):
    """One diagnosis of a sheet."""

    name: str
    counted: str
    cases: list[dict[str, Any]]

    @property
    def height(self) -> float:
        """Inches; without a tile there are only the words."""
        return DOWN if self.cases else WORDS


@matplotlib.rc_context(STYLE)
def draw_mistakes(
    path: Path, images: NDArray, table: pd.DataFrame, classes: Sequence[str], title: str, per_class: int = 4
) -> None:
    """For each true class the wrong predictions of the highest probability, each of another lesion.

    Parameters
    ----------
    path : PNG file to write
    images : uint8 [M, S, S, 3], RGB; may be memory-mapped, only what is drawn is read
    table : predictions of the set with age (years, NaN: unknown), sex, localization and `row`, the place of each image
        in `images`
    classes : the C classes, in the order of the model
    title : names the set
    per_class : tiles a class, at most

    Raises
    ------
    UserError : a diagnosis that is not a class
    """
    table = _with_probabilities(table, classes)
    blocks = [_block(table[table["dx"] == code], code, per_class) for code in classes]
    columns = _columns(blocks)
    part = NAME + per_class * ACROSS + 0.15
    figure, axes = _sheet(len(columns) * part, max(sum(block.height for block in column) for column in columns))
    set_title(axes, "The surest mistakes of each diagnosis, each of another lesion", title, len(table))
    for number, column in enumerate(columns):
        left, top = number * part, 0.0
        for block in column:
            axes.text(left, top + 0.16, block.name, fontsize=10, weight="bold", parse_math=False)
            axes.text(left, top + 0.26, block.counted, fontsize=8, va="top")
            for place, case in enumerate(block.cases):
                _draw_tile(axes, left + NAME + place * ACROSS, top, images, case)
            top += block.height
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_missed(
    path: Path,
    images: NDArray,
    table: pd.DataFrame,
    classes: Sequence[str],
    title: str,
    caught: NDArray[np.bool_] | None = None,
) -> None:
    """The melanomas that are neither called so, nor flagged, nor left to a human: at most 24, the surest first.

    Parameters
    ----------
    path, images, table, classes, title : as `draw_mistakes`; `mel` is one of the classes
    caught : bool [N], see `melanoma.caught_melanomas`; None: those that are decided as melanoma

    Raises
    ------
    UserError : a diagnosis that is not a class
    """
    table = _with_probabilities(table, classes)
    table["caught"] = table["predicted"] == MELANOMA if caught is None else caught
    melanomas = table[table["dx"] == MELANOMA]
    missed = _surest_mistakes(melanomas[~melanomas["caught"]])
    shown = missed.head(MOST_MISSED)
    if melanomas.empty:
        subject = "Missed melanomas: there is none in this set to miss"
    elif missed.empty:
        subject = f"Missed melanomas: none of {len(melanomas):,} images"
    else:
        subject = f"Missed melanomas: {len(missed):,} of {len(melanomas):,} images"
        subject += f", the {len(shown)} surest mistakes" if len(shown) < len(missed) else ", the surest mistakes first"
    across = min(max(len(shown), FEWEST_ACROSS), MISSED_ACROSS)
    figure, axes = _sheet(across * ACROSS, -(-len(shown) // across) * DOWN)
    set_title(axes, subject, title, len(table))
    for place, case in enumerate(shown.to_dict("records")):
        line, column = divmod(place, across)
        _draw_tile(axes, column * ACROSS, line * DOWN, images, case)
    save_figure(figure, path)


def _with_probabilities(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The table with the probabilities of the decided class and of the true class."""
    probabilities, labels, _ = as_arrays(table, classes)
    places, predicted = np.arange(len(table)), decisions(table, classes)
    return table.assign(
        probability=probabilities[places, predicted],
        truth_probability=probabilities[places, labels],
    )


def _block(cases: pd.DataFrame, code: str, most: int) -> Block:
    wrong = _surest_mistakes(cases)
    share = f"{f'{len(wrong):,}' if len(wrong) else 'none'} of {len(cases):,}"
    counted = f"{share}\nimages wrong" if len(cases) else "no image"
    chosen = wrong.drop_duplicates("lesion_id").head(most)
    return Block(_cut(code, LETTERS_OF_NAME), counted, chosen.to_dict("records"))


def _columns(blocks: Sequence[Block]) -> list[Sequence[Block]]:
    """One column, or the two whose heights differ least, in the order given."""
    if len(blocks) <= ONE_COLUMN:
        return [blocks]
    total = sum(block.height for block in blocks)
    cut = min(range(1, len(blocks)), key=lambda place: abs(total - 2 * sum(block.height for block in blocks[:place])))
    return [blocks[:cut], blocks[cut:]]


def _surest_mistakes(table: pd.DataFrame) -> pd.DataFrame:
    wrong = table[table["dx"] != table["predicted"]]
    return wrong.sort_values(["probability", "image_id"], ascending=[False, True])


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A page whose axes are width x height inches, counted from the upper left corner, below a title of two lines."""
    height = max(height, 0.1)
    figure, axes = new_figure(width + 0.16, height + 0.62)
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_autoscale_on(False)
    return figure, axes


def _draw_tile(axes: Axes, left: float, top: float, images: NDArray, case: Mapping[str, Any]) -> None:
    picture = np.asarray(images[case["row"]])
    axes.imshow(picture, extent=(left, left + TILE, top + TILE, top), aspect="equal")
    said = [
        f"true: {case['dx']} {case['truth_probability']:.0%}",
        f"predicted: {case['predicted']} {case['probability']:.0%}",
        _person(case),
        case["image_id"],
    ]
    text = "\n".join(_cut(line, LETTERS) for line in said)
    axes.text(left, top + TILE + 0.06, text, fontsize=7.5, va="top", linespacing=1.25, parse_math=False)


def _person(case: Mapping[str, Any]) -> str:
    age = "age unknown" if pd.isna(case["age"]) else f"{case['age']:.0f} y"
    return f"{age}, {_known(case['sex'], 'sex')}, {_known(case['localization'], 'site')}"


def _known(value: Any, name: str) -> str:
    return f"{name} unknown" if pd.isna(value) or value in ("", "unknown") else str(value)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
