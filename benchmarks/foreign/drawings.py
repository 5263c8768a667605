"""Pictures made by code that show no skin: noise, patterns, pages, charts, faces, cats, screens."""

import io
from collections.abc import Callable

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    *("the", "of", "report", "invoice", "total", "figure", "analysis", "result", "measured", "between", "however"),
    *("patient", "date", "system", "page", "values", "table", "model", "section", "number", "second", "and", "in"),
)
Pixels = NDArray[np.uint8]


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(low, high, 3))


def noise(rng: np.random.Generator) -> Image.Image:
    """White, grey, salt-and-pepper or coloured smooth noise."""
    form, size = rng.integers(4), (300, 400)
    if form == 0:
        made = rng.integers(0, 256, (*size, 3))
    elif form == 1:
        made = np.repeat(np.clip(rng.normal(128, rng.uniform(20, 70), (*size, 1)), 0, 255), 3, axis=2)
    elif form == 2:
        made = np.repeat(np.where(rng.random((*size, 1)) < rng.uniform(0.05, 0.5), 255, 0), 3, axis=2)
    else:
        cell = int(rng.integers(4, 40))
        small = rng.integers(0, 256, (size[0] // cell + 2, size[1] // cell + 2, 3)).astype(np.uint8)
        made = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(np.asarray(made).astype(np.uint8))


def gradient(rng: np.random.Generator) -> Image.Image:
    """From one colour to another, along a line or from a centre."""
    rows, columns = np.mgrid[-1:1:300j, -1:1:400j]
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        share = (rows * np.sin(angle) + columns * np.cos(angle)) / 2.9 + 0.5
    else:
        share = np.hypot(rows - rng.uniform(-1, 1), columns - rng.uniform(-1, 1)) / 3
    one, other = (np.array(_colour(rng), dtype=float) for _ in range(2))
    return Image.fromarray(np.clip(one + share[..., None] * (other - one), 0, 255).astype(np.uint8))


def plain(rng: np.random.Generator) -> Image.Image:
    """One colour, with the noise of a sensor or without."""
    made = np.full((300, 400, 3), _colour(rng), dtype=float) + rng.normal(0, rng.choice([0, 1, 3]), (300, 400, 3))
    return Image.fromarray(np.clip(made, 0, 255).astype(np.uint8))


def pattern(rng: np.random.Generator) -> Image.Image:
    """Stripes, checks, dots or woven lines in two colours."""
    rows, columns = np.mgrid[0:300, 0:400]
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
    across = (rows * np.sin(angle) + columns * np.cos(angle)) / period
    along = (columns * np.sin(angle) - rows * np.cos(angle)) / period
    form = rng.integers(4)
    mask = (
        across % 1 < 0.5
        if form == 0
        else (np.floor(across) + np.floor(along)) % 2 == 0
        if form == 1
        else (across % 1 - 0.5) ** 2 + (along % 1 - 0.5) ** 2 < rng.uniform(0.03, 0.12)
        if form == 2
        else (across % 1 < 0.15) | (along % 1 < 0.15)
    )
    return Image.fromarray(np.where(mask[..., None], _colour(rng), _colour(rng)).astype(np.uint8))


def shapes(rng: np.random.Generator) -> Image.Image:
    """Overlapping circles, boxes and triangles in flat colours."""
    made = Image.new("RGB", (400, 300), _colour(rng))
    pen = ImageDraw.Draw(made)
    for _ in range(int(rng.integers(3, 25))):
        x, y, r = rng.uniform(0, 400), rng.uniform(0, 300), rng.uniform(10, 90)
        box, form = (x - r, y - r, x + r, y + r), rng.integers(3)
        if form == 0:
            pen.ellipse(box, fill=_colour(rng))
        elif form == 1:
            pen.rectangle(box, fill=_colour(rng), outline=_colour(rng), width=3)
        else:
            pen.regular_polygon((x, y, r), 3, rotation=int(rng.integers(360)), fill=_colour(rng))
    return made


def text_page(rng: np.random.Generator) -> Image.Image:
    """A page of text, black on white or in colours, in one or two columns."""
    dark = rng.random() < 0.25
    paper, ink = ((30, 30, 34), (225, 225, 225)) if dark else (_colour(rng, 235, 256), _colour(rng, 0, 70))
    width, height = (600, 800) if rng.random() < 0.6 else (800, 600)
    made = Image.new("RGB", (width, height), paper)
    pen, size = ImageDraw.Draw(made), int(rng.integers(11, 30))
    font = _font("DejaVu Serif" if rng.random() < 0.5 else "DejaVu Sans", size)
    columns = int(rng.integers(1, 3))
    for column in range(columns):
        left, right = 40 + column * (width - 40) // columns, (column + 1) * (width - 40) // columns
        y = 40
        while y < height - 50:
            line = ""
            while pen.textlength(line + " information", font=font) < right - left:
                line += " " + str(rng.choice(WORDS))
            pen.text((left, y), line.strip() if rng.random() < 0.93 else "", fill=ink, font=font)
            y += int(1.35 * size)
    return made


def scan(rng: np.random.Generator) -> Image.Image:
    """A text page as a scanner or a phone gives it: turned, shaded, blurred, noisy, compressed."""
    page = np.asarray(text_page(rng)).astype(float)
    height, width = page.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-6, 6), rng.uniform(0.85, 1.3))
    page = cv2.warpAffine(page, turn, (width, height), borderValue=_colour(rng, 60, 200))
    shade = np.asarray(gradient(rng).convert("L").resize((width, height)), dtype=float)[..., None] / 255
    page = cv2.GaussianBlur(page, (0, 0), rng.uniform(0.4, 1.4)) * (0.75 + 0.25 * shade) * rng.uniform(0.8, 1.0, 3)
    page += rng.normal(0, rng.uniform(1, 7), page.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(35, 90)))
    return Image.open(file).convert("RGB")


