"""The data sources by name: `data.source` names a module of this package or a ready mapping (`mapping.py`).

A source is a module in `exp_tools/data/sources/` with

`FACTS`             what is known of the set: files, licence, classes, counts (`facts.Facts`)
`read(raw)`         the rows of the folder's tables as text: columns of `validation.COLUMNS`, as many as it knows;
                    `file` is the path of the image, "" when there is none, `table` the table's name; the index is
                    the row in that table, unless there is a column `row`
`OPTIONS`           those of OPTIONS_OF_TABLES that it reads, from `read_options(raw)`; `query`: isic-cli downloads it
`PARTS`             only in a source that is made of others: their names, each with the key that names its folder
`provide(…)`        only in a source that makes its files itself
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from exp_tools.data.labels.validate import complete
from exp_tools.data.sources.mapping import load_mapping, ready_mappings
from exp_tools.io import write_json
from exp_tools.taxonomy import DIAGNOSES


@dataclass(frozen=True)
class RemoteFile:
    """A file as a source declares it.

    name : what it is called in the store
    url : where it is
    size, md5 : bytes and hexadecimal digest; None where they are not published
    archive : it will be unpacked, so room for twice its size is asked for (photographs do not get smaller in archives)
    """

    name: str
    url: str
    size: int | None
    md5: str | None
    archive: bool = False


OPTIONS_FILE = "choice.json"
OPTIONS_OF_TABLES = ("columns", "classes", "filter", "licences")
"""The user's options about tables, which a source reads if its `OPTIONS` says so."""


@dataclass(frozen=True)
class DatasetSpec:
    """One published (or anybody's) data set.

    licence is None for images whose licence only their owner knows; classes is None when the labels themselves say
    which there are. `note` is what a user must know beside the licence. `counts` holds what the whole published set
    must count to, named and nested as in `validate.count_table`; a tuple lists several right answers.
    `folders_are_labels`: a second copy of an image in another folder says something and is not a mere copy. `masks`:
    how the names of images end that belong to others; `lesion_masks`: those of them that show where the lesion is.
    """

    title: str
    licence: str | None = None
    citation: str = ""
    where: str = ""
    classes: tuple[str, ...] | None = None
    files: tuple[RemoteFile, ...] = ()
    folders_are_labels: bool = False
    note: str = ""
    masks: tuple[str, ...] = ()
    lesion_masks: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceOptions:
    """The user's options for a source: the keys of the parameter section `data`, without the external sets."""

    dir: str | None = None
    second_dir: str | None = None
    table: str | None = None
    test_table: str | None = None
    columns: Mapping[str, Any] | None = None
    classes: Mapping[str, str | None] | None = None
    filter: Mapping[str, Any] | None = None
    licences: list[str] | None = None
    query: str | None = None
    limit: int | None = None
    seed: int = 0
    sample_images: int = 0


def licence_text(facts: DatasetSpec) -> str:
    """The text of LICENCE.txt; "" when the licence is not ours to know."""
    if facts.licence is None:
        return ""
    lines = [facts.title, f"Licence: {facts.licence}", facts.citation, facts.where, facts.note]
    return "\n".join(line for line in lines if line) + "\n"


def write_options(raw: Path, **choice: Any) -> None:
    """Record next to the links what the user chose: `table`, `columns`, …, and `subset` (image ids)."""
    write_json(raw / OPTIONS_FILE, {**read_options(raw), **choice})


def read_options(raw: Path) -> dict[str, Any]:
    """The user's recorded choices; empty when there are none."""
    path = raw / OPTIONS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


DRAWN = DatasetSpec(
    "Drawn pictures, no medical data",
    classes=tuple(DIAGNOSES),
    masks=("_segmentation",),
    lesion_masks=("_segmentation",),
)
"""The facts of a source that declares none: the embedded sample set."""


class MappedSource:
    """A source that is a ready mapping of a table, with the attributes of a module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mapping = load_mapping(name)
        self.OPTIONS = (*OPTIONS_OF_TABLES, "query") if self.mapping.archived else OPTIONS_OF_TABLES
        facts = ("title", "licence", "citation", "where", "note", "counts")
        self.FACTS = DatasetSpec(**{key: getattr(self.mapping, key) for key in facts})

    def read(self, raw: Path) -> pd.DataFrame:
        """The rows of the set's table."""
        from exp_tools.data.sources.table import read_mapped

        return read_mapped(raw, self.mapping, self.name)


def load_source(name: str) -> Any:
    """A source by its name: a module of this package, or a ready mapping."""
    if name in ready_mappings():
        return MappedSource(name)
    return importlib.import_module(f"exp_tools.data.sources.{name}")


def spec_of(name: str) -> DatasetSpec:
    """The specification of a source."""
    return getattr(load_source(name), "FACTS", DRAWN)


def read_source(name: str, raw: Path) -> pd.DataFrame:
    """The rows of the data in `raw` as text, all of `validation.COLUMNS` and `row`, indexed from 0.

    `attrs["notes"]`: what a reader must know of how they were read, one sentence each; `attrs["left_out"]`: ids of
    images whose rows the user left out.
    """
    read = load_source(name).read(raw)
    table = complete(read)
    subset = read_options(raw).get("subset")
    if subset is not None:
        table = table[table["image_id"].isin(subset)].reset_index(drop=True)
    table.attrs |= {key: read.attrs.get(key, []) for key in ("notes", "left_out")}
    return table


def by_words(cells: pd.Series, meanings: Mapping[str, Any]) -> pd.Series:
    """Cells with the meaning of each word, whatever its case; others as they are."""
    plain = {word.strip().casefold(): meaning for word, meaning in meanings.items()}
    listed = cells.str.strip().str.casefold()
    return cells.where(~listed.isin(plain), listed.map(plain))
