"""How a table with columns and words of its own is read: the ready mappings, and what the user adds in `data`.

A ready mapping is a file `mappings/NAME.yaml`; `data.source=NAME` takes it.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from exp_tools.param_types import Column

FOLDER = Path(__file__).with_name("mappings")
COLUMNS = get_args(Column)
Names = str | list[str]


class Mapping(BaseModel):
    """What a mapping file may say; all but `title` may be left out.

    title, licence, citation, where, note : facts; `note` is printed with the licence
    counts : as in `registry.DatasetSpec`
    base : the mapping that this one adds to
    archived : whether `data.query` can download it from the ISIC Archive
    columns : our column: its name in the table, or several names, of which those that are there count: the first cell
        that is not empty; for dx the first that is a known diagnosis
    classes : word: the code that it means, null to leave these rows out
    values : our column: {word: what it means}, in any case
    filter : column of the table: the word, or words, of which one must be in its cell
    one_hot : column of the table: the code that a 1 in it means; `otherwise` the code of rows without any 1
    join : a column by which a second table below the folder adds what the first lacks
    header : the names of the columns of a table that has none
    splits : part of a table's file name: the split of its rows. All tables that fit are read then, not only one
    indexes : file with a column `indexes` of row numbers from 0: their split
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    licence: str | None = None
    citation: str = ""
    where: str = ""
    note: str = ""
    counts: dict[str, Any] = {}
    base: str | None = None
    archived: bool = False
    columns: dict[Column, Names] = {}
    classes: dict[str, str | None] = {}
    values: dict[Column, dict[str, str]] = {}
    filter: dict[str, Names] = {}
    one_hot: dict[str, str] = {}
    otherwise: str = ""
    join: str | None = None
    header: list[str] = []
    splits: dict[str, Literal["train", "val", "test"]] = {}
    indexes: dict[str, Literal["train", "val", "test"]] = {}

    def names_of(self, column: str) -> list[str]:
        """The table's names of one of our columns, its own among them."""
        names = self.columns.get(column, column)  # type: ignore[call-overload]
        return [names] if isinstance(names, str) else list(names)

    def with_options(self, options: dict[str, Any]) -> "Mapping":
        """The mapping with the user's columns, classes and filter, which go before its own."""
        chosen = {key: getattr(self, key) | options[key] for key in ("columns", "classes", "filter") if key in options}
        return self.model_copy(update=chosen)


PLAIN = Mapping(title="your own images and table")
"""A table in our own columns."""


def ready_mappings() -> list[str]:
    """Names of the mappings that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_mapping(name: str) -> Mapping:
    """A ready mapping by its name, with that which it adds to."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if "base" not in content:
        return Mapping.model_validate(content)
    base = load_mapping(content["base"]).model_dump(exclude_unset=True)
    both = {key: base[key] | value for key, value in content.items() if isinstance(value, dict) and key in base}
    return Mapping.model_validate(base | content | both)
