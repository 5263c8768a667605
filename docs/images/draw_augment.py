"""Draw docs/images/augment.png: one drawn lesion, and sixteen draws of each augmentation preset.

python docs/images/draw_augment.py
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from exp_tools.data.inputs.augment import PRESETS, Magnitudes, augment, generator_for
from exp_tools.data.synthetic.scene import draw_lesion

SIZE, TILE, GAP, LABEL = 224, 88, 4, 26
COLUMNS, DRAWS = 8, 16
UNITS = {
    "flip": "flips",
    "rotation": "rotation ±{:g}°",
    "scale": "zoom ±{:.0%}",
    "shift": "shift ±{:.0%}",
    "shear": "shear ±{:g}°",
    "perspective": "perspective {:.0%}",
    "brightness": "brightness ±{:.0%}",
    "contrast": "contrast ±{:.0%}",
    "saturation": "saturation ±{:.0%}",
    "hue": "hue ±{:g}°",
    "one": "one of",
}


def draw_sheet() -> Image.Image:
    """The whole picture: the original, then a block of tiles a preset under its magnitudes."""
    view, _ = draw_lesion("mel", lesion_seed=8, view_seed=1)
    margin = (view.shape[1] - view.shape[0]) // 2
    lesion = cv2.resize(view[:, margin : margin + view.shape[0]], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    blocks = [("original", [lesion])]
    for name in ("light", "medium", "heavy", "trivial"):
        limits = Magnitudes(**PRESETS[name])
        tiles = [augment(lesion, limits, generator_for(0, 1, position)) for position in range(DRAWS)]
        blocks.append((f"{name}: {describe(PRESETS[name])}", tiles))
    rows = sum(LABEL + -(-len(tiles) // COLUMNS) * (TILE + GAP) for _, tiles in blocks)
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, rows + GAP), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(11), 0
    for label, tiles in blocks:
        pen.text((GAP, top + LABEL // 2), label, "black", font, anchor="lm")
        top += LABEL
        for start in range(0, len(tiles), COLUMNS):
            for column, tile in enumerate(tiles[start : start + COLUMNS]):
                small = cv2.resize(tile, (TILE, TILE), interpolation=cv2.INTER_AREA)
                sheet.paste(Image.fromarray(np.ascontiguousarray(small)), (GAP + column * (TILE + GAP), top))
            top += TILE + GAP
    return sheet


def describe(preset: dict[str, float]) -> str:
    """A preset's magnitudes in words."""
    return ", ".join(UNITS[name].format(value) for name, value in preset.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("augment.png"), help="file to write")
    # 256 colours are enough for a picture of one lesion, and halve the file
    draw_sheet().quantize(256, dither=Image.Dither.NONE).save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
