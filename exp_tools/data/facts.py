"""What is known of a data set before anybody opens it: its files, licence, classes and counts, as data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exp_tools.data.download.remote_file import RemoteFile
from exp_tools.data.files import write_json

CHOICE = "choice.json"


@dataclass(frozen=True)
class Facts:
    """One published (or anybody's) data set.

    licence is None for images whose licence only their owner knows; classes is None when the labels themselves say
    which there are. `counts` holds what the whole published set must count to, named and nested as in
    `validation.count_table`; a tuple lists several right answers. `folders_are_labels`: a second copy of an image in
    another folder says something and is no mere copy. `masks`: how the names of images end that belong to others;
    `lesion_masks`: those of them that show where the lesion is.
    """

    title: str
    licence: str | None = None
    citation: str = ""
    where: str = ""
    classes: tuple[str, ...] | None = None
    files: tuple[RemoteFile, ...] = ()
    folders_are_labels: bool = False
    masks: tuple[str, ...] = ()
    lesion_masks: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What the user wants of a source: the keys of the parameter section `data`, without the external sets."""

    dir: str | None = None
    second_dir: str | None = None
    table: str | None = None
    test_table: str | None = None
    limit: int | None = None
    seed: int = 0
    sample_images: int = 0


def licence_text(facts: Facts) -> str:
    """The text of LICENCE.txt; "" when the licence is not ours to know."""
    if facts.licence is None:
        return ""
    lines = [facts.title, f"Licence: {facts.licence}", facts.citation, facts.where]
    return "\n".join(line for line in lines if line) + "\n"


def write_choice(raw: Path, **choice: Any) -> None:
    """Note beside the links what the user chose of the origin: `table`, `test_table`, `subset` (image ids)."""
    write_json(raw / CHOICE, {**read_choice(raw), **choice})


def read_choice(raw: Path) -> dict[str, Any]:
    """What `write_choice` noted; empty when nothing was chosen."""
    path = raw / CHOICE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