def chart(rng: np.random.Generator) -> Image.Image:
    """A chart as a plotting program draws it."""
    figure, axes = plt.subplots(figsize=(5, 3.75), dpi=100)
    form = rng.integers(5)
    if form == 0:
        for _ in range(int(rng.integers(1, 5))):
            axes.plot(np.cumsum(rng.normal(size=60)))
    elif form == 1:
        axes.bar(range(8), rng.uniform(1, 9, 8), color=rng.random((8, 3)))
    elif form == 2:
        axes.scatter(*rng.normal(size=(2, 150)), c=rng.random(150), s=rng.uniform(5, 60, 150))
    elif form == 3:
        axes.imshow(rng.random((9, 9)), cmap=str(rng.choice(["viridis", "magma", "Reds", "copper"])))
    else:
        axes.pie(rng.uniform(1, 5, 6), labels=list(rng.choice(WORDS, 6)))
    axes.set_title(" ".join(rng.choice(WORDS, 4)))
    file = io.BytesIO()
    figure.savefig(file)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def screen(rng: np.random.Generator) -> Image.Image:
    """A screenshot: title bar, side bar, cards with text, buttons, perhaps a chart."""
    back, bar = (_colour(rng, 225, 256), _colour(rng, 20, 120)) if rng.random() < 0.6 else ((25, 27, 33), (60, 62, 70))
    made = Image.new("RGB", (800, 600), back)
    pen, font = ImageDraw.Draw(made), _font("DejaVu Sans", 15)
    pen.rectangle((0, 0, 800, 44), fill=bar)
    pen.text((20, 12), " ".join(rng.choice(WORDS, 3)), fill=(255, 255, 255), font=font)
    pen.rectangle((0, 44, 160, 600), fill=tuple(max(0, value - 15) for value in back))
    ink = (30, 30, 30) if sum(back) > 380 else (220, 220, 220)
    for place in range(int(rng.integers(5, 12))):
        pen.text((18, 70 + 38 * place), str(rng.choice(WORDS)), fill=ink, font=font)
    for row in range(3):
        for column in range(2):
            x, y = 185 + 305 * column, 70 + 175 * row
            pen.rounded_rectangle((x, y, x + 285, y + 155), 10, outline=ink, width=1)
            if rng.random() < 0.4:
                made.paste(chart(rng).resize((270, 140)), (x + 8, y + 8))
            else:
                for line in range(4):
                    pen.text((x + 14, y + 14 + 24 * line), " ".join(rng.choice(WORDS, 4)), fill=ink, font=font)
                pen.rounded_rectangle((x + 14, y + 118, x + 100, y + 144), 6, fill=_colour(rng))
    return made


def cat(rng: np.random.Generator) -> Image.Image:
    """A drawn cat: ears, eyes, whiskers."""
    made = Image.new("RGB", (400, 300), _colour(rng, 90, 256))
    pen, fur, dark = ImageDraw.Draw(made), _colour(rng, 40, 220), _colour(rng, 0, 60)
    x, y, r = 200 + rng.uniform(-40, 40), 165 + rng.uniform(-15, 15), rng.uniform(70, 105)
    for side in (-1, 1):
        pen.polygon(
            [
                (x + side * 0.9 * r, y - 0.3 * r),
                (x + side * 0.75 * r, y - 1.35 * r),
                (x + side * 0.2 * r, y - 0.85 * r),
            ],
            fill=fur,
            outline=dark,
        )
    pen.ellipse((x - r, y - 0.9 * r, x + r, y + 0.9 * r), fill=fur, outline=dark, width=3)
    for side in (-1, 1):
        cx, cy, s = x + side * 0.4 * r, y - 0.15 * r, 0.2 * r
        pen.ellipse((cx - s, cy - s, cx + s, cy + s), fill=_colour(rng, 120, 256), outline=dark, width=2)
        pen.ellipse((cx - s / 4, cy - 0.8 * s, cx + s / 4, cy + 0.8 * s), fill=(0, 0, 0))
        for slope in (-0.15, 0.0, 0.15):
            start = (x + side * 0.2 * r, y + 0.35 * r)
            pen.line((*start, x + side * 1.3 * r, y + 0.35 * r + slope * 2 * r), fill=dark, width=2)
    pen.polygon([(x - 9, y + 0.2 * r), (x + 9, y + 0.2 * r), (x, y + 0.32 * r)], fill=(220, 120, 130))
    pen.arc((x - 0.25 * r, y + 0.2 * r, x, y + 0.5 * r), 0, 180, fill=dark, width=2)
    pen.arc((x, y + 0.2 * r, x + 0.25 * r, y + 0.5 * r), 0, 180, fill=dark, width=2)
    return made


def _font(family: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(family), size)


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "drawn cat": cat,
    "drawn chart": chart,
    "drawn gradient": gradient,
    "drawn noise": noise,
    "drawn page": text_page,
    "drawn pattern": pattern,
    "drawn plain colour": plain,
    "drawn scan": scan,
    "drawn screen": screen,
    "drawn shapes": shapes,
}
