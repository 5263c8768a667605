"""Every kind of foreign picture: which group it is of, and which half of the kinds chooses or reports."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.foreign import drawings, skin
from benchmarks.foreign.photographs import PEOPLE, PHOTOGRAPHS, originals_of, photographs, small_faces

EACH = 24
"""Pictures of each kind."""
SMALL = "small grey faces"


class Kind(NamedTuple):
    """A kind of picture.

    name, group : group is photograph (or scan, without skin), clinical-like (skin or people, not dermoscopy) or drawn
    chooses : whether it is of the half that chooses the method; the other half reports
    originals : of how many photographs the pictures are; 0 where each is made by code
    """

    name: str
    group: str
    chooses: bool
    originals: int


def kinds() -> list[Kind]:
    """All kinds; in each group, by name, every second one chooses."""
    groups = {
        "photograph": sorted(PHOTOGRAPHS),
        "clinical-like": sorted([*PEOPLE, *skin.KINDS, SMALL]),
        "drawn": sorted(drawings.KINDS),
    }
    return [
        Kind(name, group, place % 2 == 0, EACH if name == SMALL else originals_of(name))
        for group, names in groups.items()
        for place, name in enumerate(names)
    ]


def pictures(kind: Kind, seed: int, count: int = EACH) -> list[Image.Image]:
    """The pictures of a kind; the same for the same seed. Raises UserError where a package is not installed."""
    rng = np.random.default_rng([seed, *kind.name.encode()])
    if kind.name in PHOTOGRAPHS or kind.name in PEOPLE:
        return photographs(kind.name, count, rng)
    if kind.name == SMALL:
        return small_faces(count, rng)
    draw = (drawings.KINDS | skin.KINDS)[kind.name]
    return [draw(rng) for _ in range(count)]
